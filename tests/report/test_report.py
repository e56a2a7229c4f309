"""The content of the report, compared with the shards and tables of its run."""

import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clustering.projection import project_nodes
from pipeline.clustering.tree import Tree
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.graph import runner
from pipeline.graph.build import build_report_step
from pipeline.report import cluster_map, page
from pipeline.report.comparison import find_differences
from pipeline.report.page_content import collect_content, estimate_training
from pipeline.results.cluster_names import ClusterName
from pipeline.results.run_results import RunResults
from pipeline.results.terminal_summary import render_results
from pipeline.results.uncertainty import SAMPLE_MULTIPLES, estimate_error, measure_sample_influence
from pipeline.stages.report import NEW_CORPUS, map_leaves_to_nodes
from tests.support.corpora import make_topic_config
from tests.support.processes import ROOT
from tests.support.rendering import render
from tests.support.report_data import HOSTILE_TEXTS, make_many_cluster_content
from tests.support.tree_oracle import fit_tree


@pytest.fixture(scope="module")
def tree() -> Tree:
    """A tree on nine blobs, three near three corners each."""
    random = np.random.default_rng(0)
    corner_N2 = np.repeat(np.array([[0, 0], [10, 0], [0, 10]], float), 300, axis=0)
    blob_N2 = np.tile(np.repeat(np.array([[0, 0], [1, 0], [0, 1]], float), 100, axis=0), (3, 1))
    x_ND = (corner_N2 + blob_N2 + 0.05 * random.normal(size=(900, 2))).astype(np.float32)
    key_N = np.arange(900, dtype=np.uint64)
    return fit_tree(x_ND, key_N, branching=3, depth=2, fit_windows=900, steps=10, balance=1.5, min_windows=10, seed=0)


@pytest.fixture(scope="module")
def run(full_feature_run: PipelineGraph) -> PipelineGraph:
    return full_feature_run


@pytest.fixture(scope="module")
def content(run: PipelineGraph) -> dict[str, Any]:
    return collect_content(RunResults(run, build_report_step(run)))


def shards_of(run: PipelineGraph) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(Path(run.shards.path).glob("*.parquet")))


def test_leaves_of_one_node_lie_together_on_the_map(tree: Tree) -> None:
    place_N2 = project_nodes(tree, tree.leaf_nodes, seed=0)
    assert np.abs(place_N2).max() == pytest.approx(1)
    distance_NN = np.linalg.norm(place_N2[:, None] - place_N2[None], axis=2) + 9 * np.eye(len(place_N2))
    parent_N = tree.parent_V[tree.leaf_nodes]
    assert (parent_N[distance_NN.argmin(axis=1)] == parent_N).all()
    assert np.array_equal(place_N2, project_nodes(tree, tree.leaf_nodes, seed=0))


def test_a_tree_that_is_one_leaf_or_two_has_places() -> None:
    assert project_nodes(Tree.root_only(5, 3), np.zeros(1, np.int32), seed=0).tolist() == [[0, 0]]
    x_ND = np.array([[0, 0], [1, 1]] * 20, np.float32)
    two = fit_tree(
        x_ND, np.arange(40, dtype=np.uint64), branching=2, depth=1, fit_windows=40, steps=5, balance=1.5, min_windows=1, seed=0
    )
    place_N2 = project_nodes(two, two.leaf_nodes, seed=0)
    assert sorted(place_N2[:, 0]) == pytest.approx([-1, 1])
    assert place_N2[:, 1] == pytest.approx([0, 0], abs=1e-12)


