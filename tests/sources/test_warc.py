"""WARC files: each record is a document, a bad row or skipped; the text of a page is whole or quarantined, and never garbled."""

import contextlib
import gzip
import itertools
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.sources import BAD_ROW_REASONS, SKIP_REASONS, InputFile, Row
from pipeline.sources.charsets import decode_text
from pipeline.sources.http_bodies import UndecodableError, decode_body
from pipeline.sources.listing import list_files
from pipeline.sources.readers import read_rows
from tests.support.corpora import write_warc
from tests.support.rows import make_corpus, read_corpus_rows

FRENCH = "L'été était très chaud à la forêt, où l'âne brûlé dînait. " * 8
PAGES = [
    ("http://a.org/1", "<p>Élan</p>".encode(), "text/html"),
    (
        "http://a.org/2",
        f"<p>{FRENCH}</p>".encode("latin-1"),
        "text/html",
    ),
    ("http://a.org/3", b"\x89PNG....", "image/png"),
    ("http://a.org/4", "<p>три</p>".encode(), "text/html"),
]


def outcome(row: Row) -> str:
    """The one of the three that a row is."""
    (found,) = filter(None, ("good" if row.document else "", row.problem.reason if row.problem else "", row.skipped))
    assert found in {"good", *BAD_ROW_REASONS, *SKIP_REASONS}
    return found


def text_of(row: Row) -> str | None:
    return row.document.text if row.document else None


@pytest.mark.parametrize("name", ["x.warc", "x.warc.gz"])
def test_each_record_is_a_page_or_is_skipped(tmp_path: Path, name: str) -> None:
    rows = read_corpus_rows(write_warc(tmp_path / name, *PAGES))
    assert [row.number for row in rows] == [0, 1, 2, 3, 4]
    assert list(map(outcome, rows)) == ["other_record", "good", "good", "not_a_page", "good"]
    assert text_of(rows[1]) == "<p>Élan</p>"
    assert text_of(rows[2]) == f"<p>{FRENCH}</p>"
    assert rows[1].document is not None
    assert rows[1].document.id == "<urn:uuid:http://a.org/1>"
    assert json.loads(rows[1].document.metadata) == {"url": "http://a.org/1", "date": "2026-11-20T00:00:00Z"}
    [(url, kind)] = list_files(make_corpus(tmp_path / name))
    later = list(read_rows(InputFile(0, url, kind, ""), make_corpus(tmp_path / name), first_row=2, num_rows_before=2))
    assert later == rows[2:]


@pytest.mark.parametrize("name", ["x.warc", "x.warc.gz"])
def test_a_warc_that_was_cut_anywhere_is_an_error_and_not_an_end(tmp_path: Path, name: str) -> None:
    whole = write_warc(tmp_path / name, *PAGES).read_bytes()
    read = []
    for length in range(1, len(whole)):
        (tmp_path / name).write_bytes(whole[:length])
        with contextlib.suppress(InputError):
            read.append((length, len(read_corpus_rows(tmp_path / name))))
    # What is left is read where it ends between two records: after a member, or in the blank lines.
    assert [rows for _, rows in read] == sorted(rows for _, rows in read)
    if name.endswith(".gz"):
        assert len(read) == len(PAGES)
    for length, rows in read:
        text = whole[:length] if name == "x.warc" else gzip.decompress(whole[:length])
        assert text.rstrip(b"\r\n").endswith((b"info", *(content for _, content, _ in PAGES)))
        assert rows == 1 + sum(content in text for _, content, _ in PAGES)


def test_text_of_a_wet_file(tmp_path: Path) -> None:
    pages = [("http://a.org", b"plain words", "text/plain"), ("http://b.org", b"%PDF", "application/pdf")]
    rows = read_corpus_rows(write_warc(tmp_path / "x.warc.wet.gz", *pages, wet=True))
    assert list(map(outcome, rows)) == ["other_record", "good", "not_a_page"]
    assert text_of(rows[1]) == "plain words"


