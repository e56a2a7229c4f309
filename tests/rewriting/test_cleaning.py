"""What models put around a text is removed, and text that only looks like it is kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rewriting.cleaning import clean_answer, has_unfinished_thought

TEXT = "The mill at Ash ground corn for nine parishes. Its wheel stood still in 1911."


@pytest.mark.parametrize(
    "before",
    [
        "Here is a paraphrase of the text:\n\n",
        "Here's the rewritten text: ",
        "Sure! Here's the rewritten text:\n",
        "Sure!\n\n",
        "Certainly! Below is a simplified version of the passage:\n\n---\n\n",
        "I have rewritten the text in the style of an encyclopedia.\n\n",
        "**Here is the rephrased passage:**\n\n",
        "Rewritten text:\n",
        "**Paraphrase:** ",
        "## Rewritten Passage\n\n",
        "Voici une reformulation :\n\n",
        "Voici une version réécrite du texte : ",
        "Hier ist der umformulierte Text:\n\n",
        "Natürlich! Hier ist eine Paraphrase des Textes:\n",
        "以下是改写后的文本：\n\n",
        "好的，下面是重写的段落：\n",
        "Aquí está la paráfrasis:\n\n",
        "¡Claro! Aquí tienes el texto reescrito:\n\n",
        "Aqui está o texto reescrito:\n\n",
        "Ecco il testo riscritto:\n\n",
        "Вот перефразированный текст:\n\n",
        "以下は書き直した文章です：\n\n",
        "다음은 다시 작성한 텍스트입니다:\n\n",
    ],
)
def test_announcements_and_labels_are_removed(before: str) -> None:
    assert clean_answer(before + TEXT) == (TEXT, ("preamble",))


@pytest.mark.parametrize(
    "text",
    [
        "Here is the church that Henry built. It has no tower.",
        "Here is the text of the treaty: peace for ten years.",
        "Here are three reasons to plant oaks:\n\n- shade\n- acorns\n- time",
        "Of course! He knew it all along, and so did she.",
        "This is how the rewriting of history works: one name at a time.",
        "Paraphrase of scripture was common in the Middle Ages.",
        "Voici le pont que les Romains ont construit : il tient toujours.",
        "Hier ist es im Winter still: Nur die Bahn fährt.",
        "以下三种茶最有名：龙井、毛峰、铁观音。",
        "Question: Where did the mill stand?\nAnswer: At Ash.",
        "Output fell by a third: the mines were empty.",
        "Вот дом, который построил Джек: в нём три окна.",
        "Note: the museum is closed on Mondays.",
        "The ferry leaves at noon.\n\nNote: bicycles travel free of charge.",
        "Will wrote: I hope this letter finds you well.",
        '"Go," she said. "Now."',
        "Use `a` in ```code``` only.",
        "Some models write <think> first. Others close with </think> alone.",
        "```python\nprint(1)\n```",
        "A rule follows.\n\n---\n\nAnd a second part.",
    ],
)
def test_text_that_looks_like_an_announcement_is_kept(text: str) -> None:
    assert clean_answer(text) == (text, ())


@pytest.mark.parametrize(
    "after",
    [
        "\n\nI hope this helps!",
        " I hope this helps!",
        "\n\nLet me know if you'd like me to adjust the tone.",
        "\n\n---\n\nNote: I have kept all names and numbers.",
        "\n\n(Note: This version preserves the facts of the original.)",
        "\n\nThis rewritten version maintains all facts while using plain words.",
        "\n\nWould you like me to shorten it?",
        "\n\nJ'espère que cela vous aide !",
        "\n\nN'hésitez pas à me contacter si besoin.",
        "\n\nIch hoffe, das hilft Ihnen weiter!",
        "\n\nLassen Sie mich wissen, ob etwas fehlt.",
        "\n\nEspero que esto te ayude.",
        "\n\n希望这对您有帮助！",
        "\n\n注：我保留了所有的数字。",
        "\n\nЕсли вам нужны изменения, дайте знать.",
        "\n\nFammi sapere se vuoi altro.",
    ],
)
def test_closing_remarks_and_notes_are_removed(after: str) -> None:
    assert clean_answer(TEXT + after) == (TEXT, ("trailer",))


@pytest.mark.parametrize("wrapped", ["```\n{}\n```", "```text\n{}\n```", '"{}"', "“{}”", "„{}“", "« {} »", "<text>\n{}\n</text>"])
def test_wrappers_around_the_whole_answer_are_removed(wrapped: str) -> None:
    assert clean_answer(wrapped.format(TEXT)) == (TEXT, ("wrapper",))


@pytest.mark.parametrize(
    "thought",
    [
        "<think>\nKeep 1911.\n</think>\n\n{}",
        "<think></think>{}",
        "<Reasoning>one\n\ntwo</Reasoning>\n{}",
        "Keep 1911.\n</think>\n{}",
        "{}<|im_end|>",
        "{}</s>",
        "<|begin_of_text|>{}<|eot_id|>\n",
    ],
)
def test_thoughts_and_turn_markers_are_removed(thought: str) -> None:
    assert clean_answer(thought.format(TEXT)) == (TEXT, ("think",))


def test_nested_cleanings_are_named_in_order() -> None:
    answer = f"<think>hm</think>Sure! Here is the rewritten text:\n\n```\n{TEXT}\n```\n\nI hope this helps!"
    assert clean_answer(answer) == (TEXT, ("think", "preamble", "wrapper", "trailer"))


def test_remarks_that_the_source_contains_are_kept() -> None:
    letter = f"{TEXT}\n\nLet me know if you need anything changed."
    assert clean_answer(letter) == (TEXT, ("trailer",))
    assert clean_answer(letter, "Let me know if you need anything changed, she wrote.") == (letter, ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nKeep", True),
        ("Keep 1911.</think>\n ", True),
        ("<thinking>a", True),
        ("", False),
        (TEXT, False),
        ("Models write <think> and then text.", False),
        ("They close with </think> and go on.", False),
    ],
)
def test_a_thought_without_an_answer_is_unfinished(text: str, expected: bool) -> None:
    assert has_unfinished_thought(clean_answer(text)[0]) is expected


PIECES = st.sampled_from(
    [
        TEXT,
        "Here is the rewritten text:\n\n",
        "Sure!\n",
        "```",
        '"',
        "\n",
        "<think>",
        "</think>",
        "<|im_end|>",
        "I hope this helps!",
        "以下是改写：",
        "---\n",
        " ",
    ]
)


@given(st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=12).map("".join))
def test_cleaning_only_removes_text_and_is_idempotent(answer: str) -> None:
    text, removed = clean_answer(answer)
    if len(removed) == 0:
        assert text == answer.strip()
    rest = iter(answer)
    assert all(letter in rest for letter in text), "letters that were not there, or in another order"
    assert text == text.strip()


@given(st.text(alphabet=st.characters(categories=["Lu", "Ll", "Lo", "Zs"]), max_size=80))
def test_plain_words_are_never_cleaned(text: str) -> None:
    assert clean_answer(text) == (text.strip(), ())