def test_the_map_ends_at_the_deepest_level_that_can_be_shown(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    assert map_leaves_to_nodes(tree).tolist() == tree.leaf_nodes.tolist()
    monkeypatch.setattr("pipeline.stages.report._MAX_MAP_NODES", 8)
    assert set(map_leaves_to_nodes(tree).tolist()) == {1, 2, 3}
    monkeypatch.setattr("pipeline.stages.report._MAX_MAP_NODES", 2)
    assert set(map_leaves_to_nodes(tree).tolist()) == {0}


@given(st.lists(st.floats(0.001, 0.2), min_size=1, max_size=20))
def test_expected_error_equals_that_of_simulated_shares(sigmas: list[float]) -> None:
    sigma_L = np.array(sigmas)
    error = estimate_error(0.5 - 1.6448536 * sigma_L, 0.5 + 1.6448536 * sigma_L)
    assert error is not None
    random = np.random.default_rng(0)
    drawn = np.abs(random.normal(size=(20_000, len(sigmas))) * sigma_L).sum(axis=1).mean() / 2
    assert error == pytest.approx(drawn, rel=0.05)


def test_without_intervals_the_error_is_unknown() -> None:
    assert estimate_error(np.full(3, np.nan), np.full(3, np.nan)) is None


def test_sample_influence_is_the_sample_fraction_of_the_counts(tree: Tree) -> None:
    windows_L = np.array([6, 0, 0, 2, 2, 0, 0, 0, 0])
    one, two = measure_sample_influence(tree, windows_L, [5.0, float("inf")])
    assert (one.level, one.num_nodes) == (1, 2)
    assert one.fractions == pytest.approx([10 * m / (10 * m + 5) for m in SAMPLE_MULTIPLES])
    assert (two.level, two.num_nodes, two.fractions) == (2, 3, (0.0,) * len(SAMPLE_MULTIPLES))
    finite = measure_sample_influence(tree, windows_L, [0.0, 2.0])[1]
    assert finite.fractions[0] == pytest.approx((6 * 6 / 8 + 4 * 4 / 6) / 10)


def test_training_hours_use_six_flops_per_parameter_and_token() -> None:
    (small, *_, large) = estimate_training(1e12, 2.0)
    assert large["hours"] == pytest.approx(6 * 7e9 * 1e12 / 4e14 / 3600)
    assert large["price"] == pytest.approx(2 * large["hours"])
    assert estimate_training(1e12, 0.0)[0] == {**small, "price": None}


@settings(max_examples=15)
@given(st.integers(1, 4096), st.integers(1, 10), st.sampled_from(["x", "é", "한"]))
def test_excerpts_of_any_number_fit_the_page(nodes: int, kinds: int, letter: str) -> None:
    texts = [[letter * 1200, f"document-{n}", n, 1] for n in range(3)]
    kept = cluster_map.fit_excerpts({str(node): {f"s{kind}": [*texts] for kind in range(kinds)} for node in range(nodes)})
    size = len(json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode())
    assert size < 6_000_000
    assert len(kept) == nodes
    assert all(1 <= len(texts) <= 3 for of in kept.values() for texts in of.values())
    if nodes * kinds <= 1000:
        assert all(len(text) >= 100 for of in kept.values() for texts in of.values() for text, *_ in texts)


def test_sample_shares_are_those_of_the_sample_and_not_of_the_mixture(run: PipelineGraph, content: dict[str, Any]) -> None:
    nodes, held, drawn = content["nodes"], {}, Counter[int]()
    for number, name in enumerate(content["specialists"]):
        tokens: Counter[int] = Counter()
        for part in run.step("assign", name).manifest["parts"]:
            for row in run.step("assign", name).folder.read_table(f"{part['name']}.parquet").to_pylist():
                tokens[row["leaf"]] += row["tokens"] * (row["leaf"] >= 0)
        for row, leaf in enumerate(nodes["leaf"]):
            if leaf >= 0:
                assert nodes[f"sample{number}"][row] == pytest.approx(tokens[leaf] / tokens.total(), abs=1e-5)
        held[name] = tokens
    for row in shards_of(run).to_pylist():
        drawn[row["cluster"]] += row["tokens"]
    corpus = {leaf: share for leaf, share in zip(nodes["leaf"], nodes["before"], strict=True) if leaf >= 0}
    for name, tokens in held.items():
        inside = [leaf for leaf in tokens if tokens[leaf] and drawn[leaf]]
        scale = sum(tokens[leaf] for leaf in inside)
        kl = sum(tokens[leaf] / scale * np.log(tokens[leaf] / scale / (drawn[leaf] / drawn.total())) for leaf in inside)
        assert content["uncertainty"][name]["kl_after"] == pytest.approx(kl, rel=1e-3, abs=1e-6)
        inside = [leaf for leaf in tokens if tokens[leaf] and corpus[leaf]]
        scale = sum(tokens[leaf] for leaf in inside)
        kl = sum(tokens[leaf] / scale * np.log(tokens[leaf] / scale / corpus[leaf]) for leaf in inside)
        assert content["uncertainty"][name]["kl_before"] == pytest.approx(kl, rel=1e-3)


def test_max_copies_do_not_exceed_those_in_the_shards(run: PipelineGraph, content: dict[str, Any]) -> None:
    copies = Counter((row["doc_id"], row["window"], row["parent"], row["style"]) for row in shards_of(run).to_pylist())
    assert content["repetition"]["max_copies"] >= 1
    assert content["repetition"]["max_copies"] <= max(copies.values())


def test_sources_that_only_a_sample_has_are_omitted(content: dict[str, Any]) -> None:
    # Rows of the samples have their topic as source, like those of the corpus.
    assert {key for row in content["sources"] for key in row} == {"source", "before", "after", "sample0", "sample1"}


def test_sampled_tokens_of_each_cluster_are_those_of_the_shards(run: PipelineGraph, content: dict[str, Any]) -> None:
    sampled: Counter[int] = Counter()
    first_copy: Counter[int] = Counter()
    rewritten: Counter[int] = Counter()
    for row in shards_of(run).to_pylist():
        sampled[row["cluster"]] += row["tokens"]
        first_copy[row["cluster"]] += row["tokens"] * (row["copy"] == 0)
        rewritten[row["cluster"]] += row["tokens"] * (row["origin"] == "rephrased")
    nodes = content["nodes"]
    leaves = [row for row, leaf in enumerate(nodes["leaf"]) if leaf >= 0]
    assert len(leaves) == run.step("cluster").manifest["leaves"]
    for row in leaves:
        leaf = nodes["leaf"][row]
        counts = [nodes[f"{name}_tokens"][row] for name in ("sampled", "first_copy", "rewritten")]
        assert counts == [sampled[leaf], first_copy[leaf], rewritten[leaf]]
        assert nodes["after"][row] == pytest.approx(sampled[leaf] / sampled.total(), abs=1e-5)
    assert nodes["sampled_tokens"][0] == sampled.total()
    assert rewritten.total() > 0


def test_an_inner_node_is_the_sum_of_its_children(content: dict[str, Any]) -> None:
    nodes = content["nodes"]
    for row, node in enumerate(nodes["node"]):
        below = [i for i, parent in enumerate(nodes["parent"]) if parent == node]
        if below:
            for name in ("tokens", "windows", "sampled_tokens", "sample_windows0", "leaves"):
                assert nodes[name][row] == sum(nodes[name][i] for i in below)
            for name in ("before", "after", "sample1"):
                assert nodes[name][row] == pytest.approx(sum(nodes[name][i] for i in below), abs=1e-4)
            assert nodes["low0"][row] is None


def test_excerpts_belong_to_the_cluster_that_shows_them(run: PipelineGraph, content: dict[str, Any]) -> None:
    assigned, windows = run.step("assign", "generalist"), run.windows_step("generalist")
    leaf_of: dict[tuple[str, int], int] = {}
    text_of: dict[tuple[str, int], str] = {}
    for part in assigned.manifest["parts"]:
        leaves = assigned.folder.read_table(f"{part['name']}.parquet")["leaf"].to_pylist()
        for leaf, row in zip(leaves, windows.folder.read_table(f"{part['name']}.parquet").to_pylist(), strict=True):
            leaf_of[row["doc_id"], row["window"]] = leaf
            text_of[row["doc_id"], row["window"]] = row["text"]
    table = build_report_step(run).folder.read_table("excerpts.parquet").to_pylist()
    tree = Tree.from_table(run.step("cluster").folder.read_table("tree.parquet"))
    copies: Counter[tuple[str, int]] = Counter()
    for row in shards_of(run).to_pylist():
        if row["origin"] == "raw":
            copies[row["doc_id"], row["window"]] += 1
    seen = Counter(row["corpus"] for row in table)
    for row in table:
        if row["corpus"] in ("generalist", NEW_CORPUS):
            identity = row["doc_id"], row["window"]
            assert tree.leaf_nodes[leaf_of[identity]] == row["node"]
            assert text_of[identity].startswith(row["text"])
            assert row["copies"] == copies[identity]
            assert row["copies"] or row["corpus"] == "generalist"
    assert seen.keys() == {"generalist", NEW_CORPUS, "legal", "kitchen"}
    # Up to three of each cluster: those with the lowest hashes, whatever the parts.
    held = Counter(leaf for leaf in leaf_of.values() if leaf >= 0)
    shown = Counter(row["node"] for row in table if row["corpus"] == "generalist")
    assert shown == {int(tree.leaf_nodes[leaf]): min(3, number) for leaf, number in held.items()}


def test_removed_rows_are_counted_with_examples(run: PipelineGraph, content: dict[str, Any]) -> None:
    groups = {group["what"]: group for group in content["removed"]}
    assert groups["quarantined"]["count"] == 1
    assert groups["dropped by RegexFilter"]["count"] == 3
    assert groups["near-duplicates"]["count"] >= 1
    assert groups["contaminated with held-out text"]["count"] == 1
    assert "leaked" in groups["contaminated with held-out text"]["examples"][0]["where"]
    for group in groups.values():
        assert group["examples"]
        assert group["count"] == sum(number for _, number in group["reasons"])


def test_rewrites_are_shown_with_their_source(run: PipelineGraph, content: dict[str, Any]) -> None:
    rephrased = run.step("rephrase").folder
    passages = pa.concat_tables(
        rephrased.child("passages").read_table(name) for name in rephrased.child("passages").names(".parquet")
    )
    requests = pa.concat_tables(
        rephrased.child("requests").read_table(name) for name in rephrased.child("requests").names(".parquet")
    )
    source_of = dict(zip(requests["key"].to_pylist(), requests["text"].to_pylist(), strict=True))
    known = {(row["style"], source_of[row["key"]], row["text"]) for row in passages.to_pylist()}
    pairs = build_report_step(run).folder.read_table("rewrite_examples.parquet").to_pylist()
    assert {pair["style"] for pair in pairs} == {"wikipedia", "qa"}
    for pair in pairs:
        assert any(
            pair["style"] == style and source.startswith(pair["source_text"]) and text.startswith(pair["text"])
            for style, source, text in known
        )
    for style in content["rephrasing"]["styles"]:
        assert sum(style["outcomes"].values()) == style["prompts"]


def test_summary_agrees_with_the_manifest(run: PipelineGraph, content: dict[str, Any]) -> None:
    manifest = run.shards.read_json("_manifest.json")
    assert len(content["summary"]["sentences"]) == 5  # both corpora, two specialists, uncertainty
    assert len(content["summary"]["numbers"]) == 6
    assert f"{manifest['tokens']:,} tokens" in content["summary"]["sentences"][1]
    assert content["summary"]["numbers"][0]["value"] == f"{manifest['tokens']:,}"
    first = sum(row["tokens"] for row in shards_of(run).to_pylist() if row["copy"] == 0)
    assert content["summary"]["numbers"][1]["value"] == f"{100 * first / manifest['tokens']:.1f}%"


def test_the_terminal_shows_the_findings_of_the_page(run: PipelineGraph, content: dict[str, Any]) -> None:
    text = render(render_results(RunResults(run, build_report_step(run))))
    summary = content["summary"]
    assert len(summary["warnings"]) >= 1
    assert [line for line in (*summary["sentences"], *summary["warnings"]) if line not in text] == []


def test_hostile_text_never_becomes_markup(run: PipelineGraph) -> None:
    html = (Path(run.workdir.path) / "report.html").read_text(encoding="utf-8")
    visible, _, rest = html.partition('<script type="application/json" id="data">')
    data, _, scripts = rest.partition("</script>")
    for text in HOSTILE_TEXTS:
        assert text not in visible
        assert text not in data
    assert "&lt;script&gt;window.hurt" in visible  # present, as text
    assert not set("<>\u2028\u2029") & set(data)
    assert "window.hurt" in json.dumps(json.loads(data))
    assert "window.hurt" not in scripts
    found = Attributes()
    found.feed(html)
    assert not [name for name, _ in found.seen if name.startswith("on") or name in ("src", "srcset", "action", "data")]
    assert {value[0] for name, value in found.seen if name == "href"} == {"#"}
    assert not found.tags & {"iframe", "img", "svg", "object", "embed", "link", "base", "form"}


class Attributes(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.seen += [(name, value or "") for name, value in attrs]


def test_a_current_page_is_kept_and_a_deleted_one_is_rewritten_for_the_sampled_corpus(run: PipelineGraph) -> None:
    path = Path(run.workdir.path) / "report.html"
    before = path.stat().st_mtime_ns
    runner.curate(run.config)
    assert path.stat().st_mtime_ns == before
    path.unlink()
    runner.weights(run.config)  # stops after the weights, but the page still describes the sampled corpus
    assert "not sampled yet" not in path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, ray_session: Any) -> tuple[Path, Path]:
    """Configs of two runs on one corpus with different weights."""
    folder = tmp_path_factory.mktemp("pair")
    settings = make_topic_config(folder, 60)
    files = []
    for name, weights in (("one", {"natural_share": 0.0}), ("other", {"natural_share": 0.9})):
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**settings, "workdir": str(folder / name), "weights": weights}), encoding="utf-8")
        files.append(file)
    return files[0], files[1]


