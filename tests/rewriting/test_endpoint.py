"""Requests to a server: one outcome for each whatever the server does, and errors that say how to fix it and mask the key."""

import asyncio
import sys
import threading
from collections import Counter
from typing import Any

import pytest

from pipeline.engine.llm_io import Answer, Failure
from pipeline.errors import ConfigError
from pipeline.rewriting import prompts
from pipeline.rewriting.styles import load_style
from tests.support.endpoint_client import API_KEY, TEXT, build_requests, send, send_all
from tests.support.fake_endpoint import Call, FakeEndpoint, Reply, extract_passage, reply_with_rewrite, rewrite

pytest.importorskip("openai")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's waits before it tries again, in seconds; none is waited."""
    noted: list[float] = []

    async def sleep(delay_s: float) -> None:
        noted.append(delay_s)

    monkeypatch.setattr("anyio.sleep", sleep)
    return noted


def test_answers_have_text_finish_reason_and_tokens() -> None:
    sent = build_requests(20)
    with FakeEndpoint() as fake:
        outcomes = send_all(fake.url, sent)
    for request, outcome in zip(sent, outcomes, strict=True):
        text = rewrite(extract_passage(request.messages[0]["content"]))
        words = len(request.messages[0]["content"].split())
        assert outcome == Answer(request.key, text, "stop", words, len(text.split()))
    assert fake.answer_counts == Counter(request.messages[0]["content"] for request in sent)


def test_no_requests_have_no_outcomes() -> None:
    with FakeEndpoint() as fake:
        assert send_all(fake.url, []) == []


def test_settings_are_sent_where_servers_read_them() -> None:
    sampling = {
        "temperature": 0.7,
        "top_p": 0.9,
        "n": 1,
        "stop": ["END"],
        "seed": 3,
        "top_k": 20,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
    }
    with FakeEndpoint() as fake:
        send_all(fake.url, build_requests(1), sampling=sampling, chat_template_kwargs={"enable_thinking": False})
        send_all(fake.url, build_requests(1))
    with_settings, without = (call.body for call in fake.calls)
    bare = {"model": "tiny", "messages": build_requests(1)[0].messages, "max_tokens": 200}
    assert with_settings == {**bare, **sampling, "chat_template_kwargs": {"enable_thinking": False}}
    assert without == bare


def test_outcomes_are_yielded_in_order_of_completion() -> None:
    sent, another_came = build_requests(8), threading.Event()

    def first_is_last(call: Call) -> Reply:
        return Reply(call.prompt, wait=another_came if "Prompt 0." in call.prompt else None)

    late = []
    with FakeEndpoint(first_is_last) as fake:
        for outcome in send(fake.url, sent, concurrency=8):
            late.append(outcome)
            another_came.set()
    with FakeEndpoint(lambda call: Reply(call.prompt)) as fake:
        in_order = send_all(fake.url, sent, concurrency=1)
    assert late[0].key != 100
    assert sorted(late, key=lambda outcome: outcome.key) == in_order


def test_concurrency_is_used_fully_and_never_exceeded() -> None:
    full = threading.Event()

    def hold(call: Call) -> Reply:
        if call.number == 4:
            full.set()
        return Reply("x", wait=full, delay_s=0.003)

    with FakeEndpoint(hold) as fake:
        send_all(fake.url, build_requests(40), concurrency=5)
    assert fake.max_in_flight == 5


@pytest.mark.parametrize(
    ("reply", "text", "reason"),
    [
        (Reply(""), "", "stop"),
        (Reply(None), "", "stop"),
        (Reply("and so on and", finish_reason="length"), "and so on and", "length"),
        (Reply("I'm sorry, but I can't help with that."), "I'm sorry, but I can't help with that.", "stop"),
        (Reply("x", finish_reason=None), "x", ""),
        (Reply("late", delay_s=0.02), "late", "stop"),
    ],
    ids=["empty", "null", "over-long", "refusing", "no reason", "slow"],
)
def test_any_text_of_the_model_is_an_answer(reply: Reply, text: str, reason: str) -> None:
    with FakeEndpoint(lambda _: reply) as fake:
        [outcome] = send_all(fake.url, build_requests(1))
    assert (outcome.text, outcome.finish_reason) == (text, reason)


