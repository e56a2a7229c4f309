"""Send requests to a model until each is answered or quarantined. Stored answers are reused; failed requests are retried.

The first attempt sends many prompts together. Later attempts send the unanswered prompts in smaller blocks, and the last attempt
sends each alone, so that a prompt that kills its engine takes no other prompt with it. Shapes: R requests of a group.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from pipeline.arrays import I64
from pipeline.config import Rephrase
from pipeline.engine import Engine
from pipeline.engine.exchange import Answer, Failure, Request
from pipeline.engine.gpus import GpuWatch
from pipeline.errors import RunError, WorkerError
from pipeline.execution.step import fold_groups
from pipeline.rewriting.answers import AnswerIndex, FrozenIndex, Stored, merge_files, read_keys, small_files, write_answers
from pipeline.rewriting.model import Model
from pipeline.storage import Folder

_SMALLER = 8  # each retry sends blocks smaller by this factor
_FLUSH_S = 20.0  # seconds after which the answers of an endpoint are stored
_DIED = "the engine died, or was lost, each time this prompt was in it"

# `read(requests, group, rows)` returns the requests to the model for some rows of a group, in their order. It is sent to workers.
Read = Callable[[Folder, str, I64], list[Request]]


@dataclass(frozen=True)
class Block:
    """An item of work: some rows of one group of requests."""

    group: str
    rows: I64

    @property
    def name(self) -> str:
        return f"{self.group}, {len(self.rows)} prompts"


@dataclass(frozen=True)
class Outcome:
    """The result of sending some prompts: the files of stored answers, and the failures."""

    stored: list[Stored]
    failures: list[Failure] = field(default_factory=list)


class Asking:
    """Sends the requests of a step to the model, and keeps the answers in a store.

    `requests` contains one table per group, with a column `key` and the footer fact `rows`; `read` turns its rows into prompts.
    """

    def __init__(self, engine: Engine, settings: Rephrase, model: Model, read: Read, requests: Folder, store: Folder) -> None:
        self.engine, self.settings, self.model, self.read = engine, settings, model, read
        self.requests, self.store = requests, store
        self._index: AnswerIndex | None = None

    def answer(self, names: Sequence[str], *, title: str, max_bad_fraction: float) -> tuple[FrozenIndex, dict[int, Failure]]:
        """Answer the requests of the named groups.

        Failures are not stored: a resumed or later run sends these prompts again.

        Returns:
            The index of the store, and the failure of each request without an answer, by key; all other requests are answered.

        Raises:
            RunError: no engine or server answers at all, or more prompts than `max_bad_fraction` of the groups have no answer.
        """
        index = self._read_index()
        sizes = [self.requests.read_facts(f"{name}.parquet")["rows"] for name in names]
        refused: dict[int, Failure] = {}  # by the prompt's own fault: not retried
        failed: dict[int, Failure] = {}
        todo = self._unanswered(names, index.frozen(), refused)
        asked = sum(len(block.rows) for block in todo)
        # Requests left over by earlier runs may all fail, so a first attempt without any answer means that the server is dead or
        # misconfigured only if the store was empty.
        fresh = not index.files
        started, output_tokens = time.monotonic(), 0
        with GpuWatch(self.engine) as gpus:
            for attempt in range(self.settings.attempts):
                if not todo:
                    break
                blocks = [block for whole in todo for block in self._split(whole, attempt)]
                said = title if not attempt else f"{title}, try {attempt + 1}"
                answered = False
                for outcome in self._ask(blocks, title=said, alone=attempt > 0, give_up=fresh and not attempt):
                    index.add(outcome.stored)
                    output_tokens += sum(stored.output_tokens for stored in outcome.stored)
                    answered = answered or bool(outcome.stored)
                    for failure in outcome.failures:
                        (refused if failure.kind == "prompt" else failed)[failure.key] = failure
                todo = self._unanswered(names, index.frozen(), refused)
                if fresh and not attempt and not answered:
                    why = next((failure.error for failure in (refused | failed).values()), "its engine died")
                    raise RunError(
                        f"{title}: no prompt of {asked:,} was answered ({why}); mend rephrase.model or its endpoint, and run again"
                    )
            if output_tokens:
                self.engine.usage.add_generated(output_tokens, time.monotonic() - started, gpus.mean())
        left = self._keys(todo)
        without = refused | {key: failed.get(key, Failure(key, _DIED, "backend")) for key in left}
        if len(without) > max_bad_fraction * sum(sizes):
            why = next(iter(without.values())).error
            raise RunError(
                f"{title}: {len(without):,} of {sum(sizes):,} prompts have no answer after {self.settings.attempts} tries, more "
                f"than max_bad_fraction = {max_bad_fraction} ({why}); mend the cause and run again, or "
                "raise it; answers are kept"
            )
        if without:
            logger.warning(f"{title}: {len(without):,} of {sum(sizes):,} prompts have no answer and are quarantined")
        return index.frozen(), without

    def _read_index(self) -> AnswerIndex:
        if self._index is None:
            self._index = AnswerIndex()
            stored = self._stored()
            if small := small_files(stored):
                for _ in self.engine.map(merge_files, small, title="merge answers", unit="files", shared=(self.store,)):
                    pass
                stored = self._stored()
            self._index.add(stored)
        return self._index

    def _stored(self) -> list[Stored]:
        names = [name.removesuffix(".parquet") for name in self.store.names(".parquet")]
        read = self.engine.map(read_keys, fold_groups(self.engine, names), title="answers in store", shared=(self.store,))
        return [stored for _, found in read for stored in found]

    def _unanswered(self, names: Sequence[str], index: FrozenIndex, refused: Iterable[int]) -> list[Block]:
        """Return the rows of each group that have no answer and are not in `refused`; groups without such rows are left out."""
        shared = (self.requests, index, np.array(sorted(refused), np.uint64))
        found = self.engine.map(_missing, names, title="unanswered", unit="groups", shared=shared)
        blocks = [Block(names[i], rows) for i, rows in sorted(found, key=lambda entry: entry[0])]
        return [block for block in blocks if len(block.rows)]

    def _keys(self, blocks: Iterable[Block]) -> list[int]:
        keys: list[int] = []
        for block in blocks:
            of_group = self.requests.read_table(f"{block.group}.parquet", columns=["key"])["key"].to_numpy()
            keys += of_group[block.rows].tolist()
        return keys

    def _split(self, block: Block, attempt: int) -> list[Block]:
        last = attempt == self.settings.attempts - 1 and attempt > 0
        size = 1 if last else max(1, self.settings.batch // _SMALLER**attempt)
        return [Block(block.group, block.rows[i : i + size]) for i in range(0, len(block.rows), size)]

    def _ask(self, blocks: list[Block], *, title: str, alone: bool, give_up: bool) -> Iterator[Outcome]:
        if self.settings.backend == "endpoint":
            assert self.settings.endpoint
            # Divide the concurrent requests that the server allows among the workers.
            concurrency = max(1, self.settings.endpoint.concurrency // self.engine.num_workers)
            endpoint = self.settings.endpoint.model_copy(update={"concurrency": concurrency})
            settings = self.settings.model_copy(update={"endpoint": endpoint})
            shared: tuple[Any, ...] = (self.requests, self.store, self.read, settings, self.model, give_up)
            for _, outcome in self.engine.map(_ask_endpoint, blocks, title=title, unit="blocks", shared=shared):
                yield outcome
            return
        from pipeline.engine.generation import generate

        yield from generate(
            self.engine,
            blocks,
            read=_read_block,
            store=_store,
            settings=self.settings,
            model=self.model.source,
            revision=self.model.commit,
            title=title,
            one_at_a_time=alone,
            shared=(self.requests, self.store, self.read),
        )


def _missing(name: str, requests: Folder, index: FrozenIndex, refused: NDArray[np.uint64]) -> I64:
    key_R = requests.read_table(f"{name}.parquet", columns=["key"])["key"].to_numpy()
    return np.flatnonzero(~(index.has(key_R) | np.isin(key_R, refused)))


def _read_block(block: Block, requests: Folder, store: Folder, read: Read) -> list[Request]:  # noqa: ARG001  same arguments as `_store`
    return read(requests, block.group, block.rows)


def _store(answers: Sequence[Answer], failures: Sequence[Failure], requests: Folder, store: Folder, read: Read) -> Outcome:  # noqa: ARG001
    return Outcome([write_answers(store, answers)] if answers else [], list(failures))


def _ask_endpoint(
    block: Block, requests: Folder, store: Folder, read: Read, settings: Rephrase, model: Model, give_up: bool
) -> Outcome:
    """Send a block to the endpoint and store its answers.

    Raises:
        WorkerError: `give_up` is set and the server answered none of several prompts: it is dead or misconfigured.
    """
    from pipeline.rewriting.endpoint import ask

    assert settings.endpoint
    answers: list[Answer] = []
    failures: list[Failure] = []
    stored: list[Stored] = []
    flushed = time.monotonic()

    def flush() -> None:
        nonlocal answers, flushed
        if answers:
            stored.append(write_answers(store, answers))
        answers, flushed = [], time.monotonic()

    asked = read(requests, block.group, block.rows)
    try:
        for said in ask(
            asked,
            model=model.source,
            endpoint=settings.endpoint,
            sampling=settings.sampling,
            chat_template_kwargs=settings.chat_template_kwargs,
        ):
            if isinstance(said, Answer):
                answers.append(said)
            else:
                failures.append(said)
            if time.monotonic() - flushed > _FLUSH_S:
                flush()
    finally:
        flush()
    if give_up and failures and len(failures) == len(asked) > 1:
        raise WorkerError(
            f"{settings.endpoint.url} answered none of {len(asked)} prompts ({failures[0].error}); start or mend the server that "
            "rephrase.endpoint names, and run again: answers so far are kept"
        )
    return Outcome(stored, failures)
