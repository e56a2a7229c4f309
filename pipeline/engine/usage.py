"""What work takes: time and memory of a task, and their sums over a stage."""

import functools
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Usage:
    """What the work of one stage took, summed over its tasks."""

    tasks: int = 0
    busy_s: float = 0.0
    mapping_s: float = 0.0  # while tasks were out; the rest of a stage is the driver's alone
    driver_s: float = 0.0  # processor time of the driver meanwhile
    peak_rss_bytes: int = 0
    generated_tokens: int = 0
    generating_s: float = 0.0
    gpu_utilisation: float | None = None  # mean, while a language model ran

    def add(self, busy_s: float, rss_bytes: int) -> None:
        self.tasks += 1
        self.busy_s += busy_s
        self.peak_rss_bytes = max(self.peak_rss_bytes, rss_bytes)

    def add_generated(self, tokens: int, seconds: float, gpu_utilisation: float | None) -> None:
        """What a language model wrote, how long that took with all that goes with it, and how busy the GPUs were."""
        if gpu_utilisation is not None:
            before = (self.gpu_utilisation or 0.0) * self.generating_s
            self.gpu_utilisation = (before + gpu_utilisation * seconds) / max(1e-9, self.generating_s + seconds)
        self.generated_tokens += tokens
        self.generating_s += seconds


def measured(function: Callable[[], Any]) -> tuple[Any, float, int]:
    """What a function returns in a task, the seconds that it took, and the most memory in bytes that the process held meanwhile."""
    _single_threaded()
    _forget_peak()
    started = time.monotonic()
    result = function()
    return result, time.monotonic() - started, _peak_private_bytes()


@functools.cache
def _single_threaded() -> None:
    """One BLAS thread a worker, whatever the machine: more would change the last bits of a product; workers are the parallelism."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)


def _forget_peak() -> None:
    """Let the peak of this process start anew: a worker outlives its tasks, and one with a model would report that for ever."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass  # not Linux, or not allowed: the peak is that of the process's life


def _peak_private_bytes() -> int:
    """The most memory resident since `_forget_peak`, less what is mapped of the object store by now: all workers share that."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in file if line.startswith(("VmHWM", "RssShmem"))}
        return 1024 * (kilobytes["VmHWM"] - kilobytes["RssShmem"])
    except (OSError, KeyError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
