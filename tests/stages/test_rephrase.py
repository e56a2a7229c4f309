"""The stage that rewrites, whole, on a real Ray and a real protocol: plan met, nothing paid twice, all counted."""

import collections
import copy
import json
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
from pipeline.rewriting.serving import serve, serve_alike
from pipeline.tables import PASSAGES, SHARDS
from tests.support.corpora import shard_bytes, topic_documents, write_jsonl
from tests.support.fake_endpoint import Call, FakeEndpoint, Reply, rewriting
from tests.support.processes import ROOT, wait_until
from tests.support.results import shards_of, table_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def fake() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as server:
        yield server


@pytest.fixture
def short(topics: dict[str, Any], fake: FakeEndpoint) -> dict[str, Any]:
    """A run whose budget is half as much again as its topic holds."""
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


def test_deficits_are_filled_with_rewrites_and_everything_is_accounted_for(short: dict[str, Any], fake: FakeEndpoint) -> None:
    made = run(short)
    manifest = made.shards.read_json("_manifest.json")
    facts = made.step("rephrase").manifest
    assert manifest["tokens"] == pytest.approx(20_000, rel=0.005)
    assert manifest["tokens_by_origin"]["rephrased"] == pytest.approx(facts["wanted_tokens"], rel=0.02)
    assert manifest["deficit_tokens"] < 0.02 * facts["wanted_tokens"]
    assert manifest["tokens_by_source"]["law"][1] / manifest["tokens"] > 0.97
    assert facts["ended"] == "met"

    passages = table_of(made, "passages")
    assert passages.schema.equals(PASSAGES)
    assert len(passages) == facts["requests"] == sum(fake.asked.values()) == len(set(passages["key"].to_pylist()))
    assert set(passages["verdict"].to_pylist()) <= {"accepted", "rejected", "quarantined"}
    assert sum(sum(of_style.values()) for of_style in facts["outcomes"].values()) == len(passages)
    row = passages.to_pylist()[0]
    assert (row["model"], row["sampling"]) == ("fake", '{"temperature": 0.7, "top_p": 0.95}')
    assert row["prompt_tokens"] > row["source_tokens"] > 0
    counts = collections.Counter(passages["style"].to_pylist())
    assert 1.2 < counts["wikipedia"] / counts["qa"] < 3.4

    shards = shards_of(made)
    assert shards.schema.equals(SHARDS)
    assert len(set(shards["id"].to_pylist())) == len(shards)
    rewrites = shards.filter(pa.compute.equal(shards["origin"], "rephrased"))
    parents = {f"{row['doc_id']}:{row['window']}" for row in passages.to_pylist()}
    assert set(rewrites["parent"].to_pylist()) <= parents
    assert set(rewrites["copy"].to_pylist()) == {0}
    assert set(rewrites["specialist"].to_pylist()) == {"legal"}
    assert set(rewrites["style"].to_pylist()) == {"wikipedia", "qa"}
    own = {f"{row['doc_id']}:{row['window']}": row["leaf"] for row in passages.to_pylist()}
    lie = zip(rewrites["parent"].to_pylist(), rewrites["cluster"].to_pylist(), strict=True)
    assert facts["moved"] > 0
    assert any(own[parent] != cluster for parent, cluster in lie)


def test_a_second_run_asks_nothing_and_a_further_style_only_for_itself(short: dict[str, Any], fake: FakeEndpoint) -> None:
    short["rephrase"]["styles"] = ["wikipedia"]
    run(short)
    first = collections.Counter(fake.asked)
    run(short)
    assert fake.asked == first
    short["rephrase"]["styles"] = ["wikipedia", "qa"]
    made = run(short)
    fresh = fake.asked - first
    assert fresh
    assert all("Question:" in prompt for prompt in fresh)
    assert set(table_of(made, "passages")["style"].to_pylist()) == {"wikipedia", "qa"}
    # Other settings that make no other prompt: the answers in store serve.
    asked = collections.Counter(fake.asked)
    short["sample"]["budget_tokens"] = 18_000
    run(short)
    assert fake.asked == asked


