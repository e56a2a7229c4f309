"""Embedders: the one door to everything that turns a text into a vector.

Three kinds, by the name in `embed.model`:

    sentence   a sentence-transformers model: a hub name, a local folder, or bundled:all-MiniLM-L6-v2
    static     static:<any of these>: one vector a token, distilled from the model; reads whole windows at once
    lsi        lsi: hashed words, idf and a truncated SVD, fitted on the corpus itself

Nothing here imports torch, sentence-transformers or scikit-learn before an embedder is fitted or loaded; static and lsi never
import torch to encode. Shapes: N texts, D width of the embedding.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from pipeline.arrays import F32
from pipeline.config import Embed
from pipeline.embedders import lsi, sentence, source, static
from pipeline.storage import Folder


class Embedder(Protocol):
    """A model that is loaded and ready; one a worker."""

    @property
    def dim(self) -> int:
        """D, the width of the vectors."""

    @property
    def hardware(self) -> dict[str, str]:
        """`device`, `precision` as it was chosen, and `threads`: what the last bits of the vectors depend on.

        Of a static table also the precision in which it was `distilled`.
        """

    def encode(self, texts: Sequence[str]) -> F32:
        """(N, D) L2-normalised vectors in the order of `texts`; a row that came out zero or not finite is all NaN.

        Depends on the list of texts and the settings alone, not on earlier calls.
        """


def identify(cfg: Embed) -> dict[str, Any]:
    """What the vectors depend on, by content and never by path, as JSON; fetches a hub model, but imports no torch.

    `source` names the model: `files` is a digest of a local folder's files, or `name` and `commit` are those of a hub model.
    An lsi embedder depends on its texts and seed too, which the caller adds. `precision: auto` stays auto: what it came to is
    in `Embedder.hardware`.

    Raises:
        ConfigError: the model is unknown, cannot be had, or cannot do what the settings ask.
    """
    if cfg.model == "lsi":
        return lsi.identify(cfg)
    return static.identify(cfg) if cfg.model.startswith(source.STATIC) else sentence.identify(cfg)


def pinned(cfg: Embed) -> Embed:
    """The settings with what other processes might read otherwise filled in: a hub model's commit, a folder's absolute path.

    Raises:
        ConfigError: as `identify`.
    """
    commit = identify(cfg).get("source", {}).get("commit")
    if commit:
        return cfg.model_copy(update={"revision": commit})
    base = source.base_model(cfg)
    if cfg.model != "lsi" and os.path.isdir(base):
        return cfg.model_copy(update={"model": cfg.model.removesuffix(base) + os.path.abspath(base)})
    return cfg


def tokenizer_file(cfg: Embed) -> str:
    """Absolute path of the tokenizer.json that cuts windows; for lsi, which has no tokens, the bundled MiniLM's.

    The file may have truncation and padding baked in (MiniLM's has, at 128): switch both off after loading.

    Raises:
        ConfigError: as `identify`.
    """
    return source.tokenizer_path(cfg)


def fits_on(cfg: Embed) -> Literal["nothing", "model", "texts"]:
    """What must be there before `load`: nothing, a table distilled from the base model, or a fit on texts."""
    if cfg.model == "lsi":
        return "texts"
    return "model" if cfg.model.startswith(source.STATIC) else "nothing"


def fit(cfg: Embed, *, seed: int, folder: Folder, texts: Sequence[str] = (), threads: int = 1) -> dict[str, Any]:
    """Make the artifact that `load` needs, in `folder`; returns facts for the manifest.

    The same bytes on every run on the same processor, with any number of threads. `texts` and `seed` matter to lsi only.

    Raises:
        ConfigError: as `identify`; or too few texts for `embed.dim`.
    """
    assert fits_on(cfg) != "nothing", f"{cfg.model} is not fitted"
    if cfg.model == "lsi":
        return lsi.fit(cfg, seed=seed, folder=folder, texts=texts)
    return static.fit(cfg, folder=folder, threads=threads)


def load(cfg: Embed, folder: Folder | None, *, threads: int = 1) -> Embedder:
    """The embedder, ready in this process, on a GPU where one is visible (sentence models only).

    It takes the process over: torch and the tokenizers are held to `threads`. `folder` is where `fit` wrote; None where
    `fits_on` says nothing.

    Raises:
        ConfigError: as `identify`.
        StorageError: the artifact cannot be read.
    """
    assert (folder is None) == (fits_on(cfg) == "nothing"), "a folder is for what was fitted"
    if folder is None:
        return sentence.load(cfg, threads=threads)
    if cfg.model == "lsi":
        return lsi.load(folder)
    return static.load(folder, threads=threads)


@functools.lru_cache(maxsize=1)
def loaded_embedder(cfg: Embed, artifact_url: str | None) -> Embedder:
    """The model, loaded once in a worker process."""
    return load(cfg, Folder(artifact_url) if artifact_url else None, threads=1)
