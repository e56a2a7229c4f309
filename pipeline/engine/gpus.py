"""How busy the GPUs of a cluster are, while something runs."""

import threading
from types import TracebackType
from typing import Any

from pipeline.engine.tasks import Engine

_EVERY_S = 1.0
_ANSWER_S = 10.0


class GpuWatch:
    """Samples the utilisation of all GPUs of the cluster; use as a context manager. Without GPUs, or NVML, it does nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._watchers: list[Any] = []

    def __enter__(self) -> "GpuWatch":
        if self._engine.num_gpus:
            import ray
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            for node in ray.nodes():  # type: ignore[no-untyped-call]
                if node["Alive"] and node["Resources"].get("GPU"):
                    here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                    self._watchers.append(ray.remote(Watcher).options(num_cpus=0, scheduling_strategy=here).remote())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import ray

        for watcher in self._watchers:
            ray.kill(watcher)
        self._watchers = []

    def mean(self) -> float | None:
        """Mean share of the time in which a GPU computed, over all of them; None where none is known."""
        import ray

        total, count = 0.0, 0
        for watcher in self._watchers:
            try:
                of_node = ray.get(watcher.sums.remote(), timeout=_ANSWER_S)
            except ray.exceptions.RayError:
                continue  # its node is gone, and what it saw with it
            total, count = total + of_node[0], count + of_node[1]
        return total / count if count else None


class Watcher:
    """Reads NVML once a second, on one node."""

    def __init__(self, every_s: float = _EVERY_S) -> None:
        self._total, self._count = 0.0, 0
        self._stop = threading.Event()
        try:
            import pynvml  # comes with vLLM for GPUs

            pynvml.nvmlInit()
            devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except Exception:  # no driver, or not this one: a figure less, and no reason to fail
            return
        threading.Thread(target=self._watch, args=(pynvml, devices, every_s), daemon=True).start()

    def sums(self) -> tuple[float, int]:
        """Sum of the samples, from 0 to 1, and their number."""
        return self._total, self._count

    def _watch(self, nvml: Any, devices: list[Any], every_s: float) -> None:
        while not self._stop.wait(every_s):
            for device in devices:
                self._total += nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100
                self._count += 1
