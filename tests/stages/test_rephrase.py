"""The rephrase stage on a real Ray and over HTTP: deficits are filled, no request is sent twice, all prompts are counted."""

import collections
import copy
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import pipeline
from pipeline.errors import ConfigError, CrispwrapError, RunError
from pipeline.rewriting.rewrite_use import fill_deficits, fill_uniformly
from pipeline.tables import PASSAGES, SHARDS
from tests.support.corpora import make_topic_documents, read_shard_bytes, write_jsonl
from tests.support.fake_endpoint import Call, FakeEndpoint, Reply, reply_with_rewrite
from tests.support.processes import ROOT, wait_until
from tests.support.results import read_rephrase_table, read_shards

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session", "cached_clusters")]


@pytest.fixture
def fake() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as server:
        yield server


@pytest.fixture
def deficit_config(topics: dict[str, Any], fake: FakeEndpoint) -> dict[str, Any]:
    """A config whose budget is one and a half times the tokens of its topic."""
    return topics | {
        "weights": {"natural_share": 0, "max_epochs": 1.0, "bootstrap": 10},
        "rephrase": {
            "model": "fake",
            "backend": "endpoint",
            "endpoint": {"url": fake.url, "retries": 0},
            "styles": {"wikipedia": 2, "qa": 1},
            "batch": 16,
            "titles": False,
        },
    }


def run(raw: dict[str, Any], until: str = "sample") -> pipeline.PipelineGraph:
    return pipeline.curate(pipeline.parse_config(copy.deepcopy(raw)), until=until)


def test_rewrites_fill_deficits_and_all_prompts_are_counted(deficit_config: dict[str, Any], fake: FakeEndpoint) -> None:
    graph = run(deficit_config)
    manifest = graph.shards.read_json("_manifest.json")
    facts = graph.step("rephrase").manifest
    assert manifest["tokens"] == pytest.approx(20_000, rel=0.005)
    assert manifest["tokens_by_origin"]["rephrased"] == pytest.approx(facts["wanted_tokens"], rel=0.02)
    assert manifest["deficit_tokens"] < 0.02 * facts["wanted_tokens"]
    assert manifest["tokens_by_source"]["law"][1] / manifest["tokens"] > 0.97
    assert facts["ended"] == "met"

    passages = read_rephrase_table(graph, "passages")
    assert passages.schema.equals(PASSAGES)
    assert len(passages) == facts["requests"] == sum(fake.answer_counts.values()) == len(set(passages["key"].to_pylist()))
    assert set(passages["verdict"].to_pylist()) <= {"accepted", "rejected", "quarantined"}
    assert sum(sum(style_counts.values()) for style_counts in facts["outcomes"].values()) == len(passages)
    row = passages.to_pylist()[0]
    assert (row["model"], row["sampling"]) == ("fake", '{"temperature": 0.7, "top_p": 0.95}')
    assert row["prompt_tokens"] > row["source_tokens"] > 0
    counts = collections.Counter(passages["style"].to_pylist())
    assert 1.2 < counts["wikipedia"] / counts["qa"] < 3.4

    shards = read_shards(graph)
    assert shards.schema.equals(SHARDS)
    assert len(set(shards["id"].to_pylist())) == len(shards)
    rewrites = shards.filter(pa.compute.equal(shards["origin"], "rephrased"))
    parents = {f"{row['doc_id']}:{row['window']}" for row in passages.to_pylist()}
    assert set(rewrites["parent"].to_pylist()) <= parents
    assert set(rewrites["copy"].to_pylist()) == {0}
    assert set(rewrites["specialist"].to_pylist()) == {"legal"}
    assert set(rewrites["style"].to_pylist()) == {"wikipedia", "qa"}
    own = {f"{row['doc_id']}:{row['window']}": row["leaf"] for row in passages.to_pylist()}
    clusters = zip(rewrites["parent"].to_pylist(), rewrites["cluster"].to_pylist(), strict=True)
    assert facts["moved"] > 0
    assert any(own[parent] != cluster for parent, cluster in clusters)