def test_pages_of_older_crawls_are_known_by_their_bytes_and_by_what_the_server_said(tmp_path: Path) -> None:
    page = b"<html><body><p>" + b"An ordinary sentence of plain words. " * 20 + b"caf\xe9</p></body></html>"
    pages = [
        ("http://a.org", page, "text/html; charset=x"),
        ("http://b.org", b"", "text/html"),
        ("http://c.org", page[-30:], "image/png"),
        ("http://d.org", b"<!DOCTYPE html>" + page.replace(b"\xe9", b"e"), "text/plain"),
        ("http://e.org", b"words of a fragment", "text/html"),
        ("http://f.org", "<html>wide".encode("utf-16-le"), "text/html; charset=utf-16"),
        ("http://g.org", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", "text/html"),
        ("http://h.org", gzip.compress(page)[:40], "text/html", "Content-Encoding: gzip"),
        ("http://i.org", gzip.compress(page)[:40], "image/png", "Content-Encoding: gzip"),
    ]
    rows = read_corpus_rows(write_warc(tmp_path / "x.warc", *pages, identified=False))
    outcomes = ["good", "not_a_page", "not_a_page", "good", "good", "good", "not_a_page", "undecodable", "not_a_page"]
    assert list(map(outcome, rows[1:])) == outcomes
    assert text_of(rows[1]) == page.decode("latin-1")
    assert text_of(rows[6]) == "<html>wide"


def test_a_page_that_no_charset_fits_is_a_bad_row(tmp_path: Path) -> None:
    noise = b"<p>" + bytes(range(128, 256)) * 3 + b"\x81\x8d\x8f\x90\x9d"
    bad, good = read_corpus_rows(write_warc(tmp_path / "x.warc", ("http://a.org", noise, "text/html; charset=koi9"), PAGES[0]))[1:]
    assert outcome(good) == "good"
    assert bad.problem is not None
    assert (bad.problem.reason, bad.problem.id) == ("undecodable", "<urn:uuid:http://a.org>")
    assert "koi9" in bad.problem.detail


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def chunked(data: bytes, size: int = 40) -> bytes:
    cut = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x;x=y\r\n%b\r\n" % (len(chunk), chunk) for chunk in cut) + b"0\r\nTrailer: x\r\n\r\n"


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "X-GZip": gzip.compress,
    "deflate": zlib.compress,
    "deflate ": raw_deflate,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "gzip, br": lambda data: brotli.compress(gzip.compress(data)),
    "br,gzip,identity": lambda data: gzip.compress(brotli.compress(data)),
}
JAPANESE = "庭の土に種をまき、朝ごとに水をやり、芽が出るのを待つ。雨の日は帆船の甲板に座り、港の灯を見る。"
RUSSIAN = "В саду растут тюльпаны и розы, корабль стоит у причала, а мост соединяет два берега реки. "
SIMPLIFIED = "花园里种着郁金香和玫瑰，帆船停在港口，桥连接河的两岸，银币放在盒子里。"
CHARSETS = {
    "utf-8": JAPANESE,
    "utf-16": JAPANESE,
    "utf-16-le": FRENCH,
    "utf-16-be": JAPANESE,
    "utf-32-le": RUSSIAN,
    "utf-7": FRENCH,
    "iso-2022-jp": JAPANESE,
    "iso-2022-kr": "정원에는 튤립과 장미가 자라고, 배는 항구에 머문다. ",
    "hz": SIMPLIFIED,
    "shift_jis": JAPANESE,
    "euc-jp": JAPANESE,
    "gbk": SIMPLIFIED,
    "gb18030": SIMPLIFIED,
    "big5": "花園裡種著鬱金香和玫瑰，帆船停在港口，橋連接河的兩岸，銀幣放在盒子裡。",
    "euc-kr": "정원에는 튤립과 장미가 자라고, 배는 항구에 머문다. ",
    "koi8-r": RUSSIAN,
    "windows-1251": RUSSIAN,
    "iso-8859-5": RUSSIAN,
    "windows-1250": "Zażółć gęślą jaźń, łódź płynie po rzece, a w ogrodzie kwitną róże i tulipany. ",
    "windows-1252": f"{FRENCH} “zehn €” – ",
    "windows-1253": "Στον κήπο φυτρώνουν τουλίπες και τριαντάφυλλα, το πλοίο είναι στο λιμάνι. ",
    "windows-1254": "Bahçede laleler ve güller büyüyor, gemi limanda duruyor, köprü yakayı birleştiriyor. ",
    "windows-1255": "בגן צומחים צבעונים ושושנים, הספינה עומדת בנמל והגשר מחבר בין שתי גדות הנהר. ",
    "windows-1256": "تنمو الزنابق والورود في الحديقة، والسفينة ترسو في الميناء. ",
    "windows-874": "ในสวนมีดอกทิวลิปและกุหลาบ เรือจอดที่ท่าเรือ ",
    "latin-1": FRENCH,
}


