"""Embed each window with the model of `embed.model`.

This module defines two steps. `embedder` prepares what a model needs first (a distilled static table, a fitted LSI); it is omitted
for models that need nothing. `embed` maps over the parts of a corpus.

Shapes: N windows in a part, D width of the embedding.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import embedders
from pipeline.config import Config, Embed
from pipeline.embedders import Embedder, load_cached_embedder
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.execution.step import Step, map_parts, part_names
from pipeline.hashing import keyed_hash
from pipeline.storage import Folder
from pipeline.tables import embeddings_schema

# LSI is fitted on about this many windows; its 256 directions are stable with far fewer.
_FIT_WINDOWS = 20_000


def embedder_step(config: Config, prepared: Step) -> Step | None:
    """Build the step that distils or fits the embedder; None for a model that is used as is."""
    needs = embedders.get_fit_input(config.embed)
    if needs == "nothing":
        return None

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        texts = _FitTexts(prepared if needs == "texts" else None)
        inputs = FitEmbedderInputs(config.embed, config.seed, folder, engine.threads_for(1))
        ((_, facts),) = engine.map(_fit_embedder, [texts], title="embedder", unit="models", shared=inputs)
        return dict(facts)

    return Step(
        stage="embedder",
        version=2,  # 2: a static table records the precision that it was distilled in
        # Distillation uses no random numbers; the windows that LSI is fitted on depend on the seed.
        settings={"embedder": embedders.identify(config.embed), **({"seed": config.seed} if needs == "texts" else {})},
        inputs={"generalist": prepared} if needs == "texts" else {},
        workdir=prepared.workdir,
        work=work,
    )


def embed_step(config: Config, corpus: str, prepared: Step, fitted: Step | None) -> Step:
    """Build the step that embeds the windows of one corpus."""

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        inputs = EmbedInputs(config.embed, fitted.folder if fitted else None, prepared.folder, folder)
        parts = map_parts(
            engine,
            folder,
            part_names(prepared),
            _embed_part,
            title=f"embed {corpus}",
            shared=inputs,
            num_gpus=embedder_gpus(config, engine),
        )
        hardware = [dict(pairs) for pairs in sorted({tuple(sorted(part.pop("hardware").items())) for part in parts})]
        rows, invalid = sum(part["rows"] for part in parts), sum(part["invalid"] for part in parts)
        # Counted in tokens: a document may end in a window of one full stop, which a word-based model cannot embed; little is lost.
        invalid_tokens, tokens = sum(part["invalid_tokens"] for part in parts), prepared.manifest["tokens"]
        if invalid_tokens > config.max_bad_fraction * tokens:
            raise InputError(
                f"{invalid:,} windows of {corpus} have no finite embedding; they hold {invalid_tokens:,} of {tokens:,} tokens, "
                f"more than max_bad_fraction = {config.max_bad_fraction}; check that embed.model {config.embed.model} suits this "
                "text, or raise max_bad_fraction"
            )
        return {
            "corpus": corpus,
            "dim": parts[0]["dim"] if parts else 0,
            "windows": rows,
            "invalid": invalid,
            "hardware": hardware,
            "parts": parts,
        }

    return Step(
        stage="embed",
        corpus=corpus,
        version=1,
        settings={"embedder": embedders.identify(config.embed)},
        inputs={"windows": prepared, **({"embedder": fitted} if fitted else {})},
        workdir=prepared.workdir,
        work=work,
    )


def embedder_gpus(config: Config, engine: Engine) -> float:
    """Return the GPUs per embedding worker."""
    if embedders.get_fit_input(config.embed) != "nothing":
        return 0.0  # a static table or LSI: most of the work is tokenization
    return engine.gpus_per_model


class _FitTexts:
    """An item of work: the windows that an embedder is fitted on."""

    name = "model"

    def __init__(self, prepared: Step | None) -> None:
        # Keep only what a worker needs: a `Step` holds functions of the driver.
        self.folder = prepared.folder if prepared else None
        self.parts = [(part["name"], part["rows"]) for part in prepared.manifest["parts"]] if prepared else []

    def read(self, seed: int) -> list[str]:
        """Read the texts of about 20,000 windows chosen by hash, in the order of the parts; none if the model needs no texts."""
        if self.folder is None:
            return []
        rows = sum(rows for _, rows in self.parts)
        limit = np.uint64(min(2**64 - 1, int(_FIT_WINDOWS / max(1, rows) * 2**64)))
        texts: list[str] = []
        for name, _ in self.parts:
            table = self.folder.read_table(f"{name}.parquet", columns=["key", "text"])
            chosen_N = keyed_hash(table["key"].to_numpy(), seed=seed, purpose="embedder") <= limit
            texts += table["text"].filter(pa.array(chosen_N)).to_pylist()
        return texts


@dataclass(frozen=True)
class FitEmbedderInputs:
    """How the task that fits or distils the embedder does so."""

    settings: Embed
    seed: int
    output: Folder
    threads: int


def _fit_embedder(texts: _FitTexts, inputs: FitEmbedderInputs) -> dict[str, Any]:
    seed = inputs.seed
    return embedders.fit(inputs.settings, seed=seed, folder=inputs.output, texts=texts.read(seed), threads=inputs.threads)


@dataclass(frozen=True)
class EmbedInputs:
    """Inputs shared by the tasks that embed the parts of one corpus."""

    settings: Embed
    fitted: Folder | None  # output of the embedder step, if the model has one
    windows: Folder
    output: Folder


def _embed_part(name: str, inputs: EmbedInputs) -> dict[str, Any]:
    """Write the embeddings of a part of windows; return its facts."""
    model = load_cached_embedder(inputs.settings, inputs.fitted.url if inputs.fitted else None)
    windows = inputs.windows.read_table(f"{name}.parquet", columns=["key", "text", "tokens"])
    result = embed_table(windows, model)
    valid_N = result["valid"].to_numpy()
    facts = {
        "rows": len(result),
        "invalid": int((~valid_N).sum()),
        "invalid_tokens": int(windows["tokens"].to_numpy()[~valid_N].sum()),
        "dim": model.dim,
        "hardware": dict(model.hardware),
    }
    # Vectors do not compress; without dictionary encoding they are written and read several times faster.
    schema = embeddings_schema(model.dim)
    inputs.output.write_table(f"{name}.parquet", result, schema, facts, compression="none", use_dictionary=["key"])
    return facts


def embed_table(windows: pa.Table, model: Embedder) -> pa.Table:
    """Return the embeddings part of a windows part: same rows, same order, vectors in float16.

    Where a vector is not finite, `valid` is false and the vector is zero.
    """
    x_ND = model.encode(windows["text"].to_pylist()) if len(windows) else np.zeros((0, model.dim), np.float32)
    valid_N = np.asarray(np.isfinite(x_ND).all(axis=1))
    half_ND = np.where(valid_N[:, None], x_ND, np.float32(0)).astype(np.float16)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(half_ND.ravel()), model.dim)
    return pa.table({"key": windows["key"], "valid": valid_N, "vector": vectors})


def read_embeddings(folder: Folder, name: str) -> tuple[NDArray[np.uint64], NDArray[np.bool_], NDArray[np.float16]]:
    """Return (key_N, valid_N, x_ND) of an embeddings part; the vectors are float16, as stored."""
    table = folder.read_table(f"{name}.parquet").combine_chunks()
    vectors = table["vector"].chunk(0) if table["vector"].num_chunks else pa.array([], table.schema.field("vector").type)
    x_ND = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(table), table.schema.field("vector").type.list_size)
    return table["key"].to_numpy(), table["valid"].to_numpy(zero_copy_only=False), x_ND
