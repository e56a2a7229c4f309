"""GPU utilisation of a cluster while a block of code runs."""

import threading
from types import TracebackType
from typing import Any

from pipeline.engine.tasks import Engine

_SAMPLE_INTERVAL_S = 1.0
_QUERY_TIMEOUT_S = 10.0


class GpuMonitor:
    """Samples the utilisation of all GPUs of the cluster; a context manager. Does nothing without GPUs or NVML."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._samplers: list[Any] = []

    def __enter__(self) -> "GpuMonitor":
        if self._engine.num_gpus:
            import ray
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            for node in ray.nodes():  # type: ignore[no-untyped-call]
                if node["Alive"] and node["Resources"].get("GPU"):
                    on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                    self._samplers.append(ray.remote(GpuSampler).options(num_cpus=0, scheduling_strategy=on_node).remote())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import ray

        for sampler in self._samplers:
            ray.kill(sampler)
        self._samplers = []

    def mean(self) -> float | None:
        """Mean utilisation over all GPUs, from 0 to 1; None if unknown."""
        import ray

        total, count = 0.0, 0
        for sampler in self._samplers:
            try:
                node_total, node_count = ray.get(sampler.sums.remote(), timeout=_QUERY_TIMEOUT_S)
            except ray.exceptions.RayError:
                continue  # the node is gone, with its samples
            total, count = total + node_total, count + node_count
        return total / count if count else None


class GpuSampler:
    """Samples NVML on one node, once a second by default."""

    def __init__(self, interval_s: float = _SAMPLE_INTERVAL_S) -> None:
        self._sums = (0.0, 0)  # assigned as a whole, because another thread reads it
        self._stop = threading.Event()
        try:
            import pynvml  # installed with vLLM for GPUs

            pynvml.nvmlInit()
            devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except Exception:  # utilisation is optional, so a missing or unknown driver must not end the run
            return
        threading.Thread(target=self._sample, args=(pynvml, devices, interval_s), daemon=True).start()

    def sums(self) -> tuple[float, int]:
        """Sum of the samples, each from 0 to 1, and their number."""
        return self._sums

    def _sample(self, nvml: Any, devices: list[Any], interval_s: float) -> None:
        while not self._stop.wait(interval_s):
            shares = [nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100 for device in devices]
            self._sums = (self._sums[0] + sum(shares), self._sums[1] + len(shares))