def test_second_run_sends_no_request_and_another_style_sends_only_its_own(
    deficit_config: dict[str, Any], fake: FakeEndpoint
) -> None:
    deficit_config["rephrase"]["styles"] = ["wikipedia"]
    run(deficit_config)
    first = collections.Counter(fake.answer_counts)
    run(deficit_config)
    assert fake.answer_counts == first
    deficit_config["rephrase"]["styles"] = ["wikipedia", "qa"]
    graph = run(deficit_config)
    fresh = fake.answer_counts - first
    assert fresh
    assert all("Question:" in prompt for prompt in fresh)
    assert set(read_rephrase_table(graph, "passages")["style"].to_pylist()) == {"wikipedia", "qa"}
    # Other settings that change no prompt: the stored answers are reused.
    sent = collections.Counter(fake.answer_counts)
    deficit_config["sample"]["budget_tokens"] = 18_000
    run(deficit_config)
    assert fake.answer_counts == sent


def test_mode_share_gives_raw_and_rewritten_tokens_in_the_configured_ratio(deficit_config: dict[str, Any]) -> None:
    deficit_config["rephrase"] |= {"mode": "share", "real_to_synthetic": 1.0}
    deficit_config["sample"]["budget_tokens"] = 8_000
    found = run(deficit_config).shards.read_json("_manifest.json")
    assert found["tokens_by_origin"]["rephrased"] == pytest.approx(4000, rel=0.02)
    assert found["tokens_by_origin"]["raw"] == pytest.approx(4000, rel=0.02)