@pytest.mark.parametrize("usage", [b"", b',"usage":null', b',"usage":{"prompt_tokens":null}'])
def test_a_reply_without_usage_counts_no_tokens(usage: bytes) -> None:
    body = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]%s}' % usage
    with FakeEndpoint(lambda _: Reply(body=body)) as fake:
        assert send_all(fake.url, build_requests(1)) == [Answer(100, "x", "stop", 0, 0)]
    with FakeEndpoint(lambda _: Reply("x", usage=False)) as fake:
        assert send_all(fake.url, build_requests(1)) == [Answer(100, "x", "stop", 0, 0)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>\n<p>Bad\ngateway</p>" + b"x" * 1000,
        b'{"choices": [{"mess',
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": "x"}]}',
        b'{"choices": [{"message": {"content": ["x"]}}]}',
        b'{"choices": [{"message": {"content": "x"}}], "usage": 3}',
        b"\xff\xfe\x00",
    ],
)
def test_a_malformed_reply_is_a_backend_failure(body: bytes) -> None:
    with FakeEndpoint(lambda _: Reply(body=body)) as fake:
        [outcome] = send_all(fake.url, build_requests(1))
    assert outcome.kind == "backend"
    assert "not a chat completion" in outcome.error


@pytest.mark.parametrize("content", [b"\\ud83d", b"\xf0\x9f", b"\\ud83d \xff \\ud83d\\ude42"])
def test_invalid_characters_in_a_reply_are_replaced(content: bytes) -> None:
    body = b'{"choices": [{"message": {"content": "a %s b"}, "finish_reason": "stop"}]}' % content
    with FakeEndpoint(lambda _: Reply(body=body)) as fake:
        [outcome] = send_all(fake.url, build_requests(1))
    assert len(fake.calls) == 1
    assert outcome.text.startswith("a \ufffd")
    assert outcome.text.endswith(" b")
    assert outcome.text.encode()


def test_a_busy_server_is_retried_after_retry_after(waits: list[float]) -> None:
    def full_at_first(call: Call) -> Reply:
        return reply_with_rewrite(call) if call.num_earlier_sends else Reply("slow down", status=429, headers={"Retry-After": "7"})

    with FakeEndpoint(full_at_first) as fake:
        outcomes = send_all(fake.url, build_requests(5))
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    assert waits == [7.0] * 5
    assert set(fake.answer_counts.values()) == {1}


def test_a_short_retry_after_is_waited_for_real() -> None:
    def full_at_first(call: Call) -> Reply:
        return (
            reply_with_rewrite(call) if call.num_earlier_sends else Reply("slow down", status=429, headers={"Retry-After": "0.01"})
        )

    with FakeEndpoint(full_at_first) as fake:
        [outcome] = send_all(fake.url, build_requests(1))
    assert isinstance(outcome, Answer)
    assert len(fake.calls) == 2


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_transient_errors_are_retried_then_become_backend_failures(status: int, waits: list[float]) -> None:
    def one_fails(call: Call) -> Reply:
        return Reply("out of\nmemory", status=status) if "Prompt 1." in call.prompt else reply_with_rewrite(call)

    with FakeEndpoint(one_fails) as fake:
        outcomes = send_all(fake.url, build_requests(3), retries=3)
    assert [type(outcome) for outcome in outcomes] == [Answer, Failure, Answer]
    assert (outcomes[1].kind, outcomes[1].error) == ("backend", f"HTTP {status}: out of memory")
    assert len(waits) == 3
    assert len(fake.calls) == 2 + 4


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_prompt_is_a_prompt_failure_and_not_retried(status: int) -> None:
    def one_refused(call: Call) -> Reply:
        return Reply("too long, " * 100, status=status) if "Prompt 1." in call.prompt else reply_with_rewrite(call)

    with FakeEndpoint(one_refused) as fake:
        outcomes = send_all(fake.url, build_requests(3))
    assert [type(outcome) for outcome in outcomes] == [Answer, Failure, Answer]
    assert outcomes[1].kind == "prompt"
    assert outcomes[1].error.startswith(f"HTTP {status}: too long, too long")
    assert len(fake.calls) == 3


