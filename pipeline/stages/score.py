"""Score the similarity of each window of the generalist corpus to each specialist sample (`pipeline.scoring`).

Three passes: a fold over the background, the generalist windows that a scorer learns from; one fit per specialist; and a map over
the parts. Scores are aligned with the windows, one column per specialist.

Shapes: N windows of a part, S specialists.
"""

import functools
import io
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import F32
from pipeline.config import GENERALIST, Config
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.execution.step import Step, groups, hash_chosen, map_parts, part_names
from pipeline.hashing import keyed_uniform
from pipeline.scoring import Model, Rows, make_scorer
from pipeline.stages.embed import read_embeddings
from pipeline.storage import Folder
from pipeline.tables import scores_schema

_BACKGROUND_GROUPS = 256
# A background of limited size is taken from at most this many parts: enough to be mixed well, few enough to read.
_BACKGROUND_PARTS = 1024
_MOST_SAMPLE = 100_000  # windows of a sample that a model is fitted on, chosen by hash


def score_step(config: Config, prepared: Mapping[str, Step], embedded: Mapping[str, Step]) -> Step:
    """Build the step that scores the generalist windows for each specialist."""
    estimator, seed, names = config.weights.estimator, config.seed, list(config.specialists)
    windows, vectors = prepared[GENERALIST], embedded[GENERALIST]

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        models = folder.child("models")
        missing = [name for name in names if not models.exists(f"{name}.npz")]
        if missing:
            backgrounds = _backgrounds(engine, estimator, seed, windows, vectors)
            samples = {
                name: (prepared[name].folder, embedded[name].folder, part_names(prepared[name]), embedded[name].manifest["windows"])
                for name in missing
            }
            shared = (estimator, seed, samples, backgrounds, models)
            for _ in engine.map(_fit, missing, title="score fit", unit="specialists", shared=shared):
                pass
        parts = map_parts(
            engine,
            folder,
            part_names(vectors),
            _score_part,
            title="score",
            shared=(estimator, seed, names, models, windows.folder, vectors.folder, folder),
        )
        for place, name in enumerate(names):
            if not any(part["finite"][place] for part in parts):
                raise InputError(
                    f"weights.estimator {estimator}: no window of the generalist corpus can be scored for {name}"
                    + ("; it needs windows of at least 100 words, so set window.tokens higher" if estimator == "dsir" else "")
                    + ", or take another estimator"
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


def read_rows(windows: Folder, vectors: Folder, name: str) -> tuple[NDArray[np.uint64], NDArray[np.bool_], Rows]:
    """Return key_N of a part's windows, valid_N (whether the embedding is finite), and the rows of the valid windows."""
    text = windows.read_table(f"{name}.parquet", columns=["text"])["text"].to_pylist()
    key_N, valid_N, x_ND = read_embeddings(vectors, name)
    rows = Rows(key_N=key_N, texts=text, x_ND=x_ND.astype(np.float32))
    return key_N, valid_N, rows if valid_N.all() else rows.take(np.flatnonzero(valid_N))


def read_scores(folder: Folder, name: str) -> F32:
    """Return the (N, S) scores of a part; -inf where a window has no score."""
    table = folder.read_table(f"{name}.parquet")
    return np.stack([column.to_numpy() for column in table.columns[1:]], axis=1)


def _backgrounds(engine: Engine, estimator: str, seed: int, windows: Step, vectors: Step) -> list[Any]:
    """Return what the scorer learns from each group of generalist parts, in order; [] if it needs no background."""
    most, names = make_scorer(estimator).background_windows, part_names(vectors)
    if most == 0:
        return []
    share = 1.0
    if most is not None:
        names = hash_chosen(names, _BACKGROUND_PARTS, seed=seed, purpose="score.parts")
        rows_of = {part["name"]: part["rows"] for part in vectors.manifest["parts"]}
        held = sum(rows_of[name] for name in names)
        share = min(1.0, most / max(1, held))
    shared = (estimator, seed, share, windows.folder, vectors.folder)
    found = dict(engine.map(_background, groups(names, _BACKGROUND_GROUPS), title="score background", unit="groups", shared=shared))
    return [found[index] for index in sorted(found) if found[index] is not None]


def _background(names: Sequence[str], estimator: str, seed: int, share: float, windows: Folder, vectors: Folder) -> Any:
    used = make_scorer(estimator)
    if used.background_windows is None:  # part by part: the group may be too large for memory
        return functools.reduce(operator.add, (used.background(read_rows(windows, vectors, name)[-1]) for name in names))
    rows = _read_chosen(names, share, seed, windows, vectors)
    return used.background(rows) if len(rows) else None


def _read_chosen(names: Sequence[str], share: float, seed: int, windows: Folder, vectors: Folder) -> Rows:
    """Read a hash-chosen share of the valid windows of some parts."""
    chosen = []
    for name in names:
        _, _, rows = read_rows(windows, vectors, name)
        if share < 1.0:
            rows = rows.take(np.flatnonzero(keyed_uniform(rows.key_N, seed=seed, purpose="score.background") < share))
        chosen.append(rows)
    return Rows.concat(chosen)


def _fit(
    name: str,
    estimator: str,
    seed: int,
    samples: Mapping[str, tuple[Folder, Folder, Sequence[str], int]],
    backgrounds: Any,
    models: Folder,
) -> None:
    windows, vectors, parts, rows = samples[name]
    sample = _read_chosen(parts, min(1.0, _MOST_SAMPLE / max(1, rows)), seed, windows, vectors)
    sink = io.BytesIO()
    np.savez(sink, **make_scorer(estimator).fit(backgrounds, sample))  # type: ignore[arg-type]
    models.write_bytes(f"{name}.npz", sink.getvalue())


@functools.lru_cache(maxsize=1)
def _models(url: str, names: tuple[str, ...]) -> list[Model]:
    """Load the models of the specialists; cached in each worker process."""
    found: list[Model] = []
    for name in names:
        with np.load(io.BytesIO(Folder(url).read_bytes(f"{name}.npz")), allow_pickle=False) as arrays:
            found.append(dict(arrays))
    return found


def _score_part(
    name: str,
    estimator: str,
    seed: int,
    specialists: Sequence[str],
    models: Folder,
    windows: Folder,
    vectors: Folder,
    folder: Folder,
) -> dict[str, Any]:
    key_N, valid_N, rows = read_rows(windows, vectors, name)
    score_NS = np.full((len(key_N), len(specialists)), -np.inf, np.float32)
    if len(rows):
        score_NS[valid_N] = make_scorer(estimator).scores(_models(models.url, tuple(specialists)), rows, seed)
    columns = {"key": key_N, **{f"score.{specialist}": score_NS[:, place] for place, specialist in enumerate(specialists)}}
    facts = {"rows": len(key_N), "finite": np.isfinite(score_NS).sum(axis=0).tolist()}
    folder.write_table(f"{name}.parquet", pa.table(columns), scores_schema(specialists), facts)
    return facts