def job(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.ray
def test_a_report_before_sampling_describes_the_target_mixture(pair: tuple[Path, Path]) -> None:
    one, other = pair
    early = job("report", "--config", str(one))
    assert early.returncode == 2
    assert "crispwrap weights" in early.stderr
    run = runner.weights(load_config(one))
    html = (Path(run.workdir.path) / "report.html").read_text(encoding="utf-8")
    assert "not sampled yet" in html
    alone = job("report", "--config", str(one), "--against", str(other))
    assert alone.returncode == 2
    assert "has not finished sampling" in alone.stderr


@pytest.mark.ray
def test_two_runs_are_compared_window_by_window(pair: tuple[Path, Path]) -> None:
    one, other = (runner.curate(load_config(path)) for path in pair)
    done = job("report", "--config", str(pair[0]), "--against", str(pair[1]))
    assert done.returncode == 0, done.stderr
    html = Path(done.stdout.strip()).read_text(encoding="utf-8")
    copies = [Counter((row["doc_id"], row["window"], row["tokens"]) for row in shards_of(run).to_pylist()) for run in (one, other)]
    same = sum(tokens * number for (*_, tokens), number in (copies[0] & copies[1]).items())
    least = min(sum(tokens * number for (*_, tokens), number in counts.items()) for counts in copies)
    assert f"{100 * same / least:.1f}% of the tokens of the smaller one, window by window" in html
    assert "Comparison with other" in html
    assert "<code>weights.natural_share</code>" in html
    # Its clusters have the shares of both runs' shards.
    section = html.partition('id="comparison"')[2].partition("</section>")[0]
    rows = re.findall(
        r"<tr><td>(\d+)  .*?</td><td class=\"n\">(.*?)%</td><td class=\"n\">(.*?)%</td><td class=\"n\">(.*?)%</td>", section
    )
    assert rows
    for leaf, _, this_share, other_share in rows:
        for run, share in ((one, this_share), (other, other_share)):
            table = shards_of(run)
            held = sum(row["tokens"] for row in table.to_pylist() if row["cluster"] == int(leaf))
            assert float(share) == pytest.approx(100 * held / sum(table["tokens"].to_pylist()), abs=0.006)


@pytest.mark.ray
def test_a_run_with_deleted_parts_is_an_error(pair: tuple[Path, Path]) -> None:
    run = runner.curate(load_config(pair[0]))
    manifest = Path(run.step("prepare", "generalist").folder.path) / "manifest.json"
    kept = manifest.read_bytes()
    manifest.unlink()
    done = job("report", "--config", str(pair[0]))
    manifest.write_bytes(kept)
    assert done.returncode == 2
    assert "prepare generalist is not" in done.stderr


def test_settings_that_differ_are_named_with_both_values(pair: tuple[Path, Path]) -> None:
    rows = find_differences(*(load_config(path) for path in pair))
    assert {row["setting"]: (row["this"], row["other"]) for row in rows if row["setting"].startswith("weights")} == {
        "weights.natural_share": ("0.0", "0.9")
    }
    assert {row["setting"] for row in rows} == {"weights.natural_share", "workdir"}
    # Defaults are resolved first: an explicit default is not a difference.
    silent, loud = (
        load_config(pair[0], ["weights.natural_share=null", *more])
        for more in ((), ("weights.natural_share=0.1", "weights.sharpness=2", "weights.repeat_exponent=0.25"))
    )
    assert find_differences(silent, loud) == []
    (row,) = (row for row in find_differences(silent, load_config(pair[0])))
    assert (row["setting"], row["this"], row["other"]) == ("weights.natural_share", "0.1", "0.0")


def test_a_missing_package_does_not_fail_the_run_and_is_named(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, ray_session: Any
) -> None:
    run = runner.curate(load_config(pair[0]))
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    (Path(run.workdir.path) / "report.html").unlink()
    assert runner.curate(load_config(pair[0])).shards.exists("_manifest.json")
    assert not (Path(run.workdir.path) / "report.html").exists()
    with pytest.raises(ConfigError, match=r"crispwrap\[report\]"):
        runner.report(load_config(pair[0]))


def test_a_cluster_is_named_by_its_title_or_else_its_terms() -> None:
    nodes = pa.table(
        {"first_leaf": [0, 0, 1], "num_leaves": [2, 1, 1], "terms": ["court, oven", "court, judge", "oven, \x1bdough"]}
    )
    shares: Any = SimpleNamespace(names={0: ClusterName("Rulings of courts", "court, judge"), 1: ClusterName("", "oven")})
    named = cluster_map._build_name_columns(nodes, shares)
    assert named["name"] == ["court, oven", "Rulings of courts", "oven, \N{REPLACEMENT CHARACTER}dough"]
    assert named["terms"] == ["", "court, judge", ""]


def test_a_page_of_4096_clusters_is_smaller_than_ten_megabytes() -> None:
    assert len(page.render_page(make_many_cluster_content(64)).encode()) < 10_000_000
