"""Every row of every reader is a document, a bad row or skipped: nothing is lost in silence, and one bad value spoils one row."""

import bz2
import csv
import datetime
import functools
import gzip
import http.server
import io
import json
import lzma
import os
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import exact_json
from pipeline.config import Corpus, Prepare
from pipeline.errors import InputError
from pipeline.sources import BAD_ROW_REASONS, SKIP_REASONS, InputFile, Row, arrow_tables
from pipeline.sources.chunks import QUARANTINE_PIECE_ROWS, scan_file
from pipeline.sources.input_files import digest
from pipeline.sources.listing import list_corpus, list_files
from pipeline.sources.readers import metadata_columns, read_rows
from pipeline.sources.row_reader import dump_metadata
from pipeline.sources.streams import COMPRESSIONS, decompress


def rows_of(path: object, prepare: Prepare | None = None, **options: Any) -> list[Row]:
    corpus = Corpus(paths=[str(path)], **options)
    [(url, kind)] = list_files(corpus)
    return list(read_rows(InputFile(0, url, kind, ""), corpus, columns=metadata_columns(prepare or Prepare())))


def outcomes(rows: list[Row]) -> list[str]:
    return [row.problem.reason if row.problem else row.skipped or "good" for row in rows]


def documents(rows: list[Row]) -> dict[str, tuple[str, Any]]:
    return {row.document.id: (row.document.text, json.loads(row.document.metadata)) for row in rows if row.document}


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# What a row of a file may be: how it is written in each format, and whether it is good.
CELLS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
    st.sampled_from(["", " ", "a\0b", 'say "x"', "a,b", "line\nline", "\\", '\\"', "x\x1cy"]),
)


@settings(max_examples=60)
@given(texts=st.lists(CELLS, max_size=12), blank=st.lists(st.booleans(), min_size=12, max_size=12), kind=st.sampled_from("jpcad"))
def test_rows_read_are_documents_bad_rows_and_skipped_ones_in_every_format(
    texts: list[str], blank: list[bool], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    table = pa.table({"id": pa.array([str(n) for n in range(len(texts))], pa.string()), "text": pa.array(texts, pa.string())})
    options: dict[str, Any] = {}
    blanks = 0
    if kind == "j":
        lines = [json.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts)]
        blanks = sum(blank[: len(lines)])
        path = write(folder / "a.jsonl", "".join("\n" * skip + line + "\n" for line, skip in zip(lines, blank, strict=False)))
    elif kind == "c":
        out = io.StringIO(newline="")
        csv.writer(out).writerows([("id", "text"), *((str(n), text) for n, text in enumerate(texts))])
        path = write(folder / "a.csv", out.getvalue())
    elif kind == "p":
        pq.write_table(table, path := folder / "a.parquet")
    elif kind == "a":
        path = folder / "a.arrow"
        with pa.ipc.new_file(str(path), table.schema) as sink:
            sink.write_table(table)
    else:
        from datasets import Dataset

        path, options = folder / "saved", {"reader": {"type": "HuggingFaceDatasetReader", "load_from_disk": True}}
        Dataset(table).save_to_disk(str(path))
    rows = rows_of(path, **options)
    good = {str(n): text for n, text in enumerate(texts) if text.strip() and "\0" not in text}
    assert {identifier: text for identifier, (text, _) in documents(rows).items()} == good
    counted = Counter(outcomes(rows))
    assert counted["blank_line"] == blanks
    assert len(rows) - blanks == len(texts)
    assert set(counted) <= {"good", *BAD_ROW_REASONS, *SKIP_REASONS}
    scan = scan_file(
        InputFile(0, *list_files(Corpus(paths=[str(path)], **options))[0], ""), Corpus(paths=["x"], **options), Prepare()
    )
    assert (scan.num_rows, sum(scan.reasons.values()), sum(scan.skipped.values())) == (len(texts), len(texts) - len(good), blanks)


# --- values of any Arrow type ---

LEAVES = [
    *(pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.bool_(), pa.null(), pa.binary(), pa.large_binary(), pa.binary(3)),
    *(pa.string(), pa.large_string(), pa.string_view(), pa.date32(), pa.date64(), pa.time32("s"), pa.time64("ns")),
    *(pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", tz="UTC"), pa.timestamp("ms", tz="Europe/Nowhere")),
    *(pa.duration("s"), pa.duration("ns"), pa.decimal128(38, 3), pa.decimal256(60, 2), pa.month_day_nano_interval()),
]
TYPES = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(lambda kind: pa.struct([("a", kind), ("b", pa.string())])),
        inner.map(lambda kind: pa.map_(pa.string(), kind)),
        inner.map(lambda kind: pa.list_(kind, 2)),
    ),
    max_leaves=3,
)


