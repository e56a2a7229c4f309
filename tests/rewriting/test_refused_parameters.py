"""Parameters that a server refuses: for a refused token limit the other one is sent; any other parameter is a config error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.engine.llm_io import Answer, Failure
from pipeline.errors import ConfigError
from pipeline.rewriting import endpoint as backend
from pipeline.rewriting.refused_parameters import find_refused_parameter
from tests.support.endpoint_client import build_requests, send, send_all
from tests.support.fake_endpoint import Call, FakeEndpoint, Reply, reply_as_newer_model, reply_with_rewrite

pytest.importorskip("openai")

SENT = ["max_tokens", "temperature", "top_p", "top_k", "stop", "model", "chat_template_kwargs"]


@pytest.fixture(autouse=True)
def nothing_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of other tests may have had the same port."""
    monkeypatch.setattr(backend, "_accepted_limit", {})


def limits(calls: list[Call]) -> list[str]:
    return [name for call in calls for name in ("max_tokens", "max_completion_tokens") if name in call.body]


def test_after_a_refused_max_tokens_the_other_parameter_is_sent() -> None:
    sent = build_requests(20)
    with FakeEndpoint(reply_as_newer_model) as fake:
        outcomes = send_all(fake.url, sent, concurrency=1)
        again = send_all(fake.url, sent, concurrency=1)  # another block of the same worker
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    assert again == outcomes
    assert limits(fake.calls) == ["max_tokens", *["max_completion_tokens"] * 40]
    assert {call.body["max_completion_tokens"] for call in fake.calls[1:]} == {200}
    assert set(fake.answer_counts.values()) == {2}


