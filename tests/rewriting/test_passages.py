"""Passages join to the text and keep within their limit, for any text."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rewriting.passages import Passage, cut_passages


def count_words(text: str) -> int:
    return len(text.split())


def count_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


PIECES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            *("\r\n", "\r", "\n\n", "\u2028", "\x85", "\x1c", "\ufeff", "\u200b", "e\u0301\u0302", "👩‍👩‍👧🏽", "\ud800", "\x00"),
            *("Dr. Hale went home. ", 'He said: "Go! Now." ', "no.space.here", "- an item\n", "    indented\n", "| a | b |\n"),
            *(
                "今天天气很好，我们去公园。好吗？",
                "「行こう。」と言った。",
                "สวัสดีครับวันนี้อากาศดี",
                "مرحبا. كيف حالك؟ ",
                "यह अच्छा है। ",
                "한국어 문장이다. ",
            ),
        ]
    ),
    st.builds(lambda text, times: text * times, st.sampled_from(["x", " ", "\n", "ab ", "🙂", "漢", "One. "]), st.integers(1, 80)),
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


@given(TEXTS, st.integers(1, 60), st.sampled_from([len, count_bytes]))
def test_passages_join_to_the_text_and_none_exceeds_the_limit(text: str, limit: int, count: object) -> None:
    assert callable(count)
    passages = cut_passages(text, limit, count)
    assert "".join(passage.text for passage in passages) == text
    for passage in passages:
        # Both counts are additive, so the sum of a passage's sentences is what it has.
        assert passage.tokens == count(passage.text)
        assert passage.text
        assert passage.tokens <= limit or len(passage.text) == 1


@given(TEXTS, st.integers(1, 30))
def test_limits_hold_for_a_count_by_words_too(text: str, limit: int) -> None:
    passages = cut_passages(text, limit, count_words)
    assert "".join(passage.text for passage in passages) == text
    assert max((count_words(passage.text) for passage in passages), default=0) <= limit


def sentences(number: int, words: int = 10) -> str:
    return "".join(f"Sentence {i} has {'many ' * (words - 4)}words. " for i in range(number))


def test_passages_end_with_sentences_and_white_space_stays_before_the_border() -> None:
    text = sentences(20)
    passages = cut_passages(text, 45, count_words)
    assert [passage.tokens for passage in passages] == [40] * 5
    assert all(re.fullmatch(r"Sentence .*\. ", passage.text) for passage in passages)


def test_text_within_the_limit_is_one_passage_and_empty_text_has_none() -> None:
    assert cut_passages("Short. Whole.\n", 10, count_words) == [Passage("Short. Whole.\n", 2)]
    assert cut_passages("", 10, count_words) == []
    assert cut_passages(" \n", 10, count_words) == [Passage(" \n", 0)]


def test_a_paragraph_that_ends_in_the_last_third_ends_the_passage() -> None:
    text = sentences(8).rstrip() + "\n\n" + sentences(12)
    assert [passage.tokens for passage in cut_passages(text, 100, count_words)] == [80, 60, 60]
    early = sentences(4).rstrip() + "\n\n" + sentences(12)
    assert cut_passages(early, 100, count_words)[0].tokens == 100


def test_a_short_last_passage_is_balanced_with_the_one_before() -> None:
    assert [passage.tokens for passage in cut_passages(sentences(11), 100, count_words)] == [60, 50]
    assert [passage.tokens for passage in cut_passages(sentences(21), 100, count_words)] == [100, 60, 50]


def test_a_remainder_that_fits_after_a_paragraph_is_joined_to_it() -> None:
    text = sentences(8).rstrip() + "\n\n" + sentences(2)
    assert [passage.tokens for passage in cut_passages(text, 100, count_words)] == [100]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One two three four,\nfive six seven eight\n", ["One two three four,\n", "five six seven eight\n"]),
        ("one two three, four five six", ["one two three, ", "four five six"]),
        ("one two three four five six", ["one two three ", "four five six"]),
    ],
)
def test_long_sentences_are_split_at_lines_then_commas_then_words(text: str, expected: list[str]) -> None:
    assert [passage.text for passage in cut_passages(text, 4, count_words)] == expected


def test_grapheme_clusters_are_split_only_if_they_exceed_the_limit() -> None:
    family = "👩‍👩‍👧🏽"
    assert [passage.text for passage in cut_passages(family * 4, len(family), len)] == [family] * 4
    assert "".join(passage.text for passage in cut_passages(family, 2, len)) == family


def test_indentation_stays_with_its_line_and_line_feeds_are_never_split() -> None:
    text = "def first():\r\n    return one\r\n\r\ndef second():\r\n    return two\r\n"
    passages = cut_passages(text, 2, count_words)
    assert "".join(passage.text for passage in passages) == text
    assert all(passage.text.endswith("\r\n") for passage in passages)
    assert "    return one\r\n\r\n" in [passage.text for passage in passages]
    for left, right in pairwise(passages):
        assert not (left.text.endswith("\r") and right.text.startswith("\n"))


def test_wrapped_lines_are_one_sentence() -> None:
    text = "The mill stood by the river and ground\ncorn for nine parishes. It burnt down\nin the spring."
    assert [passage.text for passage in cut_passages(text, 14, count_words)] == [
        "The mill stood by the river and ground\ncorn for nine parishes. ",
        "It burnt down\nin the spring.",
    ]


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("今天天气很好。我们去公园吧！好吗？", 9, ["今天天气很好。", "我们去公园吧！", "好吗？"]),
        ("Am 3. Mai kam z. B. Dr. Meier. Er ging.", 31, ["Am 3. Mai kam z. B. Dr. Meier. ", "Er ging."]),
        ("كيف حالك؟ أنا بخير.", 11, ["كيف حالك؟ ", "أنا بخير."]),
        ("यह अच्छा है। वह घर गया।", 14, ["यह अच्छा है। ", "वह घर गया।"]),
    ],
)
def test_sentences_of_many_languages_are_found(text: str, limit: int, expected: list[str]) -> None:
    assert [passage.text for passage in cut_passages(text, limit, len)] == expected


def test_each_sentence_is_counted_once() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return count_words(text)

    text = sentences(30)
    cut_passages(text, 45, count)
    assert "".join(counted) == text
    assert len(counted) == 30


def test_a_limit_below_one_token_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        cut_passages("x", 0, len)