def test_share_that_cannot_be_met_is_reported_and_the_budget_is_met(
    deficit_config: dict[str, Any], fake: FakeEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.behave = lambda call: reply_with_rewrite(call) if call.number % 2 else Reply("I'm sorry, but I can't help with that.")
    deficit_config["weights"]["max_epochs"] = 4.0
    deficit_config["rephrase"] |= {"mode": "share", "real_to_synthetic": 0.1, "styles": ["wikipedia"]}
    graph = run(deficit_config)
    facts, found = graph.step("rephrase").manifest, graph.shards.read_json("_manifest.json")
    assert facts["ended"] == "exhausted"
    assert facts["outcomes"]["wikipedia"]["refusal"] == pytest.approx(facts["requests"] / 2, abs=1)
    assert found["tokens"] == pytest.approx(20_000, rel=0.005)
    assert "almost no text left to rewrite" in " ".join(capsys.readouterr().out.split())


def test_one_two_and_three_workers_write_the_same_bytes(deficit_config: dict[str, Any]) -> None:
    found = []
    for workers in (1, 2, 3):
        raw = copy.deepcopy(deficit_config) | {"workdir": f"{deficit_config['workdir']}-{workers}", "engine": {"workers": workers}}
        run(raw)
        found.append(read_shard_bytes(raw["workdir"]))
    assert found[0] == found[1] == found[2]


def read_stored_keys(workdir: str) -> set[int]:
    return {
        key for path in Path(workdir).glob("answers/*/*.parquet") for key in pq.read_table(path, columns=["key"])["key"].to_pylist()
    }


@pytest.mark.slow
def test_run_killed_while_sending_resumes_without_repeating_stored_requests(
    deficit_config: dict[str, Any], fake: FakeEndpoint, tmp_path: Path
) -> None:
    clean = copy.deepcopy(deficit_config) | {"workdir": f"{deficit_config['workdir']}-clean"}
    run(clean)
    run(deficit_config, until="weights")
    num_requests = before = sum(fake.answer_counts.values())
    # Only some prompts are answered: two workers hold a batch of 4 each, and all other answers are stored.
    fake.behave = lambda call: Reply(reply_with_rewrite(call).text, wait=None if call.number < before + 32 else threading.Event())
    deficit_config["rephrase"]["batch"] = 4
    deficit_config["engine"] = {"workers": 2}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(deficit_config), encoding="utf-8")
    command = [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(config)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {"RAY_ADDRESS": "local"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(read_stored_keys(deficit_config["workdir"])) >= 24, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=300)
    assert not alive, "the workers of a dead driver must end, and so must their writes"
    stored = read_stored_keys(deficit_config["workdir"])
    num_sent = sum(fake.answer_counts.values())
    assert 24 <= len(stored) < num_requests

    fake.behave = reply_with_rewrite
    graph = run(deficit_config)
    num_resent = sum(fake.answer_counts.values()) - num_sent
    assert num_resent == num_requests - len(stored)
    passages = read_rephrase_table(graph, "passages")
    assert len(passages) == len(set(passages["key"].to_pylist())) == num_requests
    assert read_shard_bytes(deficit_config["workdir"]) == read_shard_bytes(clean["workdir"])


def test_prompt_that_always_fails_is_quarantined_and_the_others_are_answered(
    deficit_config: dict[str, Any], fake: FakeEndpoint
) -> None:
    poison: set[str] = set()

    def behave(call: Call) -> Reply:
        if call.number == 7:
            poison.add(call.prompt)
        return Reply("boom", status=500) if call.prompt in poison else reply_with_rewrite(call)

    fake.behave = behave
    deficit_config["max_bad_fraction"] = 0.05
    graph = run(deficit_config)
    facts = graph.step("rephrase").manifest
    (bad,) = [row for row in read_rephrase_table(graph, "passages").to_pylist() if row["verdict"] == "quarantined"]
    assert "500" in bad["detail"]
    assert len(fake.calls) - sum(fake.answer_counts.values()) == 3  # rephrase.attempts
    assert sum(style_counts.get("no_answer", 0) for style_counts in facts["outcomes"].values()) == 1
    assert facts["ended"] == "met"
    # Its error is not stored as an answer: another step sends only this prompt again.
    calls, sent = len(fake.calls), collections.Counter(fake.answer_counts)
    deficit_config["sample"]["budget_tokens"] = 19_900
    run(deficit_config)
    assert fake.answer_counts == sent
    assert len(fake.calls) - calls in (0, 3)


def test_misconfigured_server_ends_the_run_and_stores_nothing_wrong(deficit_config: dict[str, Any], fake: FakeEndpoint) -> None:
    fake.behave = lambda _: Reply("maximum context length is 512 tokens", status=400)
    with pytest.raises(CrispwrapError, match=r"answered none of \d+ prompts .*maximum context length") as raised:
        run(deficit_config)
    assert raised.value.exit_code == 1
    fake.behave = reply_with_rewrite
    assert run(deficit_config).step("rephrase").manifest["ended"] == "met"


def test_refused_prompts_count_towards_max_bad_fraction_and_are_not_retried(
    deficit_config: dict[str, Any], fake: FakeEndpoint
) -> None:
    fake.behave = lambda call: Reply("too long", status=400) if call.number % 4 == 0 else reply_with_rewrite(call)
    with pytest.raises(RunError, match=r"\d+ of \d+ prompts have no answer .*max_bad_fraction = 0\.01 \(.*too long"):
        run(deficit_config)
    calls = len(fake.calls)
    assert max(call.num_earlier_sends for call in fake.calls) == 0
    # A few failing requests do not mean a dead server: with a higher max_bad_fraction, the run succeeds.
    fake.behave = lambda _: Reply("too long", status=400)
    deficit_config["max_bad_fraction"] = 1.0
    graph = run(deficit_config, until="rephrase")
    assert len(fake.calls) > calls
    assert sum(style_counts.get("no_answer", 0) for style_counts in graph.step("rephrase").manifest["outcomes"].values()) > 0


def test_settings_for_reading_held_out_text_change_the_fingerprint(deficit_config: dict[str, Any], tmp_path: Path) -> None:
    held_out = write_jsonl(tmp_path / "test.jsonl", [{"id": "1", "text": "some text", "body": "other"}])
    seen = set()
    for extra in ({}, {"limit": 1}, {"text_key": "body"}, {"id_key": None}):
        deficit_config["rephrase"]["held_out"] = {"paths": [held_out], **extra}
        seen.add(pipeline.build_graph(pipeline.parse_config(deficit_config)).step("rephrase").fingerprint)
    assert len(seen) == 4


def test_too_many_unanswered_prompts_end_the_run_and_answers_are_kept(deficit_config: dict[str, Any], fake: FakeEndpoint) -> None:
    fake.behave = lambda call: Reply("boom", status=500) if hash(call.prompt) % 2 else reply_with_rewrite(call)
    with pytest.raises(RunError, match=r"prompts have no answer after 3 attempts, more than max_bad_fraction = 0\.01 \(.*500"):
        run(deficit_config)
    kept = len(read_stored_keys(deficit_config["workdir"]))
    assert kept > 0
    fake.behave = reply_with_rewrite
    num_sent = sum(fake.answer_counts.values())
    graph = run(deficit_config)
    assert sum(fake.answer_counts.values()) - num_sent == graph.step("rephrase").manifest["requests"] - kept


def test_server_that_dies_ends_the_run_with_one_line_and_the_next_run_resumes(
    deficit_config: dict[str, Any], fake: FakeEndpoint
) -> None:
    fake.die_after = 40
    with pytest.raises(CrispwrapError, match=r"answered none of \d+ prompts .*rephrase\.endpoint names") as raised:
        run(deficit_config)
    assert raised.value.exit_code == 1
    assert "\n" not in str(raised.value)
    stored = len(read_stored_keys(deficit_config["workdir"]))
    assert stored <= 40
    fake.die_after = None
    graph = run(deficit_config)
    assert sum(fake.answer_counts.values()) == 40 - stored + graph.step("rephrase").manifest["requests"]


def test_rewrites_that_overlap_held_out_text_are_rejected(
    deficit_config: dict[str, Any], fake: FakeEndpoint, tmp_path: Path
) -> None:
    secret = "the seventh amendment of this charter was read aloud by nine retired admirals upon a frozen lake in late november"
    fake.behave = lambda call: (
        Reply(f"{reply_with_rewrite(call).text} {secret}.") if call.number % 5 == 0 else reply_with_rewrite(call)
    )
    rows = [{"id": "0", "text": "\n"}, {"id": "1", "text": f"Once {secret}, as is well known."}, {"id": "2", "text": ""}]
    deficit_config["rephrase"]["held_out"] = {"paths": [write_jsonl(tmp_path / "test.jsonl", rows)]}
    graph = run(deficit_config)
    assert graph.step("rephrase").manifest["held_out"] == {"rephrase.held_out": {"rows": 3, "blank": 2}}
    reasons = collections.Counter(read_rephrase_table(graph, "passages")["reason"].to_pylist())
    assert reasons["held_out"] == pytest.approx(graph.step("rephrase").manifest["requests"] / 5, abs=1)
    assert not any("retired admirals" in text for text in read_shards(graph)["text"].to_pylist())


def test_examples_of_the_specialist_sample_never_appear_in_rewrites(
    deficit_config: dict[str, Any], fake: FakeEndpoint, tmp_path: Path
) -> None:
    sample = [
        row | {"text": f"whereas the undersigned number {i} {row['text']}"}
        for i, row in enumerate(make_topic_documents("law", 20, 1))
    ]
    deficit_config["specialists"]["legal"]["paths"] = [write_jsonl(tmp_path / "steer.jsonl", sample)]
    leak = "whereas the undersigned number"

    def behave(call: Call) -> Reply:
        example = call.prompt[call.prompt.index(leak) :].split("\n")[0]
        return Reply(f"{example} {reply_with_rewrite(call).text}") if call.number % 2 else reply_with_rewrite(call)

    fake.behave = behave
    deficit_config["rephrase"] |= {"styles": ["in_domain"], "examples": 1}
    graph = run(deficit_config, until="rephrase")
    reasons = collections.Counter(read_rephrase_table(graph, "passages")["reason"].to_pylist())
    assert reasons["example_leak"] > 0
    assert not any(leak in text for text in read_rephrase_table(graph, "rewrites")["text"].to_pylist())
    deficit_config["rephrase"]["examples"] = 0
    with pytest.raises(ConfigError, match=r"in_domain.*rephrase\.examples"):
        run(deficit_config)


def test_no_request_is_sent_without_a_deficit(deficit_config: dict[str, Any], fake: FakeEndpoint) -> None:
    deficit_config["weights"]["max_epochs"] = 9.0
    graph = run(deficit_config)
    assert not fake.calls
    assert graph.shards.read_json("_manifest.json")["tokens_by_origin"].keys() == {"raw"}


def test_dry_run_estimates_the_cost_of_rewriting(deficit_config: dict[str, Any], fake: FakeEndpoint, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(deficit_config), encoding="utf-8")
    command = [sys.executable, str(ROOT / "jobs" / "rephrase.py"), "--config", str(config), "--dry-run"]
    before = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "the cost can be estimated once weights is done" in before
    run(deficit_config, until="weights")
    output = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "GPU-hours at 5,000 output tokens/s" in output
    assert not fake.calls
    prompts = int(output.split(" prompts,")[0].rsplit(" ", 1)[-1].replace(",", ""))
    graph = run(deficit_config)
    assert graph.step("rephrase").manifest["requests"] == pytest.approx(prompts, rel=0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"styles": ["wikipedi"]}, r"rephrase\.styles: unknown style 'wikipedi'; did you mean wikipedia\?"),
        ({"model": "/nowhere/model", "backend": "vllm", "endpoint": None}, r"rephrase\.model /nowhere/model"),
        ({"backend": "vllm"}, r"backend: endpoint and endpoint: .* need each other"),
        ({"held_out": {"paths": ["/nowhere/*.jsonl"]}}, r"rephrase\.held_out\.paths"),
        ({"styles_folder": "/nowhere"}, r"rephrase\.styles_folder /nowhere is not a folder"),
        ({"styles": ["../wikipedia"]}, r"'\.\./wikipedia' is a path; give only the name of the style"),
        ({"endpoint": {"url": "localhost:8000"}}, r"rephrase\.endpoint\.url must be a base URL"),
        ({"endpoint": {"url": "http://x/v1", "api_key_env": "NO_SUCH_KEY"}}, r"environment variable NO_SUCH_KEY is not set"),
        ({"sampling": {"n": 2}}, r"rephrase\.sampling: n cannot be set here"),
        ({"style": "x"}, r"unknown setting rephrase\.style; did you mean rephrase\.styles"),
        ({"endpoint": {"uri": "x"}}, r"unknown setting rephrase\.endpoint\.uri; did you mean rephrase\.endpoint\.url"),
    ],
)
def test_config_mistake_is_one_line_before_anything_runs(
    deficit_config: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    deficit_config["rephrase"] |= change
    with pytest.raises(CrispwrapError, match=message) as raised:
        pipeline.build_graph(pipeline.parse_config(deficit_config))
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)


