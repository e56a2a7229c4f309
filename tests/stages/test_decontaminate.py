"""Decontamination: planted held-out text is found in any formatting, and documents that only share a phrase with it are kept."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, InputError
from pipeline.execution.step import part_names
from pipeline.graph import runner
from pipeline.graph.build import build_graph
from pipeline.refining.contamination import Index, make_search_texts, parse_choices
from pipeline.stages.decontaminate import CONTAMINATED_FOLDER
from tests.support.corpora import make_topic_documents, write_jsonl

SECRETS = [
    "The lighthouse keeper of Saint Malo counted eleven grey herons on the morning when the old ferry sank without any warning.",
    "Nine copper kettles were exchanged for a lame mule at the autumn fair in Bergen, and nobody ever learned the reason why.",
    "Professor Adeyemi proved that every finite lattice of this kind has a dual whose order is divisible by seventeen.",
]
QUESTION = "Which of the following rivers flows through the largest number of European capital cities on its way?"


def list_ngrams(text: str, length: int) -> set[tuple[str, ...]]:
    found = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)}


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=14).map(" ".join)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.lists(WORDS, min_size=1, max_size=2)), max_size=5),
    WORDS,
    st.sampled_from([0.3, 0.5, 1.0]),
)
def test_best_match_is_the_row_with_the_largest_share(rows: list[tuple[int, list[str]]], text: str, min_share: float) -> None:
    index, short = Index.build([(name, row, texts) for row, (name, texts) in enumerate(rows)], ["one", "two"], 3)
    reread = Index.from_tables(*index.tables(), 3)
    have = list_ngrams(text, 3)
    shares = {
        (name, row): max(
            (len(list_ngrams(one, 3) & have) / len(list_ngrams(one, 3)) for one in texts if list_ngrams(one, 3)), default=-1.0
        )
        for row, (name, texts) in enumerate(rows)
    }
    assert short == [sum(share < 0 for (name, _), share in shares.items() if name == number) for number in (0, 1)]
    best = max(shares.values(), default=0.0)
    for one in (index, reread):
        found = one.best_match(text, min_share)
        if best < min_share:
            assert found is None
        else:
            assert found is not None
            assert found.share == pytest.approx(best)
            assert shares[("one", "two").index(found.name), found.row] == pytest.approx(best)
            assert tuple(found.words.split()) in have


def test_a_question_is_found_with_any_choices_and_a_short_one_only_with_its_own() -> None:
    choices = ["the winding Danube", "the Rhine", "the Seine", "the Volga"]
    index, short = Index.build([(0, 0, make_search_texts(QUESTION, 8, answer=0, choices=choices))], ["quiz"], 8)
    assert short == [0]
    for text in (f"Q: {QUESTION} (a) the Rhine (b) none", QUESTION.upper(), f"So I asked: {QUESTION}"):
        assert index.best_match(text, 0.5)
    assert index.best_match("Which of the following rivers flows through Vienna? The winding Danube.", 0.5) is None

    short_question = "Who wrote it first?"
    search_texts = make_search_texts(short_question, 8, answer="B", choices=["Emily of Haworth House", "Anne of Haworth House"])
    index, short = Index.build([(0, 0, search_texts)], ["quiz"], 8)
    assert short == [0]
    assert index.best_match(f"{short_question} Answer: Anne of Haworth House", 0.5)
    assert index.best_match(f"{short_question}\nA. Emily of Haworth House\nB. Anne of Haworth House\n", 0.5)
    assert index.best_match(f"{short_question}\n- Emily of Haworth House\n- Anne of Haworth House\n", 0.5)
    assert index.best_match(f"{short_question} Nobody knows, but Emily of the house in Haworth may have.", 0.5) is None
    assert make_search_texts("Who?", 8, answer=None) == ["Who?"]
    assert Index.build([(0, 0, make_search_texts("Who?", 8, answer="me"))], ["quiz"], 8)[1] == [1]


CHOICES = ["the north pier", "the Rhine", "3", "nobody"]


@pytest.mark.parametrize(
    ("choices", "labels"),
    [
        (CHOICES, []),  # MMLU, HellaSwag
        ({"text": CHOICES, "label": ["A", "B", "C", "D"]}, ["A", "B", "C", "D"]),  # ARC, CommonsenseQA
        ({"label": [1, 2, 3, 4], "text": CHOICES}, ["1", "2", "3", "4"]),
        ([{"text": text, "label": label} for text, label in zip(CHOICES, "1234", strict=True)], ["1", "2", "3", "4"]),
        ([{"text": text} for text in CHOICES], []),
        ([], []),
    ],
)
def test_choices_of_common_test_sets_are_parsed(choices: Any, labels: list[str]) -> None:
    assert parse_choices(choices) == (CHOICES if choices else [], labels)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        *(
            (choices, "is neither a list of choices nor an object with the lists text and label")
            for choices in (None, "A or B", 3, {"a": "x"}, {"text": "x"}, [["x"]], [{"a": "x"}], ["x", None])
        ),
        ({"text": ["x", "y"], "label": ["A"]}, "has 2 choices but 1 labels"),
    ],
)
def test_invalid_choices_are_rejected(choices: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        parse_choices(choices)


@pytest.mark.parametrize(
    ("answer", "labels", "meant"),
    [
        (1, [], "the Rhine"),
        ("1", [], "the Rhine"),
        ("3", [], "3"),  # the text of a choice before its number
        ("b", [], "the Rhine"),
        ("D", ["A", "B", "C", "D"], "nobody"),
        ("1", ["1", "2", "3", "4"], "the north pier"),
        (4, ["1", "2", "3", "4"], "nobody"),
        ("C", ["1", "2", "3", "4"], "3"),
        (0, ["A", "B", "C", "D"], "the north pier"),
        ("nobody", [], "nobody"),
        ("somebody else", [], "somebody else"),
        (["A", "D"], [], "the north pier nobody"),
        ({"text": ["in 1999"], "answer_start": [4]}, [], "in 1999"),
        (7, [], "7"),
        (True, [], "True"),
    ],
)
def test_an_answer_is_resolved_to_its_choice(answer: Any, labels: list[str], meant: str) -> None:
    search_texts = make_search_texts("Who?", 8, answer=answer, choices=CHOICES, labels=labels)
    assert search_texts[:3] == [f"Who? {meant}", f"Who? answer {meant}", f"Who? {' '.join(CHOICES)}"]
    assert f"Who? {' '.join(f'{label} {choice}' for label, choice in zip(labels or 'ABCD', CHOICES, strict=True))}" in search_texts


def plant_secrets(topics: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Plant secrets in some documents; return the config and the ids of these documents."""
    folder = Path(topics["generalist"]["paths"][0]).parent
    ids = set()
    for number, path in enumerate(sorted(folder.glob("*.jsonl"))):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row, secret, way in zip(rows[5::20], SECRETS * 2, range(5), strict=False):
            words = row["text"].split()
            row["text"] = [
                secret,
                secret.upper(),
                "\n\n\t".join(secret.split()),
                " ".join([*words[:40], secret, *words[40:]]),
                re.sub(r"[,.]", " —", secret).title(),
            ][(way + number) % 5]
            ids.add(row["id"])
        rows[0]["text"] += " " + " ".join(SECRETS[0].split()[:9])  # a shared phrase, too short to count
        write_jsonl(path, rows)
    rows = [{"id": str(i), "text": secret} for i, secret in enumerate(SECRETS)]
    tests = write_jsonl(folder.parent / "tests.jsonl", [*rows, {"id": "blank", "text": " \n"}, {"id": "empty", "text": ""}])
    return topics | {"decontaminate": {"held_out": {"secrets": {"paths": [tests], "of": "legal"}}}}, ids


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_contaminated_documents_are_dropped_and_reported_and_others_are_kept(topics: dict[str, Any]) -> None:
    config, ids = plant_secrets(topics)
    assert len(ids) == 20
    step = runner.prepare(config | {"dedup": {}}).windows_step("generalist")
    assert step.stage == "decontaminate"
    kept = {row["doc_id"] for name in part_names(step) for row in step.folder.read_table(f"{name}.parquet").to_pylist()}
    report = step.folder.child(CONTAMINATED_FOLDER)
    rows = [row for name in report.names() for row in report.read_table(name).to_pylist()]
    dropped = {row["id"] for row in rows}
    # Some of the planted documents are near-duplicates of each other, of which dedup keeps one.
    assert dropped <= ids
    assert kept.isdisjoint(ids)
    assert {f"{topic}-0-0" for topic in ("cooking", "law", "space", "music")} <= kept
    assert step.manifest["held_out"] == {"secrets": len(rows)} == {"secrets": step.manifest["dropped"]}
    assert step.manifest["documents"] == len(kept)
    index = step.inputs["held_out"].manifest
    assert [index[name] for name in ("rows", "blank", "short")] == [{"secrets": 5}, {"secrets": 2}, {"secrets": 0}]
    for row in rows:
        assert row["held_out"] == "secrets"
        assert row["words"] in " ".join(re.findall(r"[a-z0-9]+", SECRETS[row["row"]].lower()))
        assert row["share"] == 1.0
    files = {name: step.folder.read_bytes(name) for name in step.folder.files() if name != "usage.json"}
    for name in ("manifest.json", f"{part_names(step)[0]}.parquet"):
        step.folder.remove(name)
    reread = runner.prepare(config | {"dedup": {}, "engine": {"workers": 1}}).windows_step("generalist")
    assert {name: reread.folder.read_bytes(name) for name in reread.folder.files() if name != "usage.json"} == files


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_own_test_text_in_a_sample_is_an_error_and_other_held_out_text_is_dropped(topics: dict[str, Any], tmp_path: Path) -> None:
    config, _ = plant_secrets(topics)
    sample = [*make_topic_documents("law", 20, seed=1), {"id": "leak", "text": f"Once more. {SECRETS[1]}"}]
    config["specialists"] = {"legal": {"paths": [write_jsonl(tmp_path / "leaky.jsonl", sample)]}}
    with pytest.raises(
        InputError,
        match=r"specialists.legal: text of its own test set held_out.secrets is in 1 of its documents: leak \(row 1",
    ):
        runner.prepare(config)
    assert not build_graph(config).step("prepare", "generalist").folder.names()
    config["decontaminate"]["held_out"]["secrets"] |= {"of": None}
    step = runner.prepare(config).windows_step("legal")
    assert step.manifest["dropped"] == 1
    assert step.manifest["documents"] == 20


