"""Prompts: passages are inserted unchanged, an answer's key covers all that it depends on, examples are chosen by content."""

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
    build_messages,
    choose_examples,
    compute_answer_key,
    compute_token_limit,
    cut_excerpt,
    get_instructions,
    hash_prompt,
    needs_examples,
)
from pipeline.rewriting.styles import Style, list_style_names, load_style

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
def test_any_passage_is_inserted_unchanged_and_once(text: str) -> None:
    assert build_messages(PLAIN, text) == [{"role": "user", "content": f"Before.\n{text}\nAfter."}]


@settings(deadline=None)
@given(text=TEXTS, examples=st.lists(TEXTS, min_size=1, max_size=3), name=st.sampled_from(list_style_names()))
def test_passage_and_examples_replace_the_placeholders_of_built_in_styles(text: str, examples: list[str], name: str) -> None:
    style = load_style(name)
    [message] = build_messages(style, text, examples)
    before, after = style.prompt.split("{text}")
    given_examples = "\n\n".join(f"Example {i + 1}:\n{example}" for i, example in enumerate(examples))
    if needs_examples(style):
        start, between = before.split("{specialist}")
        before = start + given_examples + between
    assert message == {"role": "user", "content": before + text + after}


def test_a_system_message_is_sent_if_the_style_has_one_and_may_contain_examples() -> None:
    assert [message["role"] for message in build_messages(PLAIN, "x")] == ["user"]
    assert build_messages(STEERED, "x {specialist}", ["one {text}", "two"]) == [
        {"role": "system", "content": "Write as in Example 1:\none {text}\n\nExample 2:\ntwo"},
        {"role": "user", "content": "Example 1:\none {text}\n\nExample 2:\ntwo\n\nx {specialist}"},
    ]


def test_a_style_that_needs_examples_is_rejected_without_them() -> None:
    assert needs_examples(STEERED)
    assert needs_examples(Style(name="a", about="a", system="{specialist}", prompt="{text}"))
    assert not needs_examples(PLAIN)
    assert [name for name in list_style_names() if needs_examples(load_style(name))] == ["in_domain"]
    with pytest.raises(ConfigError, match=r"the prompt of style in_domain has \{specialist\}.* set rephrase.examples to 1 or more"):
        build_messages(load_style("in_domain"), "x")


def test_instructions_are_the_prompt_without_passage_and_examples() -> None:
    assert get_instructions(PLAIN) == "Before.\n\nAfter."
    assert get_instructions(STEERED) == "Write as in \n\n\n\n"
    for name in list_style_names():
        text = get_instructions(load_style(name))
        assert "{" not in text
        assert len(text) > 100


def test_the_prompt_hash_depends_only_on_the_wording() -> None:
    assert hash_prompt(PLAIN) == hash_prompt(PLAIN.model_copy(update={"name": "b", "about": "b", "max_output": 9.0}))
    other = [PLAIN.model_copy(update=change) for change in ({"prompt": "{text}"}, {"system": "x"})]
    assert len({hash_prompt(style) for style in [PLAIN, *other]}) == 3
    assert hash_prompt(PLAIN) == "5f2ec63ff7af37d9"


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
def test_an_answer_key_changes_with_everything_that_an_answer_depends_on(change: dict[str, Any]) -> None:
    assert compute_answer_key(**{**ARGUMENTS, **change}) != compute_answer_key(**ARGUMENTS)


def test_an_answer_key_does_not_depend_on_filters() -> None:
    judged = PLAIN.model_copy(update={"min_similarity": 0.1, "length_ratio": (0.1, 9.0), "skip_filters": ["copy"], "join": " "})
    assert compute_answer_key(**{**ARGUMENTS, "style": judged}) == compute_answer_key(**ARGUMENTS)


