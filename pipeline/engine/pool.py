"""vLLM's engines: how many, on what, with which arguments, and how much each holds at once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import config
from pipeline.engine.tasks import Engine

# Prompts handed to an engine at once. vLLM itself runs 256 of them side by side (max_num_seqs), 1024 on the largest GPUs.
_PROMPTS_IN_FLIGHT = 1024
_MOST_BATCHES = 64  # in flight; each is a thread of the actor
_SMALL_CPUS = 0.1  # of a task that reads or stores: there must be room for some beside an engine on two cores
_READERS = 4  # tasks that read, for each engine, and as many that store
_KV_CACHE_BYTES = 2 << 30  # on a CPU, where vLLM would take most of the machine's memory
# vLLM's own figures for `vllm.LLM`: sequences side by side, tokens of a step. Started by Ray it would take half of them or less.
_ON_CPU = {"max_num_seqs": 256, "max_num_batched_tokens": 4096}
_ON_GPU = {"max_num_seqs": 256, "max_num_batched_tokens": 8192}
_ON_LARGE_GPU = {"max_num_seqs": 1024, "max_num_batched_tokens": 16384}
_LARGE_GPUS = {"H100", "H200", "H20", "GH200", "B200", "B300", "GB200", "GB300"}  # as Ray calls them


@dataclass(frozen=True)
class Pool:
    """The engines: how many, on what, and how much each holds."""

    engines: int
    resources: Mapping[str, float]  # of a worker of an engine
    batch: int  # prompts of a call
    calls: int  # at once, of an engine
    environment: Mapping[str, str]
    kwargs: Mapping[str, Any]  # of vLLM
    readers: int  # tasks that read at once, and as many that store

    @classmethod
    def of(cls, engine: Engine, settings: config.Rephrase, *, one_at_a_time: bool) -> "Pool":
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
            del kwargs["max_num_batched_tokens"]  # it may be no smaller
        kwargs |= settings.engine
        # Each reader loads a tokenizer, seconds of a core, and prepares hundreds of prompts a second: a few will do.
        readers = max(1, min(_READERS * settings.replicas, engine.num_workers // 2))
        if one_at_a_time:
            # Calls of one prompt are never merged; Ray Data makes so many of them at once, for the block that it has.
            environment["RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY"] = str(settings.batch)
            return cls(settings.replicas, resources, 1, 1, environment, kwargs, readers)
        calls = min(_MOST_BATCHES, max(2, _PROMPTS_IN_FLIGHT // settings.batch))
        return cls(settings.replicas, resources, settings.batch, calls, environment, kwargs, readers)

    @property
    def small(self) -> dict[str, Any]:
        """Of the tasks that read and store."""
        return {"num_cpus": _SMALL_CPUS, "concurrency": self.readers}

    @property
    def queued(self) -> int:
        """Calls of an engine that run or are ready to: one more than run, lest it wait for the next."""
        return self.calls + (self.calls > 1)


def _cpu_environment(engine: Engine, settings: config.Rephrase) -> dict[str, str]:
    # Ray would give the engine as many threads as its share of logical CPUs, and vLLM would bind them all to the same cores. One
    # core is left to vLLM's scheduler and Ray: where they take turns with the threads, all of these wait for the last.
    threads = max(1, min(engine.threads_for(settings.replicas), os.cpu_count() or 1) - 1)
    # In one process with its worker, the scheduler does not spin on the core that others need while it waits for that.
    wanted = {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}
