"""Look up export formats and mixtures by name."""

from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError, nearest
from pipeline.exporting import Format
from pipeline.exporting.mixtures import MIXTURES, Mixture
from pipeline.exporting.plain import HuggingFace, Jsonl, Mds, WebDataset
from pipeline.exporting.tokens import Megatron, Nanotron, OlmoCore

FORMATS: dict[str, Format] = {kind.name: kind() for kind in (HuggingFace, Megatron, Nanotron, OlmoCore, Mds, WebDataset, Jsonl)}


def find_format(name: str) -> Format:
    """The format called `name`, after checking that its library is installed.

    Raises:
        ConfigError: the format is unknown, or a package is missing; the message names the extra that installs it.
    """
    return _checked(_found(name, FORMATS, "--to"), f"--to {name}")


def find_mixture(name: str) -> Mixture:
    """The mixture called `name`; checks and errors as in `find_format`."""
    mixture: Mixture = _found(name, MIXTURES, "--mixture")
    _checked(mixture.form, f"--mixture {name}")
    return mixture


def _found(name: str, among: Mapping[str, Any], option: str) -> Any:
    if name not in among:
        raise ConfigError(f"{option} {name}: no such format{nearest(name, among, 0.6)}; there are {', '.join(among)}")
    return among[name]


def _checked(form: Format, asked: str) -> Format:
    try:
        form.check()
    except ImportError as error:
        raise ConfigError(
            f'{asked} needs a package that is not here ({error.name}): pip install "crispwrap[{form.extra}]"'
        ) from error
    return form