@settings(deadline=None)
@given(
    first=st.tuples(TEXTS, TEXTS, st.lists(TEXTS, max_size=2), *[st.integers(0, 30)] * 3),
    second=st.tuples(TEXTS, TEXTS, st.lists(TEXTS, max_size=2), *[st.integers(0, 30)] * 3),
)
def test_answer_keys_are_equal_only_if_all_inputs_are(first: Any, second: Any) -> None:
    keys = [compute_answer_key(generator, PLAIN, *rest) for generator, *rest in (first, second)]
    assert (keys[0] == keys[1]) == (first == second)
    assert all(0 <= key < 2**64 for key in keys)


def test_an_answer_key_is_the_same_in_every_process() -> None:
    code = (
        "from pipeline.rewriting.prompts import compute_answer_key\nfrom pipeline.rewriting.styles import Style\n"
        r"style = Style(name='plain', about='a', prompt='Before.\n{text}\nAfter.')"
        "\nprint(compute_answer_key('model', style, 'Text', ['a'], 7, 1, 2))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {"12118121419292401193"}


@pytest.mark.parametrize(("max_output", "passage_tokens", "expected"), [(1.5, 300, 514), (1.0, 0, 64), (2.2, 16, 99)])
def test_the_token_limit_is_a_multiple_of_the_passage_plus_64(max_output: float, passage_tokens: int, expected: int) -> None:
    assert compute_token_limit(PLAIN.model_copy(update={"max_output": max_output}), passage_tokens) == expected


@settings(deadline=None)
@given(
    texts=st.lists(st.text(max_size=3), max_size=9),
    count=st.integers(0, 12),
    seed=st.integers(0, 9),
    key=st.integers(0, 2**64 - 1),
    data=st.data(),
)
def test_examples_are_distinct_and_depend_only_on_content(
    texts: list[str], count: int, seed: int, key: int, data: st.DataObject
) -> None:
    chosen = choose_examples(texts, count, seed=seed, key=key)
    assert len(chosen) == len(set(chosen)) == min(count, len(set(texts)))
    assert set(chosen) <= set(texts)
    # Order and repeats in the pool change nothing, and a smaller count gives the beginning.
    assert choose_examples(data.draw(st.permutations(texts + texts)), count, seed=seed, key=key) == chosen
    assert choose_examples(texts, count // 2, seed=seed, key=key) == chosen[: count // 2]


def test_every_order_of_examples_is_equally_likely() -> None:
    texts = ["a", "b", "c", "d"]
    seen = collections.Counter(tuple(choose_examples(texts, 2, seed=0, key=key)) for key in range(2400))
    assert set(seen) == set(itertools.permutations(texts, 2))
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3
    assert any(choose_examples(texts, 2, seed=0, key=key) != choose_examples(texts, 2, seed=1, key=key) for key in range(9))


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
    excerpt = cut_excerpt(text, limit, count)
    assert text.startswith(excerpt)
    assert excerpt == excerpt.rstrip()
    assert count(excerpt) <= max(limit, 0)
    if count(text) <= limit and len(text) <= 32 * limit:
        assert excerpt == text.rstrip()


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
    assert cut_excerpt(text, limit, words) == expected


def test_an_excerpt_without_sentences_ends_with_a_word_and_without_words_anywhere() -> None:
    assert cut_excerpt("alpha beta gamma", 12, len) == "alpha beta"
    assert cut_excerpt("漢字かな。交じり文", 8, len) == "漢字かな。"
    assert cut_excerpt("x" * 100, 12, len) == "x" * 12


def test_an_excerpt_is_within_its_limit_if_a_prefix_has_more_tokens_than_the_text() -> None:
    def merging(text: str) -> int:
        return 3 * text.count(".") + (4 if text.endswith(".") else 0) + words(text)

    excerpt = cut_excerpt("a b. c d. e f. g h. i j.", 15, merging)
    assert merging(excerpt) <= 15
    assert excerpt == "a b. c d."


def test_an_excerpt_of_a_huge_document_reads_only_its_beginning() -> None:
    seen: list[int] = []

    def count(text: str) -> int:
        seen.append(len(text))
        return words(text)

    assert cut_excerpt("word " * 4_000_000, 100, count) == ("word " * 100).strip()
    assert max(seen) <= 3200
    assert len(seen) < 20
