"""Real clusters of several nodes: the bytes of one node, whatever dies and when."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.rewriting.answers import ANSWERS_FOLDER as ANSWERS
from tests.support.corpora import read_shard_bytes
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.nodes import KILL_KINDS, AutoscalingCluster, LocalCluster, list_running_stages, make_all_stages_config, start_job
from tests.support.processes import ROOT, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
# Those of which workers do a part, in order: `schedule` is links that the driver makes.
STAGES = (
    *("prepare", "dedup", "decontaminate", "embedder", "embed", "cluster", "assign", "score", "weights"),
    *("titles", "rephrase", "sample", "report"),
)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, dict[str, bytes]]]:
    """A run of all stages on a cluster of one node: its config file, its workdir and its shards."""
    folder = tmp_path_factory.mktemp("nodes")
    file, log = folder / "run.yaml", folder / "clean.log"
    with FakeEndpoint() as fake:
        config = make_all_stages_config(folder, fake.url)
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        with LocalCluster(1, cpus=2) as nodes:
            assert nodes.start(file, log).wait() == 0, log.read_text()
        yield file, Path(config["workdir"]), read_shard_bytes(Path(config["workdir"]))


@pytest.fixture(scope="module")
def three() -> Iterator[LocalCluster]:
    with LocalCluster(3) as nodes:
        yield nodes


def test_three_nodes_write_the_same_shards_as_one(
    clean: tuple[Path, Path, dict[str, bytes]], three: LocalCluster, tmp_path: Path
) -> None:
    file, workdir, wanted = clean
    shutil.rmtree(workdir)
    assert three.start(file, tmp_path / "log").wait() == 0, (tmp_path / "log").read_text()
    assert read_shard_bytes(workdir) == wanted


SIDE_BY_SIDE = """
import sys, time
from pathlib import Path
from pipeline import config
from pipeline.engine import Engine

def both(item, _):
    # Each keeps its CPU until the other is at work too, for which there must be two nodes.
    Path(item).touch()
    while len(list(Path(item).parent.iterdir())) < 2:
        time.sleep(0.01)

with Engine(config.Engine(address=sys.argv[1])) as engine:
    list(engine.map(both, [sys.argv[2] + "/" + str(number) for number in range(2)], title="both", shared=None))
"""


def test_an_autoscaler_starts_nodes_for_waiting_tasks(clean: tuple[Path, Path, dict[str, bytes]], tmp_path: Path) -> None:
    file, workdir, wanted = clean
    shutil.rmtree(workdir)
    (tmp_path / "there").mkdir()
    with AutoscalingCluster(tmp_path, max_nodes=2) as cluster:
        assert cluster.num_raylets == 1  # the head, which takes no tasks
        wide = run_code(SIDE_BY_SIDE, cluster.address, str(tmp_path / "there"))
        assert wide.returncode == 0, wide.stderr
        assert cluster.num_raylets == 3
        assert start_job(cluster.address, file, tmp_path / "log").wait() == 0, (tmp_path / "log").read_text()
    assert read_shard_bytes(workdir) == wanted


def run_code(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Python code that imports the pipeline, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)


def test_a_node_killed_during_each_stage_changes_no_shard(
    clean: tuple[Path, Path, dict[str, bytes]], three: LocalCluster, tmp_path: Path
) -> None:
    file, workdir, wanted = clean
    left = list(STAGES)
    for attempt in range(12):  # a short stage may be over before its node is killed
        for stage in ("shards", ANSWERS, *left):
            shutil.rmtree(workdir / stage, ignore_errors=True)
        log = tmp_path / f"{attempt}.log"
        job = three.start(file, log)
        for stage in list(left):
            wait_until(lambda stage=stage, job=job: begun(workdir, stage) or job.poll() is not None)
            three.kill("node", job)
            if not done(workdir, stage, by=three.last_kill_time):
                left.remove(stage)
        assert job.wait() == 0, log.read_text()
        assert read_shard_bytes(workdir) == wanted
        if not left:
            return
    pytest.fail(f"{left} were over each time")


def begun(workdir: Path, stage: str) -> bool:
    """Whether a stage is in the middle: its first file is there; or, where all come at its end, it is at work."""
    if stage in ("embedder", "cluster", "report"):
        return stage in list_running_stages(workdir)
    return any((workdir / stage).glob("*/*"))


def done(workdir: Path, stage: str, *, by: float) -> bool:
    """Whether all of a stage that is there had been done by a time."""
    manifests = [folder / "manifest.json" for folder in (workdir / stage).glob("*")]
    return bool(manifests) and all(manifest.exists() and manifest.stat().st_mtime < by for manifest in manifests)


def test_random_kills_change_no_shard(clean: tuple[Path, Path, dict[str, bytes]], three: LocalCluster, tmp_path: Path) -> None:
    file, workdir, wanted = clean
    shutil.rmtree(workdir)
    killed, _ = three.run_with_kills(file, tmp_path / "log", [*KILL_KINDS, *KILL_KINDS], max_pause_s=2.5)
    assert {kill.kind for kill in killed} == set(KILL_KINDS)
    assert read_shard_bytes(workdir) == wanted


PLACED = """
import json, sys, time
from pathlib import Path
import ray
from pipeline import config
from pipeline.engine import Engine

