"""Several hosts on one machine, as network namespaces with their own addresses; one is disconnected during a run.

Without root or `ip` the test is skipped; tests/engine/test_nodes.py tests several nodes on loopback addresses.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from tests.support.corpora import make_topic_config, read_shard_bytes
from tests.support.processes import MAX_START_ATTEMPTS, ROOT, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RAY = Path(sys.executable).parent / "ray"
NET = "10.213.77"
# The time after which a silent connection is closed; by default seven minutes.
_KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": "5000", "RAY_grpc_client_keepalive_timeout_ms": "5000"}
# A host is declared dead after ten seconds; a live one may be silent for seconds on a busy machine.
_QUICK = '{"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 20}'


def run_ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def create_network(hosts: int) -> Iterator[list[str]]:
    """Create a bridge with this process at .1, and yield the names of namespaces with one host each, from .2 on."""
    names = [f"crispwrap{number}" for number in range(hosts)]
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    try:
        run_ip("link", "add", "crispwrapbr", "type", "bridge")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network of our own can be made here: {error.stderr.strip()}")
    try:
        run_ip("addr", "add", f"{NET}.1/24", "dev", "crispwrapbr")
        run_ip("link", "set", "crispwrapbr", "up")
        for number, name in enumerate(names):
            run_ip("netns", "add", name)
            run_ip("link", "add", f"{name}o", "type", "veth", "peer", "name", "eth0", "netns", name)
            run_ip("link", "set", f"{name}o", "master", "crispwrapbr", "up")
            for words in (f"addr add {NET}.{number + 2}/24 dev eth0", "link set eth0 up", "link set lo up"):
                run_ip("-n", name, *words.split())
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        run_ip("link", "del", "crispwrapbr")


@contextmanager
def start_ray_node(command: list[str], environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Yield the process of a Ray node that has started; a start that timed out is repeated, as a supervisor does."""
    with ExitStack() as stack:
        for left in reversed(range(MAX_START_ATTEMPTS)):
            with log.open("wb") as file:
                process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
            stack.callback(stop_session, process)
            wait_until(lambda process=process: process.poll() is not None or "Ray runtime started" in log.read_text())
            if process.poll() is None:
                break
            output = log.read_text()
            assert left, output
            assert "timed out during startup" in output, output
        yield process


def stop_session(process: "subprocess.Popen[bytes]") -> None:
    """End all processes of a session, including those whose leader has ended."""
    everything = [other for other in psutil.process_iter() if is_in_session(other.pid, process.pid)]
    if process.poll() is None:
        process.terminate()
    _, alive = psutil.wait_procs(everything, timeout=10)
    for left in alive:
        with suppress(psutil.NoSuchProcess):
            left.kill()
    process.wait()


def is_in_session(pid: int, leader: int) -> bool:
    try:
        return os.getsid(pid) == leader
    except ProcessLookupError:
        return False


def test_several_hosts_with_one_disconnected_write_the_same_shards_as_one(tmp_path: Path) -> None:
    config = make_topic_config(tmp_path, 120) | {"prepare": {"part_documents": 10}}
    workdir = Path(config["workdir"])
    clean_environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = clean_environment | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",
        **_KEEPALIVE,
    }
    file = tmp_path / "run.yaml"

    def curate(address: str, log: Path) -> "subprocess.Popen[bytes]":
        file.write_text(yaml.safe_dump(config | {"engine": {"address": address, "workers": 2}}), encoding="utf-8")
        with log.open("wb") as out:
            command = [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(file)]
            return subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    assert curate("local", tmp_path / "clean.log").wait() == 0, (tmp_path / "clean.log").read_text()
    clean = read_shard_bytes(workdir)
    shutil.rmtree(workdir)
    with ExitStack() as stack:
        hosts = stack.enter_context(create_network(3))
        head = [str(RAY), "start", "--head", "--block", f"--node-ip-address={NET}.1", "--port=26379", "--num-cpus=0"]
        head += ["--include-dashboard=false", "--include-log-monitor=false", "--no-monitor", f"--system-config={_QUICK}"]
        # Not below tmp_path: Ray puts sockets there, and their paths may have 107 bytes at most.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray"))
        stack.enter_context(start_ray_node([*head, f"--temp-dir={folder}"], environment, tmp_path / "head.log"))
        for number, name in enumerate(hosts):
            node = ["ip", "netns", "exec", name, str(RAY), "start", "--block", f"--address={NET}.1:26379", "--num-cpus=1"]
            node += [f"--node-ip-address={NET}.{number + 2}", "--object-store-memory=134217728", "--include-log-monitor=false"]
            stack.enter_context(start_ray_node(node, environment, tmp_path / f"{name}.log"))
        job = curate(f"{NET}.1:26379", tmp_path / "job.log")
        stack.callback(job.kill)
        wait_until(lambda: any((workdir / "embed").glob("*/*")), job, tmp_path / "job.log")
        run_ip("link", "set", f"{hosts[0]}o", "down")  # the host is alive, but unreachable
        assert job.poll() is None, "the job ended before the host was disconnected"
        assert job.wait(timeout=600) == 0, (tmp_path / "job.log").read_text()
        run_ip("link", "set", f"{hosts[0]}o", "up")  # so that its processes receive the request to end
    assert read_shard_bytes(workdir) == clean
