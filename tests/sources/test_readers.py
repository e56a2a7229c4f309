"""Reading: every kind of bad input, with real files, and what must come through unchanged."""

import datetime
import gzip
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.config import Corpus
from pipeline.errors import InputError, StorageError
from pipeline.sources import BAD_ROW_REASONS, InputFile, MetadataColumns, Row, json_lines
from pipeline.sources.input_files import digest
from pipeline.sources.listing import list_files
from pipeline.sources.readers import read_rows
from tests.support.fake_hub import FakeHub
from tests.support.rows import make_corpus, read_corpus_rows


def reasons_of(rows: list[Row]) -> list[str]:
    return [row.problem.reason if row.problem else "good" for row in rows]


def jsonl(path: Path, *lines: Any) -> Path:
    path.write_bytes(b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "a", "text": "cut of', "not_json"),
        (b"not json at all", "not_json"),
        (b'{"id": "a", "text": "\\ud800"}', "not_json"),
        (b'{"id": "a", "text": "\xff\xfe"}', "invalid_utf8"),
        (b'["a", "b"]', "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"null", "not_an_object"),
        ({"id": "a"}, "missing_text"),
        ({"id": "a", "text": None}, "missing_text"),
        ({"id": "a", "text": 3}, "text_not_string"),
        ({"id": "a", "text": ["x"]}, "text_not_string"),
        ({"id": "a", "text": ""}, "empty_text"),
        ({"id": "a", "text": " \t\r\n\u3000"}, "empty_text"),
        ({"id": "a", "text": "x\0y"}, "nul_byte"),
        ({"id": "a\0", "text": "x"}, "nul_byte"),
        (b'{"id": "a", "text": "x\0y"}', "not_json"),
        ({"text": "x"}, "missing_id"),
        ({"id": None, "text": "x"}, "missing_id"),
        ({"id": "", "text": "x"}, "missing_id"),
        ({"id": True, "text": "x"}, "id_not_string"),
        ({"id": 1.5, "text": "x"}, "id_not_string"),
        ({"id": ["a"], "text": "x"}, "id_not_string"),
    ],
)
def test_a_bad_line_is_one_bad_row_and_its_neighbours_are_good(tmp_path: Path, line: Any, reason: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"id": "0", "text": "before"}, line, {"id": "2", "text": "after"})
    rows = read_corpus_rows(path)
    assert reasons_of(rows) == ["good", reason, "good"]
    assert [row.number for row in rows] == [0, 1, 2]
    assert rows[1].problem is not None
    assert reason in BAD_ROW_REASONS
    assert len(rows[1].problem.excerpt) <= 200


def test_a_bad_row_keeps_its_id_where_it_has_one(tmp_path: Path) -> None:
    rows = read_corpus_rows(jsonl(tmp_path / "a.jsonl", {"id": 7, "text": ""}, {"text": "x"}))
    assert [row.problem.id for row in rows if row.problem] == ["7", None]


def test_text_is_kept_byte_for_byte(tmp_path: Path) -> None:
    text = "\ufeff  a\r\nb\u2028c\u0085d\x0be\x1cf\n\u0301 👩‍👩‍👧 漢字\t "
    path = tmp_path / "a.jsonl"
    path.write_bytes((json.dumps({"id": "a", "text": text}, ensure_ascii=False) + "\r\n").encode())
    [row] = read_corpus_rows(path)
    assert row.document is not None
    assert row.document.text == text


def test_byte_order_mark_and_blank_lines_are_passed_over_and_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": 1, "text": "one"}\n\n \r\n{"id": 2, "text": "two"}')
    rows = read_corpus_rows(path)
    assert [(row.number, row.document.id) for row in rows if row.document] == [(0, "1"), (3, "2")]
    assert [(row.number, row.skipped) for row in rows if not row.document] == [(1, "blank_line"), (2, "blank_line")]


def test_other_columns_become_metadata_in_input_order(tmp_path: Path) -> None:
    line = {"z": 1, "id": "a", "b": {"k": [1, None]}, "text": "x", "a": "é"}
    [row] = read_corpus_rows(jsonl(tmp_path / "web.part.jsonl", line))
    assert row.document is not None
    assert row.document.metadata == '{"z":1,"b":{"k":[1,null]},"a":"é"}'
    assert row.document.source == "web.part"


