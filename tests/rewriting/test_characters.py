"""Control and invalid characters: each class is removed, replaced, or rejects the answer, and words stay whole."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.rewriting.characters import find_broken_character, remove_controls, replace_surrogates


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("The \x1b[31mred\x1b[0m mill", "The red mill"),
        ("The \x1b[1;31mred\x1b[m mill\x1b[K", "The red mill"),
        ("\x1b]0;a title\x07The mill", "The mill"),
        ("The \x1b]8;;http://a.example\x1b\\mill\x1b]8;;\x1b\\ stood", "The mill stood"),
        ("\x1b(BThe mill", "The mill"),
        ("The \x9b31mmill", "The mill"),
        ("The mill\x07 rang\x01\x02\x7f.", "The mill rang."),
        ("The mi\x00ll", "The mi\x00ll"),
        ("One line\x0bnext\x0cpage\x85last", "One line\nnext\npage\nlast"),
        ("one\x1ctwo \x1dthree\x1e four\n\x1ffive", "one two three four\nfive"),
        ("one\x1c\x1c \x1ctwo", "one two"),
        ("tab\tline\nboth\r\nend", "tab\tline\nboth\r\nend"),
        ("می\u200cخواهم \u202bעברית\u202c \ue000 \u2028", "می\u200cخواهم \u202bעברית\u202c \ue000 \u2028"),
    ],
)
def test_control_characters_are_removed_and_words_stay_separate(answer: str, text: str) -> None:
    assert remove_controls(answer) == text


@pytest.mark.parametrize(
    ("character", "named"),
    [
        ("\x00", "U+0000"),
        ("\x08", "U+0008"),
        ("\x1b", "U+001B"),
        ("\x93", "U+0093"),
        ("\x9b", "U+009B"),
        ("\ufffd", "U+FFFD"),
        ("\ud83d", "U+D83D"),
        ("\udc00", "U+DC00"),
        ("\ufffe", "U+FFFE"),
        ("\ufdd0", "U+FDD0"),
        ("\U0002ffff", "U+2FFFF"),
    ],
)
def test_broken_characters_are_found_before_and_after_cleaning(character: str, named: str) -> None:
    assert find_broken_character(f"The {character}mill") == f"{named} at character 4"
    assert find_broken_character(remove_controls(f"The {character}mill")) == f"{named} at character 4"


@given(st.text())
@example("\x1b\x07[31m")
@example("\x1b[\x1b[31m31m")
def test_cleaned_text_is_broken_or_has_no_control_character(answer: str) -> None:
    text = remove_controls(answer)
    assert remove_controls(text) == text
    stray = {letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs")} - set("\t\n\r")
    assert bool(find_broken_character(text)) >= bool(stray)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"], exclude_characters="\ufffd")))
def test_text_without_control_characters_is_unchanged(text: str) -> None:
    assert remove_controls(text) == text
    assert not find_broken_character(text)


def test_unpaired_surrogates_are_replaced() -> None:
    assert replace_surrogates("a\ud83d b\udc00 🙂") == "a\ufffd b\ufffd 🙂"
