"""Several hosts on one machine: network namespaces with addresses and links of their own, one of which is cut off in the middle.

Where namespaces cannot be made (no root, no `ip`) nothing is tested here; tests/test_nodes.py has the same on loopback.
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

from tests.support.corpora import shard_bytes, topic_run
from tests.support.processes import ROOT, STARTS, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RAY = Path(sys.executable).parent / "ray"
NET = "10.213.77"
# A connection that nobody closes is given up after so long; by default after seven minutes.
_KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": "5000", "RAY_grpc_client_keepalive_timeout_ms": "5000"}
# A host is given up after ten seconds: a busy machine keeps one that lives silent for some.
_QUICK = '{"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 20}'


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def network(hosts: int) -> Iterator[list[str]]:
    """A bridge with this process's namespace as .1, and the names of namespaces with a host each, from .2 on."""
    names = [f"crispwrap{number}" for number in range(hosts)]
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    try:
        ip("link", "add", "crispwrapbr", "type", "bridge")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network of our own can be made here: {error.stderr.strip()}")
    try:
        ip("addr", "add", f"{NET}.1/24", "dev", "crispwrapbr")
        ip("link", "set", "crispwrapbr", "up")
        for number, name in enumerate(names):
            ip("netns", "add", name)
            ip("link", "add", f"{name}o", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}o", "master", "crispwrapbr", "up")
            for words in (f"addr add {NET}.{number + 2}/24 dev eth0", "link set eth0 up", "link set lo up"):
                ip("-n", name, *words.split())
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        ip("link", "del", "crispwrapbr")


@contextmanager
def started(command: list[str], environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A node of Ray's, once it says that it is up; one that gave up for want of time is started again, as a supervisor does."""
    with ExitStack() as stack:
        for left in reversed(range(STARTS)):
            with log.open("wb") as file:
                process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
            stack.callback(stop, process)
            wait_until(lambda process=process: process.poll() is not None or "Ray runtime started" in log.read_text())
            if process.poll() is None:
                break
            said = log.read_text()
            assert left, said
            assert "timed out during startup" in said, said
        yield process


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a session: what it leads, and what its leader left behind when it gave up."""
    everything = [other for other in psutil.process_iter() if in_session(other.pid, process.pid)]
    if process.poll() is None:
        process.terminate()
    _, alive = psutil.wait_procs(everything, timeout=10)
    for left in alive:
        with suppress(psutil.NoSuchProcess):
            left.kill()
    process.wait()


def in_session(pid: int, leader: int) -> bool:
    try:
        return os.getsid(pid) == leader
    except ProcessLookupError:
        return False


def test_hosts_of_a_network_of_which_one_is_cut_off_give_the_bytes_of_one(tmp_path: Path) -> None:
    config = topic_run(tmp_path, 120) | {"prepare": {"part_documents": 10}}
    workdir = Path(config["workdir"])
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = bare | {
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
    clean = shard_bytes(workdir)
    shutil.rmtree(workdir)
    with ExitStack() as stack:
        hosts = stack.enter_context(network(3))
        head = [str(RAY), "start", "--head", "--block", f"--node-ip-address={NET}.1", "--port=26379", "--num-cpus=0"]
        head += ["--include-dashboard=false", "--include-log-monitor=false", "--no-monitor", f"--system-config={_QUICK}"]
        # Not below tmp_path: Ray puts sockets there, and their paths may have 107 bytes at most.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray"))
        stack.enter_context(started([*head, f"--temp-dir={folder}"], environment, tmp_path / "head.log"))
        for number, name in enumerate(hosts):
            node = ["ip", "netns", "exec", name, str(RAY), "start", "--block", f"--address={NET}.1:26379", "--num-cpus=1"]
            node += [f"--node-ip-address={NET}.{number + 2}", "--object-store-memory=134217728", "--include-log-monitor=false"]
            stack.enter_context(started(node, environment, tmp_path / f"{name}.log"))
        job = curate(f"{NET}.1:26379", tmp_path / "job.log")
        stack.callback(job.kill)
        wait_until(lambda: any((workdir / "embed").glob("*/*")), job, tmp_path / "job.log")
        ip("link", "set", f"{hosts[0]}o", "down")  # the host lives, and nobody hears of it
        assert job.poll() is None, "it was to be cut off in the middle"
        assert job.wait(timeout=600) == 0, (tmp_path / "job.log").read_text()
        ip("link", "set", f"{hosts[0]}o", "up")  # so that its processes hear that they should end
    assert shard_bytes(workdir) == clean
