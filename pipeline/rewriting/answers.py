"""The store of model answers. Answers outlive a failed run, and every later run reuses them.

The store lies at `<workdir>/answers/<generator>/`, outside the folders of the steps. The key of an answer is a hash of everything
the answer depends on: model, settings, prompt, window (for a cluster title no window). Files are written atomically and never
modified; small files are merged when a step begins. See docs/decisions/0009-answers-are-stored-by-key.md.

Shapes: A answers, R requests.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import I32, Keys
from pipeline.engine.llm_io import Answer
from pipeline.storage import Folder
from pipeline.tables import ANSWERS

ANSWERS_FOLDER = "answers"

_FULL_FILE_ANSWERS = 8192  # a file with fewer is small
_MIN_SMALL_FILES = 1024  # fewer small files are not merged


@dataclass(frozen=True)
class AnswerFile:
    """One file of the store: its name without extension, the keys of its answers, and their output tokens where counted."""

    name: str
    keys: Keys
    output_tokens: int = 0


def write_answers(folder: Folder, answers: Sequence[Answer]) -> AnswerFile:
    """Write answers to one file. Its name is a hash of the keys, so a retried task overwrites its own file."""
    answers = sorted(answers, key=lambda answer: answer.key)
    return _write(folder, pa.Table.from_pylist([vars(answer) for answer in answers], schema=ANSWERS))


def _write(folder: Folder, table: pa.Table) -> AnswerFile:
    keys = table["key"].to_numpy()
    name = hashlib.sha256(keys.tobytes()).hexdigest()[:24]
    folder.write_table(f"{name}.parquet", table, ANSWERS)
    return AnswerFile(name, keys, int(table["output_tokens"].to_numpy().sum()))


def group_small_files(files: Sequence[AnswerFile]) -> list[list[str]]:
    """Return lists of files to merge, each list into one file; empty if there are fewer than 1024 small files.

    Answers are stored a few dozen at a time, and every file costs a directory entry, a read request and an index entry.
    """
    small = sorted((file for file in files if len(file.keys) < _FULL_FILE_ANSWERS), key=lambda file: file.name)
    if len(small) < _MIN_SMALL_FILES:
        return []
    lists: list[list[str]] = [[]]
    num_answers = 0
    for file in small:
        if num_answers >= _FULL_FILE_ANSWERS:
            lists.append([])
            num_answers = 0
        lists[-1].append(file.name)
        num_answers += len(file.keys)
    return [names for names in lists if len(names) > 1]


def merge_files(names: Sequence[str], folder: Folder) -> None:
    """Merge files into one, then delete them. Of answers with the same key, the one from the file listed first is kept.

    A merge that was interrupted can be repeated: it merges the files that still exist.
    """
    names = [name for name in names if folder.exists(f"{name}.parquet")]
    if len(names) < 2:
        return
    table = pa.concat_tables([folder.read_table(f"{name}.parquet").cast(ANSWERS) for name in names])
    _, first = np.unique(table["key"].to_numpy(), return_index=True)
    merged = _write(folder, table.take(pa.array(first)))
    for name in names:
        if name != merged.name:
            folder.remove(f"{name}.parquet")


def read_keys(names: Sequence[str], folder: Folder) -> list[AnswerFile]:
    """Read the keys of the named files; output tokens are not counted."""
    return [AnswerFile(name, folder.read_table(f"{name}.parquet", columns=["key"])["key"].to_numpy()) for name in names]


@dataclass
class AnswerIndex:
    """Which file of the store holds which answer. At least 8 bytes per answer, on the driver: hundreds of millions fit."""

    files: dict[str, Keys] = field(default_factory=dict)

    def add(self, files: Iterable[AnswerFile]) -> None:
        """Add files to the index; empty ones are ignored."""
        for file in files:
            if len(file.keys):
                self.files[file.name] = file.keys

    def freeze(self) -> "FrozenIndex":
        """Return the index as arrays, to be sent to workers. Of duplicate answers, the one in the file first by name counts."""
        names = sorted(self.files)
        if not names:
            return FrozenIndex([], np.empty(0, np.uint64), np.empty(0, np.int32))
        key_A = np.concatenate([self.files[name] for name in names])
        file_A = np.repeat(np.arange(len(names), dtype=np.int32), [len(self.files[name]) for name in names])
        key_A, first = np.unique(key_A, return_index=True)
        return FrozenIndex(names, key_A, file_A[first])


@dataclass(frozen=True)
class FrozenIndex:
    """Sorted keys, each once, and for each the position of its file in `names`."""

    names: list[str]
    key_A: Keys
    file_A: I32

    def has_answers(self, key_R: Keys) -> NDArray[np.bool_]:
        """Return (R,) whether the store has an answer to each request."""
        return np.isin(key_R, self.key_A, kind="sort")

    def read_answers(self, folder: Folder, key_R: Keys) -> pa.Table:
        """Return the ANSWERS rows of the requests, in their order.

        Raises:
            AssertionError: a request has no answer.
        """
        if not len(key_R):
            return ANSWERS.empty_table()
        position_R = np.searchsorted(self.key_A, key_R)
        assert len(self.key_A), "no answers"
        assert (self.key_A[np.minimum(position_R, len(self.key_A) - 1)] == key_R).all(), "a request has no answer"
        file_R = self.file_A[position_R]
        row_of: dict[tuple[int, int], int] = {}
        tables, offset = [ANSWERS.empty_table()], 0
        for number in np.unique(file_R):
            table = folder.read_table(f"{self.names[number]}.parquet").cast(ANSWERS)
            row_of |= {(int(number), int(key)): offset + row for row, key in enumerate(table["key"].to_numpy())}
            tables.append(table)
            offset += len(table)
        rows = [row_of[int(number), int(key)] for number, key in zip(file_R, key_R, strict=True)]
        return pa.concat_tables(tables).take(pa.array(rows, type=pa.int64()))