def test_share_gives_raw_and_rewritten_tokens_in_the_ratio_asked(short: dict[str, Any]) -> None:
    short["rephrase"] |= {"mode": "share", "real_to_synthetic": 1.0}
    short["sample"]["budget_tokens"] = 8_000
    found = run(short).shards.read_json("_manifest.json")
    assert found["tokens_by_origin"]["rephrased"] == pytest.approx(4000, rel=0.02)
    assert found["tokens_by_origin"]["raw"] == pytest.approx(4000, rel=0.02)


def test_a_share_that_cannot_be_met_is_said_and_the_budget_kept(
    short: dict[str, Any], fake: FakeEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.behave = lambda call: rewriting(call) if call.number % 2 else Reply("I'm sorry, but I can't help with that.")
    short["weights"]["max_epochs"] = 4.0
    short["rephrase"] |= {"mode": "share", "real_to_synthetic": 0.1, "styles": ["wikipedia"]}
    made = run(short)
    facts, found = made.step("rephrase").manifest, made.shards.read_json("_manifest.json")
    assert facts["ended"] == "exhausted"
    assert facts["outcomes"]["wikipedia"]["refusal"] == pytest.approx(facts["requests"] / 2, abs=1)
    assert found["tokens"] == pytest.approx(20_000, rel=0.005)
    assert "hardly anything is left to ask for" in " ".join(capsys.readouterr().out.split())


def test_one_two_and_three_workers_give_the_same_bytes(short: dict[str, Any]) -> None:
    found = []
    for workers in (1, 2, 3):
        raw = copy.deepcopy(short) | {"workdir": f"{short['workdir']}-{workers}", "engine": {"workers": workers}}
        run(raw)
        found.append(shard_bytes(raw["workdir"]))
    assert found[0] == found[1] == found[2]


def stored_keys(workdir: str) -> set[int]:
    return {
        key for path in Path(workdir).glob("answers/*/*.parquet") for key in pq.read_table(path, columns=["key"])["key"].to_pylist()
    }


@pytest.mark.slow
def test_killed_while_it_asks_and_run_again_pays_for_nothing_twice_that_was_stored(
    short: dict[str, Any], fake: FakeEndpoint, tmp_path: Path
) -> None:
    clean = copy.deepcopy(short) | {"workdir": f"{short['workdir']}-clean"}
    run(clean)
    run(short, until="weights")
    asked_clean = before = sum(fake.asked.values())
    # Some are answered and no more: two workers hold a batch of 4 each, and what was answered besides is in store.
    fake.behave = lambda call: Reply(rewriting(call).text, wait=None if call.number < before + 32 else threading.Event())
    short["rephrase"]["batch"] = 4
    short["engine"] = {"workers": 2}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(short), encoding="utf-8")
    command = [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(config)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {"RAY_ADDRESS": "local"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(stored_keys(short["workdir"])) >= 24, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=300)
    assert not alive, "workers of a dead driver end, and with them what they were writing"
    stored = stored_keys(short["workdir"])
    asked = sum(fake.asked.values())
    assert 24 <= len(stored) < asked_clean

    fake.behave = rewriting
    made = run(short)
    again = sum(fake.asked.values()) - asked
    assert again == asked_clean - len(stored)
    passages = table_of(made, "passages")
    assert len(passages) == len(set(passages["key"].to_pylist())) == asked_clean
    assert shard_bytes(short["workdir"]) == shard_bytes(clean["workdir"])


def test_a_prompt_that_always_fails_is_quarantined_and_the_rest_goes_on(short: dict[str, Any], fake: FakeEndpoint) -> None:
    poison: set[str] = set()

    def behave(call: Call) -> Reply:
        if call.number == 7:
            poison.add(call.prompt)
        return Reply("boom", status=500) if call.prompt in poison else rewriting(call)

    fake.behave = behave
    short["max_bad_fraction"] = 0.05
    made = run(short)
    facts = made.step("rephrase").manifest
    (bad,) = [row for row in table_of(made, "passages").to_pylist() if row["verdict"] == "quarantined"]
    assert "500" in bad["detail"]
    assert len(fake.calls) - sum(fake.asked.values()) == 3  # rephrase.attempts
    assert sum(of_style.get("no_answer", 0) for of_style in facts["outcomes"].values()) == 1
    assert facts["ended"] == "met"
    # Its error is no answer: a further step tries it again, and nothing else.
    calls, asked = len(fake.calls), collections.Counter(fake.asked)
    short["sample"]["budget_tokens"] = 19_900
    run(short)
    assert fake.asked == asked
    assert len(fake.calls) - calls in (0, 3)


def test_a_server_set_up_wrongly_ends_the_run_and_spoils_no_store(short: dict[str, Any], fake: FakeEndpoint) -> None:
    fake.behave = lambda _: Reply("maximum context length is 512 tokens", status=400)
    with pytest.raises(CrispwrapError, match=r"answered none of \d+ prompts .*maximum context length") as raised:
        run(short)
    assert raised.value.exit_code == 1
    fake.behave = rewriting
    assert run(short).step("rephrase").manifest["ended"] == "met"


def test_prompts_that_a_server_refuses_count_against_max_bad_fraction_and_are_not_tried_again(
    short: dict[str, Any], fake: FakeEndpoint
) -> None:
    fake.behave = lambda call: Reply("too long", status=400) if call.number % 4 == 0 else rewriting(call)
    with pytest.raises(RunError, match=r"\d+ of \d+ prompts have no answer .*max_bad_fraction = 0\.01 \(.*too long"):
        run(short)
    calls = len(fake.calls)
    assert max(call.again for call in fake.calls) == 0
    # Stragglers that fail are no dead server: with the bound raised, the run ends well.
    fake.behave = lambda _: Reply("too long", status=400)
    short["max_bad_fraction"] = 1.0
    made = run(short, until="rephrase")
    assert len(fake.calls) > calls
    assert sum(of_style.get("no_answer", 0) for of_style in made.step("rephrase").manifest["outcomes"].values()) > 0


def test_how_held_out_text_is_read_is_part_of_the_identity(short: dict[str, Any], tmp_path: Path) -> None:
    held_out = write_jsonl(tmp_path / "test.jsonl", [{"id": "1", "text": "some text", "body": "other"}])
    seen = set()
    for extra in ({}, {"limit": 1}, {"text_key": "body"}, {"id_key": None}):
        short["rephrase"]["held_out"] = {"paths": [held_out], **extra}
        seen.add(pipeline.build_graph(pipeline.parse_config(short)).step("rephrase").fingerprint)
    assert len(seen) == 4


def test_too_many_prompts_without_an_answer_end_the_run_and_answers_are_kept(short: dict[str, Any], fake: FakeEndpoint) -> None:
    fake.behave = lambda call: Reply("boom", status=500) if hash(call.prompt) % 2 else rewriting(call)
    with pytest.raises(RunError, match=r"prompts have no answer after 3 tries, more than max_bad_fraction = 0\.01 \(.*500"):
        run(short)
    kept = len(stored_keys(short["workdir"]))
    assert kept > 0
    fake.behave = rewriting
    asked = sum(fake.asked.values())
    made = run(short)
    assert sum(fake.asked.values()) - asked == made.step("rephrase").manifest["requests"] - kept


def test_a_server_that_dies_in_the_middle_ends_the_run_with_one_line_and_the_next_goes_on(
    short: dict[str, Any], fake: FakeEndpoint
) -> None:
    fake.die_after = 40
    with pytest.raises(CrispwrapError, match=r"answered none of \d+ prompts .*rephrase\.endpoint names") as raised:
        run(short)
    assert raised.value.exit_code == 1
    assert "\n" not in str(raised.value)
    stored = len(stored_keys(short["workdir"]))
    assert stored <= 40
    fake.die_after = None
    made = run(short)
    assert sum(fake.asked.values()) == 40 - stored + made.step("rephrase").manifest["requests"]


def test_rewrites_that_overlap_held_out_text_are_rejected(short: dict[str, Any], fake: FakeEndpoint, tmp_path: Path) -> None:
    secret = "the seventh amendment of this charter was read aloud by nine retired admirals upon a frozen lake in late november"
    fake.behave = lambda call: Reply(f"{rewriting(call).text} {secret}.") if call.number % 5 == 0 else rewriting(call)
    rows = [{"id": "0", "text": "\n"}, {"id": "1", "text": f"Once {secret}, as is well known."}, {"id": "2", "text": ""}]
    short["rephrase"]["held_out"] = {"paths": [write_jsonl(tmp_path / "test.jsonl", rows)]}
    made = run(short)
    assert made.step("rephrase").manifest["held_out"] == {"rephrase.held_out": {"rows": 3, "blank": 2}}
    reasons = collections.Counter(table_of(made, "passages")["reason"].to_pylist())
    assert reasons["held_out"] == pytest.approx(made.step("rephrase").manifest["requests"] / 5, abs=1)
    assert not any("retired admirals" in text for text in shards_of(made)["text"].to_pylist())


def test_examples_of_the_sample_steer_and_never_come_out(short: dict[str, Any], fake: FakeEndpoint, tmp_path: Path) -> None:
    sample = [
        row | {"text": f"whereas the undersigned number {i} {row['text']}"} for i, row in enumerate(topic_documents("law", 20, 1))
    ]
    short["specialists"]["legal"]["paths"] = [write_jsonl(tmp_path / "steer.jsonl", sample)]
    leak = "whereas the undersigned number"

    def behave(call: Call) -> Reply:
        example = call.prompt[call.prompt.index(leak) :].split("\n")[0]
        return Reply(f"{example} {rewriting(call).text}") if call.number % 2 else rewriting(call)

    fake.behave = behave
    short["rephrase"] |= {"styles": ["in_domain"], "examples": 1}
    made = run(short, until="rephrase")
    reasons = collections.Counter(table_of(made, "passages")["reason"].to_pylist())
    assert reasons["example_leak"] > 0
    assert not any(leak in text for text in table_of(made, "rewrites")["text"].to_pylist())
    short["rephrase"]["examples"] = 0
    with pytest.raises(ConfigError, match=r"in_domain.*rephrase\.examples"):
        run(short)


def test_no_deficit_means_nothing_is_asked(short: dict[str, Any], fake: FakeEndpoint) -> None:
    short["weights"]["max_epochs"] = 9.0
    made = run(short)
    assert not fake.calls
    assert made.shards.read_json("_manifest.json")["tokens_by_origin"].keys() == {"raw"}


def test_dry_run_says_what_it_will_cost(short: dict[str, Any], fake: FakeEndpoint, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(short), encoding="utf-8")
    command = [sys.executable, str(ROOT / "jobs" / "rephrase.py"), "--config", str(config), "--dry-run"]
    before = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "known once weights is done" in before
    run(short, until="weights")
    said = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "GPU-hours at 5,000 output tokens/s" in said
    assert not fake.calls
    prompts = int(said.split(" prompts,")[0].rsplit(" ", 1)[-1].replace(",", ""))
    made = run(short)
    assert made.step("rephrase").manifest["requests"] == pytest.approx(prompts, rel=0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"styles": ["wikipedi"]}, r"rephrase\.styles has 'wikipedi'.*wikipedia"),
        ({"model": "/nowhere/model", "backend": "vllm", "endpoint": None}, r"rephrase\.model /nowhere/model"),
        ({"backend": "vllm"}, r"backend: endpoint and endpoint: .* go together"),
        ({"held_out": {"paths": ["/nowhere/*.jsonl"]}}, r"rephrase\.held_out\.paths"),
        ({"styles_folder": "/nowhere"}, r"rephrase\.styles_folder /nowhere is no folder"),
        ({"styles": ["../wikipedia"]}, r"give the name of a style"),
        ({"endpoint": {"url": "localhost:8000"}}, r"rephrase\.endpoint\.url must be a base URL"),
        ({"endpoint": {"url": "http://x/v1", "api_key_env": "NO_SUCH_KEY"}}, r"environment variable NO_SUCH_KEY is not set"),
        ({"sampling": {"n": 2}}, r"rephrase\.sampling: n cannot be set here"),
        ({"style": "x"}, r"unknown setting rephrase\.style; did you mean rephrase\.styles"),
        ({"endpoint": {"uri": "x"}}, r"unknown setting rephrase\.endpoint\.uri; did you mean rephrase\.endpoint\.url"),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(short: dict[str, Any], change: dict[str, Any], message: str) -> None:
    short["rephrase"] |= change
    with pytest.raises(CrispwrapError, match=message) as raised:
        pipeline.build_graph(pipeline.parse_config(short))
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)


