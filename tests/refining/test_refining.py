"""datatrove's steps: as datatrove's own pipeline does it, a document at a time, and nothing lost in silence."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document as TroveDocument
from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.formatters import FTFYFormatter
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, InputError
from pipeline.execution.step import Step, part_names
from pipeline.graph import runner
from pipeline.refining import Dropped, RefiningError
from pipeline.refining.catalogue import check_reader, check_steps, find_step_classes
from pipeline.refining.chain import Chain
from pipeline.refining.drop_log import EXCERPTS_PER_STEP
from pipeline.sources import Document
from pipeline.stages.prepare import DROPPED_FOLDER
from pipeline.stages.prepare_scan import QUARANTINE_FOLDER
from tests.support.corpora import make_topic_documents, write_jsonl, write_warc

ENGLISH = "The boats that were moored to the quay have been out in the storm, and with the morning came silence."


def document(identifier: str, text: str, **metadata: Any) -> Document:
    return Document(identifier, text, "here", json.dumps(metadata))


def mixed_texts(count: int = 60) -> list[str]:
    """Good prose, and what each of the filters objects to."""
    chooser = random.Random(0)
    prose = [" ".join(chooser.choices(ENGLISH.split(), k=80)) + ".\n" + ENGLISH + "\n" + ENGLISH[:40] for _ in range(count)]
    bad = [
        "short",
        "lorem ipsum dolor " * 40,
        "{ function() } " * 60,
        (ENGLISH + "\n") * 30,
        "â€œQuotedâ€\x9d " + ENGLISH * 4,
        "#### " * 200,
        "javascript must be enabled. " + ENGLISH * 5,
        ". ".join(f"no{i}where ano{i}ther wo{i}rd" for i in range(40)) + ".",
    ]
    return [text for pair in zip(prose, bad * count, strict=False) for text in pair]


def test_a_chain_does_what_datatroves_own_pipeline_does() -> None:
    texts = mixed_texts()
    pipeline: list[Any] = [
        FTFYFormatter(),
        GopherRepetitionFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        GopherQualityFilter(min_doc_words=30),
    ]
    documents: Any = iter([TroveDocument(text=text, id=str(i), metadata={}) for i, text in enumerate(texts)])
    for step in pipeline:
        documents = step.run(documents)
    expected = {kept.id: kept.text for kept in documents}
    steps = [
        {"type": "FTFYFormatter"},
        {"type": "GopherRepetitionFilter"},
        {"type": "C4QualityFilter", "filter_no_terminal_punct": False},
        {"type": "GopherQualityFilter", "min_doc_words": 30},
    ]
    with Chain(steps) as chain:
        made = [chain.refine(document(str(i), text)) for i, text in enumerate(texts)]
    assert {one.id: one.text for one in made if isinstance(one, Document)} == expected
    dropped = [one for one in made if isinstance(one, Dropped)]
    assert {one.step for one in dropped} == {1, 2, 3}
    for number, step in enumerate(pipeline):
        counted = {str(name): int(stat.total) for name, stat in step.stats.stats.items() if name.startswith("dropped_")}
        reasons = [f"dropped_{one.reason}" for one in dropped if one.step == number]
        assert {reason: reasons.count(reason) for reason in reasons} == counted


@given(st.permutations(range(12)))
def test_what_becomes_of_a_document_depends_on_nothing_but_itself(order: list[int]) -> None:
    """datatrove's own sampling, and its replacements that take turns, depend on what came before."""
    steps = [{"type": "PIIFormatter"}, {"type": "SamplerFilter", "rate": 0.5, "seed": 3}]
    documents = [document(str(i), f"Write to a{i}@mail.com, b@mail.com or {i}@mail.org today.") for i in range(12)]
    with Chain(steps) as chain:
        first = [chain.refine(one) for one in documents]
        again = {i: chain.refine(documents[i]) for i in order}
    assert [again[i] for i in range(12)] == first
    kept = [one for one in first if isinstance(one, Document)]
    assert 0 < len(kept) < 12
    assert all("Write to email@example.com, firstname.lastname@example.org or email@example.com" in one.text for one in kept)


def test_html_is_extracted_alike_whatever_was_seen_before() -> None:
    """trafilatura leaves out paragraphs that it has seen in earlier documents."""
    page = f"<html><body><article><h1>Storm</h1>{f'<p>{ENGLISH}</p>' * 2}</article></body></html>"
    with Chain([{"type": "Trafilatura"}]) as chain:
        texts = [chain.refine(document(str(i), page)) for i in range(6)]
        assert chain.refine(document("none", "<html></html>")) == Dropped(0, "empty", "")
        assert isinstance(texts[0], Document)
    with chain:  # again: a worker makes its chain once
        texts.append(chain.refine(document("again", page)))
    assert len({one.text for one in texts}) == 1
    assert ENGLISH in texts[0].text


