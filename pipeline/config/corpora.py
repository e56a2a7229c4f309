"""Where documents come from, and what becomes of them before any is embedded."""

from typing import Any, Literal

from pydantic import Field

from pipeline.config.section import EXECUTION, Section

NATURAL = "natural"  # the name under which the natural share appears beside the specialists
GENERALIST = "generalist"  # the name of the large corpus among the corpora of a run


class Corpus(Section):
    """Where documents are read from."""

    paths: list[str] = Field(
        min_length=1, json_schema_extra=EXECUTION, description="files or globs, local or any fsspec URL; pydocs://"
    )
    text_key: str = Field("text", description="column of the text")
    id_key: str | None = Field("id", description="column of the id; null: documents are numbered by file and row")
    limit: int | None = Field(None, ge=1, description="rows read of each file, for a first look; null: all")
    reader: dict[str, Any] | None = Field(
        None, description="datatrove reader of all files: {type: WarcReader, …settings}; null: by their endings"
    )
    steps: list[dict[str, Any]] | None = Field(
        None, description="datatrove steps of this corpus; null: of the generalist those of prepare.steps, of a sample none"
    )


class Generalist(Corpus):
    """The large corpus that is drawn from."""


class Specialist(Corpus):
    """A small sample of the target domain."""

    share: float = Field(1.0, gt=0, description="its part of the mixture, relative to the other specialists")


class Prepare(Section):
    """What is kept of the input, and how it is cut into parts, the unit of work, retry and resume."""

    metadata: Literal["all", "none"] | list[str] = Field(
        "all", description="columns kept beside id, text and source: all, none, or a list of names; steps see no others"
    )
    metadata_bytes: int = Field(
        64 << 10, ge=2, le=16 << 20, description="most bytes of these columns in a row, as JSON; a row with more is quarantined"
    )

    steps: list[dict[str, Any]] = Field(
        default=[],
        json_schema_extra=EXECUTION,  # in the identity of the corpora that they are for
        description="datatrove extractors, formatters and filters, in order: {type: GopherQualityFilter, …settings}",
    )
    part_documents: int = Field(4096, ge=1, description="most documents in a part")
    part_bytes: int = Field(
        16 << 20, ge=1 << 12, le=1 << 30, description="most bytes of documents in a part, metadata included (one stretch more)"
    )


class Dedup(Section):
    """Near-duplicates of the generalist corpus, found by MinHash over all of it; one of each cluster stays."""

    ngrams: int = Field(5, ge=1, description="words of a shingle")
    buckets: int = Field(
        20, ge=1, le=999, description="bands of the signature: documents that agree on all of one are near-duplicates"
    )
    hashes: int = Field(12, ge=1, description="of a band; 20 × 12 finds 99.9% at a Jaccard similarity of 0.9, and 0.5% at 0.5")
    language: str = Field("eng", min_length=2, description="whose words: a code that datatrove knows, such as eng, fra or zho")


class HeldOut(Corpus):
    """Text that models will be tested on: plain, or questions (`text_key`) with answers."""

    answer_key: str | None = Field(
        None, description="column of the answer: its text, or which choice it is: label, letter, or number from 0"
    )
    choices_key: str | None = Field(None, description="column of the choices: a list, or an object of the lists text and label")
    of: str | None = Field(None, description="the specialist whose test set it is: that its sample overlaps it is an error")


class Decontaminate(Section):
    """Documents that hold held-out text are dropped, of the corpus and of the samples."""

    held_out: dict[str, HeldOut] = Field(min_length=1, description="by name")
    ngram: int = Field(8, ge=2, description="words of a run that is looked for; shorter rows cannot be found")
    min_share: float = Field(0.7, gt=0, le=1, description="of the runs of a held-out row: a document with as many holds it")
