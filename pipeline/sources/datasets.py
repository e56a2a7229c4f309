"""Reader and content digest for datasets of the Hugging Face `datasets` library."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from datatrove.pipeline.readers import HuggingFaceDatasetReader

from pipeline.errors import InputError, one_line
from pipeline.sources import Row
from pipeline.sources.arrow_tables import iter_batch_rows
from pipeline.sources.listing import convert_read_errors, walk_files
from pipeline.sources.row_reader import RowReader

_BATCH_ROWS = 1024


def digest(name: str) -> str:
    """Return the digest of a dataset: for a folder SHA-256 of its files and their names, for a hub name its main branch's commit.

    Raises:
        InputError: the dataset does not exist, the hub cannot be reached, or a folder or file in it cannot be read.
    """
    if os.path.isdir(name):
        sha256 = hashlib.sha256()
        for path in walk_files([name]):
            sha256.update(os.fsencode(os.path.relpath(path, name)) + b"\0")
            with convert_read_errors(path), open(path, "rb") as content:
                sha256.update(hashlib.file_digest(content, "sha256").digest())
        return f"sha256:{sha256.hexdigest()}"
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return f"commit:{HfApi().dataset_info(name).sha}"
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(
            f"dataset {name} not found: it is not a local folder, and the Hugging Face Hub reports: {one_line(error)}; check "
            "paths and HF_TOKEN"
        ) from error


class StrictDatasetReader(RowReader, HuggingFaceDatasetReader):  # type: ignore[misc]
    """Reads what `datasets.load_dataset` or `datasets.load_from_disk` loads.

    Of `dataset_options`, `load_from_disk` uses `split`: the name of a split of a saved `DatasetDict`.
    """

    def __init__(self, name: str, *, dataset_options: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(name, is_folder=False, **settings)
        self.dataset_options = dataset_options or {}  # datatrove would warn that load_from_disk ignores them

    def format_path(self, filepath: str) -> str:
        return filepath

    def read(self, first_row: int, unsupported_columns: dict[str, str]) -> Iterator[Row]:
        """Yield every row of the dataset from row `first_row` on.

        Image, audio and video columns cannot be kept as metadata; their names and kinds are added to `unsupported_columns`.
        """
        dataset = _load_dataset(self)
        if features := dataset.features:
            self.check_columns(features, self.dataset)
            media = {name: kind for name, feature in features.items() if (kind := _media_kind(feature))}
            unsupported_columns |= {name: kind for name, kind in media.items() if self.columns.is_kept(name)}
            needed = (self.text_key, self.id_key, "source", "metadata")
            kept = [name for name in features if name not in media and (name in needed or self.columns.is_kept(name))]
            dataset = dataset.select_columns(kept)
        row = first_row
        dataset = dataset.skip(first_row) if first_row else dataset
        # In Arrow format: `datasets` would decode the values, and one that cannot be decoded would end the iteration.
        for table in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
            for batch in table.to_batches():
                yield from iter_batch_rows(self, batch, self.dataset, row)
                row += batch.num_rows


def _media_kind(feature: Any) -> str:
    """Return the kind of media in a feature, at any depth; empty if there is none."""
    if hasattr(feature, "decode"):  # only media features, which store a path or encoded bytes, can be decoded
        return type(feature).__name__
    inner = feature.values() if isinstance(feature, dict) else feature if isinstance(feature, list | tuple) else ()
    if hasattr(feature, "feature"):
        inner = [feature.feature]
    return next((kind for one in inner if (kind := _media_kind(one))), "")


def _load_dataset(reader: StrictDatasetReader) -> Any:
    from datasets import load_dataset

    try:
        if reader.load_from_disk:
            return _load_saved_dataset(reader.dataset, reader.dataset_options.get("split"))
        loaded = load_dataset(reader.dataset, **reader.dataset_options, streaming=reader.streaming)
    except (ValueError, TypeError, OSError) as error:  # unknown configuration, split or dataset
        raise InputError(f"cannot load the dataset {reader.dataset}: {one_line(error)}; check paths and reader") from error
    if isinstance(loaded, dict):
        raise _split_error(reader.dataset, loaded, None)
    return loaded


def _load_saved_dataset(folder: str, split: Any) -> Any:
    """Load what `save_to_disk` wrote: a dataset, or one split of a `DatasetDict`.

    A dataset without rows, which `datasets` saves without data files and then cannot load, is returned without columns.

    Raises:
        InputError: a split is needed and not named, is unknown, or is named although there are none.
    """
    from datasets import Dataset, load_from_disk

    splits = _read_json(folder, "dataset_dict.json").get("splits")
    if splits is not None:
        if split not in splits:
            raise _split_error(folder, splits, split)
        folder = os.path.join(folder, split)
    elif split is not None:
        raise InputError(f"{folder} has no splits, but reader.dataset_options.split is {split!r}; remove that setting")
    if _read_json(folder, "state.json").get("_data_files") == []:
        return Dataset.from_dict({})
    return load_from_disk(folder)


def _read_json(folder: str, name: str) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if the file does not exist."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
    return content


def _split_error(name: str, splits: Iterable[str], split: Any) -> InputError:
    unknown = "" if split is None else f", but not {split!r}"
    return InputError(f"{name} has the splits {', '.join(splits)}{unknown}; select one with reader.dataset_options: {{split: …}}")
