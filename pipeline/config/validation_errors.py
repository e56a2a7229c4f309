"""Messages for invalid configs: pydantic's errors in words that name the setting, the value and the remedy."""

import difflib
import re
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigError

# Last words of names, also with a capital as in openaiApiKey. Names of columns (text_key) and token counts do not match.
_SECRET = re.compile(
    r"(^|[_-]|(?-i:(?<=[a-z])(?=[A-Z])))(secret|passw(or)?d|passphrase|(api|access|secret|account|private|shared|storage)[_-]?key|"
    r"token|bearer|authorization|credentials?|connection[_-]?string)$",
    re.IGNORECASE,
)
_TOKENS_OF_TEXT = {"eos_token", "bos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"}
# For other protocols, a user without a password is not secret: abfs://container@account.
_USER_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@|https?://[^/@\s]+@", re.IGNORECASE)
_KEY_IN_URL = re.compile(r"://\S*[?&;](api[_-]?key|key|token|access_token|sig|signature|x-amz-signature|password)=", re.IGNORECASE)


def format_validation_error(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe all invalid settings of a model in one line."""
    # One entry per setting: a union reports each alternative. A default that depends on an invalid setting is not an error.
    mistakes = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
    lines = {_locate_setting(item): _describe_error(item, model) for item in reversed(mistakes)}
    return "; ".join(reversed(lines.values()))


def reject_secrets(value: Any, name: str = "") -> None:
    """Reject settings that contain a secret, because manifests and messages show settings.

    Raises:
        ConfigError: a setting is named like a secret, or is a URL with a user, a password or a key.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            below = f"{name}.{key}" if name else str(key)
            if item and _looks_secret(str(key), item):
                raise ConfigError(
                    f"{below} contains a secret, which manifests would store: set it in the environment of every worker"
                )
            reject_secrets(item, below)
    elif isinstance(value, list | tuple):
        for item in value:
            reject_secrets(item, name)
    elif isinstance(value, str) and (_USER_IN_URL.search(value) or _KEY_IN_URL.search(value)):
        raise ConfigError(
            f"{name} is a URL with a user, password or key, which manifests and messages would show: set it in the environment"
        )


def _looks_secret(name: str, value: Any) -> bool:
    """Whether a setting of that name is probably a secret. A number may be a password, but not a token."""
    can_be_secret = isinstance(value, str) or (type(value) is int and not name.lower().endswith("token"))
    return can_be_secret and name not in _TOKENS_OF_TEXT and bool(_SECRET.search(name))


def _describe_error(item: Any, model: type[BaseModel]) -> str:
    """One line for one of pydantic's errors: the setting, the rule, the value, the remedy."""
    location = _locate_setting(item)
    name = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = _list_settings(model, item["loc"][:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else f"known settings: {', '.join(sorted(known))}"
        return f"unknown setting {name}; {hint}"
    if item["type"] == "missing":
        return f"setting {name} is missing; see README"
    message = str(item["msg"]).removeprefix("Value error, ")
    if not name:
        return message
    got = "" if isinstance(item["input"], dict | list) else f", got {item['input']!r}"  # a whole section would not help
    return f"{name}: {message[:1].lower()}{message[1:]}{got}"


def _locate_setting(item: Any) -> tuple[str, ...]:
    """The setting that one of pydantic's errors is about, without the alternatives of a union."""
    steps = (str(step) for step in item["loc"])
    return tuple(step for step in steps if step != "float" and not step.startswith(("literal[", "constrained-")))


def _list_settings(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The settings of the section at a location in a model."""
    kind: Any = model
    for step in location:
        if get_origin(kind) is dict:  # a name chosen by the user, followed by its section
            kind = get_args(kind)[1]
            continue
        annotation = kind.model_fields[str(step)].annotation
        kinds = [kind for kind in (annotation, *get_args(annotation)) if get_origin(kind) is dict or _is_section(kind)]
        if not kinds:
            return []
        kind = kinds[0]
    return list(kind.model_fields) if _is_section(kind) else []


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
