"""Rows and documents that were removed before clustering, with examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import shown
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step
from pipeline.report.atlas import excerpt_of
from pipeline.stages.scan import QUARANTINED
from pipeline.storage import Folder
from pipeline.terminal.formatting import percent

_FILES = 64  # most files read for examples
_EXAMPLES = 5  # per reason or filter
_TEXT = 300  # characters of an example


def left_out(graph: PipelineGraph) -> list[dict[str, Any]]:
    """Rows and documents removed before clustering, by step: counts by reason, the largest first, and examples.

    Covers quarantined rows, rows without text, documents dropped by filters, near-duplicates and contaminated documents.
    """
    found = []
    for step in graph.steps:
        if step.stage not in ("prepare", "dedup", "decontaminate") or not step.done or "quarantined" not in step.manifest:
            continue
        manifest = step.manifest
        if step.stage == "prepare":
            if manifest["reasons"]:
                found.append(_group(step, "in quarantine", manifest["reasons"], _quarantined(step.folder.child(QUARANTINED))))
            if manifest.get("skipped"):
                found.append(_group(step, "no rows of text", manifest["skipped"], []))
            for number, one in enumerate(manifest.get("steps", [])):
                if one["documents"]:
                    found.append(_group(step, f"dropped by {one['type']}", one["reasons"], _dropped(step.folder, number)))
        elif manifest["dropped"]:
            what = "near-duplicates" if step.stage == "dedup" else "hold held-out text"
            found.append(_group(step, what, {what: manifest["dropped"]}, _examples_of(step)))
    return found


def _group(step: Step, what: str, reasons: Mapping[str, int], examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return {"step": step.title, "what": what, "count": sum(reasons.values()), "reasons": ordered, "examples": examples}


def _quarantined(folder: Folder) -> list[dict[str, str]]:
    """Up to five quarantined rows of each reason, from the first 64 files."""
    kept: dict[str, list[dict[str, str]]] = {}
    for name in folder.names(".parquet")[:_FILES]:
        for row in folder.read_table(name).to_pylist():
            of_reason = kept.setdefault(row["reason"], [])
            if len(of_reason) < _EXAMPLES:
                where = f"{row['file']}, row {row['row']}"
                why = f"{row['reason']}: {row['detail']}" if row["detail"] else row["reason"]
                of_reason.append(_example(where, why, row["excerpt"]))
    return [row for _, rows in sorted(kept.items()) for row in rows]


def _dropped(folder: Folder, number: int) -> list[dict[str, str]]:
    examples = folder.child("dropped")
    if not examples.exists("examples.parquet"):
        return []
    rows = [row for row in examples.read_table("examples.parquet").to_pylist() if row["step"] == number]
    return [_example(row["id"], row["reason"], row["text"]) for row in rows[:_EXAMPLES]]


def _examples_of(step: Step) -> list[dict[str, str]]:
    """Examples of the documents that a dedup or decontaminate step dropped."""
    if step.stage == "dedup":
        folder = step.folder.child("dropped")
        rows = folder.read_table("examples.parquet").to_pylist() if folder.exists("examples.parquet") else []
        return [
            _example(row["id"], f"nearly as {row['kept_id']}: {row['kept_text'][:_TEXT]}", row["text"]) for row in rows[:_EXAMPLES]
        ]
    folder = step.folder.child("contaminated")
    rows = [row for name in folder.names(".parquet")[:_FILES] for row in folder.read_table(name).to_pylist()]
    return [
        _example(row["id"], f"{percent(row['share'])} of row {row['row']} of {row['held_out']}", row["text"])
        for row in rows[:_EXAMPLES]
    ]


def _example(where: str, why: str, text: str) -> dict[str, str]:
    return {"where": shown(where), "why": excerpt_of(why, _TEXT), "text": excerpt_of(text, _TEXT)}
