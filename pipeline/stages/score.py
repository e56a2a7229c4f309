"""Score the similarity of each window of the generalist corpus to each specialist sample (`pipeline.scoring`).

Three passes: a fold over the background, the generalist windows that a scorer learns from; one fit per specialist; and a map over
the parts. Scores are aligned with the windows, one column per specialist.

Shapes: N windows of a part, S specialists.
"""

import functools
import io
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import F32
from pipeline.config import GENERALIST, Config
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.execution.step import Step, choose_by_hash, map_parts, part_names, split_evenly
from pipeline.hashing import keyed_uniform
from pipeline.scoring import Model, Rows, make_scorer
from pipeline.stages.embed import read_embeddings
from pipeline.storage import Folder
from pipeline.tables import scores_schema

_MAX_BACKGROUND_GROUPS = 256
# A background of limited size is taken from at most this many parts: enough to be mixed well, few enough to read.
_MAX_BACKGROUND_PARTS = 1024
_MAX_SAMPLE_WINDOWS = 100_000  # that a model is fitted on, chosen by hash


@dataclass(frozen=True)
class _Corpus:
    """The windows of a corpus and their embeddings, in aligned parts."""

    windows: Folder
    vectors: Folder


@dataclass(frozen=True)
class _BackgroundInputs:
    estimator: str
    seed: int
    share: float  # of the windows to read
    corpus: _Corpus


@dataclass(frozen=True)
class _Sample:
    corpus: _Corpus
    part_names: Sequence[str]
    num_windows: int


@dataclass(frozen=True)
class _FitInputs:
    estimator: str
    seed: int
    samples: Mapping[str, _Sample]  # by specialist
    backgrounds: Sequence[Any]  # what the scorer's `background` returned
    models: Folder


@dataclass(frozen=True)
class _ScoreInputs:
    estimator: str
    seed: int
    specialists: Sequence[str]
    models: Folder
    corpus: _Corpus
    output: Folder


def score_step(config: Config, prepared: Mapping[str, Step], embedded: Mapping[str, Step]) -> Step:
    """Build the step that scores the generalist windows for each specialist."""
    estimator, seed, names = config.weights.estimator, config.seed, list(config.specialists)
    windows, vectors = prepared[GENERALIST], embedded[GENERALIST]

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        models = folder.child("models")
        missing = [name for name in names if not models.exists(f"{name}.npz")]
        if missing:
            backgrounds = _fit_backgrounds(engine, estimator, seed, windows, vectors)
            samples = {
                name: _Sample(
                    _Corpus(prepared[name].folder, embedded[name].folder),
                    part_names(prepared[name]),
                    embedded[name].manifest["windows"],
                )
                for name in missing
            }
            fit_inputs = _FitInputs(estimator, seed, samples, backgrounds, models)
            for _ in engine.map(_fit_model, missing, shared=fit_inputs, title="score fit", unit="specialists"):
                pass
        score_inputs = _ScoreInputs(estimator, seed, names, models, _Corpus(windows.folder, vectors.folder), folder)
        parts = map_parts(engine, folder, part_names(vectors), _score_part, shared=score_inputs, title="score")
        for column, name in enumerate(names):
            if not any(part["finite"][column] for part in parts):
                raise InputError(
                    f"weights.estimator {estimator}: no window of the generalist corpus can be scored for {name}"
                    + ("; it needs windows of at least 100 words, so set window.tokens higher" if estimator == "dsir" else "")
                    + ", or choose another estimator"
                )
        return {"windows": sum(part["rows"] for part in parts), "parts": parts}

    return Step(
        stage="score",
        version=2,
        settings={"estimator": estimator, "seed": seed},
        inputs={
            "windows": windows,
            "embeddings": vectors,
            **{f"windows.{name}": prepared[name] for name in names},
            **{f"embeddings.{name}": embedded[name] for name in names},
        },
        workdir=windows.workdir,
        work=work,
    )


def _read_rows(corpus: _Corpus, name: str) -> tuple[NDArray[np.uint64], NDArray[np.bool_], Rows]:
    """Return key_N of a part's windows, valid_N (whether the embedding is finite), and the rows of the valid windows."""
    text = corpus.windows.read_table(f"{name}.parquet", columns=["text"])["text"].to_pylist()
    key_N, valid_N, x_ND = read_embeddings(corpus.vectors, name)
    rows = Rows(key_N=key_N, texts=text, x_ND=x_ND.astype(np.float32))
    return key_N, valid_N, rows if valid_N.all() else rows.take(np.flatnonzero(valid_N))


