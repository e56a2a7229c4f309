"""Records the documents that the refining steps dropped: counts by step and reason, and excerpts for reports."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.hashing import document_uniform
from pipeline.refining import StepError
from pipeline.sources import EXCERPT_CHARACTERS, Document, InputFile, Row
from pipeline.tables import DROPPED, QUARANTINE

if TYPE_CHECKING:
    from pipeline.refining.chain import Chain

EXAMPLES = 20  # dropped documents shown per step
_FAILED = "step_failed"  # the reason in the quarantine table


class Account:
    """Dropped and failed documents of one part. Excerpts are selected by a hash of document ids, whatever the order of work."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[int, str]] = Counter()
        self._examples: dict[int, list[tuple[float, dict[str, Any]]]] = defaultdict(list)
        self._failed: list[dict[str, Any]] = []

    def refined(self, chain: "Chain", file: InputFile, row: Row, most_bytes: int) -> Document | None:
        """Return the document of a good row after the chain; None if it was dropped or a step failed, which is recorded.

        `most_bytes` limits the metadata of a document after the steps, in bytes of JSON.
        """
        document = row.document
        assert document is not None
        place = {"file": file.url, "row": row.row, "id": document.id}
        try:
            outcome = chain.refine(document)
            if isinstance(outcome, Document) and (num_bytes := len(outcome.metadata.encode())) > most_bytes:
                raise StepError(f"the steps left {num_bytes:,} bytes of metadata, and prepare.metadata_bytes is {most_bytes:,}")
        except StepError as error:
            excerpt = document.text[:EXCERPT_CHARACTERS]
            self._failed.append({**place, "reason": _FAILED, "detail": str(error), "excerpt": excerpt})
            return None
        if isinstance(outcome, Document):
            return outcome
        self._counts[outcome.step, outcome.reason] += 1
        shown = self._examples[outcome.step]
        shown.append((_place_of(document.id), {**place, "step": outcome.step, "reason": outcome.reason, "text": outcome.text}))
        if len(shown) >= 2 * EXAMPLES:
            _keep_first(shown)
        return None

    @property
    def facts(self) -> dict[str, Any]:
        """Counts for the part's Parquet footer."""
        return {
            "dropped": [[step, reason, count] for (step, reason), count in sorted(self._counts.items())],
            "failed": len(self._failed),
        }

    def examples(self) -> pa.Table:
        """Return at most `EXAMPLES` dropped documents of each step as a DROPPED table."""
        for shown in self._examples.values():
            _keep_first(shown)
        return pa.Table.from_pylist([row for step in sorted(self._examples) for _, row in self._examples[step]], DROPPED)

    def failed(self) -> pa.Table:
        """Return the documents on which a step failed as a QUARANTINE table."""
        return pa.Table.from_pylist(self._failed, QUARANTINE)


def summed(parts: Iterable[Mapping[str, Any]], types: Sequence[str]) -> list[dict[str, Any]]:
    """Sum the `facts` of all parts: for each step its type, number of dropped documents, and reasons, most frequent first."""
    counts: Counter[tuple[int, str]] = Counter()
    for part in parts:
        for step, reason, count in part["dropped"]:
            counts[step, reason] += count
    reasons: list[dict[str, int]] = [{} for _ in types]
    for (step, reason), count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        reasons[step][reason] = count
    return [{"type": kind, "documents": sum(why.values()), "reasons": why} for kind, why in zip(types, reasons, strict=True)]


def merged(tables: Sequence[pa.Table]) -> pa.Table:
    """Merge the DROPPED tables of parts into that of the corpus, with at most `EXAMPLES` rows per step; duplicates count once."""
    rows = {(row["file"], row["row"], row["step"]): row for table in tables for row in table.to_pylist()}
    by_step: dict[int, list[tuple[float, dict[str, Any]]]] = defaultdict(list)
    for row in rows.values():
        by_step[row["step"]].append((_place_of(row["id"]), row))
    for shown in by_step.values():
        _keep_first(shown)
    return pa.Table.from_pylist([row for step in sorted(by_step) for _, row in by_step[step]], DROPPED)


def said(steps: Sequence[Mapping[str, Any]], documents: int) -> Iterable[str]:
    """Yield one log line per step. `documents` is the number of documents that entered the first step."""
    for step in steps:
        share = step["documents"] / max(1, documents)
        why = ", ".join(f"{reason} {count:,}" for reason, count in step["reasons"].items())
        yield f"{step['type']} dropped {step['documents']:,} of {documents:,} documents ({share:.1%}){': ' if why else ''}{why}"
        documents -= step["documents"]


def _keep_first(shown: list[tuple[float, dict[str, Any]]]) -> None:
    shown.sort(key=lambda one: (one[0], one[1]["file"], one[1]["row"]))
    del shown[EXAMPLES:]


def _place_of(identifier: str) -> float:
    return document_uniform(identifier, seed=0, purpose="prepare.dropped")
