"""The summary that a job prints at its end: tables of clusters, diagnostics and sources, and the findings."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import USAGE
from pipeline.results.findings import write_sentences, write_warnings
from pipeline.results.run_results import RunResults
from pipeline.rewriting.outcomes import render_outcomes
from pipeline.terminal.formatting import format_number, format_percent

_NUM_SHOWN = 6  # clusters and sources that gained most, and as many that lost most
_HEADLINE = ("unique_share", "epochs_max", "epochs_p99", "repeats_value", "effective_windows", "clipped_mass", "deficit_share")
_OF_SPECIALIST = ("kl_generalist", "kl_output", "effective_leaves", "without_text")


def render_rewriting(graph: PipelineGraph) -> Iterator[RenderableType]:
    """Render the outcome of the rephrase step."""
    rephrased = graph.step("rephrase")
    yield from render_outcomes(rephrased.manifest, rephrased.folder.read_json(USAGE))


def render_results(results: RunResults) -> Iterator[RenderableType]:
    """Render the results of a run: of its new corpus, or of its mixture if nothing is sampled yet."""
    yield _render_clusters(results)
    phases = results.diagnostics_by_phase
    titles = ["Diagnostics"] if len(phases) == 1 else ["Diagnostics before schedule.ending", "Diagnostics of schedule.ending"]
    for diagnostics, title in zip(phases, titles, strict=True):
        yield _render_diagnostics(diagnostics, title)
    if results.manifest:
        yield from _render_sources(results.manifest["tokens_by_source"])
    yield Text()
    yield from (Text(sentence) for sentence in write_sentences(results))
    if warnings := list(write_warnings(results)):
        yield Text("\nCheck before training:")
        yield from (Text(f"- {warning}") for warning in warnings)


def describe_shards(manifest: Mapping[str, Any]) -> str:
    """The size of the new corpus in a line."""
    num_shards = len(manifest["shards"])
    return (
        f"{manifest['rows']:,} windows, {manifest['tokens']:,} tokens (budget {manifest['budget_tokens']:,}) in {num_shards} "
        f"shard{'s' if num_shards != 1 else ''}"
    )


def _render_clusters(results: RunResults) -> RenderableType:
    """The clusters whose share grew and shrank most."""
    before_L, after_L, allocation = results.before_L, results.after_L, results.allocation
    change_L = after_L - before_L
    order = [int(i) for i in np.argsort(-change_L, kind="stable") if before_L[i] > 0]
    up = [i for i in order[:_NUM_SHOWN] if change_L[i] > 0]
    down = [i for i in order[-_NUM_SHOWN:] if change_L[i] < 0 and i not in up]
    only_specialist = next(iter(results.specialist_rows)) if len(results.specialist_rows) == 1 else None
    headings = ["cluster", "name", "generalist"]
    headings += ["sample", "target (90% interval)"] if only_specialist else []
    headings += ["new corpus", "change"] + (["epochs"] if allocation else [])
    table = _build_table("Clusters that changed most (share of tokens)", headings, left=("name",))
    for i in [*up, *down]:
        row = [str(i), results.get_name(i), format_percent(before_L[i])]
        if only_specialist:
            sample = results.specialist_rows[only_specialist].get(i, {"p_raw": 0.0, "p": 0.0, "p_low": 0.0, "p_high": 0.0})
            has_interval = np.isfinite(sample["p_low"])
            row.append(format_percent(sample["p_raw"]))
            row.append(
                format_percent(sample["p"])
                + (f" ({format_percent(sample['p_low'])}–{format_percent(sample['p_high'])})" if has_interval else "")
            )
        row += [format_percent(after_L[i]), f"{after_L[i] / before_L[i]:.2f}×"]
        table.add_row(*row, *([f"{allocation.epochs_L[i]:.2f}"] if allocation else []))
    return table


def _build_table(title: str, headings: Sequence[str], left: Sequence[str]) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right")
    return table


def _render_diagnostics(diagnostics: Sequence[Mapping[str, Any]], title: str) -> RenderableType:
    table = _build_table(title, ["", "value", "90% interval", "meaning"], left=("", "meaning"))
    for row in diagnostics:
        if row["name"] in (_OF_SPECIALIST if row["specialist"] else _HEADLINE) or row["name"].startswith("alpha_"):
            interval = f"{format_number(row['low'])}–{format_number(row['high'])}" if row["low"] is not None else ""
            label = f"{row['specialist']}: {row['name']}" if row["specialist"] else row["name"]
            table.add_row(label, format_number(row["value"]), interval, row["meaning"])
    return table


def _render_sources(sources: Mapping[str, Sequence[int]]) -> Iterator[RenderableType]:
    if len(sources) < 2:
        return
    generalist_tokens, new_tokens = (sum(counts[i] for counts in sources.values()) for i in (0, 1))
    rows = sorted(
        ((name, a / max(generalist_tokens, 1), b / max(new_tokens, 1)) for name, (a, b) in sources.items()),
        key=lambda row: (row[1] - row[2], row[0]),
    )
    if len(rows) > 2 * _NUM_SHOWN:
        rows = rows[:_NUM_SHOWN] + rows[-_NUM_SHOWN:]
    table = _build_table(
        "Sources that changed most (share of tokens)", ["source", "generalist", "new corpus", "change"], left=("source",)
    )
    for name, before, after in rows:
        table.add_row(
            "".join(c if c.isprintable() else "?" for c in name),
            format_percent(before),
            format_percent(after),
            f"{after / before:.2f}×" if before else "",
        )
    yield table
