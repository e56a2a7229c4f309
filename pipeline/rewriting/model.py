"""Which model writes, by content: what an answer depends on besides its prompt."""

import functools
import hashlib
import os
from dataclasses import dataclass
from typing import Any

from pipeline.config import Rephrase
from pipeline.errors import ConfigError
from pipeline.execution.file_digests import file_sha256
from pipeline.execution.fingerprint import fingerprint

# Settings of vLLM's engine that say how it runs, not what it computes (beyond the last bits, which batching decides anyway).
_EXECUTION = frozenset(
    {
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "distributed_executor_backend",
        "gpu_memory_utilization",
        "max_num_seqs",
        "max_num_batched_tokens",
        "enforce_eager",
        "enable_prefix_caching",
        "enable_chunked_prefill",
        "kv_cache_memory_bytes",
        "swap_space",
        "cpu_offload_gb",
        "block_size",
        "compilation_config",
        "speculative_config",
        "disable_log_stats",
        "download_dir",
    }
)
_WHOLE_BYTES = 64 << 20  # files up to here are digested whole; of weights, their ends and size will do
_END_BYTES = 4 << 20


@dataclass(frozen=True)
class Model:
    """A model that is found: where workers load it from, and what it is."""

    source: str  # absolute folder, hub name, or the name that an endpoint knows
    commit: str | None  # of a hub model
    revision: str  # commit, digest of a folder, or what the config says of an endpoint's


def resolve(settings: Rephrase) -> Model:
    """The model of `rephrase.model`; asks the hub for its commit, and for its small files, no weights.

    Raises:
        ConfigError: there is no such model, or the hub cannot be reached and does not lie in the cache.
    """
    if settings.backend == "endpoint":
        return Model(settings.model, None, settings.revision or "")
    if os.path.isdir(settings.model):
        if not os.path.isfile(os.path.join(settings.model, "config.json")):
            raise ConfigError(f"rephrase.model {settings.model} is a folder without config.json; give one that transformers saved")
        folder = os.path.abspath(settings.model)
        return Model(folder, None, _folder_digest(folder))
    commit = _commit(settings.model, settings.revision)
    return Model(settings.model, commit, commit)


def generator(settings: Rephrase, model: Model) -> str:
    """The fingerprint of model and settings of generation: part of the identity of each answer."""
    # A folder's path is no identity, and its digest is.
    name = os.path.basename(model.source) if os.path.isabs(model.source) else model.source
    return fingerprint(
        {
            "model": name,
            "revision": model.revision,
            "sampling": settings.sampling,
            "chat_template_kwargs": settings.chat_template_kwargs,
            "engine": {key: value for key, value in settings.engine.items() if key not in _EXECUTION},
        }
    )


def identity(settings: Rephrase, model: Model) -> dict[str, Any]:
    """What the outcome of rephrasing depends on, of its settings."""
    steering = ("endpoint", "engine", "model", "revision", "backend", "styles", "held_out")
    kept = {name: value for name, value in settings.identity().items() if name not in steering}
    return {**kept, "styles": settings.style_shares, "generator": generator(settings, model)}


def _folder_digest(folder: str) -> str:
    lines = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and not name.startswith(".") and not name.endswith(".md"):
            lines.append(f"{name}\0{_digest(path)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _digest(path: str) -> str:
    size = os.path.getsize(path)
    if size <= _WHOLE_BYTES:
        return file_sha256(path)
    with open(path, "rb") as file:
        head = file.read(_END_BYTES)
        file.seek(size // 2)
        middle = file.read(_END_BYTES)
        file.seek(-_END_BYTES, os.SEEK_END)
        return hashlib.sha256(b"%d\0" % size + head + middle + file.read()).hexdigest()


@functools.cache
def _commit(name: str, revision: str | None) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(f"rephrase.model {name} is no folder, so it comes from the hub: pip install huggingface_hub") from error
    try:
        folder = str(snapshot_download(name, revision=revision, allow_patterns=["*.json"]))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"rephrase.model {name} cannot be had from the hub ({type(error).__name__}: {reason}); check the name, fetch it where "
            f"there is a network with `hf download {name}`, give a folder, or use an endpoint (rephrase.backend: endpoint)"
        ) from error
    return os.path.basename(folder)
