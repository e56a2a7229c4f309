"""Readers of folders of Parquet files, by library: each returns the rows as plain values, in any order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def list_folder_readers(folder: Path, cache: Path) -> dict[str, Callable[[], Rows]]:
    """Return readers that are given the folder; they ignore files whose names begin with `_`."""
    return {
        "pandas": lambda: _pandas(folder),
        "pyarrow": lambda: _pyarrow(folder),
        "duckdb": lambda: _duckdb(str(folder)),
        "datasets": lambda: _datasets(cache, str(folder)),
    }


def list_glob_readers(folder: Path, cache: Path) -> dict[str, Callable[[], Rows]]:
    """Return readers that are given a glob pattern: for a folder, polars and datasets in Parquet mode read every file."""
    glob = f"{folder}/*.parquet"
    return {
        "polars": lambda: _polars(glob),
        "duckdb": lambda: _duckdb(glob),
        "datasets": lambda: _datasets(cache, "parquet", data_files=glob),
    }


def list_parquet_only_readers(folder: Path, cache: Path) -> dict[str, Callable[[], Rows]]:
    """Return readers that are given the folder, and that need it to hold nothing but Parquet files."""
    return {
        "polars": lambda: _polars(str(folder)),
        "datasets in Parquet mode": lambda: _datasets(cache, "parquet", data_dir=str(folder)),
    }


def assert_same_rows(readers: dict[str, Callable[[], Rows]], expected: Rows) -> None:
    """Check that each reader returns the expected rows, with the same columns in the same order."""
    for name, read in readers.items():
        rows = read()
        assert [list(row) for row in rows[:1]] == [list(expected[0])], name
        assert sorted(rows, key=_id) == sorted(expected, key=_id), name


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
        result = connection.execute("SELECT * FROM read_parquet(?)", [place])
        names = [column[0] for column in result.description]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _datasets(cache: Path, *names: str, **settings: str) -> Rows:
    from datasets import load_dataset

    rows: Rows = load_dataset(*names, split="train", cache_dir=str(cache), **settings).to_list()
    return rows
