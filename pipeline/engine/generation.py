"""vLLM engines over prompts, through `ray.data.llm`.

One Ray Data execution: blocks of requests are read in tasks, answered by actors that hold an engine each, and stored in tasks, as
they come. An engine that dies takes along the blocks that it held, and is started again for the others.

What Ray Data would do by itself, and what is done about it:

- It repeats a lost task for ever, each time on an engine that dies of it: here none is repeated; whoever calls asks again.
- With `max_errored_blocks`, which keeps the other blocks going, it passes over the errors of `read` and `store` too: they are
  carried as rows, and raised here.
- It merges blocks smaller than a batch: rows carry the number of their block.
- Its chat template and tokenizer stages add two special tokens where a template has written one: prompts are tokenized while they
  are read, as `vllm.LLM.chat` does, which also saves two actors.
"""

import base64
import functools
import logging
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from loguru import logger

from pipeline import config
from pipeline.engine.chat import Chat
from pipeline.engine.deaths import Deaths, NoEngineLeftError
from pipeline.engine.exchange import Answer, Failure, Request
from pipeline.engine.pool import Pool
from pipeline.engine.tasks import Engine
from pipeline.engine.usage import measured
from pipeline.errors import ConfigError, CrispwrapError, WorkerError, one_line

_DEATHS = 8  # of each engine before it counts as broken
_ERROR = "__inference_error__"  # the column of Ray Data's LLM stages
_RAISED = "raised "  # begins the error of a block that could not be read; the exception follows, pickled


def generate(
    engine: Engine,
    blocks: Sequence[Any],
    *,
    read: Callable[..., Sequence[Request]],
    store: Callable[..., Any],
    settings: config.Rephrase,
    model: str,
    title: str,
    revision: str | None = None,
    one_at_a_time: bool = False,
    shared: tuple[Any, ...] = (),
) -> Iterator[Any]:
    """Answer the prompts of blocks with vLLM, and yield what `store` returned, in the order in which it came.

    `read(block, *shared)` gives the requests of a block, in a Ray task and only when there is room. `store(answers, failures,
    *shared)` gets what came of some of them, in a Ray task, as soon as it is there: mostly of one block, and of several where they
    are smaller than `settings.batch`, which is the best size. `model` is a folder or a name on the hub.

    The prompts that an engine held when it died are in no list: whoever calls finds out what is missing and asks again,
    `one_at_a_time` (each engine holds one block and never puts two together), so that a prompt that kills engines takes nothing but
    its own block.

    Raises:
        CrispwrapError: what `read` or `store` raised; ConfigError for a model that cannot chat or an argument that vLLM does not
            know; WorkerError for an engine that does not start, or dies again and again. What was stored stays.
    """
    if not blocks:
        return
    ray = engine.start()
    pool = Pool.of(engine, settings, one_at_a_time=one_at_a_time)
    work = _Work(read, store, [ray.put(value) for value in shared], Chat.of(engine, settings, model, revision))
    untouched = dict(enumerate(blocks))
    unanswered: dict[int, int] = {}
    with engine.progress.phase(title, len(blocks), "blocks") as phase:
        while untouched:
            before = len(untouched)
            try:
                for result in _execute(ray, untouched, work, pool):
                    if isinstance(result, BaseException):
                        raise result
                    engine.usage.add(result.busy_s, result.rss_bytes)
                    for number, (answered, size) in result.blocks.items():
                        untouched.pop(number, None)
                        unanswered[number] = unanswered.get(number, size) - answered
                        if not unanswered[number]:
                            phase.advance()
                    yield result.value
            except NoEngineLeftError as error:
                if len(untouched) == before:
                    raise _explained(error) from error
                logger.warning(
                    f"{title}: no engine is left ({one_line(error)}); new ones are started for {len(untouched):,} blocks"
                )
            else:
                break  # what an engine held when it died stays untouched: whoever calls asks again


@dataclass(frozen=True)
class _Work:
    """What the tasks need."""

    read: Callable[..., Sequence[Request]]
    store: Callable[..., Any]
    shared: list[Any]  # Ray's references
    chat: Chat


