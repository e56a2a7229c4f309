"""Held-out text: prepare it, choose the windows that are scored, and check that no corpus of the comparison contains them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from loguru import logger

from pipeline.config import Config, Corpus
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.execution.step import Step, part_names
from pipeline.hashing import find_lowest, keyed_uniform
from pipeline.stages.held_out import log_blank_rows
from pipeline.stages.prepare import prepare_step
from pipeline.stages.prepare_scan import QUARANTINE_FOLDER, check_bad_rows
from pipeline.storage import Folder

# With fewer, an interval over documents is meaningless.
_MIN_WINDOWS = 10
# Largest fraction of the scored windows that a corpus may contain: two books may share an imprint, but not their text.
_MAX_SHARED_FRACTION = 0.01
# Shorter windows, such as headings, occur everywhere and are not searched for.
_MIN_CHARACTERS = 100
_EXCERPT_CHARACTERS = 60


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
        num_rows = manifest["documents"] + manifest["dropped"] + manifest["quarantined"]
        log_blank_rows(setting, num_rows, reasons.pop("empty_text", 0))
        quarantine = folder.child(QUARANTINE_FOLDER)
        files = [name.removesuffix(".parquet") for name in quarantine.names(".parquet")]
        check_bad_rows(reasons, num_rows, config.max_bad_fraction, setting, quarantine, files)
        return manifest

    return replace(step, work=work)


def select_texts_by_hash(windows: Folder, parts: Sequence[str], max_windows: int, seed: int, purpose: str) -> list[str]:
    """The texts of the `max_windows` windows with the lowest hashes, or of all if fewer, by hash, ties by text."""
    lowest: list[tuple[float, str]] = []
    for part in parts:
        table = windows.read_table(f"{part}.parquet", columns=["key", "text"])
        u_N = keyed_uniform(table["key"].to_numpy(), seed=seed, purpose=f"evidence.{purpose}")
        chosen = [(float(u_N[row]), table["text"][int(row)].as_py()) for row in find_lowest(u_N, max_windows)]
        lowest = sorted([*lowest, *chosen])[:max_windows]
    return [text for _, text in lowest]


@dataclass(frozen=True)
class ScoredWindows:
    """The windows of a held-out text that proxies are scored on, by reference: workers read them from storage."""

    windows: Folder
    parts: Sequence[str]
    max_windows: int
    seed: int

    def read_texts(self) -> list[str]:
        """Read their texts, in order of hash."""
        return select_texts_by_hash(self.windows, self.parts, self.max_windows, self.seed, "held_out")


def select_scored_windows(held_out: Mapping[str, Step], max_windows: int, seed: int) -> dict[str, ScoredWindows]:
    """The windows that are scored, by name of the held-out text. They depend only on the arguments, so all steps score the same."""
    return {name: ScoredWindows(step.folder, part_names(step), max_windows, seed) for name, step in held_out.items()}


@dataclass(frozen=True)
class _Part:
    """A unit of work: one part of a corpus or a specialist sample that arms read."""

    corpus: str
    folder: Folder
    file: str

    @property
    def name(self) -> str:
        return f"{self.corpus}, {self.file}"


def overlap_step(held_out: Mapping[str, Step], corpora: Mapping[str, Step], max_windows: int, seed: int, workdir: Folder) -> Step:
    """The step that searches for exact copies of the scored windows in all corpora and specialist samples that arms read.

    Its work raises InputError if a held-out text has fewer than 10 windows, or if a corpus contains more than 1% of them; fewer
    cause a warning. Windows of fewer than 100 characters are not searched for.
    """

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:  # noqa: ARG001 all results are in the manifest
        scored = select_scored_windows(held_out, max_windows, seed)
        texts_by_name = {name: windows.read_texts() for name, windows in scored.items()}
        for name, texts in texts_by_name.items():
            if len(texts) < _MIN_WINDOWS:
                raise InputError(
                    f"held_out.{name} has {len(texts)} windows, but a comparison needs at least {_MIN_WINDOWS}; add more text"
                )
        long_texts = {text for texts in texts_by_name.values() for text in texts if len(text) >= _MIN_CHARACTERS}
        scored_texts = pa.array(sorted(long_texts), pa.string())
        parts = [_Part(name, step.folder, f"{part}.parquet") for name, step in corpora.items() for part in part_names(step)]
        copies_by_corpus: dict[str, set[str]] = {corpus: set() for corpus in corpora}
        for index, texts in engine.map(_find_copies, parts, title="overlap", shared=scored_texts):
            copies_by_corpus[parts[index].corpus] |= set(texts)
        num_copies: dict[str, int] = {}
        for name, texts in texts_by_name.items():
            for corpus, corpus_copies in copies_by_corpus.items():
                copies = sorted(corpus_copies.intersection(texts))
                num_copies[f"{name} in {corpus}"] = len(copies)
                if not copies:
                    continue
                message = f"{len(copies)} of the {len(texts)} scored windows of held_out.{name} also occur in {corpus}"
                if len(copies) > _MAX_SHARED_FRACTION * len(texts):
                    raise InputError(
                        f"{message}, for example {copies[0][:_EXCERPT_CHARACTERS]!r}: proxies would be trained on text that they "
                        "are scored on; remove that text from one of the two"
                    )
                logger.warning(message)
        return {"shared": num_copies}

    return Step(
        stage="overlap",
        version=1,
        settings={"windows": max_windows, "seed": seed},
        inputs={**{f"held_out.{name}": step for name, step in held_out.items()}, **corpora},
        workdir=workdir,
        work=work,
    )


def _find_copies(part: _Part, scored_texts: pa.Array) -> list[str]:
    texts = part.folder.read_table(part.file, columns=["text"])["text"]
    return sorted(set(texts.filter(pc.is_in(texts, value_set=scored_texts.cast(texts.type))).to_pylist()))
