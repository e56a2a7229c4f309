"""The engine on a real Ray."""

import operator
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger

from pipeline import config
from pipeline.engine import Engine, ray_connection, ray_internals
from pipeline.engine.ray_messages import format_message
from pipeline.errors import ConfigError, InputError, WorkerError
from tests.support.processes import wait_until
from tests.support.tasks import die_once

pytestmark = pytest.mark.ray


@pytest.fixture
def engine(ray_session: Any) -> Engine:
    return Engine(config.Engine())


def double(item: int, plus: int) -> int:
    return 2 * item + plus


def test_map_returns_each_item_once_with_its_index(engine: Engine) -> None:
    results = dict(engine.map(double, list(range(30)), title="t", shared=1))
    assert results == {i: 2 * i + 1 for i in range(30)}
    assert engine.usage.tasks == 30


def test_map_without_items_does_not_start_ray() -> None:
    engine = Engine(config.Engine())
    assert list(engine.map(double, [], title="t", shared=0)) == []
    assert not engine.started


def fail_on_three(item: int, folder: str) -> int:
    if item == 3:
        raise InputError("file x, row 3: broken")
    (Path(folder) / str(item)).write_text("done", encoding="utf-8")
    return item


def test_an_error_keeps_its_type_and_message_and_finished_items_are_kept(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^file x, row 3: broken$"):
        list(engine.map(fail_on_three, list(range(4)), title="t", shared=str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "2"}


def divide(item: int, _: None) -> float:
    return 1 / item


def test_an_internal_error_names_the_item(engine: Engine) -> None:
    with pytest.raises(WorkerError, match=r"^halves, 0 failed: ZeroDivisionError"):
        list(engine.map(divide, [1, 0], title="halves", shared=None))


def test_a_killed_worker_is_replaced_and_its_item_is_retried(engine: Engine, tmp_path: Path) -> None:
    assert dict(engine.map(die_once, [0, 1, 2], title="t", shared=str(tmp_path))) == {0: 0, 1: 1, 2: 2}
    assert (tmp_path / "1").exists()


def always_die(item: int, _: None) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_an_item_that_kills_every_worker_ends_the_run_and_is_named(ray_session: Any) -> None:
    engine = Engine(config.Engine(attempts=2))
    with pytest.raises(WorkerError, match=r"t, 1: its worker died 2 times.*finished parts are kept"):
        list(engine.map(always_die, [0, 1], title="t", shared=None))


def first_waits_for_second(item: int, folder: str) -> int:
    mark = Path(folder) / "second"
    if item == 1:
        mark.write_text("", encoding="utf-8")
    wait_until(mark.exists)
    return item


def test_items_run_concurrently(engine: Engine, tmp_path: Path) -> None:
    assert dict(engine.map(first_waits_for_second, [0, 1], title="t", shared=str(tmp_path))) == {0: 0, 1: 1}


def by_remainder(items: list[int], partitions: list[int], _: None) -> list[np.ndarray]:
    values = np.array(items)
    return [values[values % 3 == partition] for partition in partitions]


def joined(partition: int, pieces: Sequence[np.ndarray], _: None) -> list[int]:
    return [int(value) for value in np.concatenate(pieces)]


@pytest.mark.parametrize("partitions", [[0, 1, 2], [2], []])
def test_shuffle_groups_all_values_in_the_order_of_the_items(engine: Engine, partitions: list[int]) -> None:
    items = [[5, 3, 1], [4, 2], [9, 0, 7]]
    results = dict(engine.shuffle(by_remainder, items, joined, partitions, title="t", unit="groups", shared=None))
    expected = [[value for item in items for value in item if value % 3 == partition] for partition in partitions]
    assert [results[i] for i in range(len(partitions))] == expected


def refuse(partition: int, pieces: Sequence[np.ndarray], _: None) -> None:
    raise InputError(f"partition {partition} is wrong")


def test_an_error_in_a_reducer_reaches_the_user(engine: Engine) -> None:
    with pytest.raises(InputError, match="partition 0 is wrong"):
        list(engine.shuffle(by_remainder, [[1, 2]], refuse, [0], title="t", unit="groups", shared=None))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 10, 17])
def test_fold_combines_every_item_once(engine: Engine, count: int) -> None:
    counted = engine.fold(as_counter, list(range(count)), operator.add, Counter(), title="t", shared=None)
    assert counted == Counter(range(count))


def test_fold_of_n_items_leaves_the_square_root_of_n_results_to_the_driver(engine: Engine) -> None:
    combined = []

    def combine(a: int, b: int) -> int:
        combined.append((a, b))  # workers have copies of the list
        return a + b

    assert engine.fold(double, list(range(100)), combine, 0, title="t", shared=0) == 9900
    assert len(combined) == 10


def test_an_error_in_a_fold_reaches_the_user(engine: Engine) -> None:
    with pytest.raises(InputError, match="item 7 is wrong"):
        engine.fold(refuse_seven, list(range(20)), operator.add, 0, title="t", shared=None)


def refuse_seven(item: int, _: None) -> int:
    if item == 7:
        raise InputError("item 7 is wrong")
    return item


def as_counter(item: int, _: None) -> Counter[int]:
    return Counter([item])


