"""Reader and content digest for datasets of the Hugging Face `datasets` library."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from datatrove.pipeline.readers import HuggingFaceDatasetReader

from pipeline.errors import InputError, one_line
from pipeline.sources import Row
from pipeline.sources.arrow_tables import rows_of_batch
from pipeline.sources.listing import reading, walk_files
from pipeline.sources.row_reader import RowReader

_BATCH_ROWS = 1024


def digest(name: str) -> str:
    """Return the digest of a dataset: for a folder SHA-256 of its files and their names, for a hub name its main branch's commit.

    Raises:
        InputError: there is no such dataset, the hub cannot be reached, or a folder or file in it cannot be read.
    """
    if os.path.isdir(name):
        sha256 = hashlib.sha256()
        for path in walk_files([name]):
            sha256.update(os.fsencode(os.path.relpath(path, name)) + b"\0")
            with reading(path), open(path, "rb") as content:
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
    """Reads what `datasets.load_dataset` or `datasets.load_from_disk` loads.

    Of `dataset_options`, `load_from_disk` uses `split`: the name of a split of a saved `DatasetDict`.
    """

    def __init__(self, place: str, *, dataset_options: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(place, folder=False, **settings)
        self.dataset_options = dataset_options or {}  # datatrove would warn that load_from_disk ignores them

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
    from datasets import load_dataset

    try:
        if reader.load_from_disk:
            return _saved_dataset(reader.dataset, reader.dataset_options.get("split"))
        loaded = load_dataset(reader.dataset, **reader.dataset_options, streaming=reader.streaming)
    except (ValueError, TypeError, OSError) as error:  # unknown configuration, split or dataset
        raise InputError(f"cannot load the dataset {reader.dataset}: {one_line(error)}; check paths and reader") from error
    if isinstance(loaded, dict):
        raise _no_split(reader.dataset, loaded, None)
    return loaded


def _saved_dataset(folder: str, split: Any) -> Any:
    """Load what `save_to_disk` wrote: a dataset, or one split of a `DatasetDict`.

    A dataset without rows, which `datasets` saves without data files and then cannot load, is returned without columns.

    Raises:
        InputError: a split is needed and not named, is unknown, or is named although there are none.
    """
    from datasets import Dataset, load_from_disk

    splits = _read_json(folder, "dataset_dict.json").get("splits")
    if splits is not None:
        if split not in splits:
            raise _no_split(folder, splits, split)
        folder = os.path.join(folder, split)
    elif split is not None:
        raise InputError(f"{folder} has no splits, and reader.dataset_options.split is {split!r}; leave it out")
    if _read_json(folder, "state.json").get("_data_files") == []:
        return Dataset.from_dict({})
    return load_from_disk(folder)


def _read_json(folder: str, name: str) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if there is no such file."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


def _no_split(name: str, splits: Iterable[str], split: Any) -> InputError:
    but = "" if split is None else f" and no {split!r}"
    return InputError(f"{name} has the splits {', '.join(splits)}{but}; name one: reader.dataset_options: {{split: …}}")
