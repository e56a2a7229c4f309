"""Client for servers with OpenAI's chat completions protocol: vLLM, SGLang, llama.cpp, Ollama, or a provider.

The `openai` client does the retries, with backoff and Retry-After. Requests run in a separate thread, so they continue while the
caller processes earlier answers, and the caller may have an event loop running.
"""

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from pipeline.config import Endpoint
from pipeline.engine.llm_io import Answer, Failure, Request
from pipeline.errors import ConfigError
from pipeline.rewriting.characters import replace_surrogates
from pipeline.rewriting.refused_parameters import MAX_TOKENS, TOKEN_LIMITS, find_refused_parameter

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

# Sampling settings of the protocol. All others are sent as extra fields of the body, where vLLM and SGLang read them.
_PROTOCOL_SETTINGS = frozenset({"temperature", "top_p", "n", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias"})
_FATAL_STATUS = frozenset({401, 403, 404})  # every request would fail
_PROMPT_STATUS = frozenset({400, 413, 422})  # the prompt is at fault, unless a parameter is refused
_PARAMETER_STATUS = frozenset({400, 422})  # a parameter may be refused, which is the same in all requests
_CONNECT_S = 10.0  # an unreachable host is detected long before an answer times out
# The first request to a server runs alone for this long, so that a refused parameter fails one request instead of all in flight.
_HEAD_START_S = 1.0
_NO_KEY = "no-key"  # the client requires a key; a server without keys ignores it
_ERROR_CHARACTERS = 300
_LONG_ERROR_CHARACTERS = 500
_SERVER_MESSAGE_CHARACTERS = 120  # of the server's message, where it is quoted within our own

Outcome = Answer | Failure

# By URL and model, for this process: the parameter for the token limit that the server accepts.
_accepted_limit: dict[tuple[str, str], str] = {}


_NEEDS_OPENAI = "rephrase.backend: endpoint needs the openai package; pip install openai"


def check_endpoint(endpoint: Endpoint) -> None:
    """Preflight check of the endpoint's settings; it sends no request.

    Raises:
        ConfigError: the URL or the key is invalid.
    """
    _check_url(endpoint.url)
    _read_api_key(endpoint)


def list_models(endpoint: Endpoint) -> list[str]:
    """Ask the server for the names of its models.

    Raises:
        ConfigError: the openai package is missing, nothing answers, the key is refused, or the server does not list its models.
    """
    try:
        import openai
    except ImportError as error:
        raise ConfigError(_NEEDS_OPENAI) from error
    api_key = _read_api_key(endpoint)
    try:
        with openai.OpenAI(base_url=endpoint.url, api_key=api_key, max_retries=0, timeout=_CONNECT_S) as client:
            return sorted(model.id for model in client.models.list())
    except openai.OpenAIError as error:
        cause = error.__cause__  # the client's own message is only "Connection error."
        reason = _shorten(f"{type(cause or error).__name__}: {cause or error}", api_key)
        raise ConfigError(
            f"rephrase.endpoint.url {endpoint.url} does not list its models ({reason}); start the server, or correct the URL or "
            "the key"
        ) from None


def send_requests(
    requests: Sequence[Request],
    *,
    model: str,
    endpoint: Endpoint,
    sampling: Mapping[str, Any],
    chat_template_kwargs: Mapping[str, Any],
) -> Iterator[Outcome]:
    """Yield exactly one outcome for each request, in order of completion. Closing the generator cancels the requests in flight.

    An answer without text is an Answer. A Failure has the kind `prompt` if the server refused the prompt (HTTP 400, 413, 422, or
    its content filter), else the kind `backend`: errors that remain after the retries, and replies that are not a chat completion.

    Raises:
        ConfigError: a setting is invalid, the openai package is missing, or the server refuses a setting in every request (HTTP
            401, 403, 404, or 400 or 422 for a parameter). If `token_limit` is `auto` and the server refuses one of the two
            parameters that limit an answer, the other is tried first.
    """
    try:
        import openai  # noqa: F401  imported here so that the first request in the thread does not wait for it
    except ImportError as error:
        raise ConfigError(_NEEDS_OPENAI) from error
    _check_url(endpoint.url)
    body = _build_body(model, sampling, chat_template_kwargs)
    outcomes: SimpleQueue[Outcome | BaseException | None] = SimpleQueue()
    api_key = _read_api_key(endpoint)
    loop = asyncio.new_event_loop()
    task = loop.create_task(_send_all(requests, endpoint, api_key, body, outcomes.put))
    # A daemon thread, so that the process can exit if the generator is never closed, as after Ctrl-C.
    thread = threading.Thread(target=_run_loop, args=(loop, task, outcomes.put), name="endpoint", daemon=True)
    thread.start()
    try:
        while (outcome := outcomes.get()) is not None:
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed, so there is nothing left to cancel
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


def _run_loop(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None], put: Callable[[BaseException | None], None]) -> None:
    """Run the loop until the task is done, close the loop, then put the task's exception, or None."""
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(asyncio.wait([task]))
    finally:
        put(task.exception() if task.done() and not task.cancelled() else None)


async def _send_all(
    requests: Sequence[Request], endpoint: Endpoint, api_key: str, body: Mapping[str, Any], put: Callable[[Outcome], None]
) -> None:
    import openai

    pending = iter(requests)  # shared by the workers, which run in one thread
    client = openai.AsyncOpenAI(
        base_url=endpoint.url,
        api_key=api_key,
        max_retries=endpoint.retries,
        timeout=openai.Timeout(endpoint.timeout_s, connect=min(_CONNECT_S, endpoint.timeout_s)),
    )

    answered = asyncio.Event()

    async def run_worker() -> None:
        for request in pending:
            put(await _get_outcome(client, endpoint, request, body))
            answered.set()

    try:
        async with client, asyncio.TaskGroup() as workers:
            for number in range(min(endpoint.concurrency, len(requests))):
                if number == 1 and endpoint.token_limit == "auto" and (endpoint.url, body["model"]) not in _accepted_limit:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_HEAD_START_S):  # `wait_for` may swallow a cancellation
                            await answered.wait()
                workers.create_task(run_worker())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # the first exception has cancelled the other workers