def test_a_metadata_object_is_merged_and_a_source_column_is_taken_out(tmp_path: Path) -> None:
    nested = {"id": "a", "text": "x", "year": 1, "metadata": {"source": "wiki", "year": 2, "lang": "en"}}
    as_text = {"id": "b", "text": "x", "source": "news", "metadata": '{"lang":"de"}'}
    no_object = {"id": "c", "text": "x", "source": 5, "metadata": "{free text"}
    rows = read_corpus_rows(jsonl(tmp_path / "a.jsonl", nested, as_text, no_object))
    assert [(row.document.source, json.loads(row.document.metadata)) for row in rows if row.document] == [
        ("wiki", {"year": 1, "lang": "en"}),
        ("news", {"lang": "de"}),
        ("a", {"source": 5, "metadata": "{free text"}),
    ]


def test_without_id_key_rows_are_numbered_and_an_id_column_is_metadata(tmp_path: Path) -> None:
    rows = read_corpus_rows(jsonl(tmp_path / "a.jsonl", {"id": "a", "text": "x"}, b"bad", {"text": "y"}), number=3, id_key=None)
    assert [(row.document.id, row.document.metadata) for row in rows if row.document] == [
        ("00003-0", '{"id":"a"}'),
        ("00003-2", "{}"),
    ]


def test_limit_bounds_the_rows_of_a_file(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *({"id": i, "text": "x"} for i in range(9)))
    assert len(read_corpus_rows(path, limit=4)) == 4
    assert len(read_corpus_rows(path, limit=40)) == 9


LINES = b"".join(json.dumps({"id": i, "text": os.urandom(300).hex()}).encode() + b"\n" for i in range(2000))


def packed(ending: str) -> bytes:
    return {"": LINES, ".gz": gzip.compress(LINES), ".zst": zstandard.compress(LINES)}[ending]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_files_of_several_frames_are_read_whole(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(packed(ending) * 2)
    assert len(read_corpus_rows(path)) == 4000


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["truncated", "last byte gone", "corrupt", "other format", "no bytes"])
def test_a_damaged_stream_is_an_error_that_names_file_row_and_mend(tmp_path: Path, ending: str, damage: str) -> None:
    data = packed(ending)
    middle = len(data) // 2
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(
        {
            "truncated": data[:middle],
            "last byte gone": data[:-1],
            "corrupt": data[:middle] + bytes(200) + data[middle + 200 :],
            "other format": LINES,
            "no bytes": b"",
        }[damage]
    )
    with pytest.raises(InputError, match=r"a\.jsonl.*(replace the file|remove it from paths)") as caught:
        rows_of_stream(path)
    assert "\n" not in str(caught.value)
    if damage == "truncated":
        assert "beyond row" in str(caught.value)


def rows_of_stream(path: Path) -> list[Row]:
    corpus = make_corpus(path)
    return list(read_rows(InputFile(0, str(path), "jsonl", ""), corpus))


