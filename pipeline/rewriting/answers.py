"""The store of answers: what a model was paid for is kept, whatever becomes of the run, and serves every later one.

It lies at `<workdir>/answers/`, beside the steps; an answer's key says what it depends on (model, settings, prompt, window). Files
appear whole and are never changed; small ones are merged when a run begins. Shapes: A answers, R requests.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import I32, Keys
from pipeline.engine.exchange import Answer
from pipeline.storage import Folder
from pipeline.tables import ANSWERS

FOLDER = "answers"

_FULL = 8192  # answers; a file of fewer is small
_MANY_SMALL = 1024


@dataclass(frozen=True)
class Stored:
    """What one file of the store answers."""

    name: str
    keys: Keys
    output_tokens: int = 0


def write_answers(folder: Folder, answers: Sequence[Answer]) -> Stored:
    """Store answers. The file is named by its keys: a retried task replaces its own file."""
    answers = sorted(answers, key=lambda answer: answer.key)
    return _write(folder, pa.Table.from_pylist([vars(answer) for answer in answers], schema=ANSWERS))


def _write(folder: Folder, table: pa.Table) -> Stored:
    keys = table["key"].to_numpy()
    name = hashlib.sha256(keys.tobytes()).hexdigest()[:24]
    folder.write_table(f"{name}.parquet", table, ANSWERS)
    return Stored(name, keys, int(table["output_tokens"].to_numpy().sum()))


def small_files(files: Sequence[Stored]) -> list[list[str]]:
    """Names of files to be merged, each list into one file; none while there are few.

    Answers come in by dozens, and every file costs a listing, a request and a place in the index.
    """
    small = sorted((one for one in files if len(one.keys) < _FULL), key=lambda one: one.name)
    if len(small) < _MANY_SMALL:
        return []
    lists: list[list[str]] = [[]]
    held = 0
    for one in small:
        if held >= _FULL:
            lists.append([])
            held = 0
        lists[-1].append(one.name)
        held += len(one.keys)
    return [names for names in lists if len(names) > 1]


def merge_files(names: Sequence[str], folder: Folder) -> None:
    """One file instead of several; they go when it is there. Of answers that are there twice, that of the first name is kept.

    Stopped in the middle and done again, it merges what is still there.
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


def read_keys(names: Sequence[str], folder: Folder) -> list[Stored]:
    """What files of the store answer."""
    return [Stored(name, folder.read_table(f"{name}.parquet", columns=["key"])["key"].to_numpy()) for name in names]


@dataclass
class AnswerIndex:
    """Which file of the store holds which answer. 8 bytes an answer and more on the driver: fine for hundreds of millions."""

    files: dict[str, Keys] = field(default_factory=dict)

    def add(self, stored: Iterable[Stored]) -> None:
        """Note more files."""
        for one in stored:
            if len(one.keys):
                self.files[one.name] = one.keys

    def frozen(self) -> "FrozenIndex":
        """The index as arrays, for workers. An answer that is there twice is that of the first file by name."""
        names = sorted(self.files)
        if not names:
            return FrozenIndex([], np.empty(0, np.uint64), np.empty(0, np.int32))
        key_A = np.concatenate([self.files[name] for name in names])
        file_A = np.repeat(np.arange(len(names), dtype=np.int32), [len(self.files[name]) for name in names])
        key_A, first = np.unique(key_A, return_index=True)
        return FrozenIndex(names, key_A, file_A[first])


@dataclass(frozen=True)
class FrozenIndex:
    """Sorted keys, and the file of each."""

    names: list[str]
    key_A: Keys
    file_A: I32

    def has(self, key_R: Keys) -> NDArray[np.bool_]:
        """(R,) whether each is answered."""
        return np.isin(key_R, self.key_A, kind="sort")

    def read(self, folder: Folder, key_R: Keys) -> pa.Table:
        """ANSWERS rows of the requests, in their order; a request without an answer is an assertion failure."""
        if not len(key_R):
            return ANSWERS.empty_table()
        place_R = np.searchsorted(self.key_A, key_R)
        assert len(self.key_A), "no answers"
        assert (self.key_A[np.minimum(place_R, len(self.key_A) - 1)] == key_R).all(), "a request has no answer"
        file_R = self.file_A[place_R]
        row_of: dict[tuple[int, int], int] = {}
        tables, offset = [ANSWERS.empty_table()], 0
        for number in np.unique(file_R):
            table = folder.read_table(f"{self.names[number]}.parquet").cast(ANSWERS)
            row_of |= {(int(number), int(key)): offset + row for row, key in enumerate(table["key"].to_numpy())}
            tables.append(table)
            offset += len(table)
        rows = [row_of[int(number), int(key)] for number, key in zip(file_R, key_R, strict=True)]
        return pa.concat_tables(tables).take(pa.array(rows, type=pa.int64()))