def read_scores(folder: Folder, name: str) -> F32:
    """Return the (N, S) scores of a part; -inf where a window has no score."""
    table = folder.read_table(f"{name}.parquet")
    return np.stack([column.to_numpy() for column in table.columns[1:]], axis=1)


def _fit_backgrounds(engine: Engine, estimator: str, seed: int, windows: Step, vectors: Step) -> list[Any]:
    """Return what the scorer learns from each group of generalist parts, in order; [] if it needs no background."""
    max_windows, names = make_scorer(estimator).background_windows, part_names(vectors)
    if max_windows == 0:
        return []
    share = 1.0
    if max_windows is not None:
        names = choose_by_hash(names, _MAX_BACKGROUND_PARTS, seed=seed, purpose="score.parts")
        rows_of = {part["name"]: part["rows"] for part in vectors.manifest["parts"]}
        share = min(1.0, max_windows / max(1, sum(rows_of[name] for name in names)))
    inputs = _BackgroundInputs(estimator, seed, share, _Corpus(windows.folder, vectors.folder))
    items = split_evenly(names, _MAX_BACKGROUND_GROUPS)
    found = dict(engine.map(_fit_background, items, shared=inputs, title="score background", unit="groups"))
    return [background for index in sorted(found) if (background := found[index]) is not None]


def _fit_background(names: Sequence[str], inputs: _BackgroundInputs) -> Any:
    scorer = make_scorer(inputs.estimator)
    if scorer.background_windows is None:  # part by part: the group may be too large for memory
        return functools.reduce(operator.add, (scorer.background(_read_rows(inputs.corpus, name)[-1]) for name in names))
    rows = _read_chosen(names, inputs.share, inputs.seed, inputs.corpus)
    return scorer.background(rows) if len(rows) else None


def _read_chosen(names: Sequence[str], share: float, seed: int, corpus: _Corpus) -> Rows:
    """Read a hash-chosen share of the valid windows of some parts."""
    chosen = []
    for name in names:
        _, _, rows = _read_rows(corpus, name)
        if share < 1.0:
            rows = rows.take(np.flatnonzero(keyed_uniform(rows.key_N, seed=seed, purpose="score.background") < share))
        chosen.append(rows)
    return Rows.concat(chosen)


def _fit_model(specialist: str, inputs: _FitInputs) -> None:
    sample = inputs.samples[specialist]
    share = min(1.0, _MAX_SAMPLE_WINDOWS / max(1, sample.num_windows))
    rows = _read_chosen(sample.part_names, share, inputs.seed, sample.corpus)
    sink = io.BytesIO()
    np.savez(sink, **make_scorer(inputs.estimator).fit(inputs.backgrounds, rows))  # type: ignore[arg-type]
    inputs.models.write_bytes(f"{specialist}.npz", sink.getvalue())


@functools.lru_cache(maxsize=1)
def _read_models(url: str, specialists: tuple[str, ...]) -> list[Model]:
    """Load the models of the specialists; cached in each worker process."""
    models: list[Model] = []
    for specialist in specialists:
        with np.load(io.BytesIO(Folder(url).read_bytes(f"{specialist}.npz")), allow_pickle=False) as arrays:
            models.append(dict(arrays))
    return models


def _score_part(name: str, inputs: _ScoreInputs) -> dict[str, Any]:
    key_N, valid_N, rows = _read_rows(inputs.corpus, name)
    specialists = inputs.specialists
    score_NS = np.full((len(key_N), len(specialists)), -np.inf, np.float32)
    if len(rows):
        models = _read_models(inputs.models.url, tuple(specialists))
        score_NS[valid_N] = make_scorer(inputs.estimator).scores(models, rows, inputs.seed)
    columns = {"key": key_N, **{f"score.{specialist}": score_NS[:, column] for column, specialist in enumerate(specialists)}}
    facts = {"rows": len(key_N), "finite": np.isfinite(score_NS).sum(axis=0).tolist()}
    inputs.output.write_table(f"{name}.parquet", pa.table(columns), scores_schema(specialists), facts)
    return facts
