"""Folders of Parquet files as other programs read them: rows as plain values, by library, in no order that counts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def by_folder(folder: Path, cache: Path) -> dict[str, Callable[[], Rows]]:
    """Given the folder alone; of these none takes a file that begins with `_` for data."""
    return {
        "pandas": lambda: _pandas(folder),
        "pyarrow": lambda: _pyarrow(folder),
        "duckdb": lambda: _duckdb(str(folder)),
        "datasets": lambda: _datasets(cache, str(folder)),
    }


def by_glob(folder: Path, cache: Path) -> dict[str, Callable[[], Rows]]:
    """Given a pattern; polars, and datasets told to read Parquet, take all that is in a folder for data."""
    glob = f"{folder}/*.parquet"
    return {
        "polars": lambda: _polars(glob),
        "duckdb": lambda: _duckdb(glob),
        "datasets": lambda: _datasets(cache, "parquet", data_files=glob),
    }


def of_nothing_else(folder: Path, cache: Path) -> dict[str, Callable[[], Rows]]:
    """Given the folder, by those for which nothing but Parquet may lie in it."""
    return {
        "polars": lambda: _polars(str(folder)),
        "datasets, told to read Parquet": lambda: _datasets(cache, "parquet", data_dir=str(folder)),
    }


def assert_same(readers: dict[str, Callable[[], Rows]], expected: Rows) -> None:
    """Each reads the same rows, with the same columns in the same order."""
    for name, read in readers.items():
        found = read()
        assert [list(row) for row in found[:1]] == [list(expected[0])], name
        assert sorted(found, key=_id) == sorted(expected, key=_id), name


def _id(row: dict[str, Any]) -> str:
    return str(row["id"])


def _pandas(folder: Path) -> Rows:
    import pandas as pd
    import pyarrow as pa

    rows: Rows = pa.Table.from_pandas(pd.read_parquet(folder), preserve_index=False).to_pylist()  # with None for NaN
    return rows


def _pyarrow(folder: Path) -> Rows:
    import pyarrow.dataset as ds

    rows: Rows = ds.dataset(str(folder)).to_table().to_pylist()
    return rows


def _polars(place: str) -> Rows:
    import polars as pl

    rows = pl.read_parquet(place).to_dicts()
    assert pl.scan_parquet(place).collect().to_dicts() == rows
    return rows


def _duckdb(place: str) -> Rows:
    import duckdb

    with duckdb.connect() as connection:
        found = connection.execute("SELECT * FROM read_parquet(?)", [place])
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def _datasets(cache: Path, *names: str, **settings: str) -> Rows:
    from datasets import load_dataset

    rows: Rows = load_dataset(*names, split="train", cache_dir=str(cache), **settings).to_list()
    return rows
