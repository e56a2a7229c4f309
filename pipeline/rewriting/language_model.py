"""Identify the rewriting model and its settings by content: everything that an answer depends on besides its prompt."""

import functools
import hashlib
import os
from dataclasses import dataclass
from typing import Any

from pipeline.config import Rephrase
from pipeline.errors import ConfigError
from pipeline.execution.file_digests import file_sha256
from pipeline.execution.fingerprint import fingerprint

# Settings of vLLM's engine that change how it runs, not what it computes (except the last bits, which batching changes anyway).
_EXECUTION_SETTINGS = frozenset(
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
_MAX_FULL_HASH_BYTES = 64 << 20  # larger files (weights) are hashed by their size, beginning, middle and end
_SAMPLED_BYTES = 4 << 20  # of each of the three


@dataclass(frozen=True)
class Model:
    """A resolved model: where workers load it from, and which version it is."""

    source: str  # absolute folder, hub name, or the model name of an endpoint
    commit: str | None  # of a hub model, else None
    revision: str  # commit, digest of a folder, or rephrase.revision for an endpoint ("" if unset)


def resolve_model(settings: Rephrase) -> Model:
    """Resolve `rephrase.model`. A hub name downloads its JSON files, which gives the commit, but no weights.

    Raises:
        ConfigError: the folder has no config.json, the hub has no such model, the hub is unreachable and the model is not cached,
            or huggingface_hub is missing.
    """
    if settings.backend == "endpoint":
        return Model(settings.model, None, settings.revision or "")
    if os.path.isdir(settings.model):
        if not os.path.isfile(os.path.join(settings.model, "config.json")):
            raise ConfigError(
                f"rephrase.model {settings.model} is a folder without config.json; give a folder written by save_pretrained"
            )
        folder = os.path.abspath(settings.model)
        return Model(folder, None, _hash_folder(folder))
    commit = _resolve_commit(settings.model, settings.revision)
    return Model(settings.model, commit, commit)


def fingerprint_generator(settings: Rephrase, model: Model) -> str:
    """Return the fingerprint of the model and the generation settings, which is part of the key of each answer."""
    # A folder is identified by its name and digest, not by its path.
    name = os.path.basename(model.source) if os.path.isabs(model.source) else model.source
    return fingerprint(
        {
            "model": name,
            "revision": model.revision,
            "sampling": settings.sampling,
            "chat_template_kwargs": settings.chat_template_kwargs,
            "engine": {key: value for key, value in settings.engine.items() if key not in _EXECUTION_SETTINGS},
        }
    )


def get_identity(settings: Rephrase, model: Model) -> dict[str, Any]:
    """Return the settings of `rephrase` that change the result, for the step's fingerprint."""
    excluded = ("endpoint", "engine", "model", "revision", "backend", "styles", "held_out")
    kept = {name: value for name, value in settings.identity().items() if name not in excluded}
    return {**kept, "styles": settings.style_shares, "generator": fingerprint_generator(settings, model)}


def _hash_folder(folder: str) -> str:
    lines = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and not name.startswith(".") and not name.endswith(".md"):
            lines.append(f"{name}\0{_hash_file(path)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _hash_file(path: str) -> str:
    size = os.path.getsize(path)
    if size <= _MAX_FULL_HASH_BYTES:
        return file_sha256(path)
    with open(path, "rb") as file:
        head = file.read(_SAMPLED_BYTES)
        file.seek(size // 2)
        middle = file.read(_SAMPLED_BYTES)
        file.seek(-_SAMPLED_BYTES, os.SEEK_END)
        return hashlib.sha256(b"%d\0" % size + head + middle + file.read()).hexdigest()


@functools.cache
def _resolve_commit(name: str, revision: str | None) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"rephrase.model {name} is not a local folder, and downloading it needs huggingface_hub; pip install huggingface_hub"
        ) from error
    try:
        folder = str(snapshot_download(name, revision=revision, allow_patterns=["*.json"]))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"cannot download rephrase.model {name} from the hub ({type(error).__name__}: {reason}); check the name, run "
            f"`hf download {name}` on a machine with a network, give a folder, or use an endpoint (rephrase.backend: endpoint)"
        ) from error
    return os.path.basename(folder)