@dataclass(frozen=True)
class _Stored:
    """What `store` returned for some answers."""

    value: Any
    blocks: dict[int, tuple[int, int]]  # number of the block: answered here, size
    busy_s: float
    rss_bytes: int


def _execute(ray: Any, blocks: Mapping[int, Any], work: _Work, pool: Pool) -> Iterator["_Stored | BaseException"]:
    """What the tasks return, as it comes; an exception that one of ours raised is returned too."""
    import ray.data

    small = {**pool.small, "batch_size": None, "batch_format": "pyarrow", "fn_kwargs": {"work": work}}
    tables = [pa.table({"number": [number], "block": [ray.cloudpickle.dumps(block)]}) for number, block in blocks.items()]
    deaths = Deaths()
    context = _context(ray.data.DataContext.get_current(), pool, deaths)
    with _hushed(), ray.data.DataContext.current(context):
        processor = _processor(pool, work)
        answers = processor(ray.data.from_arrow(tables).map_batches(_read, **small)).map_batches(_store, **small)
        batches = answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        try:
            for batch in batches:
                for result in batch["result"].to_pylist():
                    yield pickle.loads(result)
        except ray.exceptions.RayError as error:
            raise _explained(error) from error
        except ray.data.exceptions.ExecutionTimeoutError as error:
            raise WorkerError(
                f"no vLLM engine did anything for {context.execution_no_progress_timeout_s / 60:.0f} minutes: there is no room for "
                "rephrase.resources in the cluster, or an engine died and could not be started again (its own words are in the "
                "worker logs of Ray's session); mend that and run again: answers so far are kept. "
                "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S sets the seconds"
            ) from error
        finally:
            deaths.kill_the_restarted()


def _processor(pool: Pool, work: _Work) -> Any:
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    model, revision, _ = work.chat.tokenizer
    kwargs = dict(pool.kwargs)
    if revision is not None:
        kwargs |= {"revision": revision, "tokenizer_revision": revision}
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=model,
            engine_kwargs=kwargs,
            placement_group_config={"bundle_per_worker": dict(pool.resources)},
            runtime_env={"env_vars": dict(pool.environment)},
            concurrency=pool.engines,
            batch_size=pool.batch,
            max_concurrent_batches=pool.calls,
            max_pending_requests=pool.calls * pool.batch,
            max_tasks_in_flight_per_actor=pool.queued,
            should_continue_on_error=True,
            log_engine_metrics=False,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        ),
        preprocess=functools.partial(_sampled, sampling=work.chat.asked),
        postprocess=_outcome,
        preprocess_map_kwargs=pool.small,  # the same as of our own tasks, with which Ray Data then joins them
        postprocess_map_kwargs=pool.small,
    )
    # In place: assigned anew, the stage would be validated once more, forget its resources, and wait for a GPU for ever.
    processor.get_stage_by_name("vLLMEngineStage").map_batches_kwargs.update(max_task_retries=0)
    return processor


def _context(context: Any, pool: Pool, deaths: Deaths) -> Any:
    context = context.copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None  # else each call reads the memory map of its process once a second
    # A death costs the blocks that the engine held. Past so many the execution is given up.
    context.max_errored_blocks = _DEATHS * pool.queued * pool.engines
    context.custom_execution_callback_classes = [deaths.callback()]
    return context


@contextmanager
def _hushed() -> Iterator[None]:
    """Ray Data's console is silent: what it would say comes back as errors."""
    console = [handler for handler in logging.getLogger("ray.data").handlers if isinstance(handler, logging.StreamHandler)]
    levels = [handler.level for handler in console]
    for handler in console:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(console, levels, strict=True):
            handler.setLevel(level)


def _read(table: pa.Table, work: _Work) -> pa.Table:
    """The prompts of a block, one row each: number and size of the block, key, tokens, most of an answer, error."""
    number = table["number"][0].as_py()
    try:
        requests = _in_task(work, work.read, pickle.loads(table["block"][0].as_py()))
    except Exception as error:
        return _rows(number, [("", [], 0, _RAISED + base64.b64encode(_pickled(error)).decode())])
    return _rows(number, [_prompt(request, work.chat) for request in requests])