@pytest.mark.filterwarnings("ignore:The 'registered_domain' property")
def test_metadata_and_source_come_through_and_steps_add_theirs() -> None:
    with Chain([{"type": "GopherQualityFilter", "min_doc_words": 3}]) as chain:
        kept = chain.refine(document("a", ENGLISH, url="http://x.org", when=3))
    assert kept == document("a", ENGLISH, url="http://x.org", when=3)
    blocked = {"type": "URLFilter", "use_integrated_lists": False, "extra_domains": ["bad.com"]}
    with Chain([blocked]) as chain:
        assert chain.refine(document("a", ENGLISH, url="http://www.bad.com/x")) == Dropped(0, "domain", ENGLISH)
        with pytest.raises(RefiningError, match="URLFilter: AssertionError Document does not have url"):
            chain.refine(document("a", ENGLISH))


@pytest.mark.parametrize("column", [None, 7, ["x"], ""])
def test_a_source_column_that_is_no_source_stays_in_the_metadata(column: Any) -> None:
    given = document("a", ENGLISH, url="http://x.org", source=column)
    with Chain([{"type": "GopherQualityFilter", "min_doc_words": 3}]) as chain:
        assert chain.refine(given) == given
    with Chain([{"type": "GopherQualityFilter"}]) as chain:
        chain._appliers = [lambda trove: trove.metadata.update(language="en")]
        refined = chain.refine(given)
        assert isinstance(refined, Document)
        assert refined.source == "here"
        assert list(json.loads(refined.metadata).items()) == [("url", "http://x.org"), ("source", column), ("language", "en")]