def raw_array(kind: pa.DataType, size: int, random: np.random.Generator) -> pa.Array:
    """An array of random bytes, valid for its type or not."""
    if pa.types.is_null(kind):
        return pa.nulls(size)
    if pa.types.is_string_view(kind):
        return raw_array(pa.string(), size, random).view(pa.binary()).cast(pa.binary_view()).view(kind)
    if pa.types.is_map(kind):
        items = raw_array(kind.item_type, size, random)
        return pa.MapArray.from_arrays(list(range(size + 1)), pa.array([f"k{n}" for n in range(size)]), items)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(raw_array(kind.value_type, 2 * size, random), 2)
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(list(range(size + 1)), raw_array(kind.value_type, size, random))
    if pa.types.is_struct(kind):
        fields = [raw_array(field.type, size, random) for field in kind]
        return pa.StructArray.from_arrays(fields, names=[field.name for field in kind])
    if pa.types.is_boolean(kind):
        return pa.array(random.integers(0, 2, size).astype(bool))
    if pa.types.is_binary(kind) or pa.types.is_string(kind) or pa.types.is_large_binary(kind) or pa.types.is_large_string(kind):
        wide = pa.types.is_large_binary(kind) or pa.types.is_large_string(kind)
        bounds = np.arange(size + 1) * 4
        offsets = bounds.astype(np.int64 if wide else np.int32)
        return pa.Array.from_buffers(kind, size, [None, pa.py_buffer(offsets), pa.py_buffer(random.bytes(4 * size))])
    width = kind.bit_width // 8
    return pa.Array.from_buffers(kind, size, [None, pa.py_buffer(random.bytes(width * size))])


@settings(max_examples=150)
@given(kinds=st.lists(TYPES, min_size=1, max_size=3), seed=st.integers(0, 2**32), kind=st.sampled_from(["parquet", "arrow"]))
def test_a_random_value_of_any_arrow_type_spoils_its_row_at_most(
    kinds: list[pa.DataType], seed: int, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    random, size = np.random.default_rng(seed), 5
    columns = {f"c{n}": raw_array(one, size, random) for n, one in enumerate(kinds)}
    table = pa.table({"id": [str(n) for n in range(size)], "text": [f"text {n}" for n in range(size)], **columns})
    path = tmp_path_factory.mktemp("fuzz") / f"a.{kind}"
    if kind == "parquet":
        try:
            pq.write_table(table, path)
        except (pa.ArrowException, NotImplementedError):  # Parquet has no such type
            return
    else:
        with pa.ipc.new_file(str(path), table.schema) as sink:
            sink.write_table(table)
    if kind == "parquet":
        try:
            pq.read_table(path)
        except pa.ArrowException:  # its own reader refuses some of what its writer wrote
            with pytest.raises(InputError, match="cannot read"):
                rows_of(path)
            return
    rows = rows_of(path)
    assert [row.number for row in rows] == list(range(size))
    for row in rows:
        if row.document:
            assert row.document.text == f"text {row.number}"
            assert isinstance(json.loads(row.document.metadata), dict)
        else:
            assert row.problem is not None
            assert row.problem.reason in ("bad_value", "invalid_utf8")
            assert row.problem.id == str(row.number)
            assert "c" in row.problem.detail


@pytest.mark.parametrize("ending", ["parquet", "arrow", "dataset"])
def test_dates_and_times_that_are_none_are_quarantined_with_their_column(tmp_path: Path, ending: str) -> None:
    days = pa.array([18_000, -800_000, 2_932_927], pa.date32())
    times = pa.array([1, 2**62, 3], pa.timestamp("us"))
    lasting = pa.array([{"d": 1}, {"d": 1}, {"d": 2**62}], pa.struct([("d", pa.duration("s"))]))
    table = pa.table({"id": ["a", "b", "c"], "text": ["one", "two", "three"], "day": days, "when": times, "inner": lasting})
    options: dict[str, Any] = {}
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(table.drop_columns("inner"), path)  # which Parquet would store as a number
    elif ending == "arrow":
        with pa.ipc.new_file(str(path), table.schema) as sink:
            sink.write_table(table)
    else:
        from datasets import Dataset

        Dataset(table).save_to_disk(str(path))
        options = {"reader": {"type": "HuggingFaceDatasetReader", "load_from_disk": True}}
    rows = rows_of(path, **options)
    assert outcomes(rows) == ["good", "bad_value", "bad_value"]
    assert [row.problem.id for row in rows if row.problem] == ["b", "c"]
    assert all("'day'" in row.problem.detail for row in rows if row.problem)


def ipc_bytes(table: pa.Table, *, stream: bool = False, rows: int | None = None) -> bytes:
    sink = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as out:
        out.write_table(table, max_chunksize=rows)
    return sink.getvalue()


STREAM: dict[str, Any] = {"type": "IpcReader", "stream": True}


def invalid_utf8() -> pa.Array:
    return pa.array([b"ok", b"\xff\xfe", b"fine"]).view(pa.string())


NESTINGS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "plain": lambda array: array,
    "list": lambda array: pa.ListArray.from_arrays([0, 1, 2, 3], array),
    "struct": lambda array: pa.StructArray.from_arrays([array], names=["a"]),
    "map": lambda array: pa.MapArray.from_arrays([0, 1, 2, 3], pa.array(["a", "b", "c"]), array),
    "list view": lambda array: pa.ListViewArray.from_arrays([0, 1, 2], [1, 1, 1], array),
    "beside nulls": lambda array: pa.StructArray.from_arrays([array, pa.array([[None] * 3] * 3)], names=["a", "b"]),
    "dictionary": lambda array: pa.DictionaryArray.from_arrays([0, 1, 2], array),
    "dictionary in list": lambda array: pa.ListArray.from_arrays([0, 1, 2, 3], pa.DictionaryArray.from_arrays([0, 1, 2], array)),
}


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("nesting", NESTINGS)
def test_an_invalid_utf8_value_spoils_its_row_in_every_nesting(tmp_path: Path, nesting: str, ending: str) -> None:
    table = pa.table({"id": ["a", "b", "c"], "text": ["one", "two", "three"], "m": NESTINGS[nesting](invalid_utf8())})
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        write(path, ipc_bytes(table))
    rows = rows_of(path)
    assert outcomes(rows) == ["good", "invalid_utf8", "good"]
    assert [row.problem.id for row in rows if row.problem] == ["b"]


