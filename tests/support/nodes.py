"""Ray clusters of several nodes on this machine, whose jobs, workers, raylets and nodes can be killed.

The tests use them, and benchmarks/chaos.py for longer.
"""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from pipeline.config import load_config
from pipeline.execution.lock import latest_run_number, read_run_record
from pipeline.graph.build import build_graph
from pipeline.storage import Folder
from pipeline.terminal.progress import PENDING, RUNNING
from tests.support.corpora import make_topic_config, make_topic_documents, write_jsonl
from tests.support.processes import MAX_START_ATTEMPTS, ROOT, free_port, wait_until

KILL_KINDS = ("driver", "worker", "raylet", "node")
_MINIMAL_HEAD = {"include_log_monitor": False, "no_monitor": True}  # neither is needed, and each costs CPU seconds
# By default, a node is declared dead after half a minute. Shorter, but a node on a busy machine may be silent for seconds.
_FAST_HEALTH_CHECKS = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 8}


# Required in an autoscaler's config; they are empty, because a node on this machine needs no setup.
_EMPTY_LISTS = (
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "rsync_exclude",
    "rsync_filter",
)


@dataclass(frozen=True)
class Kill:
    """What was killed, and in which stage."""

    kind: str
    stage: str


class LocalCluster:
    """A head node without CPUs, and worker nodes with different addresses; a context manager."""

    def __init__(self, count: int, *, cpus: int = 1, seed: int = 0, labels: list[dict[str, str]] | None = None) -> None:
        self.count, self.cpus, self.labels = count, cpus, labels or [{}] * count
        self.random = random.Random(seed)
        self._num_started = 0
        self.last_kill_time = 0.0  # of a raylet or a node

    def __enter__(self) -> "LocalCluster":
        # Ray reads these once per process; the processes that it starts, and the job, inherit them.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_worker_niceness", "0")  # otherwise a node takes minutes to start on a busy machine
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": _FAST_HEALTH_CHECKS, **_MINIMAL_HEAD},
        )
        self.nodes: list[Any] = []
        for labels in self.labels:
            self.add(labels)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cluster.shutdown()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, labels: dict[str, str] | None = None, **options: Any) -> None:
        """Start another node."""
        self._num_started += 1
        address = f"127.0.{self._num_started // 250}.{2 + self._num_started % 250}"  # loopback addresses
        settings = {"node_ip_address": address, "object_store_memory": 128 << 20, "labels": labels or {}, **options}
        for attempts_left in reversed(range(MAX_START_ATTEMPTS)):
            try:
                node = self._cluster.add_node(wait=False, num_cpus=self.cpus, **settings)
            except Exception as error:  # Ray raises no subclass
                self._kill_at(address)  # otherwise it may still start, unnoticed
                if not attempts_left or "timed out during startup" not in str(error):
                    raise
            else:
                self.nodes.append(node)
                return

    @staticmethod
    def _kill_at(address: str) -> None:
        """Kill the raylets with this address and their child processes."""
        for raylet in [one for one in psutil.process_iter() if f"--node_ip_address={address} " in _command_line(one)]:
            _kill_process_tree(raylet)

    def start(self, config: Path, log: Path, job: str = "curate") -> "subprocess.Popen[bytes]":
        """Start a job on this cluster."""
        return start_job(self.address, config, log, job)

    def kill(self, kind: str, driver: "subprocess.Popen[bytes]") -> bool:
        """Kill a process of this kind with SIGKILL, and replace a killed node; return False if no worker was running a task."""
        if kind == "driver":
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            return True
        node = self.random.choice(self.nodes)
        if kind == "worker":
            workers = [process for process in self._raylet(node).children() if _command_line(process).startswith("ray::")]
            busy = [process for process in workers if "IDLE" not in _command_line(process)]
            if not busy:
                return False
            self.random.choice(busy).kill()
            return True
        self.nodes.remove(node)
        raylet = self._raylet(node)
        if kind == "raylet":
            with suppress(psutil.NoSuchProcess):
                raylet.kill()
        else:
            _kill_process_tree(raylet)
        self.last_kill_time = time.time()
        self._cluster.remove_node(node, allow_graceful=False)  # its remaining processes
        self.add(self.labels[0])
        return True

    def replace_dead_nodes(self) -> None:
        """Replace each node whose raylet ended by itself, as a raylet does after missing too many heartbeats."""
        for node in [node for node in self.nodes if node.dead_processes()]:
            self.nodes.remove(node)
            self._cluster.remove_node(node, allow_graceful=False)
            self.add(self.labels[0])

    def run_with_kills(self, config: Path, log: Path, kinds: Sequence[str], *, max_pause_s: float) -> tuple[list[Kill], int]:
        """Run a job to its end, and kill one process of each kind in turn, each at a random moment of a random step.

        The job is restarted after its driver was killed or failed. If the job finishes early, fewer processes are killed.

        Returns:
            The kills, and the number of jobs that failed.
        """
        killed: list[Kill] = []
        num_failed = 0
        pending = list(kinds)
        graph = build_graph(load_config(str(config)))
        workdir = Path(graph.config.workdir)
        moments = sorted(self.random.uniform(0, len(graph.steps) + 1) for _ in pending)  # in steps; the report is the last step
        job, before = self.start(config, log), 0
        while True:
            if pending:
                self._wait_while_running(
                    job, lambda before=before: find_latest_run(workdir) > before and count_started_steps(workdir) > moments[0]
                )
            until = time.monotonic() + moments[0] % 1 * max_pause_s if pending else float("inf")
            self._wait_while_running(job, lambda until=until: time.monotonic() >= until)
            if job.poll() is None:
                stage = ", ".join(list_running_stages(workdir)) or "between steps"
                if self.kill(pending[0], job):
                    killed.append(Kill(pending.pop(0), stage))
                    moments.pop(0)
                if job.poll() is None:
                    continue
            elif job.returncode == 0:
                return killed, num_failed
            else:
                assert job.returncode == 1, f"status {job.returncode}\n{log.read_text(errors='replace')}"
                num_failed += 1
                assert num_failed < 10, log.read_text(errors="replace")
            before = find_latest_run(workdir)  # the run of the job that ended
            job = self.start(config, log)

    def _wait_while_running(self, job: "subprocess.Popen[bytes]", condition: Callable[[], bool]) -> None:
        """Wait until the condition holds or the job ends; meanwhile, replace dead nodes."""
        while job.poll() is None and not condition():
            self.replace_dead_nodes()
            time.sleep(0.02)

    @staticmethod
    def _raylet(node: Any) -> psutil.Process:
        (raylet,) = node.all_processes["raylet"]
        return psutil.Process(raylet.process.pid)