async def _get_outcome(client: "AsyncOpenAI", endpoint: Endpoint, request: Request, body: Mapping[str, Any]) -> Outcome:
    import openai

    def make_failure(error: str, kind: Any = "backend") -> Failure:
        return Failure(request.key, _shorten(error, client.api_key), kind)

    try:
        reply = await _send(client, endpoint, request, body)
    except openai.APIStatusError as error:
        if error.status_code in _FATAL_STATUS:
            raise ConfigError(_shorten(_format_refusal(error, client, body["model"]), client.api_key)) from None
        return make_failure(
            f"HTTP {error.status_code}: {_get_message(error)}", "prompt" if error.status_code in _PROMPT_STATUS else "backend"
        )
    except openai.OpenAIError as error:
        cause = error.__cause__  # the client's own message is only "Connection error."
        return make_failure(f"{type(cause or error).__name__}: {cause or error}")
    content = reply.http_response.content
    try:
        answer = _parse_answer(request.key, content)
    except (ValueError, LookupError, TypeError, AttributeError):
        return make_failure(f"the reply is not a chat completion: {content.decode(errors='replace')!r}")
    if answer.finish_reason == "content_filter":
        return make_failure("the server's content filter blocked the answer", "prompt")
    return answer


async def _send(client: "AsyncOpenAI", endpoint: Endpoint, request: Request, body: Mapping[str, Any]) -> Any:
    """Send a request and return the raw reply.

    If `token_limit` is `auto` and the server refuses the parameter for the limit, this request and all later ones use the other
    one. The reply is raw because the client builds its types without validation: a reply of another form would raise an
    AttributeError.

    Raises:
        ConfigError: the server refuses a parameter that is the same in all requests.
        openai.OpenAIError: anything else.
    """
    import openai

    server = (endpoint.url, body["model"])
    refused: set[str] = set()
    while True:
        limit = _accepted_limit.get(server, MAX_TOKENS) if endpoint.token_limit == "auto" else endpoint.token_limit
        arguments: dict[str, Any] = {"messages": request.messages, limit: request.max_tokens}
        try:
            reply = await client.chat.completions.with_raw_response.create(**arguments, **body)
        except openai.APIStatusError as error:
            sent = {limit, *body, *body.get("extra_body", {})} - {"extra_body"}
            name = find_refused_parameter(error.body, _get_message(error), sent) if error.status_code in _PARAMETER_STATUS else None
            if name is None:
                raise
            refused.add(name)
            other = TOKEN_LIMITS.get(name)
            if other is None or other in refused or endpoint.token_limit != "auto":
                raise ConfigError(
                    _shorten(_format_refused_parameter(error, client, name, body), client.api_key, _LONG_ERROR_CHARACTERS)
                ) from None
            _accepted_limit[server] = other
        else:
            _accepted_limit.setdefault(server, limit)
            return reply


