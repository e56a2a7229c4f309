"""Send requests to a model until each is answered or has failed. Stored answers are reused; failed requests are retried.

The first attempt sends many prompts together. Later attempts send the unanswered prompts in smaller blocks, and the last attempt
sends each alone, so that a prompt that kills its engine takes no other prompt with it. Shapes: R requests of a group.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from loguru import logger

from pipeline.arrays import I64, Keys
from pipeline.config import Rephrase
from pipeline.engine import Engine
from pipeline.engine.gpu_monitor import GpuMonitor
from pipeline.engine.llm_io import Answer, Failure, Request
from pipeline.errors import RunError, WorkerError
from pipeline.execution.step import group_for_fold
from pipeline.rewriting.answers import (
    AnswerFile,
    AnswerIndex,
    FrozenIndex,
    group_small_files,
    merge_files,
    read_keys,
    write_answers,
)
from pipeline.rewriting.language_model import Model
from pipeline.storage import Folder

_RETRY_SHRINK = 8  # each retry sends blocks smaller by this factor
_STORE_EVERY_S = 20.0  # the answers of an endpoint are stored at this interval
_ENGINE_DIED = "the engine died on every attempt that included this prompt"

# `build_prompts(requests, group, rows)` returns the prompts for some rows of a group, in their order. Workers call it.
PromptBuilder = Callable[[Folder, str, I64], list[Request]]


@dataclass(frozen=True)
class Block:
    """An item of work: some rows of one group of requests."""

    group: str
    rows: I64

    @property
    def name(self) -> str:
        return f"{self.group}, {len(self.rows)} prompts"


@dataclass(frozen=True)
class BlockResult:
    """The result of sending some prompts: the files of stored answers, and the failures."""

    files: list[AnswerFile]
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class UnansweredInputs:
    """The inputs shared by the tasks that look for requests without an answer."""

    requests: Folder
    index: FrozenIndex
    excluded_keys: Keys


@dataclass(frozen=True)
class PromptInputs:
    """The inputs shared by the tasks that build prompts for vLLM and store its answers."""

    requests: Folder
    store: Folder
    build_prompts: PromptBuilder


@dataclass(frozen=True)
class EndpointInputs:
    """The inputs shared by the tasks that send prompts to an endpoint."""

    requests: Folder
    store: Folder
    build_prompts: PromptBuilder
    settings: Rephrase
    model: Model
    must_answer: bool  # raise if the server answers no prompt of a block


class RequestSender:
    """Sends the requests of a step to the model, and keeps the answers in a store.

    `requests` contains one table per group, with a column `key` and the footer fact `rows`; `build_prompts` turns its rows into
    prompts.
    """

    def __init__(
        self, engine: Engine, settings: Rephrase, model: Model, build_prompts: PromptBuilder, requests: Folder, store: Folder
    ) -> None:
        self.engine, self.settings, self.model, self.build_prompts = engine, settings, model, build_prompts
        self.requests, self.store = requests, store
        self._index: AnswerIndex | None = None

    def send(self, groups: Sequence[str], *, title: str, max_bad_fraction: float) -> tuple[FrozenIndex, dict[int, Failure]]:
        """Send the requests of the named groups that have no stored answer, and store the answers.

        Failures are not stored: a resumed or later run sends these prompts again.

        Returns:
            The index of the store, and the failure of each request without an answer, by key; all other requests are answered.

        Raises:
            RunError: no engine or server answers at all, or more prompts than `max_bad_fraction` of the groups have no answer.
        """
        index = self._read_index()
        num_requests = sum(self.requests.read_facts(f"{group}.parquet")["rows"] for group in groups)
        prompt_failures: dict[int, Failure] = {}  # caused by the prompt itself: not retried
        backend_failures: dict[int, Failure] = {}
        pending_blocks = self._find_unanswered(groups, index.freeze(), prompt_failures)
        num_sent = sum(len(block.rows) for block in pending_blocks)
        # Requests left over by earlier runs may all fail, so a first attempt without any answer means that the server is dead or
        # misconfigured only if the store was empty.
        store_was_empty = not index.files
        started, output_tokens = time.monotonic(), 0
        with GpuMonitor(self.engine) as gpus:
            for attempt in range(self.settings.attempts):
                if not pending_blocks:
                    break
                must_answer = store_was_empty and attempt == 0
                blocks = [smaller for block in pending_blocks for smaller in self._split(block, attempt)]
                attempt_title = title if not attempt else f"{title}, attempt {attempt + 1}"
                any_answered = False
                for result in self._send_blocks(blocks, title=attempt_title, one_at_a_time=attempt > 0, must_answer=must_answer):
                    index.add(result.files)
                    output_tokens += sum(file.output_tokens for file in result.files)
                    any_answered = any_answered or bool(result.files)
                    for failure in result.failures:
                        (prompt_failures if failure.kind == "prompt" else backend_failures)[failure.key] = failure
                pending_blocks = self._find_unanswered(groups, index.freeze(), prompt_failures)
                if must_answer and not any_answered:
                    failures = prompt_failures | backend_failures
                    reason = next((failure.error for failure in failures.values()), "its engine died")
                    raise RunError(
                        f"{title}: none of {num_sent:,} prompts was answered ({reason}); check rephrase.model and its engine or "
                        "endpoint, and run again"
                    )
            if output_tokens:
                self.engine.usage.add_generated(output_tokens, time.monotonic() - started, gpus.mean())
        unanswered_keys = self._read_keys(pending_blocks)
        unanswered = prompt_failures | {
            key: backend_failures.get(key, Failure(key, _ENGINE_DIED, "backend")) for key in unanswered_keys
        }
        if len(unanswered) > max_bad_fraction * num_requests:
            reason = next(iter(unanswered.values())).error
            raise RunError(
                f"{title}: {len(unanswered):,} of {num_requests:,} prompts have no answer after {self.settings.attempts} attempts, "
                f"more than max_bad_fraction = {max_bad_fraction} ({reason}); fix the cause and run again (answers are kept), or "
                "raise max_bad_fraction"
            )
        if unanswered:
            logger.warning(f"{title}: {len(unanswered):,} of {num_requests:,} prompts have no answer and are quarantined")
        return index.freeze(), unanswered

    def _read_index(self) -> AnswerIndex:
        if self._index is None:
            self._index = AnswerIndex()
            files = self._list_answer_files()
            if small := group_small_files(files):
                for _ in self.engine.map(merge_files, small, title="merge stored answers", unit="files", shared=self.store):
                    pass
                files = self._list_answer_files()
            self._index.add(files)
        return self._index

    def _list_answer_files(self) -> list[AnswerFile]:
        names = [name.removesuffix(".parquet") for name in self.store.names(".parquet")]
        results = self.engine.map(read_keys, group_for_fold(self.engine, names), title="read stored answers", shared=self.store)
        return [file for _, files in results for file in files]

    def _find_unanswered(self, groups: Sequence[str], index: FrozenIndex, excluded_keys: Iterable[int]) -> list[Block]:
        """Return the rows of each group that have no answer and are not excluded; groups without such rows are left out."""
        inputs = UnansweredInputs(self.requests, index, np.array(sorted(excluded_keys), np.uint64))
        results = self.engine.map(_find_unanswered_rows, groups, title="find unanswered requests", unit="groups", shared=inputs)
        blocks = [Block(groups[i], rows) for i, rows in sorted(results, key=lambda result: result[0])]
        return [block for block in blocks if len(block.rows)]

    def _read_keys(self, blocks: Iterable[Block]) -> list[int]:
        keys: list[int] = []
        for block in blocks:
            key_R = self.requests.read_table(f"{block.group}.parquet", columns=["key"])["key"].to_numpy()
            keys += key_R[block.rows].tolist()
        return keys

    def _split(self, block: Block, attempt: int) -> list[Block]:
        is_last = attempt == self.settings.attempts - 1 and attempt > 0
        size = 1 if is_last else max(1, self.settings.batch // _RETRY_SHRINK**attempt)
        return [Block(block.group, block.rows[i : i + size]) for i in range(0, len(block.rows), size)]

    def _send_blocks(self, blocks: list[Block], *, title: str, one_at_a_time: bool, must_answer: bool) -> Iterator[BlockResult]:
        if self.settings.backend == "endpoint":
            assert self.settings.endpoint
            # Divide the concurrent requests that the server allows among the workers.
            concurrency = max(1, self.settings.endpoint.concurrency // self.engine.num_workers)
            endpoint = self.settings.endpoint.model_copy(update={"concurrency": concurrency})
            settings = self.settings.model_copy(update={"endpoint": endpoint})
            inputs = EndpointInputs(self.requests, self.store, self.build_prompts, settings, self.model, must_answer)
            for _, result in self.engine.map(_send_to_endpoint, blocks, title=title, unit="blocks", shared=inputs):
                yield result
            return
        from pipeline.engine.generation import generate

        yield from generate(
            self.engine,
            blocks,
            read=_build_block_prompts,
            store=_store_answers,
            settings=self.settings,
            model=self.model.source,
            revision=self.model.commit,
            title=title,
            one_at_a_time=one_at_a_time,
            shared=PromptInputs(self.requests, self.store, self.build_prompts),
        )


def _find_unanswered_rows(group: str, inputs: UnansweredInputs) -> I64:
    key_R = inputs.requests.read_table(f"{group}.parquet", columns=["key"])["key"].to_numpy()
    return np.flatnonzero(~(inputs.index.has_answers(key_R) | np.isin(key_R, inputs.excluded_keys)))


def _build_block_prompts(block: Block, inputs: PromptInputs) -> list[Request]:
    return inputs.build_prompts(inputs.requests, block.group, block.rows)


def _store_answers(answers: Sequence[Answer], failures: Sequence[Failure], inputs: PromptInputs) -> BlockResult:
    return BlockResult([write_answers(inputs.store, answers)] if answers else [], list(failures))


def _send_to_endpoint(block: Block, inputs: EndpointInputs) -> BlockResult:
    """Send a block to the endpoint and store its answers.

    Raises:
        WorkerError: `must_answer` is set and the server answered none of several prompts: it is dead or misconfigured.
    """
    from pipeline.rewriting.endpoint import send_requests

    settings = inputs.settings
    assert settings.endpoint
    answers: list[Answer] = []
    failures: list[Failure] = []
    files: list[AnswerFile] = []
    stored_at = time.monotonic()

    def store() -> None:
        nonlocal answers, stored_at
        if answers:
            files.append(write_answers(inputs.store, answers))
        answers, stored_at = [], time.monotonic()

    prompts = inputs.build_prompts(inputs.requests, block.group, block.rows)
    try:
        for reply in send_requests(
            prompts,
            model=inputs.model.source,
            endpoint=settings.endpoint,
            sampling=settings.sampling,
            chat_template_kwargs=settings.chat_template_kwargs,
        ):
            if isinstance(reply, Answer):
                answers.append(reply)
            else:
                failures.append(reply)
            if time.monotonic() - stored_at > _STORE_EVERY_S:
                store()
    finally:
        store()
    if inputs.must_answer and failures and len(failures) == len(prompts) > 1:
        raise WorkerError(
            f"{settings.endpoint.url} answered none of {len(prompts)} prompts ({failures[0].error}); check the server that "
            "rephrase.endpoint names and run again (answers so far are kept)"
        )
    return BlockResult(files, failures)
