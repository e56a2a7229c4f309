"""Run vLLM engines over prompts, through `ray.data.llm`.

One Ray Data execution: tasks read blocks of requests, actors with one engine each answer them, and tasks store the answers as they
arrive. If an engine dies, the blocks that it held are lost, and a new engine starts for the other blocks.

Defaults of Ray Data, and what this module does instead:

- It retries a lost task for ever, and each retry may kill another engine. Here lost tasks are not retried; the caller asks again.
- `max_errored_blocks`, which keeps the other blocks going, also ignores errors of `read` and `store`. Here those errors are passed
  on as rows, and raised in the driver.
- It merges blocks that are smaller than a batch. Here each row carries the number of its block.
- Its chat template and tokenizer stages add a second pair of special tokens where a template writes one. Here prompts are tokenized
  in the tasks that read, as `vllm.LLM.chat` does, which also saves two actors.
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
from typing import Any, TypeVar

import pyarrow as pa
from loguru import logger

from pipeline import config
from pipeline.engine.actor_monitor import ActorMonitor, NoLiveEngineError
from pipeline.engine.chat import Chat
from pipeline.engine.engine_pool import EnginePool
from pipeline.engine.llm_io import Answer, Failure, Request
from pipeline.engine.tasks import Engine
from pipeline.engine.usage import measure
from pipeline.errors import ConfigError, CrispwrapError, WorkerError, one_line

_MAX_DEATHS_PER_ENGINE = 8  # then the engine counts as broken
_ERROR_COLUMN = "__inference_error__"  # error column of Ray Data's LLM stages
_READ_ERROR = "raised "  # prefix of the error of a block that could not be read; the pickled exception follows

Block = TypeVar("Block")
Shared = TypeVar("Shared")
Result = TypeVar("Result")


def generate(
    engine: Engine,
    blocks: Sequence[Block],
    *,
    read: Callable[[Block, Shared], Sequence[Request]],
    store: Callable[[list[Answer], list[Failure], Shared], Result],
    shared: Shared,
    settings: config.Rephrase,
    model: str,
    title: str,
    revision: str | None = None,
    one_at_a_time: bool = False,
) -> Iterator[Result]:
    """Answer the prompts of blocks with vLLM, and yield what `store` returned, in order of completion.

    Args:
        engine: runs tasks on the Ray cluster.
        blocks: units of work, each passed to `read`.
        read: `read(block, shared)` returns the requests of a block. Called in a Ray task, when there is space in the queue.
        store: `store(answers, failures, shared)` stores results, in a Ray task, as soon as they are available: usually those of
            one block, or of several if blocks are smaller than `settings.batch`, which is the best size.
        shared: the last argument of `read` and `store`; sent to each machine once.
        settings: the section `rephrase`.
        model: a folder or a name on the hub.
        title: title of the progress activity.
        revision: commit of a hub model.
        one_at_a_time: each vLLM engine holds one block, and blocks are never merged, so that a prompt that kills engines loses only
            its own block.

    Prompts that an engine held when it died are neither answers nor failures: the caller finds out which are missing and asks
    again, with `one_at_a_time`.

    Raises:
        CrispwrapError: raised by `read` or `store`; ConfigError for a model that cannot chat or an argument that vLLM does not
            know; WorkerError for an engine that does not start or dies repeatedly. Stored answers are kept.
    """
    if not blocks:
        return
    ray = engine.start()
    pool = EnginePool.plan(engine, settings, one_at_a_time=one_at_a_time)
    inputs = _TaskInputs(read, store, ray.put(shared), Chat.load(engine, settings, model, revision))
    pending = dict(enumerate(blocks))
    unanswered: dict[int, int] = {}
    with engine.progress.activity(title, len(blocks), "blocks") as activity:
        while pending:
            before = len(pending)
            try:
                for result in _execute(ray, pending, inputs, pool):
                    if isinstance(result, BaseException):
                        raise result
                    engine.usage.add(result.busy_s, result.rss_bytes)
                    for number, (answered, size) in result.blocks.items():
                        pending.pop(number, None)
                        unanswered[number] = unanswered.get(number, size) - answered
                        if not unanswered[number]:
                            activity.advance()
                    yield result.value
            except NoLiveEngineError as error:
                if len(pending) == before:
                    raise _explain_failure(error) from error
                logger.warning(f"{title}: all engines died ({one_line(error)}); starting new ones for {len(pending):,} blocks")
            else:
                break  # blocks that an engine held when it died stay pending: the caller asks again


@dataclass(frozen=True)
class _TaskInputs:
    """What every task needs."""

    read: Callable[..., Sequence[Request]]
    store: Callable[..., Any]
    shared_ref: Any  # a Ray reference
    chat: Chat


@dataclass(frozen=True)
class _Stored:
    """The return value of `store` for some answers, and which blocks they belong to."""

    value: Any
    blocks: dict[int, tuple[int, int]]  # block number: (answered here, size of the block)
    busy_s: float
    rss_bytes: int


def _execute(ray: Any, blocks: Mapping[int, Any], inputs: _TaskInputs, pool: EnginePool) -> Iterator["_Stored | BaseException"]:
    """Yield what the tasks return, as it arrives; exceptions raised by `read` or `store` are yielded too."""
    import ray.data

    task_options = {**pool.light_task_options, "batch_size": None, "batch_format": "pyarrow", "fn_kwargs": {"inputs": inputs}}
    tables = [pa.table({"number": [number], "block": [ray.cloudpickle.dumps(block)]}) for number, block in blocks.items()]
    monitor = ActorMonitor()
    context = _build_context(ray.data.DataContext.get_current(), pool, monitor)
    with _silence_ray_data(), ray.data.DataContext.current(context):
        processor = _build_processor(pool, inputs)
        answers = processor(ray.data.from_arrow(tables).map_batches(_read_task, **task_options)).map_batches(
            _store_task, **task_options
        )
        batches = answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        try:
            for batch in batches:
                for result in batch["result"].to_pylist():
                    yield pickle.loads(result)
        except ray.exceptions.RayError as error:
            raise _explain_failure(error) from error
        except ray.data.exceptions.ExecutionTimeoutError as error:
            raise WorkerError(
                f"no vLLM engine made progress for {context.execution_no_progress_timeout_s / 60:.0f} minutes: the cluster cannot "
                "provide rephrase.resources, or an engine died and could not be restarted (see the worker logs of Ray's session); "
                "fix this and run again: finished answers are kept. RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S sets this time "
                "limit in seconds"
            ) from error
        finally:
            monitor.kill_restarted_actors()


def _build_processor(pool: EnginePool, inputs: _TaskInputs) -> Any:
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    model, revision, _ = inputs.chat.tokenizer
    engine_kwargs = dict(pool.engine_kwargs)
    if revision is not None:
        engine_kwargs |= {"revision": revision, "tokenizer_revision": revision}
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=model,
            engine_kwargs=engine_kwargs,
            placement_group_config={"bundle_per_worker": dict(pool.resources)},
            runtime_env={"env_vars": dict(pool.environment)},
            concurrency=pool.num_engines,
            batch_size=pool.batch_size,
            max_concurrent_batches=pool.max_batches,
            max_pending_requests=pool.max_batches * pool.batch_size,
            max_tasks_in_flight_per_actor=pool.max_queued_batches,
            should_continue_on_error=True,
            log_engine_metrics=False,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        ),
        preprocess=functools.partial(_add_sampling_params, sampling=inputs.chat.sampling_params),
        postprocess=_keep_output,
        preprocess_map_kwargs=pool.light_task_options,  # as for the other tasks, so that Ray Data fuses them
        postprocess_map_kwargs=pool.light_task_options,
    )
    # Update the dict in place: after an assignment Ray Data validates the stage again, loses its resources and waits for a GPU.
    processor.get_stage_by_name("vLLMEngineStage").map_batches_kwargs.update(max_task_retries=0)
    return processor


def _build_context(context: Any, pool: EnginePool, monitor: ActorMonitor) -> Any:
    context = context.copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None  # otherwise every task reads its process's memory map once a second
    # A death loses the blocks that the engine held. The execution fails after this many lost blocks.
    context.max_errored_blocks = _MAX_DEATHS_PER_ENGINE * pool.max_queued_batches * pool.num_engines
    context.custom_execution_callback_classes = monitor.callback_classes()
    return context


@contextmanager
def _silence_ray_data() -> Iterator[None]:
    """Silence Ray Data's console logging: this module raises its errors."""
    handlers = [handler for handler in logging.getLogger("ray.data").handlers if isinstance(handler, logging.StreamHandler)]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


