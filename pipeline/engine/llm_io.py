"""Requests to a language model and its answers, for all backends."""

from dataclasses import dataclass
from typing import Literal

Message = dict[str, str]  # {"role": …, "content": …}


@dataclass(frozen=True)
class Request:
    """One prompt."""

    key: int  # hash of model, settings, prompt and window
    messages: list[Message]
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """The unprocessed answer to one prompt."""

    key: int
    text: str
    finish_reason: Literal["stop", "length"] | str  # stop: ended by itself; length: cut at the maximum
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Failure:
    """A prompt that has no answer."""

    key: int
    error: str  # one line
    kind: Literal["prompt", "backend"]  # prompt: will fail again; backend: a retry may succeed
