"""Look up export formats and mixture formats by name."""

from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError, suggest_name
from pipeline.exporting import Format
from pipeline.exporting.mixtures import MIXTURE_FORMATS, MixtureFormat
from pipeline.exporting.text_formats import HuggingFace, Jsonl, Mds, WebDataset
from pipeline.exporting.token_formats import Megatron, Nanotron, OlmoCore

FORMATS: dict[str, Format] = {kind.name: kind() for kind in (HuggingFace, Megatron, Nanotron, OlmoCore, Mds, WebDataset, Jsonl)}


def find_format(name: str) -> Format:
    """The format called `name`, after checking that its library is installed.

    Raises:
        ConfigError: the format is unknown, or a package is missing; the message names the extra that installs it.
    """
    export_format: Format = _look_up(name, FORMATS, "--to")
    _check_installed(export_format, f"--to {name}")
    return export_format


def find_mixture_format(name: str) -> MixtureFormat:
    """The mixture format called `name`; checks and errors as in `find_format`."""
    mixture_format: MixtureFormat = _look_up(name, MIXTURE_FORMATS, "--mixture")
    _check_installed(mixture_format.group_format, f"--mixture {name}")
    return mixture_format


def _look_up(name: str, formats: Mapping[str, Any], option: str) -> Any:
    if name not in formats:
        raise ConfigError(f"{option} {name}: no such format{suggest_name(name, formats, 0.6)}; choose one of {', '.join(formats)}")
    return formats[name]


def _check_installed(export_format: Format, option: str) -> None:
    try:
        export_format.check()
    except ImportError as error:
        raise ConfigError(
            f'{option} needs the package {error.name}, which is not installed: run `pip install "crispwrap[{export_format.extra}]"`'
        ) from error
