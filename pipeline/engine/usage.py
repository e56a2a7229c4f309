"""Time and memory that tasks use, and their sums over a stage."""

import functools
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Usage:
    """Resources used by one stage, summed over its tasks.

    Attributes:
        tasks: number of tasks.
        busy_s: sum of the tasks' run times, times their cores.
        mapping_s: wall time while tasks were running or queued; in the rest of a stage only the driver works.
        driver_s: CPU time of the driver during `mapping_s`.
        peak_rss_bytes: highest memory of a task.
        generated_tokens: tokens that a language model wrote.
        generating_s: time for that, with starting the engines and reading and storing.
        gpu_utilisation: mean from 0 to 1 while the language model ran; None if unknown.
    """

    tasks: int = 0
    busy_s: float = 0.0
    mapping_s: float = 0.0
    driver_s: float = 0.0
    peak_rss_bytes: int = 0
    generated_tokens: int = 0
    generating_s: float = 0.0
    gpu_utilisation: float | None = None

    def add(self, busy_s: float, rss_bytes: int) -> None:
        """Add one task."""
        self.tasks += 1
        self.busy_s += busy_s
        self.peak_rss_bytes = max(self.peak_rss_bytes, rss_bytes)

    def add_generated(self, tokens: int, seconds: float, gpu_utilisation: float | None) -> None:
        """Add the tokens that a language model wrote, the time that took in total, and the mean GPU utilisation."""
        if gpu_utilisation is not None:
            before = (self.gpu_utilisation or 0.0) * self.generating_s
            self.gpu_utilisation = (before + gpu_utilisation * seconds) / max(1e-9, self.generating_s + seconds)
        self.generated_tokens += tokens
        self.generating_s += seconds


def measure(function: Callable[[], Any]) -> tuple[Any, float, int]:
    """Call `function` in a task; return its result, its run time in seconds, and the peak memory of the process in bytes."""
    _limit_blas_threads()
    _reset_peak_memory()
    started = time.monotonic()
    result = function()
    return result, time.monotonic() - started, _read_peak_memory_bytes()


@functools.cache
def _limit_blas_threads() -> None:
    """Use one BLAS thread per worker on every machine: more would change the last bits of a product. Parallelism is by workers."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)


def _reset_peak_memory() -> None:
    """Reset the peak memory of this process: a worker outlives its tasks, and would report a model it once loaded for ever."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass  # not Linux, or not allowed: the peak then covers the lifetime of the process


def _read_peak_memory_bytes() -> int:
    """Peak resident memory since `_reset_peak_memory`, without the object store's pages now mapped, which all workers share."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in file if line.startswith(("VmHWM", "RssShmem"))}
        return 1024 * (kilobytes["VmHWM"] - kilobytes["RssShmem"])
    except (OSError, KeyError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
