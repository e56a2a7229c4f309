"""Ask a server that speaks OpenAI's chat completions protocol: vLLM, SGLang, llama.cpp, Ollama, or a provider.

Retries, their backoff and Retry-After are the `openai` client's. A thread of its own drives the requests: they go on while the
caller is busy with what came, and a caller may have an event loop running.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from pipeline.config import Endpoint
from pipeline.errors import ConfigError
from pipeline.rewriting.exchange import Answer, Failure, Request

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

# Of sampling: what the protocol knows. The rest goes along in the body, where vLLM and SGLang read it.
_KNOWN = frozenset({"temperature", "top_p", "n", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias"})
_ALL_WOULD_FAIL = frozenset({401, 403, 404})
_PROMPT_AT_FAULT = frozenset({400, 413, 422})
_CONNECT_S = 10.0  # a host that is not there is known to be gone long before an answer is late
_NO_KEY = "no-key"  # the client wants one; a server without keys ignores it
_ERROR_CHARACTERS = 300
_SAID_CHARACTERS = 120  # of what the server said, where we have something to say ourselves

Outcome = Answer | Failure


def check(endpoint: Endpoint) -> None:
    """Refuse settings with which no request could be made, before anything runs.

    Raises:
        ConfigError: the URL or the key cannot be used.
    """
    _check_url(endpoint.url)
    _api_key(endpoint)


def ask(
    requests: Sequence[Request],
    *,
    model: str,
    endpoint: Endpoint,
    sampling: Mapping[str, Any],
    chat_template_kwargs: Mapping[str, Any],
) -> Iterator[Outcome]:
    """Exactly one outcome for each request, as they come, in any order. Closing the generator cancels what runs.

    An answer without text is an Answer. A Failure is of kind `prompt` if the server refused the prompt (HTTP 400, 413, 422, or its
    content filter), else of kind `backend`: what is left after the retries, and replies that are no chat completion.

    Raises:
        ConfigError: a setting that cannot be used, or one that the server refuses for every request (HTTP 401, 403, 404).
    """
    try:
        import openai  # noqa: F401  here rather than in the thread, whose first request should not wait for it
    except ImportError as error:
        raise ConfigError("rephrase.backend: endpoint needs the openai package; pip install openai") from error
    _check_url(endpoint.url)
    body = _body(model, sampling, chat_template_kwargs)
    coming: SimpleQueue[Outcome | BaseException | None] = SimpleQueue()
    api_key = _api_key(endpoint)
    loop = asyncio.new_event_loop()
    task = loop.create_task(_ask_all(requests, endpoint, api_key, body, coming.put))
    # A daemon: where nobody closes the generator, as after Ctrl-C, the process can end all the same.
    thread = threading.Thread(target=_drive, args=(loop, task, coming.put), name="endpoint", daemon=True)
    thread.start()
    try:
        while (outcome := coming.get()) is not None:
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed: there is nothing left to cancel
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


def _drive(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None], put: Callable[[BaseException | None], None]) -> None:
    """Run the loop until the task is done, close it, then put the task's error, or None."""
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(asyncio.wait([task]))
    finally:
        put(task.exception() if task.done() and not task.cancelled() else None)


async def _ask_all(
    requests: Sequence[Request], endpoint: Endpoint, api_key: str, body: Mapping[str, Any], put: Callable[[Outcome], None]
) -> None:
    import openai

    waiting = iter(requests)  # shared by the workers, which run in one thread
    client = openai.AsyncOpenAI(
        base_url=endpoint.url,
        api_key=api_key,
        max_retries=endpoint.retries,
        timeout=openai.Timeout(endpoint.timeout_s, connect=min(_CONNECT_S, endpoint.timeout_s)),
    )

    async def work() -> None:
        for request in waiting:
            put(await _ask_one(client, request, body))

    try:
        async with client, asyncio.TaskGroup() as workers:
            for _ in range(min(endpoint.concurrency, len(requests))):
                workers.create_task(work())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # the first ends them all


