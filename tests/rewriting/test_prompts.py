"""Prompts: passages come through as they are, an answer's identity is all that it depends on, examples are drawn by content."""

import collections
import itertools
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.errors import ConfigError
from pipeline.rewriting.prompts import (
    answer_key,
    draw_examples,
    excerpt,
    instructions,
    max_tokens,
    messages,
    needs_examples,
    prompt_hash,
)
from pipeline.rewriting.styles import Style, load_style, style_names

PLAIN = Style(name="plain", about="a", prompt="Before.\n{text}\nAfter.")
STEERED = Style(name="steered", about="a", system="Write as in {specialist}", prompt="{specialist}\n\n{text}")
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(["{text}", "{specialist}", "{", "}", "{0}", "\\1", "\\g<1>", "%s", "Before.", "\n"]), st.text(max_size=9)
    ),
    max_size=6,
).map("".join)


@settings(deadline=None)
@given(text=TEXTS)
def test_any_passage_comes_through_as_it_is_and_once(text: str) -> None:
    assert messages(PLAIN, text) == [{"role": "user", "content": f"Before.\n{text}\nAfter."}]


@settings(deadline=None)
@given(text=TEXTS, examples=st.lists(TEXTS, min_size=1, max_size=3), name=st.sampled_from(style_names()))
def test_any_passage_and_examples_stand_where_the_built_in_style_has_them(text: str, examples: list[str], name: str) -> None:
    style = load_style(name)
    [message] = messages(style, text, examples)
    before, after = style.prompt.split("{text}")
    given_examples = "\n\n".join(f"Example {i + 1}:\n{example}" for i, example in enumerate(examples))
    if needs_examples(style):
        start, between = before.split("{specialist}")
        before = start + given_examples + between
    assert message == {"role": "user", "content": before + text + after}


def test_a_system_message_is_there_if_the_style_has_one_and_may_hold_examples() -> None:
    assert [message["role"] for message in messages(PLAIN, "x")] == ["user"]
    assert messages(STEERED, "x {specialist}", ["one {text}", "two"]) == [
        {"role": "system", "content": "Write as in Example 1:\none {text}\n\nExample 2:\ntwo"},
        {"role": "user", "content": "Example 1:\none {text}\n\nExample 2:\ntwo\n\nx {specialist}"},
    ]


def test_a_style_that_needs_examples_is_refused_without_any() -> None:
    assert needs_examples(STEERED)
    assert needs_examples(Style(name="a", about="a", system="{specialist}", prompt="{text}"))
    assert not needs_examples(PLAIN)
    assert [name for name in style_names() if needs_examples(load_style(name))] == ["in_domain"]
    with pytest.raises(ConfigError, match=r"the style in_domain has \{specialist\}.* set rephrase.examples > 0"):
        messages(load_style("in_domain"), "x")


def test_instructions_are_the_prompt_without_passage_and_examples() -> None:
    assert instructions(PLAIN) == "Before.\n\nAfter."
    assert instructions(STEERED) == "Write as in \n\n\n\n"
    for name in style_names():
        text = instructions(load_style(name))
        assert "{" not in text
        assert len(text) > 100


def test_prompt_hash_names_the_wording_and_nothing_else() -> None:
    assert prompt_hash(PLAIN) == prompt_hash(PLAIN.model_copy(update={"name": "b", "about": "b", "max_output": 9.0}))
    other = [PLAIN.model_copy(update=change) for change in ({"prompt": "{text}"}, {"system": "x"})]
    assert len({prompt_hash(style) for style in [PLAIN, *other]}) == 3
    assert prompt_hash(PLAIN) == "5f2ec63ff7af37d9"


ARGUMENTS: dict[str, Any] = {
    "generator": "model",
    "style": PLAIN,
    "text": "Ein Text – \ud83d\ude42 {text}",
    "examples": ["a", "b"],
    "window_key": 2**64 - 1,
    "passage": 0,
    "variant": 0,
}


@pytest.mark.parametrize(
    "change",
    [
        {"generator": "modeltext"},
        {"style": PLAIN.model_copy(update={"name": "other"})},
        {"style": PLAIN.model_copy(update={"prompt": "{text}"})},
        {"style": PLAIN.model_copy(update={"system": "x"})},
        {"style": PLAIN.model_copy(update={"max_output": 2.0})},
        {"text": "text"},
        {"examples": []},
        {"examples": ["b", "a"]},
        {"examples": ["a", "b", ""]},
        {"examples": ['a","b']},
        {"window_key": 0},
        {"passage": 1},
        {"variant": 1},
    ],
    ids=str,
)
def test_an_answer_key_changes_with_all_that_an_answer_depends_on(change: dict[str, Any]) -> None:
    assert answer_key(**{**ARGUMENTS, **change}) != answer_key(**ARGUMENTS)


def test_an_answer_key_stays_when_only_judging_changes() -> None:
    judged = PLAIN.model_copy(update={"min_similarity": 0.1, "length_ratio": (0.1, 9.0), "skip_filters": ["copy"], "join": " "})
    assert answer_key(**{**ARGUMENTS, "style": judged}) == answer_key(**ARGUMENTS)