DIED = (
    "A worker died or was killed while executing a task by an unexpected system error. To troubleshoot the problem, check the logs "
    "for the dead worker. Lease ID: 39 Worker ID: 8135 Node ID: 4413 Worker IP address: 192.0.2.2 Worker port: 14221 Worker PID: "
    "6760 Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file."
)


GONE = (
    "The node with node id: 8f00 and address: 127.0.0.3 and node name: 127.0.0.3 has been marked dead because the detector has "
    "missed too many heartbeats from it. This can happen when a raylet has crashed."
)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (DIED, "a worker on 192.0.2.2 died (process 6760); its task is retried"),
        ("Task _run failed. There are 2 retries remaining, so the task will be retried. Error: ", ""),
        ("No node can\n fulfil {'GPU': 1}", "Ray: No node can fulfil {'GPU': 1}"),
        ("x" * 1000, "Ray: " + "x" * 300 + " …"),
        ("\n", ""),
        (
            "(raylet, ip=127.0.0.3) Raylet is terminated. Termination is unexpected. Last lines of the logs: [state-dump]",
            "",
        ),
        (GONE, "the node 127.0.0.3 is gone; its tasks are retried on other nodes"),
    ],
)
def test_messages_of_ray_are_formatted_as_one_line(message: str, line: str) -> None:
    assert format_message(message) == line


def test_internals_of_another_version_of_ray_are_not_used(monkeypatch: pytest.MonkeyPatch, ray_session: Any) -> None:
    import ray
    from ray._private import worker

    monkeypatch.setattr(ray, "__version__", "3.1.0")
    monkeypatch.setattr(worker, "print_to_stdstream", printer := object())
    lines: list[str] = []
    handler = logger.add(lambda message: lines.append(message.record["message"]))
    ray_internals._has_known_internals.cache_clear()
    try:
        ray_internals.redirect_driver_messages(print)
        assert worker.print_to_stdstream is printer
        assert ray_internals.watch_actor_pools(print) == []
        assert ray_internals.find_session_logs(ray) is None
        assert ray_connection.find_local_cluster(ray) is None
        ray_connection._check_temporary_folder(ray)
    finally:
        logger.remove(handler)
        ray_internals._has_known_internals.cache_clear()
    assert [line for line in lines if "Ray 3.1.0 is installed" in line] == lines
    assert len(lines) == 1


DIE_ONCE = """
import sys
from tests.support.processes import wait_until
from pipeline import config
from pipeline.cli import guard
from pipeline.engine import Engine
from tests.support.tasks import die_once

lines = []
guard.logger.add(lambda message: lines.append(message.record["message"]))
with Engine(config.Engine(address=sys.argv[1])) as engine:
    assert dict(engine.map(die_once, [0, 1, 2], title="t", shared=sys.argv[2])) == {0: 0, 1: 1, 2: 2}
    wait_until(lambda: any("died" in line for line in lines))
print("done")
"""


def test_a_dead_worker_is_reported_in_the_log_and_not_in_the_results(ray_session: Any, tmp_path: Path) -> None:
    address = ray_session.address_info["gcs_address"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", DIE_ONCE, address, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    joined, died = done.stderr.splitlines()
    assert "joined the Ray cluster" in joined
    assert "died (process" in died


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_unreachable_cluster_address_is_an_error(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setattr(ray_connection, "_CONNECT_TIMEOUT_S", 0.1)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        address = f"{scheme}127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"nothing answers at {address}, .*engine\.address: local"):
            ray_connection.join_cluster(None, address)


@pytest.mark.parametrize("address", ["head", "127.0.0.1", "127.0.0.1:port", ":6379"])
def test_an_invalid_cluster_address_is_rejected(address: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"engine.address or RAY_ADDRESS '{address}' is not the address of a Ray cluster: give host:port"
    ):
        ray_connection.join_cluster(None, address)


TERMINATED = """
import sys, time
from pipeline import config
from pipeline.cli import guard
from pipeline.engine import Engine
from pipeline.terminal.output import console

def work():
    with Engine(config.Engine(address=sys.argv[1])) as engine:
        engine.start()
        console.print("there")
        time.sleep(300)

sys.exit(guard.run_guarded(work))
"""


def test_a_terminated_job_prints_how_to_resume(ray_session: Any) -> None:
    command = [sys.executable, "-c", TERMINATED, ray_session.address_info["gcs_address"]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as job:
        assert job.stdout
        assert job.stdout.readline() == "there\n"
        job.send_signal(signal.SIGTERM)
        _, err = job.communicate()
    assert job.returncode == 143
    assert err.splitlines()[-1] == "interrupted: finished parts are kept; run the same command to resume"


def test_a_placement_without_matching_node_is_reported_once(engine: Engine) -> None:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    engine.settings = config.Engine(placement={"embed": config.Placement(labels={"kind": "in(a,b)"}, resources={"slot": 1})})
    for _ in range(2):
        assert engine.for_stage("embed")._placement_options()["resources"] == {"slot": 1.0}
    logger.remove(sink)
    (line,) = lines
    assert line == "engine.placement.embed: no node has {'kind': 'in(a,b)'} and {'slot': 1.0} yet; tasks of this stage wait for one"