def _read_task(table: pa.Table, inputs: _TaskInputs) -> pa.Table:
    """The prompts of a block, one row each: number and size of the block, key, tokens, maximum answer length, error."""
    number = table["number"][0].as_py()
    try:
        requests = _call_with_shared(inputs, inputs.read, pickle.loads(table["block"][0].as_py()))
    except Exception as error:
        return _build_prompt_table(number, [("", [], 0, _READ_ERROR + base64.b64encode(_pickle(error)).decode())])
    return _build_prompt_table(number, [_tokenize_request(request, inputs.chat) for request in requests])


def _tokenize_request(request: Request, chat: Chat) -> tuple[str, list[int], int, str]:
    try:
        return str(request.key), chat.tokenize_prompt(request), request.max_tokens, ""
    except Exception as error:  # a template may raise any exception
        return str(request.key), [], 0, f"chat template: {one_line(error)}"


def _build_prompt_table(number: int, prompts: list[tuple[str, list[int], int, str]]) -> pa.Table:
    keys, tokens, max_tokens, errors = zip(*prompts, strict=True) if prompts else ((), (), (), ())
    return pa.table(
        {
            "number": pa.array([number] * len(keys), pa.int64()),
            "size": pa.array([len(keys)] * len(keys), pa.int64()),
            "key": pa.array(keys, pa.string()),  # unsigned 64-bit, which pandas and NumPy would convert to float
            "tokenized_prompt": pa.array(tokens, pa.list_(pa.int32())),
            "max_tokens": pa.array(max_tokens, pa.int64()),
            _ERROR_COLUMN: pa.array(errors, pa.string()),
        }
    )