def bytes_of(text: str, charset: str) -> bytes:
    return text.encode({"windows-874": "cp874"}.get(charset, charset))


@pytest.mark.parametrize("declared", ["header", "meta", "nowhere"])
def test_pages_in_each_encoding_and_charset_are_whole_or_quarantined(tmp_path: Path, declared: str) -> None:
    pages, texts = [], []
    for (encoding, pack), (charset, text), is_chunked in itertools.product(ENCODINGS.items(), CHARSETS.items(), (False, True)):
        meta = f'<meta charset="{charset}">' if declared == "meta" else ""
        page = f"<html><head>{meta}<title>x</title></head><body><p>{text}</p></body></html>"
        kind = f'text/html; charset="{charset}"' if declared == "header" else "text/html"
        body = pack(bytes_of(page, charset))
        lines = [f"Content-Encoding: {encoding}", *(["Transfer-Encoding: chunked"] if is_chunked else [])]
        pages.append((f"http://a.org/{len(pages)}", chunked(body) if is_chunked else body, kind, *lines))
        texts.append((charset, page))
    rows = read_corpus_rows(write_warc(tmp_path / "x.warc.gz", *pages))[1:]
    assert len(rows) == len(pages)
    for row, (charset, page) in zip(rows, texts, strict=True):
        if declared != "header" and charset == "utf-7":
            # Python reads it where a meta says so; of what is not declared it is the ASCII that it also is.
            assert text_of(row) == (page if declared == "meta" else bytes_of(page, charset).decode())
        else:
            assert text_of(row) == page, charset


@given(
    st.text(st.characters(codec="cp1251", exclude_characters="\0"), min_size=1, max_size=200),
    st.sampled_from(sorted(ENCODINGS)),
    st.sampled_from(["utf-8", "utf-16", "windows-1251", "gb18030", "utf-7"]),
    st.booleans(),
)
def test_a_declared_page_comes_out_whole_or_not_at_all(text: str, encoding: str, charset: str, is_plain: bool) -> None:
    page = bytes_of(text, charset)
    body = page if is_plain else ENCODINGS[encoding](page)
    try:
        read = decode_text(decode_body(body, [], [encoding]), charset)
    except UndecodableError:
        return
    # Bytes that are UTF-8 as well are taken for it: one of the two has to be wrong, and that is rarely it.
    # A plain body of one or two bytes can be a complete brotli stream of nothing.
    assert read in (text, text.removeprefix("\ufeff"), page.decode("utf-8", "replace"), *([""] if is_plain else []))


@given(st.binary(max_size=300), st.sampled_from([*ENCODINGS, "compress", "utf-8"]), st.booleans())
def test_any_bytes_are_a_text_or_an_error_that_says_why(body: bytes, encoding: str, is_chunked: bool) -> None:
    with contextlib.suppress(UndecodableError):
        decode_text(decode_body(body, ["chunked"] * is_chunked, [encoding]), None)


@pytest.mark.parametrize("encoding", sorted(ENCODINGS.keys() - {"identity"}))
def test_a_compressed_page_that_was_cut_is_quarantined_with_its_encoding(tmp_path: Path, encoding: str) -> None:
    whole = ENCODINGS[encoding](f"<html><p>{FRENCH}</p></html>".encode())
    lengths = range(1, len(whole), 7)
    pages = [("http://a.org", whole[:length], "text/html", f"Content-Encoding: {encoding}") for length in lengths]
    for row, length in zip(read_corpus_rows(write_warc(tmp_path / "x.warc", *pages))[1:], lengths, strict=True):
        if length < len(whole) - 8:
            assert row.problem is not None
            assert row.problem.reason == "undecodable"
            assert encoding.split(",")[-1].replace("identity", "gzip").strip().lower() in row.problem.detail


