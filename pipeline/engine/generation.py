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
import os
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
from pipeline.engine.deaths import Deaths, NoEngineLeftError
from pipeline.engine.tasks import Engine, _measured
from pipeline.errors import ConfigError, CrispwrapError, WorkerError
from pipeline.rewriting.exchange import Answer, Failure, Request

# Prompts handed to an engine at once. vLLM itself runs 256 of them side by side (max_num_seqs), 1024 on the largest GPUs.
_PROMPTS_IN_FLIGHT = 1024
_MOST_BATCHES = 64  # in flight; each is a thread of the actor
_SMALL_CPUS = 0.1  # of a task that reads or stores: there must be room for some beside an engine on two cores
_READERS = 4  # tasks that read, for each engine, and as many that store
_DEATHS = 8  # of each engine before it counts as broken
_KV_CACHE_BYTES = 2 << 30  # on a CPU, where vLLM would take most of the machine's memory
# vLLM's own figures for `vllm.LLM`: sequences side by side, tokens of a step. Started by Ray it would take half of them or less.
_ON_CPU = {"max_num_seqs": 256, "max_num_batched_tokens": 4096}
_ON_GPU = {"max_num_seqs": 256, "max_num_batched_tokens": 8192}
_ON_LARGE_GPU = {"max_num_seqs": 1024, "max_num_batched_tokens": 16384}
_LARGE_GPUS = {"H100", "H200", "H20", "GH200", "B200", "B300", "GB200", "GB300"}  # as Ray calls them

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
    ray = engine._start()
    pool = _Pool.of(engine, settings, one_at_a_time=one_at_a_time)
    work = _Work.of(engine, settings, model, revision, read, store, [ray.put(value) for value in shared])
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
                    f"{title}: no engine is left ({_one_line(error)}); new ones are started for {len(untouched):,} blocks"
                )
            else:
                break  # what an engine held when it died stays untouched: whoever calls asks again


@dataclass(frozen=True)
class _Work:
    """What the tasks need."""

    read: Callable[..., Sequence[Request]]
    store: Callable[..., Any]
    shared: list[Any]  # Ray's references
    tokenizer: tuple[str, str | None, bool]  # model, revision, whether its code is trusted
    template: Mapping[str, Any]
    sampling: Mapping[str, Any]
    decoder: Any  # Ray's reference to the tokenizer as text, for its own library: importing transformers takes seconds; or None
    ends: frozenset[int]  # tokens that end an answer
    most_tokens: float  # of prompt and answer

    @property
    def by_text(self) -> bool:
        """Whether the engine has to see the text: token by token, which costs its process a third of the time it has."""
        return bool(self.sampling.get("stop") or self.sampling.get("detokenize"))

    @classmethod
    def of(
        cls,
        engine: Engine,
        settings: config.Rephrase,
        model: str,
        revision: str | None,
        read: Callable[..., Sequence[Request]],
        store: Callable[..., Any],
        shared: list[Any],
    ) -> "_Work":
        tokenizer = (model, revision, bool(settings.engine.get("trust_remote_code", False)))
        try:
            loaded = _tokenizer(*tokenizer)
        except (OSError, ValueError) as error:
            raise ConfigError(f"rephrase.model: the tokenizer of {model} cannot be loaded ({_one_line(error)})") from error
        if not getattr(loaded, "chat_template", None):
            raise ConfigError(f"rephrase.model: {model} has no chat template; take an instruct model")
        return cls(
            read=read,
            store=store,
            shared=shared,
            tokenizer=tokenizer,
            template=settings.chat_template_kwargs,
            sampling=settings.sampling,
            decoder=_decoder(engine, loaded),
            ends=_ends(loaded.eos_token_id, model, revision, settings.sampling),
            most_tokens=float(settings.engine.get("max_model_len") or "inf"),
        )


def _ends(eos_token_id: int | None, model: str, revision: str | None, sampling: Mapping[str, Any]) -> frozenset[int]:
    """The tokens at which vLLM ends an answer: the tokenizer's, those of generation_config.json, and those asked for."""
    from transformers import GenerationConfig

    tokens: list[int | None] = list(sampling.get("stop_token_ids") or [])
    if not sampling.get("ignore_eos"):
        tokens.append(eos_token_id)
        try:
            listed = GenerationConfig.from_pretrained(model, revision=revision or "main").eos_token_id
        except OSError:
            listed = None  # the model has no such file
        tokens += listed if isinstance(listed, list) else [listed]
    return frozenset(token for token in tokens if token is not None)