def test_job_without_its_config_section_is_an_error(topics: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no section rephrase"):
        run(topics, until="rephrase")


@pytest.mark.parametrize("seed", range(20))
def test_rewrites_never_exceed_the_deficit_of_a_leaf_and_are_used_at_most_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_leaves, num_pairs = 6, 15
    wanted_L = rng.exponential(size=num_leaves) * 100 * (rng.random(num_leaves) > 0.4)
    pair_P = np.unique(rng.integers(0, num_leaves, size=(num_pairs, 2)), axis=0)
    leaf_P, parent_P, tokens_P = pair_P[:, 0], pair_P[:, 1], rng.integers(1, 200, size=len(pair_P))
    use = fill_deficits(wanted_L, leaf_P, parent_P, tokens_P)
    copies_P = use.compute_expected_copies(leaf_P, parent_P)
    assert (copies_P >= 0).all()
    assert (copies_P <= 1 + 1e-12).all()
    assert (use.filled_L <= wanted_L + 1e-9).all()
    assert copies_P @ tokens_P == pytest.approx(use.filled_L.sum())
    # Computed by hand: a rewrite fills its own leaf first; the unused ones fill the leaf of their source window.
    own = {
        leaf: min(wanted_L[leaf], sum(t for c, t in zip(leaf_P, tokens_P, strict=True) if c == leaf)) for leaf in range(num_leaves)
    }
    for leaf in range(num_leaves):
        held = {c: sum(t for d, t in zip(leaf_P, tokens_P, strict=True) if d == c) for c in range(num_leaves)}
        spare = sum(
            t * (1 - own[c] / held[c]) for c, p, t in zip(leaf_P, parent_P, tokens_P, strict=True) if p == leaf and c != leaf
        )
        assert use.filled_L[leaf] == pytest.approx(own[leaf] + min(wanted_L[leaf] - own[leaf], spare))
    uniform = fill_uniformly(50.0, leaf_P, tokens_P, num_leaves)
    assert uniform.compute_expected_copies(leaf_P, parent_P) @ tokens_P == pytest.approx(min(50.0, tokens_P.sum()))


def test_readme_names_every_style_and_the_demo_config_is_valid() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## Rewriting")[1].split("\n## ")[0]
    for path in (ROOT / "pipeline" / "rewriting" / "styles").glob("*.yaml"):
        assert f"`{path.stem}`" in readme, f"README does not mention the style {path.stem}"
    demo, rewritten = (yaml.safe_load((ROOT / "configs" / name).read_text()) for name in ("demo.yaml", "rephrase.yaml"))
    assert {key: rewritten[key] for key in ("workdir", "generalist", "specialists", "window", "embed", "cluster")} == {
        key: demo[key] for key in ("workdir", "generalist", "specialists", "window", "embed", "cluster")
    }
    pipeline.parse_config(rewritten)
