"""Sends requests to an endpoint, and collects their outcomes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.config import Endpoint
from pipeline.engine.llm_io import Answer, Failure, Request
from pipeline.rewriting import endpoint as backend

API_KEY = "sk-very-secret-0123456789"


TEXT = (
    "The court held that the contract was void, since no party had signed it. A notice of appeal was filed within thirty days, "
    "and the statute of 1974 allows sixty. Counsel for the plaintiff, who had asked for damages, withdrew the claim."
)


def build_requests(count: int) -> list[Request]:
    return [Request(100 + i, [{"role": "user", "content": f"Prompt {i}.\n\nText:\n{TEXT} Number {i}."}], 200) for i in range(count)]


def send(
    url: str, sent: Sequence[Request], *, sampling: Mapping[str, Any] | None = None, **settings: Any
) -> Iterator[Answer | Failure]:
    template = settings.pop("chat_template_kwargs", {})
    settings = {"retries": 2, "timeout_s": 30.0, "concurrency": 8, **settings}
    return backend.send_requests(
        sent, model="tiny", endpoint=Endpoint(url=url, **settings), sampling=sampling or {}, chat_template_kwargs=template
    )


def send_all(url: str, sent: Sequence[Request], **settings: Any) -> list[Any]:
    """Send requests, and return their outcomes in the order of the requests; each has exactly one."""
    outcomes = sorted(send(url, sent, **settings), key=lambda outcome: outcome.key)
    assert [outcome.key for outcome in outcomes] == [request.key for request in sent]
    assert all(len(o.error) <= 300 and o.error == " ".join(o.error.split()) for o in outcomes if isinstance(o, Failure))
    return outcomes