@pytest.mark.parametrize("nesting", [*NESTINGS, "index"])
def test_an_ipc_file_with_an_offset_out_of_range_is_an_error_and_no_crash(tmp_path: Path, nesting: str) -> None:
    values = [b"w" * 5000, b"x" * 5000, b"y" * 5000]
    offsets = np.array([0, 5000, 10_000, 15_000], np.int32)
    strings = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))])
    indices = pa.array([30_003, 30_001, 30_002], pa.int32())
    column = NESTINGS.get(nesting, NESTINGS["plain"])(strings)
    if nesting == "index":
        column = pa.DictionaryArray.from_arrays(indices, pa.array(["x"] * 30_004))
    data = ipc_bytes(pa.table({"id": ["a", "b", "c"], "text": ["one", "two", "three"], "m": column}))
    found = (indices.buffers()[1].to_pybytes() if nesting == "index" else offsets.tobytes())[:12]
    assert data.count(found) == 1
    damaged = data.replace(found, found[:4] + (2**30).to_bytes(4, "little") + found[8:])
    with pytest.raises(InputError, match=r"cannot read .*a\.arrow: column 'm' is damaged: .*1073741824"):
        rows_of(write(tmp_path / "a.arrow", damaged))


def test_concatenated_arrow_streams_are_read_to_the_end(tmp_path: Path) -> None:
    table = pa.table({"id": list(map(str, range(10))), "text": ["x"] * 10})
    one = ipc_bytes(table, stream=True, rows=3)
    assert outcomes(rows_of(write(tmp_path / "a.arrow", one * 3), reader=STREAM)) == ["good"] * 30
    other = ipc_bytes(table.append_column("n", [list(range(10))]), stream=True)
    for after, message in [
        (other, "has different columns"),
        (b"garbage", "are not an Arrow stream"),
        (one[:50], "are not an Arrow stream"),
    ]:
        path = write(tmp_path / "b.arrow", one + after)
        with pytest.raises(InputError, match=rf"cannot read .*b\.arrow beyond row 9: .*byte {len(one)} .*{message}"):
            rows_of(path, reader=STREAM)