def test_a_blocked_answer_is_a_prompt_failure() -> None:
    with FakeEndpoint(lambda _: Reply(None, finish_reason="content_filter")) as fake:
        [outcome] = send_all(fake.url, build_requests(1))
    assert outcome.kind == "prompt"
    assert "content filter" in outcome.error


def test_a_connection_that_breaks_within_the_reply_is_retried(waits: list[float]) -> None:
    with FakeEndpoint(lambda call: reply_with_rewrite(call) if call.num_earlier_sends else Reply("x" * 5000, drop=True)) as fake:
        outcomes = send_all(fake.url, build_requests(5))
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    assert set(fake.answer_counts.values()) == {1}
    assert len(waits) == 5


def test_a_connection_that_always_breaks_is_a_backend_failure(waits: list[float]) -> None:
    with FakeEndpoint(lambda _: Reply("x" * 5000, drop=True)) as fake:
        [outcome] = send_all(fake.url, build_requests(1), retries=1)
    assert outcome.kind == "backend"
    assert len(fake.calls) == 2
    assert not fake.answer_counts


def test_failed_requests_can_be_sent_again_after_a_server_died(waits: list[float]) -> None:
    sent = build_requests(30)
    with FakeEndpoint(die_after=11) as fake:
        outcomes = send_all(fake.url, sent, retries=1)
        assert Counter(type(outcome) for outcome in outcomes) == {Answer: 11, Failure: 19}
        assert {outcome.kind for outcome in outcomes if isinstance(outcome, Failure)} == {"backend"}
        fake.die_after = None
        left = [request for request, outcome in zip(sent, outcomes, strict=True) if isinstance(outcome, Failure)]
        assert all(isinstance(outcome, Answer) for outcome in send_all(fake.url, left))
    assert fake.answer_counts == Counter(request.messages[0]["content"] for request in sent)


def test_an_unreachable_server_is_a_backend_failure(waits: list[float]) -> None:
    with FakeEndpoint() as fake:
        pass
    outcomes = send_all(fake.url, build_requests(3), retries=2)
    assert {outcome.kind for outcome in outcomes} == {"backend"}
    assert "Connect" in outcomes[0].error
    assert len(waits) == 6


def test_a_server_that_never_answers_is_a_backend_failure_after_the_timeout() -> None:
    with FakeEndpoint(lambda _: Reply(wait=threading.Event())) as fake:
        outcomes = send_all(fake.url, build_requests(2), retries=0, timeout_s=0.05)
    assert {outcome.kind for outcome in outcomes} == {"backend"}
    assert "Timeout" in outcomes[0].error


@pytest.mark.parametrize(
    ("status", "setting"), [(401, "endpoint.api_key_env"), (403, "endpoint.api_key_env"), (404, "endpoint.url")]
)
def test_an_error_common_to_all_requests_is_a_config_error_with_the_setting(status: int, setting: str) -> None:
    def refuse_later(call: Call) -> Reply:
        return reply_with_rewrite(call) if call.number < 3 else Reply("no\nsuch thing " * 50, status=status)

    with FakeEndpoint(refuse_later) as fake:
        outcomes = send(fake.url, build_requests(50), concurrency=1)
        assert [next(outcomes).key for _ in range(3)] == [100, 101, 102]
        with pytest.raises(ConfigError) as caught:
            next(outcomes)
    assert len(fake.calls) == 4
    message = str(caught.value)
    assert all(part in message for part in (fake.url, f"HTTP {status}", f"rephrase.{setting}"))
    assert len(message) <= 450
    assert "\n" not in message


