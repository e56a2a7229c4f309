"""What the report says, against what the shards and tables of its run hold."""

import copy
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
from pipeline.clustering.tree import Tree, fit_tree
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.graph import runner
from pipeline.graph.graph import build_report_step
from pipeline.hashing import keyed_uniform
from pipeline.report import atlas, page
from pipeline.report.certainty import MULTIPLES, expected_error, levels
from pipeline.report.comparison import differing
from pipeline.report.facts import facts, training
from pipeline.report.material import Material
from pipeline.results.cluster_names import Name
from pipeline.stages.report import OF_DRAWN, mapped
from tests.support.corpora import topic_run
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.processes import ROOT
from tests.support.reported import HOSTILE, everything, many_clusters


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
def made(tmp_path_factory: pytest.TempPathFactory, ray_session: Any) -> PipelineGraph:
    """A run with everything in it, and its page."""
    with FakeEndpoint() as fake:
        return runner.curate(copy.deepcopy(everything(tmp_path_factory.mktemp("everything"), fake)))


@pytest.fixture(scope="module")
def told(made: PipelineGraph) -> dict[str, Any]:
    return facts(Material.of(made, build_report_step(made, drawn=True), drawn=True))


def shards_of(made: PipelineGraph) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(Path(made.shards.path).glob("*.parquet")))


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
    assert mapped(tree).tolist() == tree.leaf_nodes.tolist()
    monkeypatch.setattr("pipeline.stages.report._MOST_NODES", 8)
    assert set(mapped(tree).tolist()) == {1, 2, 3}
    monkeypatch.setattr("pipeline.stages.report._MOST_NODES", 2)
    assert set(mapped(tree).tolist()) == {0}


@given(st.lists(st.floats(0.001, 0.2), min_size=1, max_size=20))
def test_the_error_is_what_samples_from_the_intervals_give(sigmas: list[float]) -> None:
    sigma_L = np.array(sigmas)
    error = expected_error(0.5 - 1.6448536 * sigma_L, 0.5 + 1.6448536 * sigma_L)
    assert error is not None
    random = np.random.default_rng(0)
    drawn = np.abs(random.normal(size=(20_000, len(sigmas))) * sigma_L).sum(axis=1).mean() / 2
    assert error == pytest.approx(drawn, rel=0.05)


def test_without_intervals_no_error_is_told() -> None:
    assert expected_error(np.full(3, np.nan), np.full(3, np.nan)) is None


def test_what_a_sample_decides_is_its_part_of_the_counts(tree: Tree) -> None:
    windows_L = np.array([6, 0, 0, 2, 2, 0, 0, 0, 0])
    one, two = levels(tree, windows_L, [5.0, float("inf")])
    assert (one.level, one.nodes) == (1, 2)
    assert one.decided == pytest.approx([10 * m / (10 * m + 5) for m in MULTIPLES])
    assert (two.level, two.nodes, two.decided) == (2, 3, (0.0,) * len(MULTIPLES))
    finite = levels(tree, windows_L, [0.0, 2.0])[1]
    assert finite.decided[0] == pytest.approx((6 * 6 / 8 + 4 * 4 / 6) / 10)


def test_training_hours_are_six_flops_a_parameter_and_token() -> None:
    (small, *_, large) = training(1e12, 2.0)
    assert large["hours"] == pytest.approx(6 * 7e9 * 1e12 / 4e14 / 3600)
    assert large["price"] == pytest.approx(2 * large["hours"])
    assert training(1e12, 0.0)[0] == {**small, "price": None}


@settings(max_examples=15)
@given(st.integers(1, 4096), st.integers(1, 10), st.sampled_from(["x", "é", "한"]))
def test_excerpts_of_any_number_stay_within_the_page(nodes: int, kinds: int, letter: str) -> None:
    texts = [[letter * 1200, f"document-{n}", n, 1] for n in range(3)]
    kept = atlas.shortened({str(node): {f"s{kind}": [*texts] for kind in range(kinds)} for node in range(nodes)})
    size = len(json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode())
    assert size < 6_000_000
    assert len(kept) == nodes
    assert all(1 <= len(texts) <= 3 for of in kept.values() for texts in of.values())
    if nodes * kinds <= 1000:
        assert all(len(text) >= 100 for of in kept.values() for texts in of.values() for text, *_ in texts)


