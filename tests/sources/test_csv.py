"""CSV: merged rows are quarantined whole, and valid texts of several lines are kept."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.sources import Row
from tests.support.rows import read_corpus_rows


def rows_of_csv(folder: Path, lines: Iterable[str], **settings: Any) -> list[Row]:
    path = folder / "a.csv"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return read_corpus_rows(path, **settings)


def outcomes(rows: list[Row]) -> list[str]:
    return [row.problem.reason if row.problem else row.skipped or "good" for row in rows]


def numbered(first: int, last: int, form: str = "{0},text of row {0}") -> list[str]:
    return [form.format(number) for number in range(first, last)]


@pytest.mark.parametrize(
    ("header", "form", "inside"),
    [
        ("id,text", "{0},{1}row {0}", numbered(11, 30)),
        ("id,text", "{0},{1}row {0}", [*numbered(11, 20), "", *numbered(20, 30)]),
        ("id,text", "{0},{1}row {0}", [*numbered(11, 20), "20,a,b", "odd", *numbered(20, 30)]),
        ("id,text", "{0},{1}row {0}", numbered(11, 12)),
        ("id,text", "{0},{1}row {0}", []),
        ("id,text", "doc {0},{1}row {0}", numbered(11, 30, "doc {0},row {0}")),
        ("text,id", "{1}row {0},{0}", numbered(11, 13, "row {0},{0}")),
        (None, "{1}row {0},en", numbered(11, 30, "row {0},en")),
        (None, "{1}row {0},en", numbered(11, 12, "row {0},en")),
    ],
)
@pytest.mark.parametrize("first", [0, 10])
def test_rows_merged_by_a_missing_quote_are_one_bad_row(
    tmp_path: Path, header: str | None, form: str, inside: list[str], first: int
) -> None:
    stray = form.replace("{1}", "").format(30)
    stray = stray.replace("row 30", 'row 30"')
    before, after = numbered(10 - first, 10, form.replace("{1}", "")), numbered(31, 50, form.replace("{1}", ""))
    lines = [header or "text,lang", *before, form.format(10, '"'), *inside, stray, *after]
    rows = rows_of_csv(tmp_path, lines, id_key="id" if header else None)
    assert outcomes(rows) == ["good"] * first + ["broken_quotes"] + ["good"] * 19
    [bad] = [row.problem for row in rows if row.problem]
    assert str(len(inside) + 1) in bad.detail
    assert "merged" in bad.detail


@pytest.mark.parametrize(
    "text",
    [
        "Come\nO, wind\nGo, storm\nLo, rain",
        "An example:\na,b\n1,2\n3,4\nthat was it",
        "Population:\n2500000,people",
        "Dear Sir,\nthank you, really\nyours",
        'She said\n"no", he said\n"yes", both',
    ],
)
def test_a_text_with_commas_is_kept_where_its_lines_have_no_ids(tmp_path: Path, text: str) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(["10", text])
    rows = rows_of_csv(tmp_path, ["id,text", *numbered(0, 10), out.getvalue().rstrip("\n"), *numbered(11, 30)])
    assert [row.document.text for row in rows if row.document and row.document.id == "10"] == [text]
    assert len(rows) == 30
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow([text, "en"])
    rows = rows_of_csv(tmp_path, ["text,lang", out.getvalue().rstrip("\n"), *numbered(0, 9, "row {0},en")], id_key=None)
    assert outcomes(rows) == ["good"] * 10


@given(texts=st.lists(st.text("a1,\n", min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=12))
def test_a_valid_record_is_a_document_or_one_bad_row_and_never_torn(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([("id", "text"), *enumerate(texts)])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_text(out.getvalue(), newline="")
    rows = read_corpus_rows(path)
    assert len(rows) == len(texts)
    for number, row in enumerate(rows):
        if row.document:
            assert (row.document.id, row.document.text) == (str(number), texts[number])
        else:
            assert row.problem is not None
            assert row.problem.reason == "broken_quotes"


def test_merged_rows_do_not_end_the_distrust_after_an_unclosed_quote(tmp_path: Path) -> None:
    merged = ['20,"open', *numbered(21, 25), '25,closed"']
    rows = rows_of_csv(tmp_path, ["id,text", '0,"a" b', *numbered(1, 4), *merged, *numbered(26, 40)])
    assert outcomes(rows) == ["broken_quotes"] * 5 + ["good"] * 14


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolon"), ("\t", "tab")])
def test_another_delimiter_is_named(tmp_path: Path, mark: str, name: str) -> None:
    with pytest.raises(InputError, match=rf"a\.csv.*delimiter seems to be a {name}.*only commas are supported"):
        rows_of_csv(tmp_path, [f"id{mark}text", f"1{mark}a"])
