"""Rows and documents that were removed before clustering, with examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import replace_controls
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step
from pipeline.report.cluster_map import shorten
from pipeline.stages.prepare_scan import QUARANTINE_FOLDER
from pipeline.storage import Folder
from pipeline.terminal.formatting import format_percent

_MAX_FILES = 64  # files read for examples
_MAX_EXAMPLES = 5  # per reason or filter
_MAX_CHARS = 300  # of an example


def list_removed_rows(graph: PipelineGraph) -> list[dict[str, Any]]:
    """Rows and documents removed before clustering, by step: counts by reason, the largest first, and examples.

    Covers quarantined rows, rows without text, documents dropped by filters, near-duplicates and contaminated documents.
    """
    groups = []
    for step in graph.steps:
        if step.stage not in ("prepare", "dedup", "decontaminate") or not step.done or "quarantined" not in step.manifest:
            continue
        manifest = step.manifest
        if step.stage == "prepare":
            if manifest["reasons"]:
                examples = _read_quarantined(step.folder.child(QUARANTINE_FOLDER))
                groups.append(_build_group(step, "quarantined", manifest["reasons"], examples))
            if manifest.get("skipped"):
                groups.append(_build_group(step, "rows without text", manifest["skipped"], []))
            for number, filtered in enumerate(manifest.get("steps", [])):
                if filtered["documents"]:
                    examples = _read_dropped(step.folder, number)
                    groups.append(_build_group(step, f"dropped by {filtered['type']}", filtered["reasons"], examples))
        elif manifest["dropped"]:
            what = "near-duplicates" if step.stage == "dedup" else "contaminated with held-out text"
            groups.append(_build_group(step, what, {what: manifest["dropped"]}, _read_examples(step)))
    return groups


def _build_group(step: Step, what: str, reasons: Mapping[str, int], examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return {"step": step.title, "what": what, "count": sum(reasons.values()), "reasons": ordered, "examples": examples}


def _read_quarantined(folder: Folder) -> list[dict[str, str]]:
    """Up to five quarantined rows of each reason, from the first 64 files."""
    by_reason: dict[str, list[dict[str, str]]] = {}
    for name in folder.names(".parquet")[:_MAX_FILES]:
        for row in folder.read_table(name).to_pylist():
            examples = by_reason.setdefault(row["reason"], [])
            if len(examples) < _MAX_EXAMPLES:
                where = f"{row['file']}, row {row['row']}"
                why = f"{row['reason']}: {row['detail']}" if row["detail"] else row["reason"]
                examples.append(_build_example(where, why, row["excerpt"]))
    return [example for _, examples in sorted(by_reason.items()) for example in examples]


def _read_dropped(folder: Folder, number: int) -> list[dict[str, str]]:
    """Up to five documents that filter `number` of a prepare step dropped."""
    dropped = folder.child("dropped")
    if not dropped.exists("examples.parquet"):
        return []
    rows = [row for row in dropped.read_table("examples.parquet").to_pylist() if row["step"] == number]
    return [_build_example(row["id"], row["reason"], row["text"]) for row in rows[:_MAX_EXAMPLES]]


def _read_examples(step: Step) -> list[dict[str, str]]:
    """Up to five documents that a dedup or decontaminate step dropped."""
    if step.stage == "dedup":
        folder = step.folder.child("dropped")
        rows = folder.read_table("examples.parquet").to_pylist() if folder.exists("examples.parquet") else []
        return [
            _build_example(row["id"], f"near-duplicate of {row['kept_id']}: {row['kept_text'][:_MAX_CHARS]}", row["text"])
            for row in rows[:_MAX_EXAMPLES]
        ]
    folder = step.folder.child("contaminated")
    rows = [row for name in folder.names(".parquet")[:_MAX_FILES] for row in folder.read_table(name).to_pylist()]
    return [
        _build_example(row["id"], f"contains {format_percent(row['share'])} of row {row['row']} of {row['held_out']}", row["text"])
        for row in rows[:_MAX_EXAMPLES]
    ]


def _build_example(where: str, why: str, text: str) -> dict[str, str]:
    return {"where": replace_controls(where), "why": shorten(why, _MAX_CHARS), "text": shorten(text, _MAX_CHARS)}