def test_what_is_called_a_sample_is_the_sample_and_not_what_is_asked_for(made: PipelineGraph, told: dict[str, Any]) -> None:
    nodes, held, drawn = told["nodes"], {}, Counter[int]()
    for number, name in enumerate(told["specialists"]):
        tokens: Counter[int] = Counter()
        for part in made.step("assign", name).manifest["parts"]:
            for row in made.step("assign", name).folder.read_table(f"{part['name']}.parquet").to_pylist():
                tokens[row["leaf"]] += row["tokens"] * (row["leaf"] >= 0)
        for row, leaf in enumerate(nodes["leaf"]):
            if leaf >= 0:
                assert nodes[f"sample{number}"][row] == pytest.approx(tokens[leaf] / tokens.total(), abs=1e-5)
        held[name] = tokens
    for row in shards_of(made).to_pylist():
        drawn[row["cluster"]] += row["tokens"]
    corpus = {leaf: share for leaf, share in zip(nodes["leaf"], nodes["before"], strict=True) if leaf >= 0}
    for name, tokens in held.items():
        inside = [leaf for leaf in tokens if tokens[leaf] and drawn[leaf]]
        scale = sum(tokens[leaf] for leaf in inside)
        kl = sum(tokens[leaf] / scale * np.log(tokens[leaf] / scale / (drawn[leaf] / drawn.total())) for leaf in inside)
        assert told["certainty"][name]["kl_after"] == pytest.approx(kl, rel=1e-3, abs=1e-6)
        inside = [leaf for leaf in tokens if tokens[leaf] and corpus[leaf]]
        scale = sum(tokens[leaf] for leaf in inside)
        kl = sum(tokens[leaf] / scale * np.log(tokens[leaf] / scale / corpus[leaf]) for leaf in inside)
        assert told["certainty"][name]["kl_before"] == pytest.approx(kl, rel=1e-3)


def test_the_most_copies_of_a_window_are_those_of_the_shards(made: PipelineGraph, told: dict[str, Any]) -> None:
    copies = Counter((row["doc_id"], row["window"], row["parent"], row["style"]) for row in shards_of(made).to_pylist())
    assert told["repetition"]["most_copies"] >= 1
    assert told["repetition"]["most_copies"] <= max(copies.values())


def test_a_source_that_only_a_sample_has_is_not_compared(told: dict[str, Any]) -> None:
    # Their rows name their topic as their source, as the corpus's do.
    assert {key for row in told["sources"] for key in row} == {"source", "before", "after", "sample0", "sample1"}


def test_drawn_tokens_of_each_cluster_are_those_of_the_shards(made: PipelineGraph, told: dict[str, Any]) -> None:
    held: Counter[int] = Counter()
    fresh: Counter[int] = Counter()
    rewritten: Counter[int] = Counter()
    for row in shards_of(made).to_pylist():
        held[row["cluster"]] += row["tokens"]
        fresh[row["cluster"]] += row["tokens"] * (row["copy"] == 0)
        rewritten[row["cluster"]] += row["tokens"] * (row["origin"] == "rephrased")
    nodes = told["nodes"]
    leaves = [row for row, leaf in enumerate(nodes["leaf"]) if leaf >= 0]
    assert len(leaves) == made.step("cluster").manifest["leaves"]
    for row in leaves:
        leaf = nodes["leaf"][row]
        assert (nodes["drawn"][row], nodes["fresh"][row], nodes["rewritten"][row]) == (held[leaf], fresh[leaf], rewritten[leaf])
        assert nodes["after"][row] == pytest.approx(held[leaf] / held.total(), abs=1e-5)
    assert nodes["drawn"][0] == held.total()
    assert rewritten.total() > 0