def test_rows_before_a_cut_come_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packed(".zst")[: len(packed(".zst")) // 2])
    rows = read_rows(InputFile(0, str(path), "jsonl", ""), make_corpus(path))
    assert reasons_of([next(rows) for _ in range(500)]) == ["good"] * 500
    with pytest.raises(InputError, match="beyond row"):
        list(rows)


def test_a_missing_file_is_the_users_mistake_and_a_failing_disk_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="No such file"):
        rows_of_stream(tmp_path / "none.jsonl")
    from datatrove.io import DataFolder

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(DataFolder, "open", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        rows_of_stream(tmp_path / "a.jsonl")


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_parquet_types_of_text_and_metadata(tmp_path: Path) -> None:
    texts = ["one", "two\r\n", "two\r\n"]
    others = {
        "id": pa.array([1, 2, 3], pa.int64()),
        "when": pa.array([0, 1, None], pa.timestamp("ns")),
        "price": pa.array([Decimal("1.50"), None, None]),
        "score": [1.0, float("nan"), None],
        "raw": [b"\xff", b"a", None],
        "day": [datetime.date(2020, 1, 2), None, None],
    }
    seen = []
    for name, column in [
        ("string", pa.array(texts)),
        ("large", pa.array(texts, pa.large_string())),
        ("dictionary", pa.array(texts).dictionary_encode()),
        ("view", pa.array(texts, pa.string_view())),
    ]:
        rows = read_corpus_rows(parquet(tmp_path / f"{name}.parquet", {"text": column, **others}))
        seen.append([(row.document.id, row.document.text, row.document.metadata) for row in rows if row.document])
    assert seen == [seen[0]] * 4
    assert [text for _, text, _ in seen[0]] == texts
    assert json.loads(seen[0][1][2]) == {
        "when": "1970-01-01 00:00:00.000000001",
        "price": None,
        "score": None,
        "raw": "a",
        "day": None,
    }
    assert seen[0][0][2].startswith(
        '{"when":"1970-01-01 00:00:00.000000000","price":"1.50","score":1.0,"raw":"\\\\xff","day":"2020-01-02"'
    )


def test_parquet_rows_are_validated_one_by_one(tmp_path: Path) -> None:
    invalid = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"ok"]).buffers())
    text = pa.concat_arrays([pa.array(["good", None, "", " ", "n\0l"]), invalid])
    ids = pa.array(["a", "b", "c", "d", "e", "f", None])
    rows = read_corpus_rows(parquet(tmp_path / "a.parquet", {"id": ids, "text": text}))
    assert reasons_of(rows) == ["good", "missing_text", "empty_text", "empty_text", "nul_byte", "invalid_utf8", "missing_id"]
    assert [row.number for row in rows] == list(range(7))


def test_parquet_of_other_columns_is_fine_and_one_without_text_or_id_is_not(tmp_path: Path) -> None:
    [row] = read_corpus_rows(parquet(tmp_path / "a.parquet", {"extra": [[1, 2]], "text": ["x"], "id": ["a"]}))
    assert row.document is not None
    assert row.document.metadata == '{"extra":[1,2]}'
    with pytest.raises(InputError, match=r"b\.parquet has no column 'text' \(text_key\); it has id, body"):
        read_corpus_rows(parquet(tmp_path / "b.parquet", {"id": ["a"], "body": ["x"]}))
    with pytest.raises(InputError, match="no column 'id'"):
        read_corpus_rows(parquet(tmp_path / "c.parquet", {"text": ["x"]}))
    assert reasons_of(read_corpus_rows(tmp_path / "c.parquet", id_key=None)) == ["good"]


