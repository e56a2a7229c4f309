import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, StorageError
from pipeline.storage import Folder

SCHEMA = pa.schema([pa.field("a", pa.int32(), nullable=False), pa.field("b", pa.string())])
TABLE = pa.table({"b": ["x", None], "a": [1, 2]})


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_table_and_facts_are_read_as_written(kind: str, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "deep" / "er") if kind == "local" else "memory://deep/er")
    folder.write_table("t.parquet", TABLE, SCHEMA, {"rows": 2})
    assert folder.read_table("t.parquet").cast(SCHEMA).equals(TABLE.select(["a", "b"]).cast(SCHEMA))
    assert folder.read_facts("t.parquet") == {"rows": 2}
    assert folder.names(".parquet") == ["t.parquet"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"a": [1]}), r"^columns are \['a'\], but the schema has \['a', 'b'\]$"),
        (pa.table({"a": [1], "b": ["x"], "c": [1]}), r"^columns are \['a', 'b', 'c'\], but the schema has \['a', 'b'\]$"),
        (pa.table({"a": pa.array([None], pa.int32()), "b": ["x"]}), "^Casting field 'a' with null values to non-nullable$"),
        (pa.table({"a": [2**40], "b": ["x"]}), "^Integer value 1099511627776 not in range: -2147483648 to 2147483647$"),
        (pa.table({"a": ["not a number"], "b": ["x"]}), "^Failed to parse string: 'not a number' as a scalar of type int32$"),
    ],
    ids=["column missing", "unknown column", "null in a non-nullable column", "too large", "wrong type"],
)
def test_a_table_that_does_not_match_its_schema_is_rejected(table: pa.Table, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Folder(str(tmp_path)).write_table("t.parquet", table, SCHEMA)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_has_no_names(tmp_path: Path) -> None:
    assert Folder(str(tmp_path / "none")).names() == []


def test_a_damaged_file_is_reported_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(StorageError, match=r"t\.parquet.*delete the file and run again"):
        Folder(str(tmp_path)).read_table("t.parquet")


def test_a_full_disk_leaves_no_file_and_is_reported(tmp_path: Path) -> None:
    # A limit on the size of a file makes the kernel refuse the write, as a full disk does.
    code = f"""
import resource, signal
from pipeline.storage import Folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
Folder({str(tmp_path)!r}).write_bytes("a.bin", b"x" * 5000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "StorageError: cannot write" in done.stderr
    assert "the disk is full; free space and run the same command again" in done.stderr
    assert os.listdir(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_temporary_files_of_a_killed_writer_are_hidden_and_removed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".tmp-abc").write_bytes(b"half")
    (tmp_path / ".tmp-fresh").write_bytes(b"of another run")
    os.utime(tmp_path / "deep" / ".tmp-abc", (0, 0))
    folder = Folder(str(tmp_path))
    assert folder.files() == []
    folder.remove_temporary()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".tmp-fresh", "deep"]


@pytest.mark.parametrize("url", ["foo://bar/x", "s3nope://bucket/x"])
def test_a_url_that_cannot_be_opened_is_one_clear_line(url: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{url} cannot be opened: .*; install the package for this URL scheme"):
        Folder(url)


def test_damaged_json_reads_as_missing(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"half', encoding="utf-8")
    assert Folder(str(tmp_path)).read_json("manifest.json") is None
    assert Folder(str(tmp_path)).read_json("none.json") is None
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    assert Folder(str(tmp_path)).read_json("list.json") is None