@functools.cache
def _tokenizer(model: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The model's tokenizer, once a process."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)


@dataclass(frozen=True)
class _Pool:
    """The engines: how many, on what, and how much each holds."""

    engines: int
    resources: Mapping[str, float]  # of a worker of an engine
    batch: int  # prompts of a call
    calls: int  # at once, of an engine
    environment: Mapping[str, str]
    kwargs: Mapping[str, Any]  # of vLLM
    readers: int  # tasks that read at once, and as many that store

    @classmethod
    def of(cls, engine: Engine, settings: config.Rephrase, *, one_at_a_time: bool) -> "_Pool":
        kwargs: dict[str, Any] = {"enable_prefix_caching": True, "disable_log_stats": True}
        environment = {
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        }
        resources = settings.resources or {"GPU": 1, "CPU": 1}
        if not (settings.resources or engine.num_gpus):
            cpus = engine._start().cluster_resources().get("CPU", 1)
            resources = {"CPU": min(1.0, cpus / 2)}
        if resources.get("GPU"):
            kwargs |= _ON_LARGE_GPU if engine.accelerators and engine.accelerators <= _LARGE_GPUS else _ON_GPU
        else:
            environment |= _cpu_environment(engine, settings)
            kwargs |= _ON_CPU
            if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
                kwargs["kv_cache_memory_bytes"] = _KV_CACHE_BYTES
        if "max_num_seqs" in settings.engine:
            del kwargs["max_num_batched_tokens"]  # it may be no smaller
        kwargs |= settings.engine
        # Each reader loads a tokenizer, seconds of a core, and prepares hundreds of prompts a second: a few will do.
        readers = max(1, min(_READERS * settings.replicas, engine.num_workers // 2))
        if one_at_a_time:
            # Calls of one prompt are never merged; Ray Data makes so many of them at once, for the block that it has.
            environment["RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY"] = str(settings.batch)
            return cls(settings.replicas, resources, 1, 1, environment, kwargs, readers)
        calls = min(_MOST_BATCHES, max(2, _PROMPTS_IN_FLIGHT // settings.batch))
        return cls(settings.replicas, resources, settings.batch, calls, environment, kwargs, readers)

    @property
    def small(self) -> dict[str, Any]:
        """Of the tasks that read and store."""
        return {"num_cpus": _SMALL_CPUS, "concurrency": self.readers}

    @property
    def queued(self) -> int:
        """Calls of an engine that run or are ready to: one more than run, lest it wait for the next."""
        return self.calls + (self.calls > 1)


def _cpu_environment(engine: Engine, settings: config.Rephrase) -> dict[str, str]:
    # Ray would give the engine as many threads as its share of logical CPUs, and vLLM would bind them all to the same cores. One
    # core is left to vLLM's scheduler and Ray: where they take turns with the threads, all of these wait for the last.
    threads = max(1, min(engine.threads_for(settings.replicas), os.cpu_count() or 1) - 1)
    # In one process with its worker, the scheduler does not spin on the core that others need while it waits for that.
    wanted = {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


@dataclass(frozen=True)
class _Stored:
    """What `store` returned for some answers."""

    value: Any
    blocks: dict[int, tuple[int, int]]  # number of the block: answered here, size
    busy_s: float
    rss_bytes: int


def _execute(ray: Any, blocks: Mapping[int, Any], work: _Work, pool: _Pool) -> Iterator["_Stored | BaseException"]:
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


def _processor(pool: _Pool, work: _Work) -> Any:
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    model, revision, _ = work.tokenizer
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
        preprocess=functools.partial(_sampled, sampling={**work.sampling, "detokenize": work.by_text}),
        postprocess=_outcome,
        preprocess_map_kwargs=pool.small,  # the same as of our own tasks, with which Ray Data then joins them
        postprocess_map_kwargs=pool.small,
    )
    # In place: assigned anew, the stage would be validated once more, forget its resources, and wait for a GPU for ever.
    processor.get_stage_by_name("vLLMEngineStage").map_batches_kwargs.update(max_task_retries=0)
    return processor


def _context(context: Any, pool: _Pool, deaths: Deaths) -> Any:
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
    """The prompts of a block, one row each: number and size of the block, key, tokens, how to sample, error."""
    number = table["number"][0].as_py()
    try:
        requests = _in_task(work, work.read, pickle.loads(table["block"][0].as_py()))
    except Exception as error:
        return _rows(number, [("", [], 0, _RAISED + base64.b64encode(_pickled(error)).decode())])
    return _rows(number, [_prompt(request, work) for request in requests])


def _prompt(request: Request, work: _Work) -> tuple[str, list[int], int, str]:
    try:
        ready = request.messages[-1]["role"] == "user"
        tokens = _tokenizer(*work.tokenizer).apply_chat_template(
            request.messages,
            tokenize=True,
            return_dict=False,
            add_generation_prompt=ready,
            continue_final_message=not ready,
            **work.template,
        )
    except Exception as error:  # a template raises what it likes, of what it does not like in a message
        return str(request.key), [], 0, f"chat template: {_one_line(error)}"
    return str(request.key), tokens, request.max_tokens, ""


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
    return {"sampling_params": {**sampling, "max_tokens": row["max_tokens"], "output_kind": _Whole()}}


class _Whole:
    """Becomes vLLM's `RequestOutputKind.FINAL_ONLY` in the process of the engine, without an import of vLLM in others.

    The default hands over the text so far after each token, of which nothing is used: a third of the throughput of a small model.
    """

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _whole, ()


def _whole() -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.FINAL_ONLY


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
                failures.append(Failure(int(row["key"]), _one_line(row[_ERROR]), "prompt"))
        if len(failures) < table.num_rows:
            names = ["key", "text", "tokens", "max_tokens", "num_input_tokens", _ERROR]
            answers = _answers([row for row in table.select(names).to_pylist() if not row[_ERROR]], work)
        value, busy_s, rss_bytes = _measured(functools.partial(_in_task, work, work.store, answers, failures))
    except Exception as error:
        return _result(error)
    answered = Counter(row["number"] for row in rows)
    return _result(_Stored(value, {row["number"]: (answered[row["number"]], row["size"]) for row in rows}, busy_s, rss_bytes))


def _answers(rows: list[dict[str, Any]], work: _Work) -> list[Answer]:
    cut = [_is_cut(row, work) for row in rows]
    texts = [row["text"] for row in rows] if work.by_text else _texts([row["tokens"] for row in rows], work)
    return [
        Answer(int(row["key"]), text, "length" if is_cut else "stop", int(row["num_input_tokens"]), len(row["tokens"]))
        for row, text, is_cut in zip(rows, texts, cut, strict=True)
    ]


def _is_cut(row: dict[str, Any], work: _Work) -> bool:
    """Whether an answer ended at a length, in vLLM's own order: first the token that ends it, then the length.

    A stop string or a repetition may end it before.
    """
    tokens = row["tokens"]
    full = len(tokens) >= row["max_tokens"] or row["num_input_tokens"] + len(tokens) >= work.most_tokens
    return tokens[-1] not in work.ends and (full or not _may_stop(work.sampling))


def _texts(answers: list[list[int]], work: _Work) -> list[str]:
    """Text as vLLM gives it: without the token that ended it, or bytes that are no character."""
    ended = [tokens[-1] in work.ends and not work.sampling.get("include_stop_str_in_output") for tokens in answers]
    kept = [tokens[:-1] if end else tokens for tokens, end in zip(answers, ended, strict=True)]
    skip = bool(work.sampling.get("skip_special_tokens", True))
    if work.decoder is None:
        tokenizer = _tokenizer(*work.tokenizer)
        texts = tokenizer.batch_decode(kept, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    else:
        texts = _fast_tokenizer(work.decoder).decode_batch(kept, skip_special_tokens=skip)
    return [text.rstrip("\ufffd") for text in texts]


def _decoder(engine: Engine, tokenizer: Any) -> Any:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    return None if fast is None else engine._start().put(fast.to_str())


@functools.lru_cache(maxsize=1)
def _fast_tokenizer(reference: Any) -> Any:
    import ray
    from tokenizers import Tokenizer

    return Tokenizer.from_str(ray.get(reference))


def _may_stop(sampling: Mapping[str, Any]) -> bool:
    """Whether an answer may end by itself other than by a token."""
    return bool(sampling.get("stop") or sampling.get("repetition_detection"))


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
        return pickle.dumps(WorkerError(f"{type(value).__name__}: {_one_line(value)}"))
    return pickled


def _explained(error: BaseException) -> CrispwrapError:
    """The error that a user should see for one that ended the execution."""
    text = str(error)
    if found := re.search(r"unexpected keyword argument '(\w+)'", text):
        return ConfigError(f"rephrase.engine.{found[1]}: vLLM's engine has no such argument; see vllm serve --help=all")
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit)\b:? .*", text, re.MULTILINE)
    return WorkerError(
        f"the vLLM engine could not be started, or died again and again: {errors[-1] if errors else _one_line(error)}; its own "
        "words are in the worker logs of Ray's session. Mend rephrase.engine, rephrase.resources or the model, and run again: "
        "answers so far are kept"
    )


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:500]
