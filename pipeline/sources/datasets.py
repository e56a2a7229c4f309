"""Datasets of the library `datasets`: what identifies their content, and their rows."""

import hashlib
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

from datatrove.pipeline.readers import HuggingFaceDatasetReader

from pipeline.errors import InputError, one_line
from pipeline.sources import Row
from pipeline.sources.row_reader import RowReader, excerpt_of


def digest(name: str) -> str:
    """Of a folder: SHA-256 of its files and their names. Of a name on the hub: the commit of its main branch.

    Raises:
        InputError: there is no such dataset, or the hub cannot be asked.
    """
    if os.path.isdir(name):
        sha256 = hashlib.sha256()
        for folder, folders, files in os.walk(name):
            folders.sort()
            for file in sorted(files):
                path = os.path.join(folder, file)
                sha256.update(os.path.relpath(path, name).encode() + b"\0")
                with open(path, "rb") as content:
                    sha256.update(hashlib.file_digest(content, "sha256").digest())
        return f"sha256:{sha256.hexdigest()}"
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return f"commit:{HfApi().dataset_info(name).sha}"
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(
            f"no dataset {name}: no folder, and the hub does not give it ({one_line(error)}); check paths, and HF_TOKEN"
        ) from error


class StrictDatasetReader(RowReader, HuggingFaceDatasetReader):  # type: ignore[misc]
    """What `datasets.load_dataset` loads, or `load_from_disk`."""

    def __init__(self, place: str, **settings: Any) -> None:
        super().__init__(place, folder=False, **settings)

    def read(self, first: int = 0) -> Iterator[Row]:
        """Every row of the dataset from row `first` on."""
        for row, data in enumerate(islice(_dataset(self), first, None), first):
            yield self.row(dict(data), self.dataset, row, excerpt_of(data, self.text_key))


def _dataset(reader: StrictDatasetReader) -> Any:
    from datasets import load_dataset, load_from_disk

    loaded = (
        load_from_disk(reader.dataset)
        if reader.load_from_disk
        else load_dataset(reader.dataset, **reader.dataset_options, streaming=reader.streaming)
    )
    if isinstance(loaded, dict):
        raise InputError(f"{reader.dataset} has the splits {', '.join(loaded)}; name one: reader.dataset_options: {{split: …}}")
    return loaded
