"""What goes to a language model and what comes back, whichever backend it is."""

from dataclasses import dataclass
from typing import Literal

Message = dict[str, str]  # {"role": …, "content": …}


@dataclass(frozen=True)
class Request:
    """One prompt."""

    key: int  # identity of the answer: model, settings, prompt and window
    messages: list[Message]
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """What the model said to one prompt, as it came."""

    key: int
    text: str
    finish_reason: Literal["stop", "length"] | str  # stop: it ended by itself; length: it was cut
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Failure:
    """No answer to one prompt."""

    key: int
    error: str  # one line
    kind: Literal["prompt", "backend"]  # prompt: it will fail again; backend: another try may do