def _kill_process_tree(raylet: psutil.Process) -> None:
    """Kill a raylet and all its descendants."""
    with suppress(psutil.NoSuchProcess):
        for process in [*raylet.children(recursive=True), raylet]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def start_job(address: str, config: Path, log: Path, job: str = "curate") -> "subprocess.Popen[bytes]":
    """Start a job on the cluster at the address."""
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), "--config", str(config), "--set", f"engine.address={address}"]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


class AutoscalingCluster:
    """A head node without CPUs, and an autoscaler that starts up to `max_nodes` one-CPU nodes for waiting tasks; a context manager.

    The nodes are raylets on this machine, from Ray's fake cloud provider. `ray.cluster_utils.AutoscalingCluster` does the same, but
    stops every Ray on the machine before and after.
    """

    def __init__(self, folder: Path, *, max_nodes: int) -> None:
        from ray.util import get_node_ip_address

        self.folder, self.max_nodes, self.port = folder, max_nodes, free_port()
        self.address = f"{get_node_ip_address()}:{self.port}"  # the only address of this machine that Ray accepts for a head

    def __enter__(self) -> "AutoscalingCluster":
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        config = {
            "cluster_name": "growing",
            "max_workers": self.max_nodes,
            "provider": {"type": "fake_multinode", "gcs_address": self.address, "launch_multiple": True},
            "available_node_types": {
                "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
                "one_cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": self.max_nodes},
            },
            "head_node_type": "ray.head.default",
            "upscaling_speed": 10,
            "idle_timeout_minutes": 10,
            "auth": {},
            "docker": {},
            "file_mounts": {},
            **{name: [] for name in _EMPTY_LISTS},
        }
        file = self.folder / "autoscaling.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--autoscaling-config={file}"]
        command += [f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false"]
        command += ["--object-store-memory=200000000"]
        env = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_worker_niceness": "0"}
        with (self.folder / "head.log").open("ab") as log:
            self._head = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **env})
        wait_until(self._started, self._head, self.folder / "head.log")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        processes_to_kill = psutil.Process(self._head.pid).children(recursive=True)
        processes_to_kill += [
            process for process in psutil.process_iter() if f"--gcs-address={self.address}" in _command_line(process)
        ]
        for process in [psutil.Process(self._head.pid), *processes_to_kill]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._head.wait()

    def _started(self) -> bool:
        return "Ray runtime started" in (self.folder / "head.log").read_text(errors="replace")

    @property
    def num_raylets(self) -> int:
        """The number of running nodes, the head included."""
        command_lines = [_command_line(process) for process in psutil.process_iter()]
        return sum(
            "raylet/raylet" in command_line and f"--gcs-address={self.address}" in command_line for command_line in command_lines
        )


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def make_all_stages_config(folder: Path, url: str) -> dict[str, Any]:
    """Return the config of a run of about fifty parts with every stage; the endpoint at the URL writes titles and rewrites."""
    held_out = write_jsonl(folder / "held.json", make_topic_documents("space", 3, seed=5))
    endpoint = {"model": "fake", "backend": "endpoint", "endpoint": {"url": url, "retries": 3}, "batch": 8, "mode": "share"}
    return make_topic_config(folder, 120) | {
        "engine": {"workers": 2},
        "prepare": {"part_documents": 20, "steps": [{"type": "GopherRepetitionFilter"}]},
        "dedup": {"buckets": 3, "hashes": 8},
        "decontaminate": {"held_out": {"space": {"paths": [held_out]}}},
        "rephrase": endpoint,
        "schedule": {"ending": {"share": 0.2, "weights": {"natural_share": 0.3}}},
    }


def _read_step_records(workdir: Path) -> list[dict[str, str]]:
    """Return the steps in the record of the latest run."""
    folder = Folder(str(workdir))
    return (read_run_record(folder, latest_run_number(folder)) or {}).get("steps", [])


def find_latest_run(workdir: Path) -> int:
    """Return the number of the latest run, 0 before the first."""
    return latest_run_number(Folder(str(workdir)))


def list_running_stages(workdir: Path) -> list[str]:
    """Return the running stage of the latest run; the list is empty between two steps."""
    return [step["output"].partition("/")[0] for step in _read_step_records(workdir) if step["state"] == RUNNING]


def count_started_steps(workdir: Path) -> int:
    """Return the number of steps of the latest run that are no longer pending, cached ones included."""
    return sum(step["state"] != PENDING for step in _read_step_records(workdir))