def test_an_arrow_or_parquet_file_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    feather = write(tmp_path / "v1.feather", b"FEA1" + bytes(60))
    for reader in (None, STREAM):
        with pytest.raises(InputError, match=r"Feather version 1.*version 2") as caught:
            rows_of(feather, reader=reader)
        assert "stream" not in str(caught.value)
    empty = pa.table({"id": pa.array([], pa.string())})
    write(tmp_path / "empty.arrow", ipc_bytes(empty))
    write(tmp_path / "empty-stream.arrow", ipc_bytes(empty, stream=True))
    for name, reader in [("empty.arrow", None), ("empty-stream.arrow", STREAM)]:
        with pytest.raises(InputError, match=rf"{name} has no column 'text'"):
            rows_of(tmp_path / name, reader=reader)
    pq.write_table(pa.table({}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet has no columns"):
        rows_of(tmp_path / "a.parquet")


def test_parquet_batches_are_bounded_by_the_decoded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def recorded(_reader: Any, batch: pa.RecordBatch, _path: str, first: int, **_: Any) -> Any:
        sizes.append((batch.num_rows, batch.nbytes))
        return iter([Row(first + n, None, None, skipped=batch["id"][n].as_py()) for n in range(batch.num_rows)])

    monkeypatch.setattr(arrow_tables, "iter_batch_rows", recorded)
    ids = list(map(str, range(1500)))
    for text, most in [("license text " * 10_000, 20 << 20), ("short", 1 << 20)]:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"id": ids, "text": [text] * 1500}), path)
        assert path.stat().st_size < 100_000
        sizes.clear()
        assert [row.skipped for row in rows_of(path)] == ids
        assert max(size for _, size in sizes) < most
        assert sizes[0][0] == 16
    assert max(rows for rows, _ in sizes) == 1024


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_metadata_that_is_too_large_is_not_converted(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {
        "binary": pa.array([b"\xff" * 70_000, b"", None]),
        "list": pa.array([[0] * 40_000, [], None], pa.list_(pa.int8())),
        "strings": pa.array([["p" * 700] * 100, ["p"], None]),
        "dictionary": pa.array(["p" * 70_000, "p", None]).dictionary_encode(),
        "map": pa.array([[("p" * 35_000, "q" * 35_000)], [], None], pa.map_(pa.string(), pa.string())),
        "fixed": pa.array([b"p" * 70_000, None, None], pa.binary(70_000)),
        "metadata": pa.array([{"html": "p" * 70_000}, {"html": "p"}, None]),
    }
    converted = arrow_tables._to_rows
    large: list[str] = []

    def watched(batch: pa.RecordBatch) -> list[dict[str, Any]]:
        large.extend(name for name in batch.schema.names if name not in ("id", "text") and batch["id"][0].as_py() == "a")
        return converted(batch)

    monkeypatch.setattr(arrow_tables, "_to_rows", watched)
    for name, column in columns.items():
        table = pa.table({"id": ["a", "b", "c"], "text": ["one", "two", "three"], name: column})
        path = tmp_path / f"{name}.{ending}"
        if ending == "parquet":
            pq.write_table(table, path)
        else:
            write(path, ipc_bytes(table))
        rows = rows_of(path)
        assert outcomes(rows) == ["metadata_too_large", "good", "good"], name
        assert rows[0].problem is not None
        assert rows[0].problem.id == "a"
        assert outcomes(rows_of(path, Prepare(metadata="none"))) == ["good"] * 3
        assert outcomes(rows_of(path, Prepare(metadata_bytes=500_000))) == ["good"] * 3
        large.clear()
        rows_of(path)
        assert not large, name


@given(kinds=st.lists(TYPES, min_size=1, max_size=2), seed=st.integers(0, 2**32))
def test_the_size_of_a_row_is_never_overestimated(kinds: list[pa.DataType], seed: int) -> None:
    random = np.random.default_rng(seed)
    for array in [raw_array(one, 4, random) for one in kinds]:
        for part in (array, array.slice(1, 2), pa.concat_arrays([array, pa.nulls(2, array.type)])):
            sizes = np.broadcast_to(arrow_tables._json_sizes(part), len(part))
            for n, size in enumerate(sizes):
                try:
                    [value] = arrow_tables._to_list(part.slice(n, 1))
                    written = dump_metadata({"": value})
                except Exception:  # the value is invalid, and its row is bad anyway
                    continue
                assert size <= len(written.encode()) - len('{"":}')


# --- JSON ---


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "a", "text": "one", "text": "two"}', "repeated_key"),
        ('{"id": "a", "text": "one", "n": {"k": [{"x": 1, "x": 2}]}}', "repeated_key"),
        ('{"id": "a", "text": "one", "te\\u0078t": "two"}', "repeated_key"),
        ('{"id": "a", "text": "one", "metadata": "{\\"k\\": 1, \\"k\\": 2}"}', "repeated_key"),
        ('{"id": "a", "text": "x", "n": ' + "[" * 2000 + "]" * 2000 + "}", "not_json"),
        ('{"id": "a", "text": "x", "n": ' + "[" * 400 + "]" * 400 + "}", "bad_value"),
        ('{"id": "a", "text": "x", "n": 1e999}', "not_json"),
        ('{"id": "' + "a" * 5000 + '", "text": "x"}', "id_too_long"),
        ('{"id": "a", "text": "x", "html": "' + "p" * 70_000 + '"}', "metadata_too_large"),
        ('{"id": "a", "text": "x", "kind": "text", "source": "id"}', "good"),
    ],
)
def test_a_line_that_json_parsers_take_but_lose_something_of_is_a_bad_row(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": "0", "text": "before"}\n' + line + '\n{"id": "2", "text": "after"}\n')
    assert outcomes(rows_of(path)) == ["good", reason, "good"]


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**200), 2**200), st.floats(allow_nan=False, allow_infinity=False), st.text()
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=12,
)


@given(value=st.dictionaries(st.text(), VALUES, max_size=5), spaced=st.booleans(), ascii_only=st.booleans())
def test_json_keeps_every_key_and_every_digit(value: dict[str, Any], spaced: bool, ascii_only: bool) -> None:
    if "\ud800" <= max(json.dumps(value, ensure_ascii=False), default="") <= "\udfff":
        return
    text = json.dumps(value, ensure_ascii=ascii_only, indent=1 if spaced else None)
    try:
        data = text.encode()
    except UnicodeEncodeError:  # a lone surrogate is no JSON
        return
    if ascii_only and "\\ud" in text:
        return
    parsed = exact_json.parse(data)
    assert parsed == value
    assert all(type(parsed[key]) is type(value[key]) for key in value)
    assert json.loads(exact_json.dump(parsed)) == value
    assert exact_json.load(exact_json.dump(parsed)) == value


@given(pairs=st.lists(st.tuples(st.text(max_size=3), st.integers()), max_size=6))
def test_a_key_that_comes_twice_is_found_however_it_is_spelled(pairs: list[tuple[str, int]]) -> None:
    keys = [key for key, _ in pairs]
    try:
        text = ("{" + ",".join(f"{json.dumps(k, ensure_ascii=n % 2 == 0)}:{v}" for n, (k, v) in enumerate(pairs)) + "}").encode()
    except UnicodeEncodeError:
        return
    if b"\\ud" in text:
        return
    if len(set(keys)) == len(keys):
        assert exact_json.parse(text) == dict(pairs)
    else:
        with pytest.raises(exact_json.RepeatedKeyError) as caught:
            exact_json.parse(text)
        assert keys.count(caught.value.key) > 1