@settings(deadline=None)
@given(
    first=st.tuples(TEXTS, TEXTS, st.lists(TEXTS, max_size=2), *[st.integers(0, 30)] * 3),
    second=st.tuples(TEXTS, TEXTS, st.lists(TEXTS, max_size=2), *[st.integers(0, 30)] * 3),
)
def test_answer_keys_are_equal_if_and_only_if_all_is(first: Any, second: Any) -> None:
    keys = [answer_key(generator, PLAIN, *rest) for generator, *rest in (first, second)]
    assert (keys[0] == keys[1]) == (first == second)
    assert all(0 <= key < 2**64 for key in keys)


def test_an_answer_key_is_the_same_in_every_process() -> None:
    code = (
        "from pipeline.rewriting.prompts import answer_key; from pipeline.rewriting.styles import Style\n"
        r"print(answer_key('model', Style(name='plain', about='a', prompt='Before.\n{text}\nAfter.'), 'Text', ['a'], 7, 1, 2))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {"12118121419292401193"}


@pytest.mark.parametrize(("max_output", "passage_tokens", "expected"), [(1.5, 300, 514), (1.0, 0, 64), (2.2, 16, 99)])
def test_max_tokens_is_a_multiple_of_the_passage_and_64(max_output: float, passage_tokens: int, expected: int) -> None:
    assert max_tokens(PLAIN.model_copy(update={"max_output": max_output}), passage_tokens) == expected


@settings(deadline=None)
@given(
    samples=st.lists(st.text(max_size=3), max_size=9),
    count=st.integers(0, 12),
    seed=st.integers(0, 9),
    key=st.integers(0, 2**64 - 1),
    data=st.data(),
)
def test_examples_are_distinct_and_depend_on_content_alone(
    samples: list[str], count: int, seed: int, key: int, data: st.DataObject
) -> None:
    drawn = draw_examples(samples, count, seed=seed, key=key)
    assert len(drawn) == len(set(drawn)) == min(count, len(set(samples)))
    assert set(drawn) <= set(samples)
    # Order and repeats in the pool change nothing, and a smaller count gives the beginning.
    assert draw_examples(data.draw(st.permutations(samples + samples)), count, seed=seed, key=key) == drawn
    assert draw_examples(samples, count // 2, seed=seed, key=key) == drawn[: count // 2]


def test_every_order_of_examples_is_as_likely() -> None:
    samples = ["a", "b", "c", "d"]
    seen = collections.Counter(tuple(draw_examples(samples, 2, seed=0, key=key)) for key in range(2400))
    assert set(seen) == set(itertools.permutations(samples, 2))
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3
    assert any(draw_examples(samples, 2, seed=0, key=key) != draw_examples(samples, 2, seed=1, key=key) for key in range(9))


def words(text: str) -> int:
    return len(text.split())


@settings(deadline=None)
@given(
    pieces=st.lists(st.sampled_from(["word", "Satz.", " ", "\n", "!", "”", "漢字。", "x" * 40, "\t", "3.14"]), max_size=60),
    limit=st.integers(-1, 30),
    count=st.sampled_from([words, len, lambda text: len(text.encode())]),
)
def test_an_excerpt_begins_the_text_and_is_within_its_limit(pieces: list[str], limit: int, count: Any) -> None:
    text = "".join(pieces)
    found = excerpt(text, limit, count)
    assert text.startswith(found)
    assert found == found.rstrip()
    assert count(found) <= max(limit, 0)
    if count(text) <= limit and len(text) <= 32 * limit:
        assert found == text.rstrip()


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("One two three. Four five six seven.", 5, "One two three."),
        ("One two three? “Four five!” six seven.", 6, "One two three? “Four five!”"),
        ("One two three\nfour five", 4, "One two three"),
        ("One two. Three\nfour five", 4, "One two. Three"),
        ("One. Two three four five six", 5, "One. Two three four five"),  # the only end is in the first half
        ("Pi is about 3.14159 exactly", 4, "Pi is about 3.14159"),
        ("One two three.", 3, "One two three."),
        ("One two three.  \n", 9, "One two three."),
        ("", 5, ""),
        ("One", 0, ""),
    ],
)
def test_an_excerpt_ends_with_a_line_or_sentence_if_one_ends_late(text: str, limit: int, expected: str) -> None:
    assert excerpt(text, limit, words) == expected


def test_an_excerpt_of_letters_ends_with_a_word_and_of_endless_letters_anywhere() -> None:
    assert excerpt("alpha beta gamma", 12, len) == "alpha beta"
    assert excerpt("漢字かな。交じり文", 8, len) == "漢字かな。"
    assert excerpt("x" * 100, 12, len) == "x" * 12


def test_an_excerpt_is_within_its_limit_where_a_beginning_has_more_tokens_than_what_it_begins() -> None:
    def merging(text: str) -> int:
        return 3 * text.count(".") + (4 if text.endswith(".") else 0) + words(text)

    found = excerpt("a b. c d. e f. g h. i j.", 15, merging)
    assert merging(found) <= 15
    assert found == "a b. c d."


def test_an_excerpt_of_a_huge_document_looks_at_its_beginning_alone() -> None:
    seen: list[int] = []

    def count(text: str) -> int:
        seen.append(len(text))
        return words(text)

    assert excerpt("word " * 4_000_000, 100, count) == ("word " * 100).strip()
    assert max(seen) <= 3200
    assert len(seen) < 20