def node(item, _):
    return ray.get_runtime_context().get_node_id()

def three_nodes(item, _):
    # Tasks of no length may all go to one node; each of these keeps its CPU until there are three, one a node.
    Path(item).touch()
    while len(list(Path(item).parent.iterdir())) < 3:
        time.sleep(0.01)
    return node(item, None)

placement = {"embed": {"labels": {"kind": "gpu"}}, "prepare": {"labels": {"kind": "!gpu"}}, "sample": {"resources": {"slot": 1}}}
with Engine(config.Engine(address=sys.argv[1], placement=placement)) as engine:
    found = {}
    for stage in placement:
        found[stage] = sorted({where for _, where in engine.for_stage(stage).map(node, range(12), title="nodes", shared=None)})
    # Of none of them, and after all of them.
    items = [sys.argv[2] + "/" + str(number) for number in range(3)]
    found[""] = sorted({where for _, where in engine.map(three_nodes, items, title="nodes", shared=None)})
    kinds = {one["NodeID"]: [one["Labels"].get("kind"), "slot" in one["Resources"]] for one in ray.nodes()}
    print(json.dumps({stage: [kinds[one] for one in nodes] for stage, nodes in found.items()}))
"""


def test_stages_run_on_the_nodes_of_their_placement(tmp_path: Path) -> None:
    with LocalCluster(2, labels=[{"kind": "cpu"}, {"kind": "gpu"}]) as nodes:
        nodes.add({"kind": "cpu"}, resources={"slot": 2})
        (tmp_path / "there").mkdir()
        done = run_code(PLACED, nodes.address, str(tmp_path / "there"))
    assert done.returncode == 0, done.stderr
    placed = json.loads(done.stdout)
    assert placed["embed"] == [["gpu", False]]
    assert {kind for kind, _ in placed["prepare"]} == {"cpu"}
    assert placed["sample"] == [["cpu", True]]
    assert sorted(placed[""]) == [["cpu", False], ["cpu", True], ["gpu", False]]


WAITING = """
import sys
from pipeline import config
from pipeline.cli import guard
from pipeline.engine import Engine, tasks

tasks._POLL_S = 0.5

def length(item, _):
    return len(item)

guard.logger.add(lambda message: print(message.record["message"], flush=True))
with Engine(config.Engine(address=sys.argv[1])) as engine:
    print(dict(engine.map(length, ["abc"], title="t", shared=None)))
"""


def test_a_cluster_without_cpus_is_reported_and_tasks_run_once_a_node_joins() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with LocalCluster(0) as nodes:
        command = [sys.executable, "-c", WAITING, nodes.address]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as job:
            assert job.stdout
            lines = iter(job.stdout.readline, "")
            assert "no node of the cluster has a CPU now: the remaining tasks wait until one joins\n" in lines
            nodes.add()
            assert list(lines)[-1] == "{0: 3}\n"
