"""Find out from a server's error which parameter it refuses in every request, as opposed to refusing one prompt.

OpenAI and compatible servers name the parameter (`param`), servers built on pydantic give its location
(`detail: [{loc: [body, NAME]}]`), and others mention it only in the message.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MAX_TOKENS, MAX_COMPLETION_TOKENS = "max_tokens", "max_completion_tokens"
TOKEN_LIMITS = {MAX_TOKENS: MAX_COMPLETION_TOKENS, MAX_COMPLETION_TOKENS: MAX_TOKENS}  # each with its alternative

_UNKNOWN = (
    r"unsupported|unrecogni[sz]ed|unknown|unexpected|deprecated|extra (?:inputs?|fields?)|\binstead\b|"
    r"(?:not|n['’]t) (?:\w+ )?(?:support(?:ed)?|permitted|allowed|accepted?|available|implemented|recogni[sz]ed?)"
)
_NO_PARAMETER = re.compile(_UNKNOWN, re.IGNORECASE)
_NO_VALUE = re.compile(
    rf"{_UNKNOWN}|invalid|not (?:a )?valid|only (?:the )?(?:default|\d)|(?:must|should) be|\brange\b|(?:less|greater) than",
    re.IGNORECASE,
)
_OF_THE_PROMPT = re.compile(r"too (?:large|long|many)|context|input tokens", re.IGNORECASE)


def refused_parameter(body: object, message: str, sent: Iterable[str]) -> str | None:
    """Return which of the parameters `sent` an error with this `body` and `message` refuses; None if the prompt is at fault.

    A token limit may be too high for one prompt only, so it counts as refused only if the server does not know the parameter or no
    longer supports it. Of several parameters mentioned in the message, the first is returned.
    """
    sent = list(sent)
    for name in _named(body):
        if name in sent:
            return name if name not in TOKEN_LIMITS or _refuses(_NO_PARAMETER, message, str(body)) else None
    places = {
        name: found.start()
        for name in sent
        if (found := re.search(_spoken(name), message)) and _refuses(_NO_PARAMETER if name in TOKEN_LIMITS else _NO_VALUE, message)
    }
    return min(places, key=lambda name: (places[name], name), default=None)


def _refuses(words: re.Pattern[str], message: str, more: str = "") -> bool:
    return bool(words.search(message) or words.search(more)) and not _OF_THE_PROMPT.search(message)


def _spoken(name: str) -> str:
    """Return a pattern for a name in quotes, at the beginning or after a colon; elsewhere the name may be an ordinary word."""
    return rf"['\"`‘“]{name}['\"`’”.\[]|\A\W*{name}\b(?=\s*(?::|is|must|should|does|cannot))|: {name}\b"


def _named(body: object) -> Iterator[str]:
    """Yield the parameter names in the structured fields of an error: `body.stop.0` gives `stop`."""
    if not isinstance(body, Mapping):
        return
    if isinstance(param := body.get("param"), str):
        yield _root(param.split("."))
    for holder in (body, body.get("message")):
        details = holder.get("detail") if isinstance(holder, Mapping) else None
        for detail in details if isinstance(details, list) else ():
            if isinstance(detail, Mapping) and isinstance(place := detail.get("loc"), list):
                yield _root(place)


def _root(place: list[Any]) -> str:
    parts = [str(part).partition("[")[0] for part in place if part != "body"]
    return parts[0] if parts else ""