def test_large_integers_keep_their_digits_as_ids_and_as_metadata(tmp_path: Path) -> None:
    large = 123456789012345678901234567890
    path = write(tmp_path / "a.jsonl", json.dumps({"id": large, "text": "x", "n": large, "m": [2**64, {"k": -(2**63) - 1}]}) + "\n")
    assert documents(rows_of(path)) == {str(large): ("x", {"n": large, "m": [2**64, {"k": -(2**63) - 1}]})}


def test_a_file_that_is_one_json_array_is_read_where_it_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [{"id": str(n), "text": f"text {n}"} for n in range(5)] + [["x"], {"id": "5", "text": ""}]
    for name, text in {
        "one line": json.dumps(values),
        "pretty": json.dumps(values, indent=2),
        "spread": "\n[\n" + ",\n".join(map(json.dumps, values)) + "\n]\n",
    }.items():
        path = write(tmp_path / name / "a.json", text)
        assert outcomes(rows_of(path)) == ["good"] * 5 + ["not_an_object", "empty_text"], name
    lines = write(tmp_path / "lines.jsonl", '["not", "an object"]\n{"id": "a", "text": "x"}\n')
    assert outcomes(rows_of(lines)) == ["not_an_object", "good"]
    broken = write(tmp_path / "broken.jsonl", '[{"id": \n{"id": "a", "text": "x"}\n')
    assert outcomes(rows_of(broken)) == ["not_json", "good"]
    monkeypatch.setattr("pipeline.sources.json_lines.MAX_ARRAY_BYTES", 64)
    for name in ("one line", "pretty", "spread"):
        with pytest.raises(InputError, match=r"a\.json is one JSON array .*JSON lines"):
            rows_of(tmp_path / name / "a.json")
    assert outcomes(rows_of(lines)) == ["not_an_object", "good"]


# --- CSV ---


def csv_file(path: Path, *lines: str) -> Path:
    return write(path, "".join(line + "\n" for line in ("id,text", *lines)))


def numbered(first: int, last: int) -> list[str]:
    return [f"id{n},text of row {n}" for n in range(first, last)]


@pytest.mark.parametrize(
    ("broken", "num_bad"),
    [
        (['id5,"text of row 5'], 1),  # closed by nothing
        (['id5,"text of row 5', *numbered(6, 9), 'id9,a stray quote"'], 1),  # closed at the end of a later row
        (['id5,"he said \\"hi\\", and left"'], 1),
        (['id5,"quoted" and not'], 1),
        (['id5,"a text of', 'two lines, with \\"', 'quotes"'], 2),
        (["id5"], 1),
        (["id5,text,more"], 1),
    ],
)
def test_a_broken_quote_spoils_its_own_lines_and_merges_no_rows(tmp_path: Path, broken: list[str], num_bad: int) -> None:
    rows = rows_of(csv_file(tmp_path / "a.csv", *numbered(0, 5), *broken, *numbered(20, 40)))
    found = documents(rows)
    whole = {f"id{n}": f"text of row {n}" for n in (*range(5), *range(20, 40))}
    assert {identifier: text for identifier, (text, _) in found.items() if identifier in whole} == whole
    assert all("\n" not in text for text, _ in found.values())
    assert sum(row.problem is not None for row in rows) >= num_bad
    assert 5 + num_bad + 20 <= len(rows) <= 5 + len(broken) + 20


@given(
    rows=st.lists(st.tuples(st.text("ab c", min_size=1), st.text('xy,"\n\r', min_size=1)), min_size=1, max_size=30),
    at=st.integers(0, 29),
)
def test_a_csv_row_is_whole_or_bad_wherever_a_quote_is_lost(
    rows: list[tuple[str, str]], at: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    written = [(f"{n}{name}x", f"{text}.") for n, (name, text) in enumerate(rows)]
    lines = ['"id","text"\n', *(f'"{name}","{text.replace(chr(34), chr(34) * 2)}"\n' for name, text in written)]
    quotes = [(row, place) for row, line in enumerate(lines[1:], 1) for place, character in enumerate(line) if character == '"']
    row, place = quotes[at % len(quotes)]
    num_lines = lines[row].count("\n")
    lines[row] = lines[row][:place] + lines[row][place + 1 :]
    path = write(tmp_path_factory.mktemp("csv") / "a.csv", "".join(lines))
    changed = [name for name, (found, _) in documents(rows_of(path)).items() if dict(written).get(name) != found]
    assert len(changed) <= num_lines  # the row that lost it may be another one now, or one for each of its lines; no other is


def test_a_carriage_return_outside_quotes_makes_bad_rows_and_no_false_document(tmp_path: Path) -> None:
    rows = rows_of(csv_file(tmp_path / "a.csv", *numbered(0, 5), "id5,a text\rid6,of two", *numbered(20, 40)))
    assert documents(rows).keys() == {f"id{n}" for n in (*range(5), *range(20, 40))}
    assert [row.problem.reason for row in rows if row.problem] == ["broken_quotes", "broken_quotes"]


def test_lines_that_end_in_carriage_returns_alone_are_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "\r".join(["id,text", *numbered(0, 9)]) + "\r")
    assert documents(rows_of(path)).keys() == {f"id{n}" for n in range(9)}
    doubled = write(tmp_path / "b.csv", "\r\r\n".join(["id,text", *numbered(0, 9)]) + "\r\r\n")
    assert documents(rows_of(doubled)).keys() == {f"id{n}" for n in range(9)}


