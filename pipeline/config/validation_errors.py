"""What is wrong with a config, from pydantic's errors, in words that name the setting, its value and the mend."""

import difflib
import re
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigError

# Last words of names; in openaiApiKey they begin with a capital. Keys of columns (text_key) and counts of tokens are none.
_SECRET = re.compile(
    r"(^|[_-]|(?-i:(?<=[a-z])(?=[A-Z])))(secret|passw(or)?d|passphrase|(api|access|secret|account|private|shared|storage)[_-]?key|"
    r"token|bearer|authorization|credentials?|connection[_-]?string)$",
    re.IGNORECASE,
)
_TOKENS_OF_TEXT = {"eos_token", "bos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"}
# Of other protocols a user alone is none: abfs://container@account has one.
_USER_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@|https?://[^/@\s]+@", re.IGNORECASE)
_KEY_IN_URL = re.compile(r"://\S*[?&;](api[_-]?key|key|token|access_token|sig|signature|x-amz-signature|password)=", re.IGNORECASE)


def explain_mistakes(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong with the settings of a model, in one line."""
    # One entry a setting: a union reports each of its alternatives. What a wrong setting leaves without a default is no mistake.
    mistakes = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
    lines = {_location(item): _explain(item, model) for item in reversed(mistakes)}
    return "; ".join(reversed(lines.values()))


def refuse_secrets(value: Any, name: str = "") -> None:
    """Settings are written to manifests and said in messages, so none may hold a secret.

    Raises:
        ConfigError: a setting is called as secrets are, or is a URL with a user, a password or a key.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            below = f"{name}.{key}" if name else str(key)
            if item and _may_be_secret(str(key), item):
                raise ConfigError(f"{below} holds a secret, which manifests would keep: give it by the environment of every worker")
            refuse_secrets(item, below)
    elif isinstance(value, list | tuple):
        for item in value:
            refuse_secrets(item, name)
    elif isinstance(value, str) and (_USER_IN_URL.search(value) or _KEY_IN_URL.search(value)):
        raise ConfigError(
            f"{name} is a URL with a user, password or key, which manifests and messages would show: give it by the environment"
        )


def _may_be_secret(name: str, value: Any) -> bool:
    """Whether a setting of that name holds what nobody else may see; a number may be a password, and is no token."""
    is_one = isinstance(value, str) or (type(value) is int and not name.lower().endswith("token"))
    return is_one and name not in _TOKENS_OF_TEXT and bool(_SECRET.search(name))


def _explain(item: Any, model: type[BaseModel]) -> str:
    """One line for one of pydantic's errors: the setting, the rule, the value, the mend."""
    location = _location(item)
    name = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = _known_keys(model, item["loc"][:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else f"known here: {', '.join(sorted(known))}"
        return f"unknown setting {name}; {hint}"
    if item["type"] == "missing":
        return f"setting {name} is missing; see README"
    message = str(item["msg"]).removeprefix("Value error, ")
    if not name:
        return message
    got = "" if isinstance(item["input"], dict | list) else f", got {item['input']!r}"  # a whole section says nothing
    return f"{name}: {message[:1].lower()}{message[1:]}{got}"


def _location(item: Any) -> tuple[str, ...]:
    """The setting that one of pydantic's errors is about, without the alternatives of a union."""
    steps = (str(step) for step in item["loc"])
    return tuple(step for step in steps if step != "float" and not step.startswith(("literal[", "constrained-")))


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The settings of the section at a place in a model."""
    kind: Any = model
    for step in location:
        if get_origin(kind) is dict:  # a name of the user's, and the section behind it
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