def test_a_group_of_clusters_is_the_sum_of_them(told: dict[str, Any]) -> None:
    nodes = told["nodes"]
    for row, node in enumerate(nodes["node"]):
        below = [i for i, parent in enumerate(nodes["parent"]) if parent == node]
        if below:
            for name in ("tokens", "windows", "drawn", "heard0", "leaves"):
                assert nodes[name][row] == sum(nodes[name][i] for i in below)
            for name in ("before", "after", "sample1"):
                assert nodes[name][row] == pytest.approx(sum(nodes[name][i] for i in below), abs=1e-4)
            assert nodes["low0"][row] is None


def test_excerpts_are_of_the_cluster_that_they_are_shown_for(made: PipelineGraph, told: dict[str, Any]) -> None:
    assigned, windows = made.step("assign", "generalist"), made.windows("generalist")
    leaf_of: dict[tuple[str, int], int] = {}
    text_of: dict[tuple[str, int], str] = {}
    for part in assigned.manifest["parts"]:
        leaves = assigned.folder.read_table(f"{part['name']}.parquet")["leaf"].to_pylist()
        for leaf, row in zip(leaves, windows.folder.read_table(f"{part['name']}.parquet").to_pylist(), strict=True):
            leaf_of[row["doc_id"], row["window"]] = leaf
            text_of[row["doc_id"], row["window"]] = row["text"]
    table = build_report_step(made, drawn=True).folder.read_table("excerpts.parquet").to_pylist()
    tree = Tree.from_table(made.step("cluster").folder.read_table("tree.parquet"))
    copies: Counter[tuple[str, int]] = Counter()
    for row in shards_of(made).to_pylist():
        if row["origin"] == "raw":
            copies[row["doc_id"], row["window"]] += 1
    seen = Counter(row["of"] for row in table)
    for row in table:
        if row["of"] in ("generalist", OF_DRAWN):
            identity = row["doc_id"], row["window"]
            assert tree.leaf_nodes[leaf_of[identity]] == row["node"]
            assert text_of[identity].startswith(row["text"])
            assert row["copies"] == copies[identity]
            assert row["copies"] or row["of"] == "generalist"
    assert seen.keys() == {"generalist", OF_DRAWN, "legal", "kitchen"}
    # Three of each cluster that has so many, and those with the lowest hashes, whatever the parts.
    held = Counter(leaf for leaf in leaf_of.values() if leaf >= 0)
    shown = Counter(row["node"] for row in table if row["of"] == "generalist")
    assert shown == {int(tree.leaf_nodes[leaf]): min(3, number) for leaf, number in held.items()}


def test_what_was_left_out_is_counted_with_examples(made: PipelineGraph, told: dict[str, Any]) -> None:
    groups = {group["what"]: group for group in told["left_out"]}
    assert groups["in quarantine"]["count"] == 1
    assert groups["dropped by RegexFilter"]["count"] == 3
    assert groups["near-duplicates"]["count"] >= 1
    assert groups["hold held-out text"]["count"] == 1
    assert "leaked" in groups["hold held-out text"]["examples"][0]["where"]
    for group in groups.values():
        assert group["examples"]
        assert group["count"] == sum(number for _, number in group["reasons"])


def test_rewrites_are_shown_beside_their_source(made: PipelineGraph, told: dict[str, Any]) -> None:
    rephrased = made.step("rephrase").folder
    passages = pa.concat_tables(
        rephrased.child("passages").read_table(name) for name in rephrased.child("passages").names(".parquet")
    )
    requests = pa.concat_tables(
        rephrased.child("requests").read_table(name) for name in rephrased.child("requests").names(".parquet")
    )
    source_of = dict(zip(requests["key"].to_pylist(), requests["text"].to_pylist(), strict=True))
    known = {(row["style"], source_of[row["key"]], row["text"]) for row in passages.to_pylist()}
    pairs = build_report_step(made, drawn=True).folder.read_table("pairs.parquet").to_pylist()
    assert {pair["style"] for pair in pairs} == {"wikipedia", "qa"}
    for pair in pairs:
        assert any(
            pair["style"] == style and source.startswith(pair["source_text"]) and text.startswith(pair["text"])
            for style, source, text in known
        )
    for style in told["rephrasing"]["styles"]:
        assert sum(style["outcomes"].values()) == style["prompts"]


