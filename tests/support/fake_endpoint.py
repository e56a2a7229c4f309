"""A server that speaks OpenAI's chat completions protocol over HTTP, without a model: it rewrites by rule by default.

with FakeEndpoint() as fake:
    ...  # send requests to fake.url, from this process or another on the machine
    assert fake.answer_counts == {...}
"""

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

MARKER = "Text:\n"
SYNONYMS = {
    "a": "one", "also": "likewise", "and": "plus", "are": "remain", "as": "like", "at": "near", "but": "yet", "by": "through",
    "for": "towards", "from": "out of", "has": "holds", "have": "hold", "if": "when", "in": "within", "into": "inside",
    "is": "remains", "it": "this", "of": "from", "on": "upon", "or": "else", "that": "which", "the": "this", "this": "the",
    "to": "towards", "was": "had been", "were": "had been", "when": "once", "which": "that", "with": "alongside",
}  # fmt: skip


def extract_passage(prompt: str) -> str:
    """Return the passage of a prompt: the text after its last marker, without the instruction that follows it."""
    text = prompt.rpartition(MARKER)[2]
    body, gap, last = text.rpartition("\n\n")
    return body if gap and last.startswith("Answer with ") else text


def rewrite(text: str) -> str:
    """Return another wording with almost the same vocabulary; it shares no run of five different words with the text.

    The result is deterministic. Neighbouring sentences change places; within each sentence, the halves around a comma and two of
    every three words change places; function words are replaced. A script without spaces is returned nearly unchanged.
    """
    return "\n\n".join(_rewrite_paragraph(paragraph) for paragraph in text.split("\n\n"))


def _rewrite_paragraph(text: str) -> str:
    sentences = [_rewrite_sentence(sentence) for sentence in re.split(r"(?<=[.!?])\s+", text.strip()) if sentence]
    pairs = [sentences[i : i + 2][::-1] for i in range(0, len(sentences), 2)]
    return " ".join(sentence for pair in pairs for sentence in pair)


def _rewrite_sentence(sentence: str) -> str:
    end = re.search(r"[.!?]*$", sentence)
    assert end
    clauses = sentence[: end.start()].split(", ")
    middle = (len(clauses) + 1) // 2
    words = ", ".join(clauses[middle:] + clauses[:middle]).split()
    words = [SYNONYMS.get(word.lower(), word) for word in words]
    for i in range(0, len(words) - 1, 3):
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words) + end[0]


@dataclass(frozen=True)
class Call:
    """One request, as the server received it."""

    prompt: str  # the contents of all messages
    number: int  # its position among all requests, from 0
    num_earlier_sends: int  # requests with the same prompt before this one
    body: dict[str, Any]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """How the server replies to a request; by default, with an empty answer."""

    text: str | None = ""
    finish_reason: str | None = "stop"
    usage: bool = True
    status: int = 200  # any other sends an error in OpenAI's format, with `text` as its message
    param: str | None = None  # the parameter named by the error
    code: str | None = None  # the code of the error; None: the status
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    body: bytes | None = None  # sent instead of a completion
    drop: bool = False  # close the connection in the middle of the body
    wait: threading.Event | None = None  # reply only once this is set


def reply_with_rewrite(call: Call) -> Reply:
    """Reply with the rewritten passage, cut if it has more words than the token limit of the request: the default behaviour."""
    text = rewrite(extract_passage(call.prompt))
    limit = call.body.get("max_tokens") or call.body.get("max_completion_tokens") or 1 << 30
    if len(text.split()) > limit:
        return Reply(" ".join(text.split()[:limit]), finish_reason="length")
    return Reply(text)


def reply_as_newer_model(call: Call) -> Reply:
    """Reply as a provider's newer models do: reject `max_tokens`, and accept `max_completion_tokens`."""
    if "max_tokens" not in call.body:
        return reply_with_rewrite(call)
    text = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    return Reply(text, status=400, param="max_tokens", code="unsupported_parameter")


class FakeEndpoint:
    """A server on a free port of 127.0.0.1, in its own thread; a context manager.

    `behave` returns the reply to each request. `die_after` may also be set while the server runs: after that many answered prompts,
    the server closes every connection without a response, until `die_after` is None again. With `api_key`, requests with any other
    key get status 401.
    """

    def __init__(
        self, behave: Callable[[Call], Reply] = reply_with_rewrite, *, die_after: int | None = None, api_key: str | None = None
    ) -> None:
        self.behave, self.die_after, self.api_key = behave, die_after, api_key
        self.url = ""
        self.max_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()  # the server's thread writes the counters, test threads read them
        self._calls: list[Call] = []
        self._sent: Counter[str] = Counter()
        self._answer_counts: Counter[str] = Counter()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fake endpoint", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(300), "the fake endpoint did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def answer_counts(self) -> Counter[str]:
        """How often each prompt got a complete answer; an answer is counted before it is sent."""
        with self._lock:
            return self._answer_counts.copy()

    @property
    def calls(self) -> list[Call]:
        """All requests in order of arrival, whatever their outcome."""
        with self._lock:
            return self._calls.copy()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_get("/v1/models", self._list_models)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _list_models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake", "object": "model", "created": 0, "owned_by": "tests"}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = "\n\n".join(message["content"] for message in body["messages"])
        with self._lock:
            call = Call(prompt, len(self._calls), self._sent[prompt], body, dict(request.headers))
            self._calls.append(call)
            self._sent[prompt] += 1
            self._in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight)
        try:
            return await self._reply(request, call)
        finally:
            with self._lock:
                self._in_flight -= 1

    async def _reply(self, request: web.Request, call: Call) -> web.StreamResponse:
        if self.api_key is not None and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            reply = Reply(f"Incorrect API key provided: {request.headers.get('Authorization')}", status=401)
        else:
            reply = self.behave(call)
        await asyncio.sleep(reply.delay_s)
        while reply.wait is not None and not reply.wait.is_set():
            await asyncio.sleep(0.002)
        if reply.status != 200:
            error = {"message": reply.text, "type": "error", "param": reply.param, "code": reply.code or reply.status}
            error_body = json.dumps({"error": error}).encode() if reply.body is None else reply.body
            return web.Response(body=error_body, content_type="application/json", status=reply.status, headers=reply.headers)
        data = json.dumps(_completion(call, reply)).encode() if reply.body is None else reply.body
        whole = reply.body is None and not reply.drop
        with self._lock:
            dead = self.die_after is not None and self._answer_counts.total() >= self.die_after
            if whole and not dead:
                self._answer_counts[call.prompt] += 1
        if dead:
            return self._break(request, web.Response())
        if reply.drop:
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(data))})
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            return self._break(request, response)
        return web.Response(body=data, content_type="application/json", headers=reply.headers)

    @staticmethod
    def _break(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.close()  # after what was written, but before the rest
        return response


def _completion(call: Call, reply: Reply) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply.text}
    completion: dict[str, Any] = {
        "id": f"chatcmpl-{call.number}",
        "object": "chat.completion",
        "created": 0,
        "model": call.body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
    }
    if reply.usage:
        prompt, output = len(call.prompt.split()), len((reply.text or "").split())
        completion["usage"] = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    return completion
