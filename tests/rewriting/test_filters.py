"""Judging answers: verdicts made by hand, and each rule alone against small examples."""

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest

from pipeline.rewriting import refusals
from pipeline.rewriting.filters import HeldOut, Verdict, get_opening, judge_answer, summarise_openings
from pipeline.rewriting.languages import detect_language
from pipeline.rewriting.styles import RULES, Style
from pipeline.text.ngrams import foreign_share, get_wording
from pipeline.text.words import split_words
from tests.support.answers import JUDGED_ANSWERS, PROMPT, count_tokens

JUDGED = [rule for rule in RULES if rule != "similarity"]


def verdict(row: dict[str, Any]) -> Verdict:
    settings = {key: row[key] for key in ("length_ratio", "skip_filters") if key in row}
    return judge_answer(
        row["answer"],
        style=Style(
            about="of the tests",
            prompt=PROMPT + "{text}",
            max_output=9,
            expected_ratio=row.get("length_ratio", [1, 1])[1],
            **settings,
        ),
        source=row["source"],
        source_tokens=count_tokens(row["source"]),
        finish_reason=row["finish_reason"],
        instructions=PROMPT,
        examples=row.get("examples", []),
        count=count_tokens,
        held_out=HeldOut.from_texts(row["held_out"]) if "held_out" in row else None,
    )


def judged(answer: str, source: str, **changes: Any) -> str:
    return verdict({"answer": answer, "source": source, "finish_reason": "stop", **changes}).reason


def test_rules_agree_with_verdicts_made_by_hand() -> None:
    results = [(row, verdict(row)) for row in JUDGED_ANSWERS]
    table = {rule: Counter[str]() for rule in (*JUDGED, "any")}
    for row, result in results:
        for rule in JUDGED:
            table[rule][
                {(True, True): "tp", (True, False): "fn", (False, True): "fp"}.get(
                    (row["reason"] == rule, result.reason == rule), "tn"
                )
            ] += 1
        table["any"][
            {(True, True): "tp", (True, False): "fn", (False, True): "fp"}.get((bool(row["reason"]), bool(result.reason)), "tn")
        ] += 1
        if row["reason"] != result.reason:
            print(
                f"expected {row['reason'] or 'accepted'}, got {result.reason or 'accepted'} ({result.detail}): "
                f"{row['answer'][:90]!r}"
            )
    print(f"\n{'rule':20} {'tp':>3} {'fp':>3} {'fn':>3}  near  precision  recall")
    near = Counter(row.get("near", "") for row in JUDGED_ANSWERS)
    rates = {}
    for rule, c in table.items():
        rates[rule] = (c["tp"] / max(1, c["tp"] + c["fp"]), c["tp"] / max(1, c["tp"] + c["fn"]))
        print(f"{rule:20} {c['tp']:3} {c['fp']:3} {c['fn']:3} {near[rule]:5} {rates[rule][0]:10.2f} {rates[rule][1]:7.2f}")
    assert rates["any"][0] >= 0.95
    assert rates["any"][1] >= 0.9
    assert len(JUDGED_ANSWERS) >= 90
    for rule in JUDGED:
        assert table[rule]["tp"] >= 2, f"{rule} was found in fewer than two answers"
        assert near[rule] >= 2, f"{rule} has fewer than two hard negatives"


@pytest.mark.parametrize(
    "row",
    [
        # Missed: phrased as none of the patterns expects, found when the patterns were finished, and left so.
        pytest.param(row, marks=[pytest.mark.xfail(strict=True)] if row.get("missed") else [], id=f"{number}-{row['language']}")
        for number, row in enumerate(JUDGED_ANSWERS)
        if "text" in row
    ],
)
def test_answers_of_the_table_are_cleaned_as_a_person_would(row: dict[str, Any]) -> None:
    result = verdict(row)
    assert result.text == row["text"]
    assert list(result.removed) == row["removed"]


def test_accepted_answers_without_a_cleaned_text_are_left_as_they_are() -> None:
    plain = [row for row in JUDGED_ANSWERS if not row["reason"] and "text" not in row]
    assert len(plain) > 20
    assert [(row["answer"], ()) for row in plain] == [(verdict(row).text, verdict(row).removed) for row in plain]


@pytest.mark.parametrize("apostrophe", ["'", "’"])
def test_a_long_answer_is_not_a_refusal_with_either_apostrophe(apostrophe: str) -> None:
    refusal = f"I{apostrophe}m sorry, but I can{apostrophe}t help with that."
    assert refusals.find_refusal(refusal, len(split_words(refusal)), "corn")
    assert not refusals.find_refusal(f"{refusal} {'corn ' * 200}", 210, "corn")


