"""Embedders: models that turn a text into a vector. Other packages use only the functions of this module.

`embed.model` selects one of three kinds:

    sentence   a sentence-transformers model: a hub name, a local folder, or bundled:all-MiniLM-L6-v2
    static     static:<any of the above>: one vector per token, distilled from that model; reads whole windows at once
    lsi        lsi: hashed words, idf and a truncated SVD, fitted on the corpus itself

torch, sentence-transformers and scikit-learn are imported only when an embedder is fitted or loaded; static and lsi embedders
encode without torch. The package may import the layers from `clustering` and `sources` downwards, but no stage.

Shapes: N texts, D width of the embedding.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from pipeline.arrays import F32
from pipeline.config import Embed
from pipeline.embedders import base_model, lsi, sentence, static
from pipeline.storage import Folder


class Embedder(Protocol):
    """A loaded model. Each worker process holds one."""

    @property
    def dim(self) -> int:
        """D, the width of the vectors."""

    @property
    def hardware(self) -> dict[str, str]:
        """The `device`, the resolved `precision` and the number of `threads`: the last bits of the vectors depend on them.

        A static embedder also reports `distilled`, the precision in which its table was computed.
        """

    def encode(self, texts: Sequence[str]) -> F32:
        """(N, D) L2-normalised vectors in the order of `texts`; a vector that is zero or not finite becomes all NaN.

        The result depends only on the list of texts and the settings, not on earlier calls.
        """


def identify(cfg: Embed) -> dict[str, Any]:
    """JSON-serialisable identity of the embedder, for fingerprints: by content, never by path.

    `source` identifies the model: `files` is a digest of a local folder's files; `name` and `commit` identify a hub model. An lsi
    embedder depends on its texts and its seed too; the caller adds them. `precision: auto` stays auto; `Embedder.hardware` reports
    the resolved precision. The call downloads the JSON files of a hub model, but no weights, and does not import torch.

    Raises:
        ConfigError: the model is unknown or unavailable, or does not support the settings.
    """
    if cfg.model == "lsi":
        return lsi.identify(cfg)
    return static.identify(cfg) if cfg.model.startswith(base_model.STATIC) else sentence.identify(cfg)


def pin_model(cfg: Embed) -> Embed:
    """The settings with every reference resolved that another process could resolve to another model.

    A hub model gets its commit as `revision`; a local folder becomes an absolute path.

    Raises:
        ConfigError: as `identify`.
    """
    commit = identify(cfg).get("source", {}).get("commit")
    if commit:
        return cfg.model_copy(update={"revision": commit})
    base = base_model.get_base_model(cfg)
    if cfg.model != "lsi" and os.path.isdir(base):
        return cfg.model_copy(update={"model": cfg.model.removesuffix(base) + os.path.abspath(base)})
    return cfg


def download(cfg: Embed) -> None:
    """Download a hub model with its weights to this machine, unless it is there.

    Raises:
        ConfigError: as `identify`.
    """
    base_model.find_model_folder(cfg)


def find_tokenizer_file(cfg: Embed) -> str:
    """Absolute path of the tokenizer.json that windows are cut with; for lsi, which has no tokenizer, the bundled MiniLM's.

    The file may enable truncation and padding (MiniLM's does, at 128 tokens): disable both after loading it.

    Raises:
        ConfigError: as `identify`.
    """
    return base_model.find_tokenizer_file(cfg)


def get_fit_input(cfg: Embed) -> Literal["nothing", "model", "texts"]:
    """What `fit` reads: "texts" of the corpus, only the base "model" to distil, or "nothing" if `load` needs no fitted artifact."""
    if cfg.model == "lsi":
        return "texts"
    return "model" if cfg.model.startswith(base_model.STATIC) else "nothing"


def fit(cfg: Embed, *, seed: int, folder: Folder, texts: Sequence[str] = (), threads: int = 1) -> dict[str, Any]:
    """Write the artifact that `load` needs to `folder`; return facts for the manifest.

    The artifact is byte-identical on every run on the same processor, with any number of threads. Only lsi uses `texts` and
    `seed`.

    Raises:
        ConfigError: as `identify`; or `embed.dim` is larger than the number of texts (lsi) or the base model's width (static).
    """
    assert get_fit_input(cfg) != "nothing", f"{cfg.model} needs no fit"
    if cfg.model == "lsi":
        return lsi.fit(cfg, seed=seed, folder=folder, texts=texts)
    return static.fit(cfg, folder=folder, threads=threads)


def load(cfg: Embed, folder: Folder | None, *, threads: int = 1) -> Embedder:
    """Load the embedder into this process; a sentence model uses a GPU if one is visible.

    Limits torch and the tokenizers of the whole process to `threads` threads. `folder` is the one that `fit` wrote to; it is None
    if and only if `get_fit_input` returns "nothing".

    Raises:
        ConfigError: as `identify`.
        StorageError: the artifact is missing or unreadable.
    """
    assert (folder is None) == (get_fit_input(cfg) == "nothing"), "give a folder if and only if the embedder is fitted"
    if folder is None:
        return sentence.load(cfg, threads=threads)
    if cfg.model == "lsi":
        return lsi.load(folder)
    return static.load(folder, threads=threads)


@functools.lru_cache(maxsize=1)
def load_cached_embedder(cfg: Embed, artifact_url: str | None) -> Embedder:
    """The embedder, cached so that a worker process loads it once."""
    return load(cfg, Folder(artifact_url) if artifact_url else None, threads=1)