def test_multi_line_texts_of_a_csv_are_no_merge(tmp_path: Path) -> None:
    poem = "Roses are red,\nviolets are blue,\nand so, dear reader,\nare you"
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("id", "text"), ("a", poem), ("b", 'He said: "no"'), ("c", "x\r\ny")])
    assert documents(rows_of(write(tmp_path / "a.csv", out.getvalue()))) == {
        "a": (poem, {}),
        "b": ('He said: "no"', {}),
        "c": ("x\r\ny", {}),
    }


def test_column_names_of_a_csv_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    latin = write(tmp_path / "latin.csv", "id,text,región\n1,a,b\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.csv.*cp1252.*región.*iconv"):
        rows_of(latin)
    with pytest.raises(InputError, match=r"twice\.csv has 2 columns named 'text'"):
        rows_of(write(tmp_path / "twice.csv", "id,text,text\n1,a,b\n"))
    with pytest.raises(InputError, match=r"none\.csv has no column 'text' \(text_key\); it has id, body"):
        rows_of(write(tmp_path / "none.csv", "id,body\n1,a\n"))
    for encoding in ("utf-16", "utf-32"):
        for name in ("wide.csv", "wide.jsonl"):
            with pytest.raises(InputError, match=rf"wide.*{encoding.upper()}"):
                rows_of(write(tmp_path / encoding / name, "id,text\n1,a\n".encode(encoding)))


def test_columns_of_one_name_are_refused_in_parquet_and_arrow(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["x"]), pa.array(["y"])], names=["id", "text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as sink:
        sink.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(InputError, match=rf"{name} has 2 columns named 'text'"):
            rows_of(tmp_path / name)


# --- which files ---


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path / "disk" / "deep" / "a.jsonl", "")
    write(tmp_path / "in" / "b.jsonl", "")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "in")
    for pattern in ("in", "in/**/*.jsonl", "in*"):
        listed = [os.path.relpath(url, tmp_path) for url, _ in list_files(Corpus(paths=[str(tmp_path / pattern)]))]
        assert listed == ["in/b.jsonl", "in/linked/deep/a.jsonl"], pattern


def test_folders_that_a_glob_matches_are_read_and_other_endings_counted(tmp_path: Path) -> None:
    for name in ("x/a.JSONL.ZST", "x/b.jsonlines", "x/notes.md", "y/c.pq", "y/d.csv.xz", "y/_SUCCESS", "y/e.md"):
        write(tmp_path / name, "")
    listing = list_corpus(Corpus(paths=[f"{tmp_path}/*"]))
    assert [(os.path.relpath(url, tmp_path), kind) for url, kind in listing.files] == [
        ("x/a.JSONL.ZST", "jsonl"),
        ("x/b.jsonlines", "jsonl"),
        ("y/c.pq", "parquet"),
        ("y/d.csv.xz", "csv"),
    ]
    assert listing.ignored == {".md": 2, "": 1}
    assert ".md 2" in listing.describe_ignored("generalist.paths")


@pytest.mark.parametrize("name", ["a::b.jsonl", "a|b.jsonl", "a\nb.jsonl", "[a]*.jsonl", "ü ö.jsonl"])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, '{"id": "a", "text": "x"}\n')
    for path in (tmp_path, tmp_path / name):
        [row] = rows_of(path)
        assert row.document is not None
        assert row.document.source == name.removesuffix(".jsonl")


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".gzip": gzip.compress,
    ".zst": zstandard.compress,
    ".zstd": zstandard.compress,
    ".bz2": bz2.compress,
}