def _format_refused_parameter(error: "APIStatusError", client: "AsyncOpenAI", name: str, body: Mapping[str, Any]) -> str:
    """Return the message for a parameter that the server refuses in every request."""
    refused = f"{client.base_url} refused {name} with HTTP {error.status_code} ({_quote_server(error, client)})"
    if name in TOKEN_LIMITS:
        return f"rephrase.endpoint.token_limit: {refused}; set it to auto or {TOKEN_LIMITS[name]}"
    if name in ("model", "chat_template_kwargs"):
        return f"rephrase.{name}: {refused}; set a value that this server accepts"
    sampling = {**{key: value for key, value in body.items() if key in _PROTOCOL_SETTINGS}, **body.get("extra_body", {})}
    sampling.pop("chat_template_kwargs", None)
    value = sampling.pop(name)
    return (
        f"rephrase.sampling.{name} is {value!r}: {refused}; set a value that {body['model']} accepts, or leave it out "
        f"(rephrase.sampling: {json.dumps(sampling)})"
    )


def _parse_answer(key: int, content: bytes) -> Answer:
    """Parse the answer in a reply; missing fields count as empty or 0.

    Bytes that are not UTF-8, and unpaired surrogates, become U+FFFD. Such an answer was paid for, so it is stored, and the rule
    `broken_text` rejects it later.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: the reply is not a chat completion.
    """
    try:
        reply = orjson.loads(content)
    except orjson.JSONDecodeError:
        reply = json.loads(content.decode("utf-8", "replace"))
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    text = choice["message"].get("content") or ""
    if not isinstance(text, str):
        raise TypeError("the content is not a string")
    return Answer(
        key=key,
        text=replace_surrogates(text),
        finish_reason=str(choice.get("finish_reason") or ""),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        output_tokens=int(usage.get("completion_tokens") or 0),
    )


def _build_body(model: str, sampling: Mapping[str, Any], chat_template_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the client that are the same in all requests."""
    extra = {name: value for name, value in sampling.items() if name not in _PROTOCOL_SETTINGS}
    if chat_template_kwargs:
        extra["chat_template_kwargs"] = dict(chat_template_kwargs)
    known = {name: value for name, value in sampling.items() if name in _PROTOCOL_SETTINGS}
    return {"model": model, **known, **({"extra_body": extra} if extra else {})}


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not any(map(str.isspace, url))
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"rephrase.endpoint.url must be a base URL such as http://localhost:8000/v1, got {url!r}")


def _read_api_key(endpoint: Endpoint) -> str:
    if endpoint.api_key_env is None:
        return _NO_KEY
    key = os.environ.get(endpoint.api_key_env, "").strip()
    setting = f"rephrase.endpoint.api_key_env: the environment variable {endpoint.api_key_env}"
    if not key:
        raise ConfigError(
            f"{setting} is not set; export it where the run and Ray start, name another variable, or set null for no key"
        )
    if not (key.isascii() and key.isprintable()):  # no HTTP header can hold it, and the client's error would quote it
        raise ConfigError(f"{setting} does not contain a key: it has line breaks or non-ASCII characters; export the key alone")
    return key


def _format_refusal(error: "APIStatusError", client: "AsyncOpenAI", model: str) -> str:
    fix = {
        401: "set rephrase.endpoint.api_key_env to the environment variable with a valid key",
        403: f"the key of rephrase.endpoint.api_key_env may not use rephrase.model {model}; use another key or model",
        404: f"rephrase.endpoint.url must be the base URL, usually ending in /v1, and the server must have rephrase.model {model}",
    }[error.status_code]
    return f"{client.base_url} answered HTTP {error.status_code} ({_quote_server(error, client)}); {fix}"


def _quote_server(error: "APIStatusError", client: "AsyncOpenAI") -> str:
    """Return the server's message, shortened to be part of our own."""
    return _shorten(_get_message(error), client.api_key, _SERVER_MESSAGE_CHARACTERS)


def _get_message(error: "APIStatusError") -> str:
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return str(message or error.message)


def _shorten(text: str, api_key: str, characters: int = _ERROR_CHARACTERS) -> str:
    """Return the text as one line of at most `characters`, with the API key masked, because some servers quote it."""
    line = " ".join(text.replace(api_key, "***").split())
    return line if len(line) <= characters else f"{line[: characters - 1]}…"