@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-8", "none", "compress", "aws-chunked"])
def test_a_plain_page_under_a_wrong_header_is_read(tmp_path: Path, encoding: str) -> None:
    page = f"<p>{FRENCH}</p>"
    lines = [f"Content-Encoding: {encoding}", "Transfer-Encoding: chunked"]
    pages = [(f"http://a.org/{charset}", page.encode(charset), "text/html", *lines) for charset in ("utf-8", "latin-1")]
    assert list(map(text_of, read_corpus_rows(write_warc(tmp_path / "x.warc", *pages))[1:])) == [page, page]


@pytest.mark.parametrize(
    ("body", "lines", "message"),
    [
        (b"\x1f\x9d\x90<\xc0\xa0\x01\x02", ["Content-Encoding: compress"], "compress: unknown"),
        (gzip.compress(gzip.compress(b"<p>twice")), ["Content-Encoding: gzip"], "charset"),
        (gzip.compress(b"<p>once"), ["Content-Encoding: br"], "br: "),
        (gzip.compress(b"<p>never said"), [], "charset"),
        (chunked(b"<p>words")[:9], ["Transfer-Encoding: chunked"], "chunked: truncated chunk at byte"),
        (b"3\r\n<p>\r\nnow what\r\n", ["Transfer-Encoding: chunked"], "chunked: no chunk header at byte 8"),
        (b"\xef\xbb\xbf<p>caf\xe9", [], "byte order mark"),
        ("<p>été, été, é".encode() + b"\xe9 \xff", [], "UTF-8 with 2 invalid byte sequences"),
    ],
    ids=["compress", "gzip-twice", "not-br", "not-said", "cut-chunk", "no-chunk", "mark", "damaged"],  # gzip's bytes have the time
)
def test_a_page_that_cannot_be_read_says_why(tmp_path: Path, body: bytes, lines: list[str], message: str) -> None:
    (row,) = read_corpus_rows(write_warc(tmp_path / "x.warc", ("http://a.org", body, "text/html; charset=utf-8", *lines)))[1:]
    assert row.problem is not None
    assert row.problem.reason == "undecodable"
    assert message in row.problem.detail


@pytest.mark.parametrize(
    ("page", "charset", "header"),
    [
        ("<p>Füße</p>", "utf-8", "iso-8859-1"),  # the default of many servers
        (f"<p>{RUSSIAN}", "koi8-r", "utf-8"),
        (f"<p>{RUSSIAN}", "windows-1251", "x-unknown"),
        (f"<meta charset=windows-1251><p>{RUSSIAN}", "windows-1251", "iso-8859-1"),  # the detector is for the page
        (f"<meta charset=utf-16><p>{RUSSIAN}", "utf-8", None),
        (f'<meta http-equiv="Content-Type" content="text/html; charset=koi8-r"><p>{RUSSIAN[:9]}', "koi8-r", None),
        (f'<?xml version="1.0" encoding="koi8-r"?><p>{RUSSIAN[:9]}', "koi8-r", None),
        ("<p>“zehn €”</p>", "cp1252", "iso-8859-1"),
        ("<p>plain", "ascii", "utf-16"),
        ("<p>①②</p>", "cp932", "Shift_JIS"),
    ],
)
def test_the_charset_that_fits_wins_over_the_one_that_is_said(page: str, charset: str, header: str | None) -> None:
    assert decode_text(page.encode(charset), header) == page


def test_a_page_that_the_crawler_cut_ends_before_the_character_that_is_cut(tmp_path: Path) -> None:
    path = write_warc(tmp_path / "x.warc", ("http://a.org", "<p>né".encode()[:-1], "text/html; charset=utf-8"))
    assert outcome(read_corpus_rows(path)[1]) == "undecodable"
    path.write_bytes(path.read_bytes().replace(b"WARC-Date:", b"WARC-Truncated: length\r\nWARC-Date:"))
    assert text_of(read_corpus_rows(path)[1]) == "<p>n"