@pytest.mark.parametrize("ending", [*PACKERS, ".xz"])
def test_every_compression_is_read_whole_and_a_cut_one_is_an_error(tmp_path: Path, ending: str) -> None:
    lines = b"".join(json.dumps({"id": n, "text": os.urandom(200).hex()}).encode() + b"\n" for n in range(500))
    packed = {**PACKERS, ".xz": lzma.compress}[ending](lines)
    assert outcomes(rows_of(write(tmp_path / f"a.jsonl{ending}", packed * 2))) == ["good"] * 1000
    with pytest.raises(InputError, match="replace the file"):
        rows_of(write(tmp_path / f"b.jsonl{ending}", packed[: len(packed) // 2]))


@pytest.mark.parametrize("ending", [".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("between", ["damage", "garbage", "end", "NULs"])
def test_what_follows_a_compressed_stream_is_a_stream_or_an_error(tmp_path: Path, ending: str, between: str) -> None:
    pack = {**PACKERS, ".xz": lzma.compress}[ending]
    lines = [b"".join(b'{"id": "%d", "text": "%d"}\n' % (n, n) for n in range(begin, begin + 100)) for begin in (0, 100, 200)]
    first, second, third = map(pack, lines)
    start_damaged = bytes(3) + second[3:]
    spoilt = {
        "damage": first + start_damaged + third,
        "garbage": first + b"garbage" + second,
        "end": first + second + b"garbage",
        "NULs": first + bytes(3) + second,
    }
    path = write(tmp_path / f"a.jsonl{ending}", spoilt[between])
    with pytest.raises(InputError, match=r"cannot read .*a\.jsonl.* beyond row \d+: "):
        rows_of(path)


def test_padding_between_and_after_xz_streams_is_skipped(tmp_path: Path) -> None:
    packed = lzma.compress(b'{"id": "a", "text": "x"}\n')
    for count in (0, 4, 8192, 12_000):
        path = write(tmp_path / "a.jsonl.xz", packed + bytes(count) + packed + bytes(count))
        assert outcomes(rows_of(path)) == ["good"] * 2
    for data in (packed + bytes(8191) + packed, packed + bytes(5), bytes(4) + packed):
        with pytest.raises(InputError, match="damaged xz data"):
            rows_of(write(tmp_path / "a.jsonl.xz", data))


@pytest.mark.parametrize("ending", [".bz2", ".xz"])
def test_a_small_file_of_much_text_is_unpacked_in_bounded_steps(ending: str) -> None:
    pack = {**PACKERS, ".xz": lzma.compress}[ending]
    data = b"x" * (64 << 20)
    stream = decompress(io.BytesIO(pack(data)), COMPRESSIONS[ending])
    tracemalloc.start()
    try:
        assert sum(len(block) for block in iter(lambda: stream.read(1 << 16), b"")) == len(data)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_reader_settings_have_their_effect(tmp_path: Path) -> None:
    data = b'{"id": "a", "text": "x"}\n'
    packed = write(tmp_path / "packed", zstandard.compress(data))
    assert outcomes(rows_of(packed, reader={"type": "JsonlReader", "compression": "zstd"})) == ["good"]
    plain = write(tmp_path / "plain.gz", data)
    assert outcomes(rows_of(plain, reader={"type": "JsonlReader", "compression": None})) == ["good"]
    pq.write_table(pa.table({"id": ["a"], "text": ["x"], "url": ["u"]}), tmp_path / "a.parquet")
    assert documents(rows_of(tmp_path / "a.parquet", reader={"type": "ParquetReader", "read_metadata": False})) == {"a": ("x", {})}
    with pa.ipc.new_stream(str(tmp_path / "s.arrow"), pa.schema([("id", pa.string()), ("text", pa.string())])):
        pass
    with pytest.raises(InputError, match=r"s\.arrow.*stream: true"):
        rows_of(tmp_path / "s.arrow")


def test_input_and_workdir_do_not_overlap(tmp_path: Path) -> None:
    write(tmp_path / "web" / "a.jsonl", "")
    (tmp_path / "link").symlink_to(tmp_path / "web")
    (tmp_path / "web" / "run").mkdir()

    def listed(path: str, workdir: str) -> list[str]:
        listing = list_corpus(Corpus(paths=[str(tmp_path / path)]), workdir=str(tmp_path / workdir))
        return [os.path.relpath(url, tmp_path) for url, _ in listing.files]

    for path, workdir in [("web", "web/run"), ("web", "web"), ("link", "web/run"), ("web", "link/run"), ("w*", "web/run")]:
        with pytest.raises(InputError, match="choose a workdir outside"):
            listed(path, workdir)
    for path, workdir in [("web/a.jsonl", "web"), ("web/*.jsonl", "link"), ("web/a.jsonl", ".")]:
        with pytest.raises(InputError, match="choose another workdir"):
            listed(path, workdir)
    assert listed("web/*.jsonl", "web/run") == ["web/a.jsonl"]
    assert listed("web", "web-run") == ["web/a.jsonl"]


def test_a_saved_dataset_is_pointed_to_its_reader_and_has_no_place_in_its_values(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Image, Value

    features = Features({"id": Value("string"), "text": Value("string"), "image": Image()})
    rows = {"id": ["a"], "text": ["x"], "image": [{"bytes": b"GIF", "path": "/home/someone/a.gif"}]}
    found = []
    for place in ("one", "deep/other"):
        folder = tmp_path / place / "web"
        Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
        with pytest.raises(InputError, match="load_from_disk: true"):
            list_files(Corpus(paths=[str(folder)]))
        corpus = Corpus(paths=[str(folder)], reader={"type": "HuggingFaceDatasetReader", "load_from_disk": True})
        unsupported_columns: dict[str, str] = {}
        read = list(read_rows(InputFile(0, str(folder), "dataset", ""), corpus, unsupported_columns=unsupported_columns))
        found.append((read, unsupported_columns))
    assert found[0] == found[1]
    assert documents(found[0][0]) == {"a": ("x", {})}
    assert found[0][1] == {"image": "Image"}


# --- what is kept, and how much is held ---


def test_metadata_is_chosen_and_bounded(tmp_path: Path) -> None:
    line = {
        "url": "http://a.org/1",
        "text": "x",
        "html": "p" * 100_000,
        "metadata": {"lang": "en"},
        "day": datetime.date.min.isoformat(),
    }
    path = write(tmp_path / "a.jsonl", json.dumps(line) + "\n")
    read = functools.partial(rows_of, path, id_key="url")
    [row] = read()
    assert row.problem is not None
    assert "'html'" in row.problem.detail
    assert "prepare.metadata_bytes" in row.problem.detail
    assert documents(read(Prepare(metadata="none"))) == {"http://a.org/1": ("x", {})}
    kept = documents(read(Prepare(metadata=["url", "lang"])))["http://a.org/1"][1]
    assert kept == {"lang": "en", "url": "http://a.org/1"}  # the id is metadata too, as its column has another name
    assert len(documents(read(Prepare(metadata_bytes=200_000)))["http://a.org/1"][1]["html"]) == 100_000
    scan = scan_file(InputFile(0, str(path), "jsonl", ""), Corpus(paths=["x"], id_key="url"), Prepare(metadata=["url", "lnag"]))
    assert scan.missing_columns == {"lnag"}


def test_bad_rows_are_handed_on_in_pieces_and_end_the_scan_once_they_are_too_many(tmp_path: Path) -> None:
    count = 3 * QUARANTINE_PIECE_ROWS + 7
    path = write(tmp_path / "a.jsonl", "".join(f'{{"id": {n}, "content": "x"}}\n' for n in range(count)))
    file, corpus = InputFile(0, str(path), "jsonl", ""), Corpus(paths=["x"])
    pieces: dict[int, pa.Table] = {}
    scan = scan_file(file, corpus, Prepare(), quarantine=pieces.__setitem__)
    assert [len(pieces[number]) for number in range(4)] == [QUARANTINE_PIECE_ROWS] * 3 + [7]
    assert pa.concat_tables(pieces.values())["row"].to_pylist() == list(range(count))
    assert (scan.num_rows, scan.reasons, len(scan.quarantine), scan.stopped_early) == (
        count,
        {"missing_text": count},
        QUARANTINE_PIECE_ROWS,
        False,
    )
    stopped = scan_file(file, corpus, Prepare(), max_bad_rows=100)
    assert (stopped.stopped_early, stopped.num_rows) == (True, 101)
    assert (
        scan_file(file, corpus, Prepare(), max_bad_rows=sys.float_info.max).num_rows == 10_000
    )  # no row has a text: text_key is wrong


_HEAVY = """
import json, resource, sys
from pipeline.sources.chunks import cut_chunks, scan_file
from pipeline.config import Corpus, Prepare
from pipeline.sources.parts import WRITE_OPTIONS, count_part
from pipeline.sources import InputFile
from pipeline.storage import Folder
from pipeline.tables import WINDOWS
from pipeline.text.windows import WindowCutter
file, corpus, prepare = InputFile(0, sys.argv[1], "jsonl", ""), Corpus(paths=["x"]), Prepare(metadata_bytes=2 << 20)
cutter = WindowCutter(sys.argv[2], 64)
scan = scan_file(file, corpus, prepare)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for chunk, table in cut_chunks(file, corpus, prepare, cutter, range(scan.num_chunks)):
    Folder(sys.argv[3]).write_table(f"part-{chunk}.parquet", table, WINDOWS, count_part(table), **WRITE_OPTIONS)
    read = Folder(sys.argv[3]).read_table(f"part-{chunk}.parquet")
    assert read.equals(table.cast(WINDOWS)), "what was written"
print(len(table), count_part(table)["all_bytes"] >> 20, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_large_metadata_of_a_document_of_many_windows_is_held_once(tmp_path: Path, tokenizer: str) -> None:
    text = " ".join(["word"] * 200_000)
    path = write(tmp_path / "a.jsonl", json.dumps({"id": "a", "text": text, "html": "p" * 1_900_000}) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", _HEAVY, str(path), tokenizer, str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    windows, all_mb, grown_mb = map(float, done.stdout.split())
    assert windows > 3000
    assert all_mb > 5000  # written out row by row
    assert grown_mb < 400


def test_a_web_server_that_compresses_what_it_serves_is_understood(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"id": n, "text": f"text {n}"}).encode() + b"\n" for n in range(2000))
    bodies = {
        "/encoded.jsonl.gz": gzip.compress(lines),
        "/encoded.jsonl": gzip.compress(lines),
        "/plain.jsonl.gz": gzip.compress(lines),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            data = bodies[self.path]
            self.send_response(200)
            if "encoded" in self.path:
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for path in bodies:
            url = f"http://127.0.0.1:{server.server_address[1]}{path}"
            assert digest(url, "jsonl")
            rows = list(read_rows(InputFile(0, url, "jsonl", ""), Corpus(paths=[url])))
            assert outcomes(rows) == ["good"] * 2000, path
        server.shutdown()