def test_verdict_says_what_the_manifest_does(made: PipelineGraph, told: dict[str, Any]) -> None:
    manifest = made.shards.read_json("_manifest.json")
    assert len(told["verdict"]["sentences"]) == 3
    assert len(told["verdict"]["numbers"]) == 6
    assert f"{manifest['tokens']:,} tokens" in told["verdict"]["sentences"][1]
    assert told["verdict"]["numbers"][0]["value"] == f"{manifest['tokens']:,}"
    first = sum(row["tokens"] for row in shards_of(made).to_pylist() if row["copy"] == 0)
    assert told["verdict"]["numbers"][1]["value"] == f"{100 * first / manifest['tokens']:.1f}%"


def test_nothing_of_a_hostile_text_is_markup_in_the_page(made: PipelineGraph) -> None:
    html = (Path(made.workdir.path) / "report.html").read_text(encoding="utf-8")
    visible, _, rest = html.partition('<script type="application/json" id="data">')
    data, _, scripts = rest.partition("</script>")
    for text in HOSTILE:
        assert text not in visible
        assert text not in data
    assert "&lt;script&gt;window.hurt" in visible  # it is there, as text
    assert not set("<>\u2028\u2029") & set(data)
    assert "window.hurt" in json.dumps(json.loads(data))
    assert "window.hurt" not in scripts
    found = Attributes()
    found.feed(html)
    assert not [name for name, _ in found.seen if name.startswith("on") or name in ("src", "srcset", "action", "data")]
    assert {value[0] for name, value in found.seen if name == "href"} == {"#"}
    assert not found.tags & {"iframe", "img", "svg", "object", "embed", "link", "base", "form"}