def test_a_source_that_a_step_deletes_or_spoils_is_restored() -> None:
    with Chain([{"type": "GopherQualityFilter"}]) as chain:
        for spoil in (lambda trove: trove.metadata.clear(), lambda trove: trove.metadata.update(source=None)):
            chain._appliers = [spoil]
            assert chain.refine(document("a", ENGLISH)) == document("a", ENGLISH)
        chain._appliers = [lambda trove: trove.metadata.update(source="of a step")]
        refined = chain.refine(document("a", ENGLISH))
        assert isinstance(refined, Document)
        assert (refined.source, refined.metadata) == ("of a step", "{}")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"type": "GopherQualityFiltr"},
            "datatrove has no GopherQualityFiltr (did you mean GopherQualityFilter?)",
        ),
        (
            {"type": "GopherQualityFilter", "min_words": 3},
            "has no setting min_words (did you mean min_doc_words?)",
        ),
        ({"type": "GopherQualityFilter", "min_doc_words": "many"}, "(GopherQualityFilter).min_doc_words: "),
        ({"type": "GopherQualityFilter", "exclusion_writer": "x"}, "has no setting exclusion_writer"),
        ({"min_doc_words": 3}, "has no type"),
        ({"type": "LambdaFilter"}, "cannot be written in a config"),
        ({"type": "WarcReader"}, "such as generalist.reader"),
        ({"type": "RegexFilter", "regex_exp": "("}, "unterminated subpattern"),
        ({"type": "RegexFilter"}, "regex_exp"),
        ({"type": "ReadabilityInscriptis"}, 'pip install "crispwrap[filters]"'),
    ],
)
def test_mistakes_in_steps_are_found_before_anything_runs(step: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_steps([step], "prepare.steps")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        ({"type": "WarkReader"}, "datatrove has no reader WarkReader (did you mean WarcReader?)"),
        ({"type": "CsvReader", "limit": 3}, "generalist.reader (CsvReader).limit: the corpus's own"),
        ({"type": "CsvReader", "delimiter": ";"}, "has no setting delimiter"),
        ({"type": "IpcReader", "stream": "perhaps"}, "(IpcReader).stream"),
    ],
)
def test_mistakes_in_readers_are_found_before_anything_runs(reader: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_reader(reader, "generalist.reader")
    assert message in str(raised.value)


def test_everything_that_datatrove_exports_is_offered() -> None:
    from datatrove.pipeline import extractors, filters, formatters

    exported = {name for module in (extractors, filters, formatters) for name in vars(module) if name[0].isupper()}
    assert set(find_step_classes()) == exported


def doc_ids(made: Step) -> list[str]:
    """Of the windows, in order."""
    return [row["doc_id"] for name in part_names(made) for row in made.folder.read_table(f"{name}.parquet").to_pylist()]


@pytest.fixture
def refined(topics: dict[str, Any]) -> dict[str, Any]:
    steps = [
        {"type": "RegexFilter", "regex_exp": "telescope"},
        {"type": "SamplerFilter", "rate": 0.8, "seed": 1},
        {"type": "URLFilter", "use_integrated_lists": False},
    ]
    folder = Path(topics["generalist"]["paths"][0]).parent
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_jsonl(path, [{**row, "url": "http://a.org"} if i != 7 else row for i, row in enumerate(rows)])
    return topics | {"prepare": {"part_documents": 64, "steps": steps}, "max_bad_fraction": 0.05}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_steps_drop_is_counted_shown_and_the_same_after_a_kill(refined: dict[str, Any]) -> None:
    made = runner.prepare(refined).step("prepare", "generalist")
    regex, sampler, url = made.manifest["steps"]
    assert regex["type"] == "RegexFilter"
    assert url["documents"] == 0
    texts = {row["id"]: row["text"] for topic in ("cooking", "law", "space", "music") for row in make_topic_documents(topic, 100)}
    with_word = {identifier for identifier, text in texts.items() if "telescope" in text}
    assert regex["documents"] == len(with_word)
    failed = made.folder.child(QUARANTINE_FOLDER)
    bad = [row for name in failed.names(".parquet") for row in failed.read_table(name).to_pylist()]
    assert {row["reason"] for row in bad} == {"step_failed"}
    assert all("URLFilter" in row["detail"] for row in bad)
    assert made.manifest["quarantined"] == len(bad) == made.manifest["reasons"]["step_failed"]
    assert made.manifest["documents"] == 400 - regex["documents"] - sampler["documents"] - len(bad)
    assert made.manifest["dropped"] == regex["documents"] + sampler["documents"]
    kept = {
        row["doc_id"] for part in made.manifest["parts"] for row in made.folder.read_table(f"{part['name']}.parquet").to_pylist()
    }
    assert kept.isdisjoint(with_word)
    assert len(kept) == made.manifest["documents"]

    examples = made.folder.child(DROPPED_FOLDER)
    assert examples.names() == ["examples.parquet"]
    shown = examples.read_table("examples.parquet").to_pylist()
    assert [sum(row["step"] == step for row in shown) for step in (0, 1, 2)] == [
        min(EXCERPTS_PER_STEP, len(with_word)),
        EXCERPTS_PER_STEP,
        0,
    ]
    assert all(row["id"] in with_word and texts[row["id"]].startswith(row["text"]) for row in shown if row["step"] == 0)

    # Half of the parts and the manifest are gone, as after a kill; the examples were merged by then.
    files = {name: made.folder.read_bytes(name) for name in made.folder.files() if name != "usage.json"}
    for name in ["manifest.json", *[f"{part['name']}.parquet" for part in made.manifest["parts"][::2]]]:
        made.folder.remove(name)
    again = runner.prepare(refined | {"engine": {"workers": 1}}).step("prepare", "generalist")
    assert {name: again.folder.read_bytes(name) for name in again.folder.files() if name != "usage.json"} == files


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_small_files_are_one_part_and_steps_that_drop_everything_say_so(topics: dict[str, Any], tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number, row in enumerate(make_topic_documents("law", 120)):
        write_jsonl(many / f"{number:04d}.jsonl", [row])
    topics = topics | {"generalist": {"paths": [str(many)]}, "prepare": {"part_documents": 50}}
    made = runner.prepare(topics).step("prepare", "generalist")
    assert [part["name"] for part in made.manifest["parts"]] == [f"part-{number:05d}-00000" for number in range(0, 120, 16)]
    ids = [
        row["doc_id"] for part in made.manifest["parts"] for row in made.folder.read_table(f"{part['name']}.parquet").to_pylist()
    ]
    assert list(dict.fromkeys(ids)) == [f"law-0-{number}" for number in range(120)]
    # The sample has no steps of its own, so it is there.
    with pytest.raises(InputError, match="generalist has no usable document: 120 rows read, 0 quarantined, 120 dropped"):
        runner.prepare(topics | {"prepare": {"steps": [{"type": "RegexFilter", "regex_exp": "."}]}})
    own = topics | {
        "specialists": {"legal": topics["specialists"]["legal"] | {"steps": [{"type": "RegexFilter", "regex_exp": "."}]}}
    }
    with pytest.raises(InputError, match="legal has no usable document"):
        runner.prepare(own)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_pages_of_a_crawl_become_text(topics: dict[str, Any], tmp_path: Path) -> None:
    page = "<html><head><title>{0}</title></head><body><nav>Home | About</nav><article><h1>{0}</h1>{1}</article></body></html>"
    documents = make_topic_documents("law", 12) + make_topic_documents("music", 12)
    pages = [(row["id"], page.format(row["id"], f"<p>{row['text']}</p>").encode(), "text/html") for row in documents]
    crawl = write_warc(tmp_path / "crawl.warc.gz", *pages, ("picture", b"\x89PNG", "image/png"))
    steps = [{"type": "Trafilatura"}, {"type": "SamplerFilter", "rate": 1.0}]
    changes = {"generalist": {"paths": [str(crawl)]}, "prepare": {"steps": steps}, "sample": {"budget_tokens": 1000}}
    made = runner.prepare(topics | changes).step("prepare", "generalist")
    assert made.manifest["documents"] == 24
    texts = ["".join(row["text"] for row in rows) for rows in by_document(made).values()]
    assert all(row["text"] in text for row, text in zip(documents, texts, strict=True))
    assert not any("<p>" in text or "About" in text for text in texts)


def by_document(made: Step) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for name in part_names(made):
        for row in made.folder.read_table(f"{name}.parquet").to_pylist():
            found.setdefault(row["doc_id"], []).append(row)
    return found