@pytest.mark.parametrize(
    ("held_out", "rows", "message"),
    [
        ({}, [{"id": "1", "text": "three short words"}], "none of its 1 rows has 8 words"),
        ({}, [{"id": "1", "text": ""}, {"id": "2"}], "row 1 of decontaminate.held_out.secrets cannot be used (missing_text)"),
        ({}, [{"id": "1", "text": ""}], "none of its 1 rows has 8 words"),
        ({"choices_key": "c"}, [{"id": "1", "text": "who?", "c": {"text": ["a", "b"], "label": ["A"]}}], "2 choices but 1 labels"),
        ({"answer_key": "answer"}, [{"id": "1", "text": "who?"}], "has no 'answer'"),
        ({"choices_key": "c"}, [{"id": "1", "text": "who?", "c": "A or B"}], "is neither a list of choices"),
    ],
)
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_unusable_held_out_text_is_an_error(
    topics: dict[str, Any], tmp_path: Path, held_out: dict[str, Any], rows: list[dict[str, Any]], message: str
) -> None:
    path = write_jsonl(tmp_path / "held.jsonl", rows)
    with pytest.raises(InputError, match=re.escape(message)):
        runner.prepare(topics | {"decontaminate": {"held_out": {"secrets": {"paths": [path], **held_out}}}})


def test_invalid_settings_are_errors(topics: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"decontaminate.held_out.x.of: 'lega' is not one of the specialists \(legal\)"):
        build_graph(topics | {"decontaminate": {"held_out": {"x": {"paths": ["a.jsonl"], "of": "lega"}}}})
    with pytest.raises(InputError, match=r"decontaminate.held_out.x.paths: no file matches"):
        build_graph(topics | {"decontaminate": {"held_out": {"x": {"paths": ["/nowhere/a.jsonl"]}}}})


def test_random_texts_do_not_match_held_out_rows() -> None:
    """Random texts of 1,000 words share no n-gram of eight words with random rows of 40."""
    chooser = random.Random(0)
    vocabulary = [f"w{i}" for i in range(50)]
    index, _ = Index.build([(0, row, [" ".join(chooser.choices(vocabulary, k=40))]) for row in range(200)], ["x"], 8)
    texts = [" ".join(chooser.choices(vocabulary, k=1000)) for _ in range(50)]
    assert [index.best_match(text, 0.01) for text in texts] == [None] * 50
    assert index.ngram_P.dtype == np.uint64