def test_the_word_limit_of_refusals_is_doubled_in_scripts_without_spaces() -> None:
    answers = ["抱歉，我无法改写这段文字。" + "水" * length for length in (200, 300)]
    assert [bool(refusals.find_refusal(answer, len(split_words(answer)), "corn")) for answer in answers] == [True, False]


def test_rules_apply_in_order_and_skipped_rules_never() -> None:
    source = "The mill at Ash ground corn for nine parishes until the river was dammed in 1911 and the wheel stood still."
    row = {"answer": source, "source": source, "finish_reason": "length"}
    reasons = []
    skipped: list[str] = []
    while (reason := verdict({**row, "skip_filters": skipped}).reason) != "":
        reasons.append(reason)
        skipped = [*skipped, reason]
    assert reasons == ["cut", "copy"]


@pytest.mark.parametrize("character", ["\0", "\x08", "\x1b", "\x92", "\ufffd", "\uffff"])
def test_a_broken_character_rejects_the_answer_even_if_the_source_has_it(character: str) -> None:
    source = f"The mill at Ash ground corn{character} for nine parishes until the river was dammed in 1911."
    result = verdict(
        {"answer": f"Until 1911, when the river was dammed, Ash{character} had a mill.", "source": source, "finish_reason": "stop"}
    )
    assert (result.reason, result.detail) == ("broken_text", f"contains U+{ord(character):04X} at character 42")


def test_control_characters_are_removed_and_reported() -> None:
    source = "The mill at Ash ground corn for nine parishes until the river was dammed in 1911."
    answer = "\x1b[32mSure!\x1b[0m\n\nUntil 1911, when the river\x1cwas dammed,\x07 Ash had a mill for nine parishes."
    result = verdict({"answer": answer, "source": source, "finish_reason": "stop"})
    assert result == Verdict(
        "Until 1911, when the river was dammed, Ash had a mill for nine parishes.", ("control", "preamble"), "", ""
    )


