"""A Ray cluster of several nodes on this machine, and a job on it, of both of which anything can be killed.

Used by the tests, and for longer by benchmarks/chaos.py.
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
from pipeline.execution.lock import latest_run, record_of
from pipeline.graph.graph import build_graph
from pipeline.storage import Folder
from pipeline.terminal.progress import PENDING, RUNNING
from tests.support.corpora import topic_documents, topic_run, write_jsonl
from tests.support.processes import ROOT, STARTS, free_port, wait_until

KINDS = ("driver", "worker", "raylet", "node")
_LEAN = {"include_log_monitor": False, "no_monitor": True}  # nobody reads logs or scales here: seconds of a core each
# Else a node is given up after half a minute, which on a real network it may need. A busy machine keeps one silent for seconds.
_QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 8}


# What an autoscaler's config must name, though there is nothing to set up on a node that is on this machine.
_NOTHING_TO_RUN = (
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
    """What was killed, while the stage was run."""

    kind: str
    stage: str


class Nodes:
    """A head without CPUs of its own, and worker nodes, each with an address of its own; a context manager."""

    def __init__(self, count: int, *, cpus: int = 1, seed: int = 0, labels: list[dict[str, str]] | None = None) -> None:
        self.count, self.cpus, self.labels = count, cpus, labels or [{}] * count
        self.random = random.Random(seed)
        self._made = 0
        self.killed_at = 0.0  # when the last node was

    def __enter__(self) -> "Nodes":
        # Ray reads them once in each process; all that it starts, and the job, inherit them.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_worker_niceness", "0")  # else, beside anything busy, a node takes minutes to come up
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": _QUICK, **_LEAN},
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
        """One more node."""
        self._made += 1
        address = f"127.0.{self._made // 250}.{2 + self._made % 250}"  # all of these are this machine
        settings = {"node_ip_address": address, "object_store_memory": 128 << 20, "labels": labels or {}, **options}
        for left in reversed(range(STARTS)):
            try:
                node = self._cluster.add_node(wait=False, num_cpus=self.cpus, **settings)
            except Exception as error:  # a plain one of Ray's
                self._kill_at(address)  # else it may still come up, and nobody would know of it
                if not left or "timed out during startup" not in str(error):
                    raise
            else:
                self.nodes.append(node)
                return

    @staticmethod
    def _kill_at(address: str) -> None:
        """Kill the raylets with an address, and all that they started."""
        for raylet in [one for one in psutil.process_iter() if f"--node_ip_address={address} " in _title(one)]:
            _kill_whole(raylet)

    def start(self, config: Path, log: Path, job: str = "curate") -> "subprocess.Popen[bytes]":
        """A job on this cluster."""
        return start_job(self.address, config, log, job)

    def kill(self, kind: str, driver: "subprocess.Popen[bytes]") -> bool:
        """Kill one of the kind, at once and without warning; another node comes for one that is gone. Whether there was one."""
        if kind == "driver":
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            return True
        node = self.random.choice(self.nodes)
        if kind == "worker":
            workers = [process for process in self._raylet(node).children() if _title(process).startswith("ray::")]
            busy = [process for process in workers if "IDLE" not in _title(process)]
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
            _kill_whole(raylet)
        self.killed_at = time.time()
        self._cluster.remove_node(node, allow_graceful=False)  # what is left of it
        self.add(self.labels[0])
        return True

    def revive(self) -> None:
        """Another node for each whose raylet ended by itself, as one does that was silent for too long."""
        for node in [node for node in self.nodes if node.dead_processes()]:
            self.nodes.remove(node)
            self._cluster.remove_node(node, allow_graceful=False)
            self.add(self.labels[0])

    def torment(self, config: Path, log: Path, kinds: Sequence[str], *, most_pause_s: float) -> tuple[list[Kill], int]:
        """Run a job to its end, and kill one of each of the kinds in turn: each at a random moment of a random step.

        Returns what was killed, and how many jobs gave up. The same command is given again after the driver was killed or gave up;
        fewer are killed where the job is done sooner.
        """
        killed: list[Kill] = []
        gave_up = 0
        left = list(kinds)
        run = build_graph(load_config(str(config)))
        workdir = Path(run.config.workdir)
        moments = sorted(self.random.uniform(0, len(run.steps) + 1) for _ in left)  # in steps, of which the report is the last
        job, before = self.start(config, log), 0
        while True:
            if left:
                self._hold(job, lambda before=before: last_run(workdir) > before and begun_steps(workdir) > moments[0])
            until = time.monotonic() + moments[0] % 1 * most_pause_s if left else float("inf")
            self._hold(job, lambda until=until: time.monotonic() >= until)
            if job.poll() is None:
                stage = ", ".join(at_work(workdir)) or "between steps"
                if self.kill(left[0], job):
                    killed.append(Kill(left.pop(0), stage))
                    moments.pop(0)
                if job.poll() is None:
                    continue
            elif job.returncode == 0:
                return killed, gave_up
            else:
                assert job.returncode == 1, f"status {job.returncode}\n{log.read_text(errors='replace')}"
                gave_up += 1
                assert gave_up < 10, log.read_text(errors="replace")
            before = last_run(workdir)  # which says where the dead job was
            job = self.start(config, log)

    def _hold(self, job: "subprocess.Popen[bytes]", condition: Callable[[], bool]) -> None:
        """Until the condition holds, or the job is over; meanwhile nodes that end by themselves are replaced."""
        while job.poll() is None and not condition():
            self.revive()
            time.sleep(0.02)

    @staticmethod
    def _raylet(node: Any) -> psutil.Process:
        (raylet,) = node.all_processes["raylet"]
        return psutil.Process(raylet.process.pid)


def _kill_whole(raylet: psutil.Process) -> None:
    """Kill a raylet and all that it started."""
    with suppress(psutil.NoSuchProcess):
        for process in [*raylet.children(recursive=True), raylet]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def start_job(address: str, config: Path, log: Path, job: str = "curate") -> "subprocess.Popen[bytes]":
    """A job on the cluster at the address."""
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), "--config", str(config), "--set", f"engine.address={address}"]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


class Growing:
    """A head without CPUs, and an autoscaler that brings up to so many nodes of one CPU for what waits; a context manager.

    The nodes are Ray's own fakes of a cloud's: raylets on this machine. `ray.cluster_utils.AutoscalingCluster` is the same, but
    stops every Ray of the machine before and after.
    """

    def __init__(self, folder: Path, *, most: int) -> None:
        from ray.util import get_node_ip_address

        self.folder, self.most, self.port = folder, most, free_port()
        self.address = f"{get_node_ip_address()}:{self.port}"  # Ray takes no other of this machine for a head

    def __enter__(self) -> "Growing":
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        config = {
            "cluster_name": "growing",
            "max_workers": self.most,
            "provider": {"type": "fake_multinode", "gcs_address": self.address, "launch_multiple": True},
            "available_node_types": {
                "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
                "one_cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": self.most},
            },
            "head_node_type": "ray.head.default",
            "upscaling_speed": 10,
            "idle_timeout_minutes": 10,
            "auth": {},
            "docker": {},
            "file_mounts": {},
            **{name: [] for name in _NOTHING_TO_RUN},
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
        doomed = psutil.Process(self._head.pid).children(recursive=True)
        doomed += [process for process in psutil.process_iter() if f"--gcs-address={self.address}" in _title(process)]
        for process in [psutil.Process(self._head.pid), *doomed]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._head.wait()

    def _started(self) -> bool:
        return "Ray runtime started" in (self.folder / "head.log").read_text(errors="replace")

    @property
    def raylets(self) -> int:
        """Nodes that are up now, and the head."""
        titles = [_title(process) for process in psutil.process_iter()]
        return sum("raylet/raylet" in title and f"--gcs-address={self.address}" in title for title in titles)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def all_stages(folder: Path, url: str) -> dict[str, Any]:
    """A small run of some fifty parts with every stage; the endpoint at the URL titles and rewrites."""
    held_out = write_jsonl(folder / "held.json", topic_documents("space", 3, seed=5))
    endpoint = {"model": "fake", "backend": "endpoint", "endpoint": {"url": url, "retries": 3}, "batch": 8, "mode": "share"}
    return topic_run(folder, 120) | {
        "engine": {"workers": 2},
        "prepare": {"part_documents": 20, "steps": [{"type": "GopherRepetitionFilter"}]},
        "dedup": {"buckets": 3, "hashes": 8},
        "decontaminate": {"held_out": {"space": {"paths": [held_out]}}},
        "rephrase": endpoint,
        "schedule": {"ending": {"share": 0.2, "weights": {"natural_share": 0.3}}},
    }


def _steps(workdir: Path) -> list[dict[str, str]]:
    """The steps of the latest run as its record has them."""
    folder = Folder(str(workdir))
    return (record_of(folder, latest_run(folder)) or {}).get("steps", [])


def last_run(workdir: Path) -> int:
    """The number of the latest run, 0 before the first."""
    return latest_run(Folder(str(workdir)))


def at_work(workdir: Path) -> list[str]:
    """The stage that the latest run is in; none between two."""
    return [step["output"].partition("/")[0] for step in _steps(workdir) if step["state"] == RUNNING]


def begun_steps(workdir: Path) -> int:
    """How many steps the latest run has come to, those that were there among them."""
    return sum(step["state"] != PENDING for step in _steps(workdir))