def test_the_api_key_is_read_only_from_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("OUR_KEY", f"{API_KEY}\n")
    with FakeEndpoint(api_key=API_KEY) as fake:
        assert isinstance(send_all(fake.url, build_requests(1), api_key_env="OUR_KEY")[0], Answer)
    with FakeEndpoint() as fake:
        send_all(fake.url, build_requests(1))
    assert "sk-" not in str(fake.calls[0].headers)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_errors_mask_an_api_key_that_the_server_quotes(status: int, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    monkeypatch.setenv("OUR_KEY", API_KEY)
    # So far in that a cut before the key is taken out would leave part of it.
    quoting = Reply("x" * (272 if status in (400, 429, 500) else 104) + f" {API_KEY} {API_KEY}", status=status)
    with FakeEndpoint(lambda _: quoting) as fake:
        try:
            error_text = send_all(fake.url, build_requests(1), api_key_env="OUR_KEY")[0].error
        except ConfigError as error:
            error_text = str(error)
    assert API_KEY[:5] not in error_text
    assert "***" in error_text


def test_malformed_replies_mask_the_api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", API_KEY)
    with FakeEndpoint(lambda _: Reply(body=f"not json {API_KEY}".encode())) as fake:
        [outcome] = send_all(fake.url, build_requests(1), api_key_env="OUR_KEY")
    assert API_KEY not in outcome.error


@pytest.mark.parametrize("key", [None, "", " \n", f"{API_KEY}\nX", f"{API_KEY}ö"])
def test_an_invalid_api_key_is_a_config_error(key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUR_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("OUR_KEY", key)
    with pytest.raises(ConfigError, match=r"rephrase\.endpoint\.api_key_env: .* OUR_KEY .* export") as caught:
        next(send("http://127.0.0.1:9/v1", build_requests(1), api_key_env="OUR_KEY"))
    assert API_KEY not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://host/v1", "http:///v1", "http://host:port/v1", "http://my host/v1"])
def test_an_invalid_url_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match=r"rephrase\.endpoint\.url must be a base URL"):
        next(send(url, build_requests(1)))


def test_a_missing_client_package_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match="pip install openai"):
        next(send("http://127.0.0.1:9/v1", build_requests(1)))


def test_closing_the_generator_cancels_requests_in_flight() -> None:
    def first_alone(call: Call) -> Reply:
        return Reply("x", wait=None if call.number == 0 else threading.Event())

    with FakeEndpoint(first_alone) as fake:
        outcomes = send(fake.url, build_requests(200), concurrency=4)
        assert isinstance(next(outcomes), Answer)
        outcomes.close()  # type: ignore[attr-defined]
        assert "endpoint" not in {thread.name for thread in threading.enumerate()}
    assert len(fake.calls) <= 5
    assert fake.answer_counts.total() == 1


def test_an_error_of_the_caller_cancels_requests_in_flight() -> None:
    with FakeEndpoint(lambda call: Reply("x", wait=None if call.number == 0 else threading.Event())) as fake:
        with pytest.raises(ZeroDivisionError):
            [outcome.key / 0 for outcome in send(fake.url, build_requests(20), concurrency=4)]
        assert len(fake.calls) <= 5


def test_requests_can_be_sent_from_within_an_event_loop() -> None:
    async def caller(url: str) -> list[Any]:
        return send_all(url, build_requests(3))

    with FakeEndpoint() as fake:
        assert len(asyncio.run(caller(fake.url))) == 3


def five_grams(text: str) -> set[tuple[str, ...]]:
    words = [word.strip(".,;:!?").lower() for word in text.split()]
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def test_the_fake_rewrites_with_the_same_vocabulary_in_another_wording() -> None:
    style = load_style("wikipedia")
    prompt = "\n\n".join(message["content"] for message in prompts.build_messages(style, TEXT))
    assert extract_passage(prompt) == TEXT
    text = reply_with_rewrite(Call(prompt, 0, 0, {}, {})).text
    assert text == rewrite(TEXT)
    assert text is not None
    assert len(five_grams(text) & five_grams(TEXT)) < 0.2 * len(five_grams(text))
    words, source = ({word.strip(".,").lower() for word in one.split()} for one in (text, TEXT))
    assert len(words & source) > 0.7 * len(source)
    assert 0.8 < len(text.split()) / len(TEXT.split()) < 1.25
    assert reply_with_rewrite(Call(prompt, 0, 0, {"max_tokens": 7}, {})) == Reply(
        " ".join(text.split()[:7]), finish_reason="length"
    )
