"""Determine from a server's error which parameter it refuses in every request, as opposed to refusing one prompt.

OpenAI and compatible servers name the parameter (`param`), servers built on pydantic give its location
(`detail: [{loc: [body, NAME]}]`), and others mention it only in the message.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MAX_TOKENS, MAX_COMPLETION_TOKENS = "max_tokens", "max_completion_tokens"
TOKEN_LIMITS = {MAX_TOKENS: MAX_COMPLETION_TOKENS, MAX_COMPLETION_TOKENS: MAX_TOKENS}  # each with its alternative

_UNSUPPORTED = (
    r"unsupported|unrecogni[sz]ed|unknown|unexpected|deprecated|extra (?:inputs?|fields?)|\binstead\b|"
    r"(?:not|n['’]t) (?:\w+ )?(?:support(?:ed)?|permitted|allowed|accepted?|available|implemented|recogni[sz]ed?)"
)
_PARAMETER_REFUSED = re.compile(_UNSUPPORTED, re.IGNORECASE)
_VALUE_REFUSED = re.compile(
    rf"{_UNSUPPORTED}|invalid|not (?:a )?valid|only (?:the )?(?:default|\d)|(?:must|should) be|\brange\b|(?:less|greater) than",
    re.IGNORECASE,
)
_PROMPT_TOO_LONG = re.compile(r"too (?:large|long|many)|context|input tokens", re.IGNORECASE)


def find_refused_parameter(body: object, message: str, sent: Iterable[str]) -> str | None:
    """Return which of the parameters `sent` an error with this `body` and `message` refuses; None if the prompt is at fault.

    A token limit may be too high for one prompt only, so it counts as refused only if the server does not know the parameter or no
    longer supports it. Of several parameters mentioned in the message, the first is returned.
    """
    sent = list(sent)
    for name in _list_named_parameters(body):
        if name in sent:
            return name if name not in TOKEN_LIMITS or _refuses(_PARAMETER_REFUSED, message, str(body)) else None
    positions = {
        name: match.start()
        for name in sent
        if (match := re.search(_mention_pattern(name), message))
        and _refuses(_PARAMETER_REFUSED if name in TOKEN_LIMITS else _VALUE_REFUSED, message)
    }
    return min(positions, key=lambda name: (positions[name], name), default=None)


def _refuses(pattern: re.Pattern[str], message: str, body: str = "") -> bool:
    return bool(pattern.search(message) or pattern.search(body)) and not _PROMPT_TOO_LONG.search(message)


def _mention_pattern(name: str) -> str:
    """Return a pattern for a name in quotes, at the beginning or after a colon; elsewhere the name may be an ordinary word."""
    return rf"['\"`‘“]{name}['\"`’”.\[]|\A\W*{name}\b(?=\s*(?::|is|must|should|does|cannot))|: {name}\b"


def _list_named_parameters(body: object) -> Iterator[str]:
    """Yield the parameter names in the structured fields of an error: `body.stop.0` gives `stop`."""
    if not isinstance(body, Mapping):
        return
    if isinstance(param := body.get("param"), str):
        yield _get_top_level_name(param.split("."))
    for container in (body, body.get("message")):
        details = container.get("detail") if isinstance(container, Mapping) else None
        for detail in details if isinstance(details, list) else ():
            if isinstance(detail, Mapping) and isinstance(location := detail.get("loc"), list):
                yield _get_top_level_name(location)


def _get_top_level_name(location: list[Any]) -> str:
    parts = [str(part).partition("[")[0] for part in location if part != "body"]
    return parts[0] if parts else ""