class Attributes(HTMLParser):
    """What a browser would see of a page: its tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.seen += [(name, value or "") for name, value in attrs]


def test_a_page_that_is_there_is_not_made_again_and_one_that_was_deleted_is_made_of_what_was_drawn(made: PipelineGraph) -> None:
    path = Path(made.workdir.path) / "report.html"
    before = path.stat().st_mtime_ns
    runner.curate(made.config)
    assert path.stat().st_mtime_ns == before
    path.unlink()
    runner.weights(made.config)  # goes no further than the weights, and yet the page is of what was drawn
    assert "nothing is drawn yet" not in path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, ray_session: Any) -> tuple[Path, Path]:
    """Configs of two runs on one corpus, with other weights."""
    folder = tmp_path_factory.mktemp("pair")
    settings = topic_run(folder, 60)
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
def test_report_before_anything_is_drawn_is_of_what_is_asked_for(pair: tuple[Path, Path]) -> None:
    one, other = pair
    early = job("report", "--config", str(one))
    assert early.returncode == 2
    assert "jobs/weights.py" in early.stderr
    made = runner.weights(load_config(one))
    html = (Path(made.workdir.path) / "report.html").read_text(encoding="utf-8")
    assert "nothing is drawn yet" in html
    alone = job("report", "--config", str(one), "--against", str(other))
    assert alone.returncode == 2
    assert "has drawn nothing yet" in alone.stderr


@pytest.mark.ray
def test_two_runs_are_compared_window_by_window(pair: tuple[Path, Path]) -> None:
    one, other = (runner.curate(load_config(path)) for path in pair)
    done = job("report", "--config", str(pair[0]), "--against", str(pair[1]))
    assert done.returncode == 0, done.stderr
    html = Path(done.stdout.strip()).read_text(encoding="utf-8")
    copies = [
        Counter((row["doc_id"], row["window"], row["tokens"]) for row in shards_of(made).to_pylist()) for made in (one, other)
    ]
    same = sum(tokens * number for (*_, tokens), number in (copies[0] & copies[1]).items())
    least = min(sum(tokens * number for (*_, tokens), number in counts.items()) for counts in copies)
    assert f"{100 * same / least:.1f}% of the tokens are in the other too" in html
    assert "Against other" in html
    assert "<code>weights.natural_share</code>" in html
    # Its clusters: shares of the shards of each.
    section = html.partition('id="comparison"')[2].partition("</section>")[0]
    rows = re.findall(
        r"<tr><td>(\d+)  .*?</td><td class=\"n\">(.*?)%</td><td class=\"n\">(.*?)%</td><td class=\"n\">(.*?)%</td>", section
    )
    assert rows
    for leaf, _, here, there in rows:
        for made, told in ((one, here), (other, there)):
            table = shards_of(made)
            held = sum(row["tokens"] for row in table.to_pylist() if row["cluster"] == int(leaf))
            assert float(told) == pytest.approx(100 * held / sum(table["tokens"].to_pylist()), abs=0.006)


@pytest.mark.ray
def test_a_run_of_which_parts_were_deleted_is_not_reported_but_said(pair: tuple[Path, Path]) -> None:
    made = runner.curate(load_config(pair[0]))
    manifest = Path(made.step("prepare", "generalist").folder.path) / "manifest.json"
    kept = manifest.read_bytes()
    manifest.unlink()
    done = job("report", "--config", str(pair[0]))
    manifest.write_bytes(kept)
    assert done.returncode == 2
    assert "prepare generalist is not" in done.stderr


def test_settings_that_differ_are_named_with_both_values(pair: tuple[Path, Path]) -> None:
    rows = differing(*(load_config(path) for path in pair))
    assert {row["setting"]: (row["here"], row["there"]) for row in rows if row["setting"].startswith("weights")} == {
        "weights.natural_share": ("0.0", "0.9")
    }
    assert {row["setting"] for row in rows} == {"weights.natural_share", "workdir"}
    # By what is meant by null: the same in other words is no difference.
    silent, loud = (
        load_config(pair[0], ["weights.natural_share=null", *more])
        for more in ((), ("weights.natural_share=0.1", "weights.sharpness=2", "weights.repeat_exponent=0.25"))
    )
    assert differing(silent, loud) == []
    (row,) = (row for row in differing(silent, load_config(pair[0])))
    assert (row["setting"], row["here"], row["there"]) == ("weights.natural_share", "0.1", "0.0")


def test_a_missing_package_leaves_the_run_done_and_says_what_to_install(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, ray_session: Any
) -> None:
    made = runner.curate(load_config(pair[0]))
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    (Path(made.workdir.path) / "report.html").unlink()
    assert runner.curate(load_config(pair[0])).shards.exists("_manifest.json")
    assert not (Path(made.workdir.path) / "report.html").exists()
    with pytest.raises(ConfigError, match=r"crispwrap\[report\]"):
        runner.report(load_config(pair[0]))


def test_a_title_stands_before_the_words_of_a_cluster_and_no_title_beside_them() -> None:
    nodes = pa.table(
        {"first_leaf": [0, 0, 1], "num_leaves": [2, 1, 1], "terms": ["court, oven", "court, judge", "oven, \x1bdough"]}
    )
    shares: Any = SimpleNamespace(names={0: Name("Rulings of courts", "court, judge"), 1: Name("", "oven")})
    named = atlas._names(nodes, shares)
    assert named["name"] == ["court, oven", "Rulings of courts", "oven, \N{REPLACEMENT CHARACTER}dough"]
    assert named["words"] == ["", "court, judge", ""]


def test_a_page_of_4096_clusters_is_smaller_than_ten_megabytes() -> None:
    assert len(page.render(many_clusters(64)).encode()) < 10_000_000


def test_windows_with_the_lowest_hashes_of_each_node_are_kept() -> None:
    from pipeline.stages.report import _lowest_of_each

    random = np.random.default_rng(3)
    node_N = random.integers(-1, 6, 200).astype(np.int32)
    u_N = keyed_uniform(np.arange(200, dtype=np.uint64), seed=1, purpose="test")
    kept = set(_lowest_of_each(node_N, u_N, node_N >= 0, 3).tolist())
    wanted = {row for node in range(6) for row in sorted(np.flatnonzero(node_N == node), key=lambda row: u_N[row])[:3]}
    assert kept == wanted
