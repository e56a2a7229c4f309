"""Records the documents that the refining steps dropped: counts by step and reason, and excerpts for reports."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.hashing import document_uniform
from pipeline.refining import RefiningError
from pipeline.sources import EXCERPT_CHARACTERS, Document, InputFile, Row
from pipeline.tables import DROPPED, QUARANTINE

if TYPE_CHECKING:
    from pipeline.refining.chain import Chain

EXCERPTS_PER_STEP = 20  # dropped documents per step whose text is kept for reports
_FAILED = "step_failed"  # the reason in the quarantine table


class DropLog:
    """Dropped and failed documents of one part. Excerpts are selected by a hash of document ids, whatever the order of work."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[int, str]] = Counter()
        self._excerpts: dict[int, list[tuple[float, dict[str, Any]]]] = defaultdict(list)
        self._failed: list[dict[str, Any]] = []

    def refine(self, chain: "Chain", file: InputFile, row: Row, max_metadata_bytes: int) -> Document | None:
        """Return the document of a good row after the chain; None if it was dropped or a step failed, which is recorded.

        `max_metadata_bytes` limits the metadata of a document after the steps, in bytes of JSON.
        """
        document = row.document
        assert document is not None
        location = {"file": file.url, "row": row.number, "id": document.id}
        try:
            outcome = chain.refine(document)
            if isinstance(outcome, Document) and (num_bytes := len(outcome.metadata.encode())) > max_metadata_bytes:
                raise RefiningError(
                    f"the steps left {num_bytes:,} bytes of metadata, more than prepare.metadata_bytes ({max_metadata_bytes:,})"
                )
        except RefiningError as error:
            excerpt = document.text[:EXCERPT_CHARACTERS]
            self._failed.append({**location, "reason": _FAILED, "detail": str(error), "excerpt": excerpt})
            return None
        if isinstance(outcome, Document):
            return outcome
        self._counts[outcome.step, outcome.reason] += 1
        excerpts = self._excerpts[outcome.step]
        excerpt_row = {**location, "step": outcome.step, "reason": outcome.reason, "text": outcome.text}
        excerpts.append((_sort_key(document.id), excerpt_row))
        if len(excerpts) >= 2 * EXCERPTS_PER_STEP:
            _keep_smallest(excerpts)
        return None

    @property
    def facts(self) -> dict[str, Any]:
        """Counts for the part's Parquet footer."""
        return {
            "dropped": [[step, reason, count] for (step, reason), count in sorted(self._counts.items())],
            "failed": len(self._failed),
        }

    def excerpts(self) -> pa.Table:
        """Return at most `EXCERPTS_PER_STEP` dropped documents of each step as a DROPPED table."""
        for excerpts in self._excerpts.values():
            _keep_smallest(excerpts)
        return pa.Table.from_pylist([row for step in sorted(self._excerpts) for _, row in self._excerpts[step]], DROPPED)

    def failed(self) -> pa.Table:
        """Return the documents on which a step failed as a QUARANTINE table."""
        return pa.Table.from_pylist(self._failed, QUARANTINE)


def sum_drops(parts: Iterable[Mapping[str, Any]], types: Sequence[str]) -> list[dict[str, Any]]:
    """Sum the `facts` of all parts: for each step its type, number of dropped documents, and reasons, most frequent first."""
    counts: Counter[tuple[int, str]] = Counter()
    for part in parts:
        for step, reason, count in part["dropped"]:
            counts[step, reason] += count
    reasons: list[dict[str, int]] = [{} for _ in types]
    for (step, reason), count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        reasons[step][reason] = count
    return [
        {"type": kind, "documents": sum(by_reason.values()), "reasons": by_reason}
        for kind, by_reason in zip(types, reasons, strict=True)
    ]


def merge_excerpts(tables: Sequence[pa.Table]) -> pa.Table:
    """Merge the DROPPED tables of parts into that of the corpus, with at most `EXCERPTS_PER_STEP` rows per step."""
    rows = {(row["file"], row["row"], row["step"]): row for table in tables for row in table.to_pylist()}
    by_step: dict[int, list[tuple[float, dict[str, Any]]]] = defaultdict(list)
    for row in rows.values():
        by_step[row["step"]].append((_sort_key(row["id"]), row))
    for excerpts in by_step.values():
        _keep_smallest(excerpts)
    return pa.Table.from_pylist([row for step in sorted(by_step) for _, row in by_step[step]], DROPPED)


def format_log_lines(steps: Sequence[Mapping[str, Any]], num_documents: int) -> Iterable[str]:
    """Yield one log line per step. `num_documents` is the number of documents that entered the first step."""
    for step in steps:
        share = step["documents"] / max(1, num_documents)
        listed = ", ".join(f"{reason} {count:,}" for reason, count in step["reasons"].items())
        suffix = f": {listed}" if listed else ""
        yield f"{step['type']} dropped {step['documents']:,} of {num_documents:,} documents ({share:.1%}){suffix}"
        num_documents -= step["documents"]


def _keep_smallest(excerpts: list[tuple[float, dict[str, Any]]]) -> None:
    excerpts.sort(key=lambda excerpt: (excerpt[0], excerpt[1]["file"], excerpt[1]["row"]))
    del excerpts[EXCERPTS_PER_STEP:]


def _sort_key(identifier: str) -> float:
    return document_uniform(identifier, seed=0, purpose="prepare.dropped")