@pytest.mark.parametrize(("head_start_s", "most"), [(600.0, 1), (0.0, 8)], ids=["the first is awaited", "it takes too long"])
def test_only_requests_in_flight_are_sent_again_after_a_refusal(
    head_start_s: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_HEAD_START_S", head_start_s)
    with FakeEndpoint(reply_as_newer_model) as fake:
        outcomes = send_all(fake.url, build_requests(60), concurrency=8)
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    assert 1 <= limits(fake.calls).count("max_tokens") <= most
    assert set(fake.answer_counts.values()) == {1}


def test_a_fixed_token_limit_that_is_refused_is_a_config_error() -> None:
    with FakeEndpoint(reply_as_newer_model) as fake:
        send_all(fake.url, build_requests(3), token_limit="max_completion_tokens")
        assert limits(fake.calls) == ["max_completion_tokens"] * 3
        with pytest.raises(
            ConfigError, match=r"^rephrase\.endpoint\.token_limit: .* refused max_tokens with HTTP 400.*set it to auto or max_com"
        ):
            send_all(fake.url, build_requests(3), token_limit="max_tokens", concurrency=1)
        assert len(fake.calls) == 4


def test_a_server_that_refuses_both_token_limits_gets_each_once() -> None:
    def refuse(call: Call) -> Reply:
        return Reply(f"Unknown parameter: '{limits([call])[0]}'.", status=400, param=limits([call])[0])

    with FakeEndpoint(refuse) as fake:
        with pytest.raises(ConfigError, match=r"^rephrase\.endpoint\.token_limit: .* refused max_completion_tokens "):
            send_all(fake.url, build_requests(5), concurrency=1)
        assert limits(fake.calls) == ["max_tokens", "max_completion_tokens"]


@pytest.mark.parametrize(
    ("sampling", "name", "reply"),
    [
        (
            {"temperature": 0.7, "top_p": 0.95},
            "temperature",
            Reply(
                "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value is supported.",
                status=400,
                param="temperature",
                code="unsupported_value",
            ),
        ),
        (
            {"top_p": 0.95},
            "top_p",
            Reply("Unsupported parameter: 'top_p' is not supported with this model.", status=400, param="top_p"),
        ),
        ({"stop": ["x"]}, "stop", Reply("Unsupported parameter: 'stop' is not supported with this model.", status=400)),
        ({"top_k": 20}, "top_k", Reply("Unrecognized request argument supplied: top_k", status=400)),
        (
            {"min_p": 0.1},
            "min_p",
            Reply(
                body=b'{"detail": [{"loc": ["body", "min_p"], "msg": "Extra inputs are not permitted"}]}',
                status=422,
            ),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refused_sampling_setting_is_a_config_error_with_its_name(sampling: dict[str, Any], name: str, reply: Reply) -> None:
    with FakeEndpoint(lambda call: reply if name in call.body else reply_with_rewrite(call)) as fake:
        with pytest.raises(ConfigError) as caught:
            list(send(fake.url, build_requests(50), sampling=sampling, concurrency=1))
        assert len(fake.calls) == 1
        message = str(caught.value)
        assert message.startswith(f"rephrase.sampling.{name} is {sampling[name]!r}: {fake.url}")
        assert f"HTTP {reply.status}" in message
        assert "\n" not in message
        rest = {key: value for key, value in sampling.items() if key != name}
        assert message.endswith(f"or leave it out (rephrase.sampling: {json.dumps(rest)})")
        # As it says.
        assert all(isinstance(outcome, Answer) for outcome in send_all(fake.url, build_requests(3), sampling=rest))


def test_refused_template_variables_and_models_are_config_errors_with_their_setting() -> None:
    for reply, settings, named in (
        (
            Reply("Unknown field", status=400, param="chat_template_kwargs"),
            {"chat_template_kwargs": {"thinking": False}},
            "HTTP 400",
        ),
        (Reply("invalid model ID", status=400, param="model"), {}, "invalid model ID"),
    ):
        with (
            FakeEndpoint(lambda _, reply=reply: reply) as fake,
            pytest.raises(ConfigError, match=rf"^rephrase\.{reply.param}: .*{named}"),
        ):
            send_all(fake.url, build_requests(1), **settings)


LONG = "This model's maximum context length is 256 tokens. However, you requested 300 tokens (200 in the messages)."


@pytest.mark.parametrize(
    ("reply"),
    [
        Reply(LONG, status=400, param="messages", code="context_length_exceeded"),
        Reply("'max_tokens' or 'max_completion_tokens' is too large: 200. " + LONG, status=400, param="max_tokens"),
        Reply("max_tokens is too large: 200. This model supports at most 100 completion tokens.", status=400, param="max_tokens"),
        Reply("The request was rejected: text on how to stop a temperature reading is not allowed.", status=400),
        Reply(
            "Invalid prompt: your prompt was flagged as potentially violating our usage policy.", status=400, code="invalid_prompt"
        ),
    ],
)
def test_an_error_of_one_prompt_is_a_prompt_failure(reply: Reply) -> None:
    with FakeEndpoint(lambda call: reply if "Prompt 1." in call.prompt else reply_with_rewrite(call)) as fake:
        outcomes = send_all(fake.url, build_requests(3), sampling={"temperature": 0.7, "stop": ["END"]})
    assert [type(outcome) for outcome in outcomes] == [Answer, Failure, Answer]
    assert outcomes[1].kind == "prompt"


@pytest.mark.parametrize(
    ("body", "message", "name"),
    [
        ({"param": "stop.0"}, "too short", "stop"),
        ({"param": "stop[0]"}, "too short", "stop"),
        ({"param": "max_tokens"}, "Unknown parameter: 'max_tokens'.", "max_tokens"),
        ({"param": "max_tokens"}, "max_tokens must be at most 100", None),
        ({"param": "frequency_penalty"}, "not supported", None),  # which nobody sent
        ({"message": {"detail": [{"loc": ["body", "top_p"], "msg": "Extra inputs are not permitted"}]}}, "{'detail': …}", "top_p"),
        (None, "temperature: range: 0..1", "temperature"),
        (None, "`temperature` and `top_p` cannot both be specified; this is not supported", "temperature"),
        (None, "top_p must be less than or equal to 0.9", "top_p"),
        (None, "Use max_completion_tokens instead: max_tokens", "max_tokens"),
        (None, "The model is not available", None),
        (None, "temperatures above 40 are not allowed", None),
        ("<html>", "Bad gateway", None),
        ({"param": 3, "detail": "no"}, "", None),
        ({"param": "", "detail": [{"loc": []}, {"loc": None}, 3]}, "", None),
    ],
)
def test_the_refused_parameter_is_found_in_the_errors_of_known_servers(body: object, message: str, name: str | None) -> None:
    assert find_refused_parameter(body, message, SENT) == name


@pytest.mark.ray
def test_a_run_adapts_to_a_newer_model_and_reports_a_refused_setting(
    topics: dict[str, Any], ray_session: Any, tmp_path: Path
) -> None:
    del ray_session

    def serve(refuses: Callable[[Call], bool]) -> Callable[[Call], Reply]:
        temperature = Reply("Unsupported value: 'temperature' does not support 0.7.", status=400, param="temperature")
        return lambda call: temperature if refuses(call) else reply_as_newer_model(call)

    with FakeEndpoint(serve(lambda call: "temperature" in call.body)) as fake:
        rephrase = {
            "model": "newest",
            "backend": "endpoint",
            "endpoint": {"url": fake.url},
            "titles": False,
            "batch": 16,
            "rounds": 1,
        }
        config = topics | {"weights": {"estimator": "crisp", "max_epochs": 1.0, "bootstrap": 0}, "rephrase": rephrase}
        with pytest.raises(ConfigError, match=r"^rephrase\.sampling\.temperature is 0\.7"):
            pipeline.curate(config, until="rephrase")
        assert not fake.answer_counts
        refused = len(fake.calls)
        config["rephrase"] = rephrase | {"sampling": {}}
        step = pipeline.curate(config, until="rephrase").step("rephrase")
    counts = step.manifest["outcomes"]["wikipedia"]
    assert sum(counts.values()) == step.manifest["requests"] == fake.answer_counts.total() > 100
    assert "no_answer" not in counts
    # Each of the three workers learns it once, by one request or, if that takes too long, by those in flight (64 for all).
    assert 1 <= limits(fake.calls[refused:]).count("max_tokens") <= 64
    # It is no part of what an answer depends on.
    endpoint = {"endpoint": {"url": fake.url, "token_limit": "max_completion_tokens"}}
    planned = pipeline.build_graph(config | {"rephrase": config["rephrase"] | endpoint})
    assert planned.step("rephrase").fingerprint == step.fingerprint