def test_the_header_of_an_encoding_may_come_several_times(tmp_path: Path) -> None:
    lines = ["Content-Encoding: gzip", "content-encoding: br"]
    page: Any = ("http://a.org", brotli.compress(gzip.compress(b"<p>words")), "text/html", *lines)
    assert text_of(read_corpus_rows(write_warc(tmp_path / "x.warc", page))[1]) == "<p>words"


def test_a_response_without_a_uri_is_a_bad_row_and_reading_goes_on(tmp_path: Path) -> None:
    path = write_warc(tmp_path / "x.warc", *PAGES[:2])
    path.write_bytes(path.read_bytes().replace(b"WARC-Target-URI: http://a.org/1\r\n", b""))
    rows = read_corpus_rows(path)
    assert list(map(outcome, rows)) == ["other_record", "bad_value", "good"]
    assert rows[1].problem is not None
    assert rows[1].problem.id == "<urn:uuid:http://a.org/1>"
    assert "WARC-Target-URI" in rows[1].problem.detail


ARC = b"filedesc://x.arc 0.0.0.0 20200101000000 text/plain 76\n1 0 InternetArchive\nURL IP-address Archive-date\n\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html><p>page</p></html>\n", "byte 0 is not .*'<html><p>page"),
        (ARC, "byte 0 is not .*'filedesc://x.arc.*ARC"),
        (b"hello\n", "byte 0 is not .*'hello'"),
    ],
)
def test_a_file_that_is_not_warc_is_described_by_its_first_characters(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.warc"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_corpus_rows(path)
    assert "ends within" not in str(caught.value)


def test_bytes_between_records_are_an_error_with_their_place(tmp_path: Path) -> None:
    whole = write_warc(tmp_path / "x.warc", *PAGES).read_bytes()
    at = whole.index(b"WARC/1.0", len(whole) // 2)
    for damaged in (whole[:at] + b"garbage\r\n" + whole[at:], whole[:at] + b"garbage"):
        (tmp_path / "x.warc").write_bytes(damaged)
        with pytest.raises(InputError, match=rf"byte {at} is not the beginning of a WARC record: 'garbage") as caught:
            read_corpus_rows(tmp_path / "x.warc")
        assert "ends within" not in str(caught.value)
    (tmp_path / "x.warc").write_bytes(whole.replace(b"\r\n", b"\n"))  # Content-Length then counts more than there is
    with pytest.raises(InputError, match=r"byte \d+ is not the beginning of a WARC record"):
        read_corpus_rows(tmp_path / "x.warc")


def test_a_lone_surrogate_in_utf_7_is_not_decoded() -> None:
    assert decode_text(b"<p>hello +2AA-, world</p>", "utf-7") == "<p>hello +2AA-, world</p>"
    assert decode_text(b"<p>hello +2D3eAA-</p>", "utf-7") == "<p>hello \U0001f600</p>"


@pytest.mark.parametrize("packed", [False, True])
def test_a_zstd_dictionary_in_the_first_frame_is_used(tmp_path: Path, packed: bool) -> None:
    whole = write_warc(tmp_path / "x.warc", *PAGES).read_bytes()
    dictionary = zstandard.train_dictionary(2048, [b"%d WARC-Type: response %d" % (n, n * n) * 9 for n in range(300)])
    records = [b"WARC/1.0" + record for record in whole.split(b"WARC/1.0")[1:]]
    frames = b"".join(zstandard.ZstdCompressor(dict_data=dictionary).compress(record) for record in records)
    content = zstandard.compress(dictionary.as_bytes()) if packed else dictionary.as_bytes()
    skippable = b"\x5d\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content
    path = tmp_path / "x.warc.zst"
    path.write_bytes(skippable + frames)
    assert list(map(outcome, read_corpus_rows(path))) == ["other_record", "good", "good", "not_a_page", "good"]
    path.write_bytes(frames)
    with pytest.raises(InputError, match=r"dictionary.*0x184D2A5D"):
        read_corpus_rows(path)
    path.write_bytes(skippable[:100])
    with pytest.raises(InputError, match="ends in the middle"):
        read_corpus_rows(path)
    path.write_bytes(b"\x5d\x2a\x4d\x18\x03\0\0\0abc" + zstandard.compress(whole))  # no dictionary, so it is skipped
    assert len(read_corpus_rows(path)) == 5