def test_details_contain_the_numbers() -> None:
    result = verdict({"answer": "Corn was ground.", "source": "corn " * 100, "finish_reason": "stop"})
    assert (result.reason, result.detail) == ("length_ratio", "4 tokens for 100: ratio 0.04, not in [0.4, 2]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop, ＡＢＣ 12!", ["don", "t", "stop", "abc", "12"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("我们去GPT4吧。", ["我", "们", "去", "gpt4", "吧"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("e\u0301te\u0301 été", ["été", "été"]),
        ("한국어 문장", ["한국어", "문장"]),
        (" .\n—", []),
    ],
)
def test_words_of_any_script(text: str, expected: list[str]) -> None:
    assert split_words(text) == expected


def test_words_of_a_script_without_spaces_are_its_characters_with_their_marks() -> None:
    assert "".join(split_words("สวัสดีครับ")) == "สวัสดีครับ"
    assert len(split_words("สวัสดีครับ")) == sum(1 for letter in "สวัสดีครับ" if letter.isalpha())


def test_shared_ngrams_and_the_words_they_cover_match_a_comparison_of_lists() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        one, other = (" ".join(generator.choice(list("abc"), size=generator.integers(0, 30))) for _ in range(2))
        n = int(generator.integers(1, 5))
        first, second = one.split(), other.split()
        shared = [any(first[i : i + n] == second[j : j + n] for j in range(len(second) - n + 1)) for i in range(len(first) - n + 1)]
        covered = {i + k for i, hit in enumerate(shared) if hit for k in range(n)}
        assert get_wording(one).shared_mask(n, get_wording(other)).tolist() == shared
        assert get_wording(one).covered_share(get_wording(one).shared_mask(n, get_wording(other)), n) == pytest.approx(
            len(covered) / max(1, len(first))
        )


TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


def test_held_out_13_grams_are_found_regardless_of_case_and_punctuation() -> None:
    held = HeldOut.from_texts([TEXT])
    run = " ".join(TEXT.split()[2:15])
    assert held.find_overlap(f"Zero! {run.upper()}, and more") == run
    assert held.find_overlap(" ".join(TEXT.split()[2:14])) == ""
    assert held.find_overlap("") == ""


def test_held_out_texts_of_8_to_12_words_are_matched_whole_and_shorter_ones_never() -> None:
    short = " ".join(TEXT.split()[:9])
    assert HeldOut.from_texts([short]).find_overlap(f"x {short} y") == short
    assert HeldOut.from_texts([short]).find_overlap(" ".join(TEXT.split()[:8])) == ""
    assert len(HeldOut.from_texts(["one two three four five six seven", "", "。"]).ngram_N) == 0


def test_the_first_held_out_ngram_is_returned() -> None:
    later, sooner = "a b c d e f g h", TEXT
    assert HeldOut.from_texts([later, sooner]).find_overlap(f"{sooner} {later}") == " ".join(TEXT.split()[:13])


def test_held_out_survives_table_pickle_and_combination() -> None:
    texts = [TEXT, "我们在公园里看到了很多很多的花", TEXT + " seventeen"]
    whole = HeldOut.from_texts(texts)
    combined = HeldOut.combine([HeldOut.from_texts([text]) for text in texts])
    table = whole.to_table()
    assert [(field.name, str(field.type)) for field in table.schema] == [("ngram", "uint64")]
    for other in (
        combined,
        HeldOut.from_table(table),
        HeldOut.from_table(table.take([3, 1, 0, 2, *range(4, len(table))])),
        pickle.loads(pickle.dumps(whole)),
    ):
        assert other.ngram_N.tolist() == whole.ngram_N.tolist() == sorted(set(whole.ngram_N.tolist()))
    assert HeldOut.combine([]).find_overlap(TEXT) == ""
    assert HeldOut.from_table(HeldOut.from_texts([]).to_table()).ngram_N.dtype == np.uint64


def test_a_held_out_ngram_rejects_the_answer_even_if_the_source_has_it() -> None:
    source = f"Children learn to count early on. {TEXT}. They take longer over what the numbers mean."
    answer = f"Early in life children count: {TEXT}. What it means takes them longer to see, as teachers of all countries know."
    assert judged(answer, source, held_out=[TEXT]) == "held_out"
    assert judged(answer, source) == ""


def test_an_opening_is_five_words_and_openings_are_summarised() -> None:
    assert get_opening("The **Old** Mill, at Ash: was burnt.") == "the old mill at ash"
    assert get_opening("龙井茶产于浙江") == "龙 井 茶 产 于"
    assert summarise_openings({"b": 3, "a": 3, "c": 2}) == (3, 0.375, "a")
    assert summarise_openings({}) == (0, 0.0, "")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The keeper wound the clock\nevery evening\r\nand wrote down the weather.", "en"),
        ("Der Wärter zog jeden Abend die Uhr auf und schrieb das Wetter auf.", "de"),
        ("Le gardien remontait l'horloge chaque soir et notait le temps.", "fr"),
        ("守塔人每天晚上给钟上发条，并记下天气。", "zh"),
        ("灯台守は毎晩時計のねじを巻き、天気を書き留めた。", "ja"),
        ("Смотритель каждый вечер заводил часы и записывал погоду.", "ru"),
        ("ผู้ดูแลประภาคารไขลานนาฬิกาทุกเย็นและจดบันทึกสภาพอากาศ", "th"),
        ("كان الحارس يملأ الساعة كل مساء ويدون حالة الطقس.", "ar"),
        (
            "Die Funktion gibt die Summe der Zahlen zurück.\n```python\ndef add(first, second):\n    return first + second\n```",
            "de",
        ),
    ],
)
def test_languages_are_detected_with_confidence(text: str, language: str) -> None:
    detected, confidence = detect_language(text)
    assert detected == language
    assert 0.6 < confidence <= 1


@pytest.mark.parametrize(
    "text", ["", "  \n", "OK.", "12 345 €", "x = f(y)[0]", "https://example.org/a/long/path/of/many/words", "好的"]
)
def test_too_few_letters_have_no_language(text: str) -> None:
    assert detect_language(text) == ("und", 0.0)


def test_unpaired_surrogates_do_not_stop_language_detection() -> None:
    assert detect_language("The keeper wound the clock \ud800 every evening and slept.")[0] == "en"
    assert judged("The keeper \ud800 slept.", "The keeper wound the clock \ud800 every evening.") == "broken_text"


def test_scripts_that_the_source_does_not_use_are_foreign() -> None:
    assert foreign_share("abcd 茶茶", "tea") == ("Chinese or Japanese", pytest.approx(1 / 3))
    assert foreign_share("abcd 茶茶", "tea 道") == ("", 0.0)
    assert foreign_share("abcd", "茶") == ("", 0.0)