def test_broken_parquet_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    columns = {"id": [str(i) for i in range(5000)], "text": [os.urandom(50).hex() for _ in range(5000)]}
    data = parquet(tmp_path / "a.parquet", columns, row_group_size=1000).read_bytes()
    for name, damaged in {
        "footer": data[:-10] + bytes(10),
        "truncated": data[: len(data) // 2],
        "no bytes": b"",
        "pages": data[: len(data) // 2] + os.urandom(4000) + data[len(data) // 2 + 4000 :],
    }.items():
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{name}.parquet.*replace the file"):
            read_corpus_rows(path)


def test_remote_files_are_read_and_identified_by_what_the_store_says(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    local = jsonl(tmp_path / "a.jsonl", {"id": "a", "text": "x"})
    fs.pipe_file("/corpus/a.jsonl", local.read_bytes())
    assert reasons_of(read_corpus_rows("memory://corpus/*.jsonl")) == ["good"]
    [(url, kind)] = list_files(make_corpus("memory://corpus"))
    assert url == "memory:///corpus/a.jsonl"
    assert "corpus" not in digest(url, kind)


HUB = """
import json, sys
from pipeline.config import Corpus
from pipeline.sources import InputFile
from pipeline.sources.input_files import digest
from pipeline.sources.listing import list_files
from pipeline.sources.readers import read_rows
corpus = Corpus(paths=sys.argv[1:])
rows = [
    [row.document.id, row.document.text, row.document.source]
    for number, (url, kind) in enumerate(list_files(corpus))
    for row in read_rows(InputFile(number, url, kind, digest(url, kind)), corpus)
]
print(json.dumps([[url for url, _ in list_files(corpus)], [digest(*one) for one in list_files(corpus)], rows]))
"""


def test_a_dataset_of_a_hub_is_listed_identified_and_read(tmp_path: Path) -> None:
    """In a process of its own, since huggingface_hub reads its settings once; the suite runs offline."""
    texts = [f"Document {number}, a line." * (number + 1) for number in range(300)]
    (tmp_path / "data" / "en").mkdir(parents=True)
    jsonl(tmp_path / "data" / "en" / "a.jsonl", *({"id": str(n), "text": text} for n, text in enumerate(texts[:100])))
    packed = jsonl(tmp_path / "plain", *({"id": str(n), "text": text} for n, text in enumerate(texts[100:200], 100)))
    (tmp_path / "data" / "en" / "b.jsonl.gz").write_bytes(gzip.compress(packed.read_bytes()))
    columns = {"id": [str(n) for n in range(200, 300)], "text": texts[200:]}
    pq.write_table(pa.table(columns), tmp_path / "data" / "z.parquet", row_group_size=10)
    (tmp_path / "README.md").write_text("# Not text of the corpus")
    with FakeHub("org/web", tmp_path) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        read = [sys.executable, "-c", HUB, "hf://datasets/org/web/data/en", "hf://datasets/org/web@main/data/*.parquet"]
        done = subprocess.run(read, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    urls, digests, rows = json.loads(done.stdout)
    assert [url.rpartition("/data/")[2] for url in urls] == ["en/a.jsonl", "en/b.jsonl.gz", "z.parquet"]
    assert len(set(digests)) == 3
    assert rows == [[str(n), text, "aabbzz"[n // 100 * 2]] for n, text in enumerate(texts)]
    assert "README.md" not in hub.reads


def test_digest_is_of_the_content_not_the_path(tmp_path: Path) -> None:
    a, b = (jsonl(tmp_path / name, {"id": "a", "text": "x"}) for name in ("a.jsonl", "b.jsonl"))
    assert digest(str(a), "jsonl") == digest(str(b), "jsonl")
    jsonl(b, {"id": "a", "text": "y"})
    assert digest(str(a), "jsonl") != digest(str(b), "jsonl")


def test_files_are_sorted_within_a_path_and_kept_in_the_order_of_paths(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/10.ndjson.gz", "b/deep/x.parquet", "b/README.md", "a/z.json.zst", "a/odd[1].jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listed = list_files(make_corpus(tmp_path / "b", tmp_path / "a" / "odd[1].jsonl", tmp_path / "a" / "*.zst"))
    assert [(os.path.relpath(url, tmp_path), kind) for url, kind in listed] == [
        ("b/10.ndjson.gz", "jsonl"),
        ("b/2.jsonl", "jsonl"),
        ("b/deep/x.parquet", "parquet"),
        ("a/odd[1].jsonl", "jsonl"),
        ("a/z.json.zst", "jsonl"),
    ]


def test_paths_that_match_nothing_twice_or_the_unknown_are_one_clear_line(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {})
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    for paths, message in [
        (["none-*.jsonl"], r"generalist\.paths: no file matches"),
        (["none.jsonl"], "no file matches"),
        (["empty"], "no file matches"),
        (["a.jsonl", "*.jsonl"], "is matched by both"),
        (["notes.txt"], "unknown ending"),
        (["*"], "unknown ending"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            list_files(make_corpus(*(tmp_path / path for path in paths)), setting="generalist.paths")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be opened"):
        list_files(make_corpus("nosuch://bucket/a.jsonl"))


def test_importing_the_readers_imports_no_datatrove_ray_torch_or_tokenizers() -> None:
    code = "import sys, pipeline.sources.readers, pipeline.text.windows\n"
    code += "print({'datatrove', 'ray', 'torch', 'tokenizers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_a_first_line_that_is_too_long_is_one_row_with_a_byte_order_mark_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 64)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"id": "0", "text": "x" * 99}).encode() + b'\n{"id": "1", "text": "short"}\n')
    rows = list(read_rows(InputFile(0, str(path), "jsonl", ""), Corpus(paths=["x"])))
    assert [(row.number, row.problem.reason if row.problem else "") for row in rows] == [(0, "line_too_long"), (1, "")]


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.csv.zst"])
def test_csv(tmp_path: Path, name: str) -> None:
    data = (
        b'\xef\xbb\xbfid,text,url\n1,"two\nlines, ""quoted""",u\n2,short\n3,too,many,fields\n4,caf\xe9,u\n5,\xc3\xa9t\xc3\xa9,u\n'
    )
    packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)(data)
    (tmp_path / name).write_bytes(packed)
    rows = read_corpus_rows(tmp_path / name)
    assert reasons_of(rows) == ["good", "wrong_fields", "wrong_fields", "invalid_utf8", "good"]
    first, *_, last = rows
    assert first.document is not None
    assert last.document is not None
    assert (first.document.id, first.document.text) == ("1", 'two\nlines, "quoted"')
    assert first.document.metadata == '{"url":"u"}'
    assert last.document.text == "été"
    assert set(reasons_of(rows)) - {"good"} <= set(BAD_ROW_REASONS)


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b", "c"], "text": ["one", "", "three"]})
    for name, opened in (("x.arrow", pa.ipc.new_file), ("s.arrow", pa.ipc.new_stream)):
        with opened(str(tmp_path / name), table.schema) as sink:
            sink.write_table(table, max_chunksize=2)
        rows = read_corpus_rows(tmp_path / name, reader={"type": "IpcReader", "stream": name == "s.arrow"})
        assert reasons_of(rows) == ["good", "empty_text", "good"]
        assert [row.number for row in rows] == [0, 1, 2]


def test_a_dataset_of_the_datasets_library(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    data = Dataset.from_dict({"id": ["a", "b", "c"], "text": ["one", "two", ""]})
    data.save_to_disk(str(tmp_path / "saved"))
    DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "both"))
    data.to_parquet(str(tmp_path / "hub" / "data.parquet"))
    saved = read_corpus_rows(tmp_path / "saved", reader={"type": "HuggingFaceDatasetReader", "load_from_disk": True})
    assert reasons_of(saved) == ["good", "good", "empty_text"]
    options = {"type": "HuggingFaceDatasetReader", "dataset_options": {"split": "train", "cache_dir": str(tmp_path / "cache")}}
    for streaming in (False, True):
        loaded = read_corpus_rows(tmp_path / "hub", reader=options | {"streaming": streaming})
        assert [row.document and row.document.text for row in loaded] == ["one", "two", None]
    with pytest.raises(InputError, match="has the splits train, test; select one"):
        read_corpus_rows(tmp_path / "both", reader={"type": "HuggingFaceDatasetReader", "load_from_disk": True})
    before = digest(str(tmp_path / "saved"), "dataset")
    Dataset.from_dict({"id": ["a"], "text": ["other"]}).save_to_disk(str(tmp_path / "other"))
    assert digest(str(tmp_path / "other"), "dataset") != before


def test_a_reader_is_for_files_of_any_name(tmp_path: Path) -> None:
    jsonl(tmp_path / "data.txt", {"id": "a", "text": "one"})
    with pytest.raises(InputError, match="or set reader"):
        read_corpus_rows(tmp_path / "data.txt")
    assert reasons_of(read_corpus_rows(tmp_path / "data.txt", reader={"type": "JsonlReader"})) == ["good"]


def array_of(path: Path, content: str | bytes, **settings: Any) -> list[Row]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_corpus_rows(path, **settings)


@pytest.mark.parametrize(
    ("element", "column"),
    [
        (b'{"id": "a", "text": "broken \\ud83d emoji"}', "text"),
        (b'{"id": "a\\ud83d", "text": "x"}', "id"),
        (b'{"id": "a", "text": "x\xed\xa0\x80"}', "text"),
        (b'{"id": "a", "text": "x\xff"}', "text"),
        (b'{"id": "a", "text": "x", "m": ["\\ud83d"], "n": 123456789012345678901234}', "m"),
        (b'{"id": "a", "text": "x", "m\\ud83d": 1}', "m\\ud83d"),
        (b'{"id": "a", "text": "x", "source": "\\ud83d"}', "source"),
    ],
)
def test_a_lone_surrogate_is_a_bad_row_that_names_the_column(tmp_path: Path, element: bytes, column: str) -> None:
    rows = array_of(tmp_path / "a.json", b"[" + element + b', {"id": "b", "text": "good"}]')
    assert reasons_of(rows) == ["invalid_utf8", "good"]
    assert rows[0].problem is not None
    assert repr(column)[1:-1].replace("\\\\", "\\") in rows[0].problem.detail
    f"{rows[0].problem.detail}{rows[0].problem.excerpt}{rows[0].problem.id}".encode()


def test_an_array_element_that_is_not_utf8_in_a_column_left_out_is_bad_too(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"id": "a", "text": "x", "m": "\xff"}, {"id": "b", "text": "\xc3\xa9"}]')
    rows = list(read_rows(InputFile(0, str(path), "jsonl", ""), make_corpus(path), columns=MetadataColumns(frozenset())))
    assert reasons_of(rows) == ["invalid_utf8", "good"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"id": "a", "text": "x", "m": NaN}', "not_json"),
        ('{"id": "a", "text": "x", "m": %s}' % ("9" * 5000), "not_json"),
        ('{"id": "a", "text": "x", "m": %s}' % ("[" * 2000 + "]" * 2000), "not_json"),
        ('{"id": "a", "text": "x", "id": "b"}', "repeated_key"),
        ("{'id': 1}", "not_json"),
        ("{}x", "not_json"),
        ("", "not_json"),
    ],
)
@pytest.mark.parametrize("between", [", ", ",\n", "\n,\n"])
def test_a_bad_element_of_an_array_is_one_bad_row_and_others_are_good(tmp_path: Path, bad: str, reason: str, between: str) -> None:
    good = ['{"id": "0", "text": "x"}', '{\n "id": "1",\n "text": "x",\n "m":\n{"id": "no", "text": "no document"}\n}']
    for number in range(3):
        elements = [*good[:number], bad, *good[number:]]
        rows = array_of(tmp_path / "a.json", "[\n" + between.join(elements) + "\n]\n")
        assert reasons_of(rows) == ["good"] * number + [reason] + ["good"] * (2 - number)
        assert [row.number for row in rows] == [0, 1, 2]


@pytest.mark.parametrize("ending", [',\n{"id": "1", "te', "\n", ',\n{"id": "1", "text": "a " b"}]'])
def test_an_array_without_an_end_is_damage_at_a_byte(tmp_path: Path, ending: str) -> None:
    begin = '\ufeff\n[{"id": "é", "text": "x"}'
    with pytest.raises(InputError, match=r"a\.json beyond row 0: the JSON array is damaged at byte (\d+)") as caught:
        array_of(tmp_path / "a.json", begin + ending)
    place = len((begin + ",\n" if ending.startswith(",") else begin + "\n").encode())
    assert f"byte {place}:" in str(caught.value)


def test_a_second_array_is_no_rows_and_says_so(tmp_path: Path) -> None:
    rows = array_of(tmp_path / "a.json", '[{"id": "a", "text": "x"}]\n[{"id": "b", "text": "x"}]\n')
    assert reasons_of(rows) == ["not_an_object"] * 2
    assert rows[1].problem is not None
    assert "array" in rows[1].problem.detail
    with pytest.raises(InputError, match="only one array"):
        array_of(tmp_path / "a.json", '[\n{"id": "a", "text": "x"}\n]\n[\n{"id": "b", "text": "x"}\n]\n')


def test_a_byte_order_mark_at_the_start_of_any_line_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a", "text": "x"}\n\xef\xbb\xbf{"id": "b", "text": "x"}\n\xef\xbb\xbf\n')
    assert [row.skipped or reasons_of([row])[0] for row in read_corpus_rows(path)] == ["good", "good", "blank_line"]
