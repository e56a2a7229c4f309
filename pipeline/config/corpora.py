"""Settings of the corpora: where documents are read from, and how they are filtered before embedding."""

from typing import Any, Literal

from pydantic import Field

from pipeline.config.section import EXECUTION, Section

NATURAL = "natural"  # the name of the natural share in tables of specialists
GENERALIST = "generalist"  # the name of the generalist corpus in a run


class Corpus(Section):
    """Where documents are read from."""

    paths: list[str] = Field(
        min_length=1,
        json_schema_extra=EXECUTION,
        description="files, folders or globs, local or any fsspec URL; pydocs:// for docstrings of installed packages",
    )
    text_key: str = Field("text", description="column with the text")
    id_key: str | None = Field("id", description="column with the id; null: ids are made from file and row")
    limit: int | None = Field(None, ge=1, description="maximum rows read from each file, for a quick test; null: all")
    reader: dict[str, Any] | None = Field(
        None, description="datatrove reader for all files: {type: WarcReader, …settings}; null: chosen by file name extension"
    )
    steps: list[dict[str, Any]] | None = Field(
        None,
        description="datatrove steps for this corpus; null: prepare.steps for the generalist corpus, none for a specialist sample",
    )


class Generalist(Corpus):
    """The large corpus that the new corpus is sampled from."""


class Specialist(Corpus):
    """A small sample of the target domain."""

    share: float = Field(1.0, gt=0, description="share of the mixture, relative to the other specialists")


class Prepare(Section):
    """Filters and metadata of the input, and the size of parts, the unit of work, retry and resume."""

    metadata: Literal["all", "none"] | list[str] = Field(
        "all", description="columns kept in addition to id, text and source: all, none, or a list of names; steps see only these"
    )
    metadata_bytes: int = Field(
        64 << 10, ge=2, le=16 << 20, description="maximum bytes of a row's metadata as JSON; a row with more is quarantined"
    )

    steps: list[dict[str, Any]] = Field(
        default=[],
        json_schema_extra=EXECUTION,  # part of the identity of each corpus that they apply to
        description="datatrove extractors, formatters and filters, in order: {type: GopherQualityFilter, …settings}",
    )
    part_documents: int = Field(4096, ge=1, description="maximum documents in a part")
    part_bytes: int = Field(
        16 << 20,
        ge=1 << 12,
        le=1 << 30,
        description="maximum bytes of documents in a part, including metadata; the last piece of text may exceed it",
    )


class Dedup(Section):
    """Removes near-duplicates of the whole generalist corpus, found by MinHash; one document of each group is kept."""

    ngrams: int = Field(5, ge=1, description="words per shingle")
    buckets: int = Field(
        20, ge=1, le=999, description="bands of the MinHash signature; documents with an equal band are near-duplicates"
    )
    hashes: int = Field(
        12, ge=1, description="hashes per band; 20 × 12 finds 99.9% of pairs at a Jaccard similarity of 0.9, and 0.5% at 0.5"
    )
    language: str = Field(
        "eng", min_length=2, description="language of the word tokenizer: a datatrove code such as eng, fra or zho"
    )


class HeldOut(Corpus):
    """Test text: plain text, or questions (`text_key`) with answers."""

    answer_key: str | None = Field(
        None, description="column with the answer: its text, or the label, letter or number (from 0) of a choice"
    )
    choices_key: str | None = Field(None, description="column with the choices: a list, or an object with the lists text and label")
    of: str | None = Field(None, description="the specialist that this test set belongs to; an overlap with its sample is an error")


class Decontaminate(Section):
    """Drops documents that contain held-out text, from the generalist corpus and the specialist samples."""

    held_out: dict[str, HeldOut] = Field(min_length=1, description="held-out corpora by name")
    ngram: int = Field(8, ge=2, description="words per n-gram; shorter rows cannot be found")
    min_share: float = Field(
        0.7, gt=0, le=1, description="minimum share of a held-out row's n-grams that a dropped document contains"
    )