def _add_sampling_params(row: dict[str, Any], sampling: dict[str, Any]) -> dict[str, Any]:
    return {"sampling_params": {**sampling, "max_tokens": row["max_tokens"]}}


def _keep_output(row: dict[str, Any]) -> dict[str, Any]:
    """Keep the needed columns of an answer. Rows with an error do not pass through this function."""
    kept = {name: row[name] for name in ("number", "size", "key", "max_tokens", "num_input_tokens")}
    return {**kept, "text": row["generated_text"], "tokens": row["generated_tokens"]}


def _store_task(table: pa.Table, inputs: _TaskInputs) -> pa.Table:
    """The pickled `_Stored` of some answers, or the pickled exception."""
    answers: list[Answer] = []
    failures: list[Failure] = []
    try:
        rows = table.select(["number", "size", "key", _ERROR_COLUMN]).to_pylist()
        for row in rows:
            if row[_ERROR_COLUMN].startswith(_READ_ERROR):
                return _build_result_table(pickle.loads(base64.b64decode(row[_ERROR_COLUMN].removeprefix(_READ_ERROR))))
            if row[_ERROR_COLUMN]:
                failures.append(Failure(int(row["key"]), one_line(row[_ERROR_COLUMN]), "prompt"))
        if len(failures) < table.num_rows:
            names = ["key", "text", "tokens", "max_tokens", "num_input_tokens", _ERROR_COLUMN]
            answers = inputs.chat.decode_answers([row for row in table.select(names).to_pylist() if not row[_ERROR_COLUMN]])
        value, busy_s, rss_bytes = measure(functools.partial(_call_with_shared, inputs, inputs.store, answers, failures))
    except Exception as error:
        return _build_result_table(error)
    answered = Counter(row["number"] for row in rows)
    return _build_result_table(
        _Stored(value, {row["number"]: (answered[row["number"]], row["size"]) for row in rows}, busy_s, rss_bytes)
    )


def _call_with_shared(inputs: _TaskInputs, function: Callable[..., Any], *args: Any) -> Any:
    import ray

    return function(*args, ray.get(inputs.shared_ref))


def _build_result_table(value: Any) -> pa.Table:
    return pa.table({"result": pa.array([_pickle(value)], pa.binary())})


def _pickle(value: Any) -> bytes:
    """Pickle a value; an exception that cannot be pickled becomes a WorkerError."""
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


def _explain_failure(error: BaseException) -> CrispwrapError:
    """Convert an error that ended the execution to one that the user can act on."""
    text = str(error)
    if match := re.search(r"unexpected keyword argument '(\w+)'", text):
        return ConfigError(f"rephrase.engine.{match[1]}: not an argument of vLLM's engine; see vllm serve --help=all")
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit)\b:? .*", text, re.MULTILINE)
    return WorkerError(
        f"the vLLM engine could not be started, or died repeatedly: {errors[-1] if errors else one_line(error)}; see the worker "
        "logs of Ray's session. Correct rephrase.engine, rephrase.resources or the model, and run again: finished answers are kept"
    )