def _prompt(request: Request, chat: Chat) -> tuple[str, list[int], int, str]:
    try:
        return str(request.key), chat.prompt(request), request.max_tokens, ""
    except Exception as error:  # a template raises what it likes
        return str(request.key), [], 0, f"chat template: {one_line(error)}"


def _rows(number: int, prompts: list[tuple[str, list[int], int, str]]) -> pa.Table:
    keys, tokens, most, errors = zip(*prompts, strict=True) if prompts else ((), (), (), ())
    return pa.table(
        {
            "number": pa.array([number] * len(keys), pa.int64()),
            "size": pa.array([len(keys)] * len(keys), pa.int64()),
            "key": pa.array(keys, pa.string()),  # 64 bits without a sign, which pandas and NumPy would make a float of
            "tokenized_prompt": pa.array(tokens, pa.list_(pa.int32())),
            "max_tokens": pa.array(most, pa.int64()),
            _ERROR: pa.array(errors, pa.string()),
        }
    )


def _sampled(row: dict[str, Any], sampling: dict[str, Any]) -> dict[str, Any]:
    return {"sampling_params": {**sampling, "max_tokens": row["max_tokens"]}}


def _outcome(row: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an answer; rows with an error come past this as they are."""
    kept = {name: row[name] for name in ("number", "size", "key", "max_tokens", "num_input_tokens")}
    return {**kept, "text": row["generated_text"], "tokens": row["generated_tokens"]}


def _store(table: pa.Table, work: _Work) -> pa.Table:
    """The pickled `_Stored` of some answers, or the exception that came instead."""
    answers: list[Answer] = []
    failures: list[Failure] = []
    try:
        rows = table.select(["number", "size", "key", _ERROR]).to_pylist()
        for row in rows:
            if row[_ERROR].startswith(_RAISED):
                return _result(pickle.loads(base64.b64decode(row[_ERROR].removeprefix(_RAISED))))
            if row[_ERROR]:
                failures.append(Failure(int(row["key"]), one_line(row[_ERROR]), "prompt"))
        if len(failures) < table.num_rows:
            names = ["key", "text", "tokens", "max_tokens", "num_input_tokens", _ERROR]
            answers = work.chat.answers([row for row in table.select(names).to_pylist() if not row[_ERROR]])
        value, busy_s, rss_bytes = measured(functools.partial(_in_task, work, work.store, answers, failures))
    except Exception as error:
        return _result(error)
    answered = Counter(row["number"] for row in rows)
    return _result(_Stored(value, {row["number"]: (answered[row["number"]], row["size"]) for row in rows}, busy_s, rss_bytes))


def _in_task(work: _Work, function: Callable[..., Any], *args: Any) -> Any:
    import ray

    return function(*args, *(ray.get(reference) for reference in work.shared))


def _result(value: Any) -> pa.Table:
    return pa.table({"result": pa.array([_pickled(value)], pa.binary())})


def _pickled(value: Any) -> bytes:
    """An exception of a kind that cannot be pickled goes as one that can."""
    from ray import cloudpickle

    try:
        pickled: bytes = cloudpickle.dumps(value)  # type: ignore[no-untyped-call]
        if isinstance(value, BaseException):
            pickle.loads(pickled)
    except Exception:
        if not isinstance(value, BaseException):
            raise
        return pickle.dumps(WorkerError(f"{type(value).__name__}: {one_line(value)}"))
    return pickled


def _explained(error: BaseException) -> CrispwrapError:
    """The error that a user should see for one that ended the execution."""
    text = str(error)
    if found := re.search(r"unexpected keyword argument '(\w+)'", text):
        return ConfigError(f"rephrase.engine.{found[1]}: vLLM's engine has no such argument; see vllm serve --help=all")
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit)\b:? .*", text, re.MULTILINE)
    return WorkerError(
        f"the vLLM engine could not be started, or died again and again: {errors[-1] if errors else one_line(error)}; its own "
        "words are in the worker logs of Ray's session. Mend rephrase.engine, rephrase.resources or the model, and run again: "
        "answers so far are kept"
    )