def test_the_job_without_a_section_says_so(topics: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no section rephrase"):
        run(topics, until="rephrase")


@pytest.mark.parametrize("seed", range(20))
def test_serving_fills_no_leaf_beyond_its_want_and_uses_each_rewrite_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_leaves, num_pairs = 6, 15
    wanted_L = rng.exponential(size=num_leaves) * 100 * (rng.random(num_leaves) > 0.4)
    pair_P = np.unique(rng.integers(0, num_leaves, size=(num_pairs, 2)), axis=0)
    leaf_P, parent_P, tokens_P = pair_P[:, 0], pair_P[:, 1], rng.integers(1, 200, size=len(pair_P))
    made = serve(wanted_L, leaf_P, parent_P, tokens_P)
    chance_P = made.chance(leaf_P, parent_P)
    assert (chance_P >= 0).all()
    assert (chance_P <= 1 + 1e-12).all()
    assert (made.filled_L <= wanted_L + 1e-9).all()
    assert chance_P @ tokens_P == pytest.approx(made.filled_L.sum())
    # By hand: own first, then what is spare to the parents.
    own = {
        leaf: min(wanted_L[leaf], sum(t for c, t in zip(leaf_P, tokens_P, strict=True) if c == leaf)) for leaf in range(num_leaves)
    }
    for leaf in range(num_leaves):
        held = {c: sum(t for d, t in zip(leaf_P, tokens_P, strict=True) if d == c) for c in range(num_leaves)}
        spare = sum(
            t * (1 - own[c] / held[c]) for c, p, t in zip(leaf_P, parent_P, tokens_P, strict=True) if p == leaf and c != leaf
        )
        assert made.filled_L[leaf] == pytest.approx(own[leaf] + min(wanted_L[leaf] - own[leaf], spare))
    alike = serve_alike(50.0, leaf_P, tokens_P, num_leaves)
    assert alike.chance(leaf_P, parent_P) @ tokens_P == pytest.approx(min(50.0, tokens_P.sum()))


def test_the_readme_names_every_style_and_the_demo_config_is_valid() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## Rewriting")[1].split("\n## ")[0]
    for path in (ROOT / "pipeline" / "rewriting" / "styles").glob("*.yaml"):
        assert f"`{path.stem}`" in readme, f"README says nothing of the style {path.stem}"
    demo, rewritten = (yaml.safe_load((ROOT / "configs" / name).read_text()) for name in ("demo.yaml", "rephrase.yaml"))
    assert {key: rewritten[key] for key in ("workdir", "generalist", "specialists", "window", "embed", "cluster")} == {
        key: demo[key] for key in ("workdir", "generalist", "specialists", "window", "embed", "cluster")
    }
    pipeline.parse_config(rewritten)
    assert json.dumps(rewritten["rephrase"])
