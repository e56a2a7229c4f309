"""Size, resources and arguments of the vLLM engines of a run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import config
from pipeline.engine.tasks import Engine

# Prompts sent to an engine at once. vLLM runs 256 of them concurrently (max_num_seqs), 1024 on the largest GPUs.
_PROMPTS_IN_FLIGHT = 1024
_MAX_BATCHES_IN_FLIGHT = 64  # each takes a thread of the actor
_LIGHT_TASK_CPUS = 0.1  # of a task that reads or stores: some must fit next to an engine on two cores
_READERS_PER_ENGINE = 4  # and as many storing tasks
_KV_CACHE_BYTES = 2 << 30  # on a CPU, where vLLM would otherwise use most of the machine's memory
# vLLM's defaults for `vllm.LLM`: concurrent sequences, tokens per step. Under Ray its defaults are half of these or less.
_ON_CPU = {"max_num_seqs": 256, "max_num_batched_tokens": 4096}
_ON_GPU = {"max_num_seqs": 256, "max_num_batched_tokens": 8192}
_ON_LARGE_GPU = {"max_num_seqs": 1024, "max_num_batched_tokens": 16384}
_LARGE_GPUS = {"H100", "H200", "H20", "GH200", "B200", "B300", "GB200", "GB300"}  # Ray's names


@dataclass(frozen=True)
class EnginePool:
    """The number of vLLM engines, their resources and arguments, and their concurrency.

    Attributes:
        num_engines: number of engines.
        resources: resources of one worker of an engine.
        batch_size: prompts per batch.
        max_batches: batches that an engine processes concurrently.
        environment: environment variables of an engine.
        engine_kwargs: arguments of vLLM's engine.
        num_readers: concurrent tasks that read; as many store.
    """

    num_engines: int
    resources: Mapping[str, float]
    batch_size: int
    max_batches: int
    environment: Mapping[str, str]
    engine_kwargs: Mapping[str, Any]
    num_readers: int

    @classmethod
    def plan(cls, engine: Engine, settings: config.Rephrase, *, one_at_a_time: bool) -> "EnginePool":
        """Choose size and arguments from the settings and the cluster.

        With `one_at_a_time` an engine holds the prompts of one block only, one prompt per batch.
        """
        kwargs: dict[str, Any] = {"enable_prefix_caching": True, "disable_log_stats": True}
        environment = {
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        }
        resources = settings.resources or {"GPU": 1, "CPU": 1}
        if not (settings.resources or engine.num_gpus):
            cpus = engine.start().cluster_resources().get("CPU", 1)
            resources = {"CPU": min(1.0, cpus / 2)}
        if resources.get("GPU"):
            kwargs |= _ON_LARGE_GPU if engine.accelerators and engine.accelerators <= _LARGE_GPUS else _ON_GPU
        else:
            environment |= _cpu_environment(engine, settings)
            kwargs |= _ON_CPU
            if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
                kwargs["kv_cache_memory_bytes"] = _KV_CACHE_BYTES
        if "max_num_seqs" in settings.engine:
            del kwargs["max_num_batched_tokens"]  # must not be smaller than max_num_seqs
        kwargs |= settings.engine
        # A reader takes seconds to load a tokenizer, then prepares hundreds of prompts per second: a few readers suffice.
        num_readers = max(1, min(_READERS_PER_ENGINE * settings.replicas, engine.num_workers // 2))
        if one_at_a_time:
            # Ray Data never merges batches of one prompt; it submits this many of them concurrently for its block.
            environment["RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY"] = str(settings.batch)
            return cls(settings.replicas, resources, 1, 1, environment, kwargs, num_readers)
        max_batches = min(_MAX_BATCHES_IN_FLIGHT, max(2, _PROMPTS_IN_FLIGHT // settings.batch))
        return cls(settings.replicas, resources, settings.batch, max_batches, environment, kwargs, num_readers)

    @property
    def light_task_options(self) -> dict[str, Any]:
        """Ray Data options of the tasks that read and store."""
        return {"num_cpus": _LIGHT_TASK_CPUS, "concurrency": self.num_readers}

    @property
    def max_queued_batches(self) -> int:
        """Batches of an engine that run or wait: one more than run, so that the engine never idles."""
        return self.max_batches + (self.max_batches > 1)


def _cpu_environment(engine: Engine, settings: config.Rephrase) -> dict[str, str]:
    # Ray would give the engine one thread for each logical CPU of its share, and vLLM would bind all of them to the same cores.
    # One core is left for vLLM's scheduler and Ray: if they share a core with a thread, all threads wait for the slowest.
    threads = max(1, min(engine.threads_for(settings.replicas), os.cpu_count() or 1) - 1)
    # In the same process as its worker, the scheduler does not spin on a core while it waits for the worker.
    defaults = {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return {name: os.environ.get(name, value) for name, value in defaults.items()}