async def _ask_one(client: "AsyncOpenAI", request: Request, body: Mapping[str, Any]) -> Outcome:
    import openai

    def failure(error: str, kind: Any = "backend") -> Failure:
        return Failure(request.key, _line(error, client.api_key), kind)

    try:
        # Raw: the client builds its types without looking, so a reply that is something else would surface as an AttributeError.
        prompt: dict[str, Any] = {"messages": request.messages, "max_tokens": request.max_tokens}
        reply = await client.chat.completions.with_raw_response.create(**prompt, **body)
    except openai.APIStatusError as error:
        if error.status_code in _ALL_WOULD_FAIL:
            raise ConfigError(_line(_refusal(error, client, body["model"]), client.api_key)) from None
        return failure(
            f"HTTP {error.status_code}: {_said(error)}", "prompt" if error.status_code in _PROMPT_AT_FAULT else "backend"
        )
    except openai.OpenAIError as error:
        cause = error.__cause__  # "Connection error." says nothing
        return failure(f"{type(cause or error).__name__}: {cause or error}")
    content = reply.http_response.content
    try:
        answer = _read(request.key, content)
    except (ValueError, LookupError, TypeError, AttributeError):
        return failure(f"the reply is no chat completion: {content.decode(errors='replace')!r}")
    if answer.finish_reason == "content_filter":
        return failure("the server's content filter refused it", "prompt")
    return answer


def _read(key: int, content: bytes) -> Answer:
    """The answer in a reply, what it leaves out counted as nothing; where there is none, whatever error looking for it makes."""
    reply = orjson.loads(content)
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    text = choice["message"].get("content") or ""
    if not isinstance(text, str):
        raise TypeError("content in parts")
    return Answer(
        key=key,
        text=text,
        finish_reason=str(choice.get("finish_reason") or ""),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        output_tokens=int(usage.get("completion_tokens") or 0),
    )


def _body(model: str, sampling: Mapping[str, Any], chat_template_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What is the same in all requests, as arguments of the client."""
    extra = {name: value for name, value in sampling.items() if name not in _KNOWN}
    if chat_template_kwargs:
        extra["chat_template_kwargs"] = dict(chat_template_kwargs)
    known = {name: value for name, value in sampling.items() if name in _KNOWN}
    return {"model": model, **known, **({"extra_body": extra} if extra else {})}


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not any(map(str.isspace, url))
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"rephrase.endpoint.url must be a base URL such as http://localhost:8000/v1, got {url!r}")


def _api_key(endpoint: Endpoint) -> str:
    if endpoint.api_key_env is None:
        return _NO_KEY
    key = os.environ.get(endpoint.api_key_env, "").strip()
    setting = f"rephrase.endpoint.api_key_env: the environment variable {endpoint.api_key_env}"
    if not key:
        raise ConfigError(f"{setting} is not set; export it where the run and Ray start, or set another one, or null for no key")
    if not (key.isascii() and key.isprintable()):  # no HTTP header can hold it, and the error would quote it
        raise ConfigError(f"{setting} holds no key: there are line breaks or letters beyond ASCII in it; export the key alone")
    return key


def _refusal(error: "APIStatusError", client: "AsyncOpenAI", model: str) -> str:
    mend = {
        401: "set rephrase.endpoint.api_key_env to the environment variable that holds a valid key",
        403: f"the key of rephrase.endpoint.api_key_env may not use rephrase.model {model}; use another key or model",
        404: f"rephrase.endpoint.url must be the base URL, mostly ending in /v1, and rephrase.model ({model}) a name it knows",
    }[error.status_code]
    return f"{client.base_url} answered HTTP {error.status_code} ({_line(_said(error), client.api_key, _SAID_CHARACTERS)}); {mend}"


def _said(error: "APIStatusError") -> str:
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return str(said or error.message)


def _line(text: str, api_key: str, characters: int = _ERROR_CHARACTERS) -> str:
    """One line of at most so many characters, without the key: some servers quote it."""
    line = " ".join(text.replace(api_key, "***").split())
    return line if len(line) <= characters else f"{line[: characters - 1]}…"
