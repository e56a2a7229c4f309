"""Reader and content digest for datasets of the Hugging Face `datasets` library."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from datatrove.pipeline.readers import HuggingFaceDatasetReader

from pipeline.errors import InputError, one_line
from pipeline.sources import Row
from pipeline.sources.arrow_tables import rows_of_batch
from pipeline.sources.row_reader import RowReader

_BATCH_ROWS = 1024


def digest(name: str) -> str:
    """Return the digest of a dataset: for a folder SHA-256 of its files and their names, for a hub name its main branch's commit.

    Raises:
        InputError: there is no such dataset, or the hub cannot be reached.
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
    """Reads what `datasets.load_dataset` or `datasets.load_from_disk` loads."""

    def __init__(self, place: str, **settings: Any) -> None:
        super().__init__(place, folder=False, **settings)

    def place(self, filepath: str) -> str:
        return filepath

    def read(self, first: int, left_out: dict[str, str]) -> Iterator[Row]:
        """Yield every row of the dataset from row `first` on.

        Image, audio and video columns cannot be kept as metadata; their names and kinds are added to `left_out`.
        """
        dataset = _dataset(self)
        if features := dataset.features:
            self.check_columns(features, self.dataset)
            media = {name: kind for name, feature in features.items() if (kind := _media_of(feature))}
            left_out |= {name: kind for name, kind in media.items() if self.columns.keeps(name)}
            needed = (self.text_key, self.id_key, "source", "metadata")
            kept = [name for name in features if name not in media and (name in needed or self.columns.keeps(name))]
            dataset = dataset.select_columns(kept)
        row = first
        dataset = dataset.skip(first) if first else dataset
        # In Arrow format: `datasets` would decode the values, and one that cannot be decoded would end the iteration.
        for table in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
            for batch in table.to_batches():
                yield from rows_of_batch(self, batch, self.dataset, row)
                row += batch.num_rows


def _media_of(feature: Any) -> str:
    """Return the kind of media in a feature, at any depth; empty if there is none."""
    if hasattr(feature, "decode"):  # only media features, which store a path or encoded bytes, can be decoded
        return type(feature).__name__
    inner = feature.values() if isinstance(feature, dict) else feature if isinstance(feature, list | tuple) else ()
    if hasattr(feature, "feature"):
        inner = [feature.feature]
    return next((kind for one in inner if (kind := _media_of(one))), "")


def _dataset(reader: StrictDatasetReader) -> Any:
    from datasets import load_dataset, load_from_disk

    try:
        loaded = (
            load_from_disk(reader.dataset)
            if reader.load_from_disk
            else load_dataset(reader.dataset, **(reader.dataset_options or {}), streaming=reader.streaming)
        )
    except (ValueError, TypeError, OSError) as error:  # unknown configuration, split or dataset
        raise InputError(f"cannot load the dataset {reader.dataset}: {one_line(error)}; check paths and reader") from error
    if isinstance(loaded, dict):
        raise InputError(f"{reader.dataset} has the splits {', '.join(loaded)}; name one: reader.dataset_options: {{split: …}}")
    return loaded
