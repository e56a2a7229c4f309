"""Held-out text: prepare it, choose the windows that are scored, and check that no corpus of the comparison contains them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from loguru import logger

from pipeline.config import Config, Corpus
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.execution.step import Step, part_names
from pipeline.hashing import keyed_uniform
from pipeline.stages.held_out import log_blank
from pipeline.stages.prepare import prepare_step
from pipeline.stages.scan import QUARANTINED
from pipeline.storage import Folder

# With fewer, an interval over documents is meaningless.
_FEWEST_WINDOWS = 10
# Fraction of the scored windows that a corpus may contain: two books may share an imprint, but not their text.
_MOST_SHARED = 0.01
# Shorter windows, such as a heading, occur everywhere and are not searched for.
_FEWEST_CHARACTERS = 100
_EXCERPT = 60


def held_out_step(config: Config, name: str, corpus: Corpus, workdir: Folder) -> Step:
    """The step that cuts a held-out text into windows. Blank rows are logged, but do not count towards `max_bad_fraction`.

    Its work raises InputError if more than `max_bad_fraction` of the rows are bad for other reasons.
    """
    setting = f"held_out.{name}"
    every_row = config.model_copy(update={"max_bad_fraction": 1.0})
    step = prepare_step(every_row, f"held-out {name}", corpus, workdir, setting=setting)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        manifest = step.work(engine, folder)
        reasons = Counter(manifest["reasons"])
        rows = manifest["documents"] + manifest["dropped"] + manifest["quarantined"]
        log_blank(setting, rows, reasons.pop("empty_text", 0))
        if reasons.total() > config.max_bad_fraction * rows:
            listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            raise InputError(
                f"{reasons.total()} of {rows} rows of {setting} cannot be used ({listed}), more than max_bad_fraction = "
                f"{config.max_bad_fraction}; all are in {folder.child(QUARANTINED).url}; mend the input or raise max_bad_fraction"
            )
        return manifest

    return replace(step, work=work)


def lowest_hashed(windows: Folder, names: Sequence[str], most: int, seed: int, purpose: str) -> list[str]:
    """The texts of at most `most` windows, those with the lowest hashes, in order of hash; ties in order of text."""
    lowest: list[tuple[float, str]] = []
    for name in names:
        table = windows.read_table(f"{name}.parquet", columns=["key", "text"])
        u_N = keyed_uniform(table["key"].to_numpy(), seed=seed, purpose=f"evidence.{purpose}")
        rows = np.argsort(u_N, kind="stable")[:most]
        lowest = sorted([*lowest, *((float(u_N[row]), table["text"][int(row)].as_py()) for row in rows)])[:most]
    return [text for _, text in lowest]


@dataclass(frozen=True)
class Scored:
    """The windows of a held-out text that proxies are scored on, by reference: workers read them from the store."""

    windows: Folder
    parts: Sequence[str]
    most: int
    seed: int

    def texts(self) -> list[str]:
        """Their texts, in order of hash."""
        return lowest_hashed(self.windows, self.parts, self.most, self.seed, "held_out")


def scored(held_out: Mapping[str, Step], most: int, seed: int) -> dict[str, Scored]:
    """The windows that are scored, by name of the held-out text; a function of the arguments, hence the same in every step."""
    return {name: Scored(step.folder, part_names(step), most, seed) for name, step in held_out.items()}


@dataclass(frozen=True)
class _Part:
    """A unit of work: one part of a corpus or a specialist sample that arms read."""

    corpus: str
    folder: Folder
    file: str

    @property
    def name(self) -> str:
        return f"{self.corpus}, {self.file}"


def overlap_step(held_out: Mapping[str, Step], corpora: Mapping[str, Step], most: int, seed: int, workdir: Folder) -> Step:
    """The step that searches for exact copies of the scored windows in all corpora and specialist samples that arms read.

    Its work raises InputError if a held-out text has fewer than 10 windows, or if a corpus contains more than 1% of them; fewer
    are a warning. Windows of less than 100 characters are not searched for.
    """

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:  # noqa: ARG001 the result is in the manifest only
        windows = {name: which.texts() for name, which in scored(held_out, most, seed).items()}
        for name, texts in windows.items():
            if len(texts) < _FEWEST_WINDOWS:
                raise InputError(
                    f"held_out.{name} has {len(texts)} windows, and a comparison needs {_FEWEST_WINDOWS}; give more text"
                )
        long = {text for texts in windows.values() for text in texts if len(text) >= _FEWEST_CHARACTERS}
        wanted = pa.array(sorted(long), pa.string())
        parts = [_Part(name, step.folder, f"{part}.parquet") for name, step in corpora.items() for part in part_names(step)]
        found: dict[str, set[str]] = {corpus: set() for corpus in corpora}
        for index, texts in engine.map(_found_in, parts, title="overlap", shared=(wanted,)):
            found[parts[index].corpus] |= set(texts)
        shared: Counter[str] = Counter()
        for name, texts in windows.items():
            for corpus, of_corpus in found.items():
                both = sorted(of_corpus.intersection(texts))
                shared[f"{name} in {corpus}"] = len(both)
                if not both:
                    continue
                said = f"{len(both)} of the {len(texts)} windows of held_out.{name} that are scored stand in {corpus} too"
                if len(both) > _MOST_SHARED * len(texts):
                    raise InputError(
                        f"{said}, such as {both[0][:_EXCERPT]!r}: proxies would be trained on what they are scored on; take that "
                        "text out of one of the two"
                    )
                logger.warning(said)
        return {"shared": dict(shared)}

    return Step(
        stage="overlap",
        version=1,
        settings={"windows": most, "seed": seed},
        inputs={**{f"held_out.{name}": step for name, step in held_out.items()}, **corpora},
        workdir=workdir,
        work=work,
    )


def _found_in(part: _Part, wanted: pa.Array) -> list[str]:
    texts = part.folder.read_table(part.file, columns=["text"])["text"]
    return sorted(set(texts.filter(pc.is_in(texts, value_set=wanted.cast(texts.type))).to_pylist()))
