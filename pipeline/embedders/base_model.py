"""Resolve `embed.model` to a local folder and to an identity by content.

A hub name is resolved once per process, to a snapshot on the local disk; all later work reads these files, so that a model is
downloaded once per node. A model's identity and tokenizer are in its JSON files, so its weights are downloaded only when they are
loaded. Code that comes with a model is never run.
"""

import functools
import json
import os
import re
from typing import Any

from pipeline.config import Embed
from pipeline.embedders import bundled
from pipeline.errors import ConfigError
from pipeline.execution.file_digests import file_sha256, folder_sha256

STATIC = "static:"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_DESCRIPTION_FILES = ["*.json"]  # configuration and tokenizer, in any subfolder
# Not downloaded: copies of the weights for other runtimes, about five times the size of the model itself.
_IGNORED_FILES = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.ot", "*.msgpack", "*.tflite", "*.mlmodel", "coreml/*"]


def get_base_model(cfg: Embed) -> str:
    """The sentence-transformers model that `embed.model` refers to, without `static:`; for lsi the bundled MiniLM."""
    return bundled.MINILM if cfg.model == "lsi" else cfg.model.removeprefix(STATIC)


def find_model_folder(cfg: Embed) -> str:
    """Absolute path of the local folder that holds the base model.

    Raises:
        ConfigError: the model does not exist or cannot be downloaded.
    """
    return _find_folder(cfg, with_weights=True)


def _find_folder(cfg: Embed, *, with_weights: bool) -> str:
    """As `find_model_folder`; without weights, only the description files of a hub model need be there."""
    name = get_base_model(cfg)
    if name.startswith("bundled:"):
        if name != bundled.MINILM:
            raise ConfigError(f"embed.model {cfg.model} is unknown; the only bundled model is {bundled.MINILM}")
        return bundled.find_model_folder()
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, "modules.json")):
            raise ConfigError(
                f"embed.model {cfg.model} is a folder without modules.json; use a folder saved by sentence-transformers"
            )
        return os.path.abspath(name)
    if name == "lsi" or not _HUB_NAME.fullmatch(name):  # static:lsi is rejected: lsi has no model to distil
        raise ConfigError(
            f"embed.model {cfg.model} is neither an existing folder nor the name of a model; "
            f"use an existing folder, a hub name such as sentence-transformers/all-MiniLM-L6-v2, {bundled.MINILM}, "
            "static:<one of these>, or lsi"
        )
    # As sentence-transformers does, accept all-MiniLM-L6-v2 for sentence-transformers/all-MiniLM-L6-v2.
    full_name = name if "/" in name else f"sentence-transformers/{name}"
    return _download_snapshot(full_name, cfg.revision, with_weights=with_weights)


def identify_source(cfg: Embed) -> dict[str, Any]:
    """Identity of the base model: by content, or by name and commit.

    `files` is the digest of a local folder, `name` and `commit` identify a hub model, and `tokenizer` is the sha256 of its
    tokenizer.json.

    Raises:
        ConfigError: as `find_model_folder`, or the model has no tokenizer.json.
    """
    folder, name = _find_folder(cfg, with_weights=False), get_base_model(cfg)
    tokenizer = {"tokenizer": file_sha256(find_tokenizer_file(cfg))}
    if name.startswith("bundled:") or os.path.isdir(name):
        return {"files": folder_sha256(folder), **tokenizer}
    return {"name": name if "/" in name else f"sentence-transformers/{name}", "commit": os.path.basename(folder), **tokenizer}


def find_tokenizer_file(cfg: Embed) -> str:
    """Absolute path of the base model's tokenizer.json.

    Raises:
        ConfigError: as `find_model_folder`, or the model has no tokenizer.json.
    """
    folder = _find_folder(cfg, with_weights=False)
    for subfolder in ["", *(module["path"] for module in _read_json(folder, "modules.json"))]:
        path = os.path.join(folder, subfolder, "tokenizer.json")
        if os.path.isfile(path):
            return path
    raise ConfigError(
        f"embed.model {cfg.model} has no tokenizer.json, which is needed to cut windows; choose a model with a fast tokenizer"
    )


def read_position_limit(cfg: Embed) -> int | None:
    """The maximum number of tokens, special tokens included, that the base model can read; None if unknown."""
    config = _read_json(_find_folder(cfg, with_weights=False), "config.json")
    limit = config.get("max_position_embeddings")
    if limit is None:
        return None
    # Models derived from RoBERTa number positions from pad_token_id + 1, so 514 positions hold 512 tokens.
    offset = config.get("pad_token_id", 1) + 1 if config.get("model_type") in _POSITIONS_AFTER_PADDING else 0
    return int(limit) - offset


_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text")


def _read_json(folder: str, name: str) -> Any:
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


@functools.cache
def _download_snapshot(name: str, revision: str | None, *, with_weights: bool) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f'embed.model {name} comes from the hub, which needs huggingface_hub: run `pip install "crispwrap[embed]"`'
        ) from error
    try:
        # Without a network, or with HF_HUB_OFFLINE=1, this returns the copy in the cache.
        wanted = None if with_weights else _DESCRIPTION_FILES
        folder = str(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=_IGNORED_FILES))
    except (OSError, ValueError, RuntimeError) as error:  # the base classes of all errors of huggingface_hub
        at = f" at embed.revision {revision}" if revision else ""
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"embed.model {name}{at} cannot be downloaded from the hub ({type(error).__name__}: {reason}); check the name, run "
            f"`hf download {name}` on a machine with network access, or use {bundled.MINILM}"
        ) from error
    if not os.path.isfile(os.path.join(folder, "modules.json")):
        raise ConfigError(f"embed.model {name} has no modules.json, so it is not a sentence-transformers model; choose one that is")
    return folder
