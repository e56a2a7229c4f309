"""The formats by name."""

from pipeline.errors import ConfigError, nearest
from pipeline.exporting import Format
from pipeline.exporting.plain import HuggingFace, Jsonl, Mds, WebDataset
from pipeline.exporting.tokens import Megatron, Nanotron

FORMATS: dict[str, Format] = {kind.name: kind() for kind in (HuggingFace, Megatron, Nanotron, Mds, WebDataset, Jsonl)}


def find_format(name: str) -> Format:
    """The format of that name, whose library is there.

    Raises:
        ConfigError: there is none, or a package is missing; the extra that brings it is named.
    """
    if name not in FORMATS:
        raise ConfigError(f"--to {name}: no such format{nearest(name, FORMATS, 0.6)}; there are {', '.join(FORMATS)}")
    found = FORMATS[name]
    try:
        found.check()
    except ImportError as error:
        raise ConfigError(
            f'--to {name} needs a package that is not here ({error.name}): pip install "crispwrap[{found.extra}]"'
        ) from error
    return found
