"""The summary at the end of a run: what changed in the mixture, and how certain the estimates are."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import USAGE, Step
from pipeline.results.cluster_names import ClusterName
from pipeline.results.shares import SHARE_TOLERANCE, Shares, compute_max_epochs, target_shares
from pipeline.rewriting.summary import render_summary
from pipeline.terminal.formatting import format_number, format_percent

_NUM_SHOWN = 6  # clusters and sources that gained most, and as many that lost most
_HEADLINE = ("unique_share", "epochs_max", "epochs_p99", "repeats_value", "effective_windows", "clipped_mass", "deficit_share")
_OF_SPECIALIST = ("kl_generalist", "kl_output", "effective_leaves", "without_text")


def render_run_summary(graph: PipelineGraph, until: str) -> Iterator[RenderableType]:
    """Render the summary of a job that ran up to `until`."""
    if until == "rephrase" or (until == "sample" and graph.config.rephrase):
        rephrased = graph.step("rephrase")
        yield from render_summary(rephrased.manifest, rephrased.folder.read_json(USAGE))
    if until not in ("weights", "sample"):
        return
    shares = Shares(graph, planned=until == "sample")
    yield from _render_clusters(shares)
    titles = (
        ["Diagnostics"]
        if len(graph.weights_steps) == 1
        else ["Diagnostics before schedule.ending", "Diagnostics of schedule.ending"]
    )
    for weighted, title in zip(graph.weights_steps, titles, strict=True):
        yield _render_diagnostics(weighted, title)
    if until == "sample":
        yield from _render_sources(graph)
    yield Text()
    yield from (Text(sentence) for sentence in _describe_specialists(shares))
    if until == "sample":
        manifest = graph.shards_step.manifest
        yield from _describe_repeats(graph, manifest)
        yield Text(
            f"{manifest['rows']:,} windows, {manifest['tokens']:,} tokens (budget {manifest['budget_tokens']:,}) "
            f"in {len(manifest['shards'])} shard{'s' if len(manifest['shards']) > 1 else ''}: {graph.shards.url}"
        )


def _render_clusters(shares: Shares) -> Iterator[RenderableType]:
    """The clusters whose share grew and shrank most."""
    change_L = shares.after_L - shares.before_L
    order = [int(i) for i in np.argsort(-change_L, kind="stable") if shares.before_L[i] > 0]
    up = [i for i in order[:_NUM_SHOWN] if change_L[i] > 0]
    down = [i for i in order[-_NUM_SHOWN:] if change_L[i] < 0 and i not in up]
    only_specialist = next(iter(shares.sample_rows)) if len(shares.sample_rows) == 1 else None
    headings = ["cluster", "name", "generalist"]
    headings += ["sample", "target (90% interval)"] if only_specialist else []
    headings += ["new corpus", "change"] + (["epochs"] if shares.epochs_L is not None else [])
    table = _build_table("Clusters that changed most (share of tokens)", headings, left=("name",))
    for i in [*up, *down]:
        row = [str(i), shares.names.get(i, ClusterName()).label, format_percent(shares.before_L[i])]
        if only_specialist:
            sample = shares.sample_rows[only_specialist].get(i, {"p_raw": 0.0, "p": 0.0, "p_low": 0.0, "p_high": 0.0})
            has_interval = np.isfinite(sample["p_low"])
            row.append(format_percent(sample["p_raw"]))
            row.append(
                format_percent(sample["p"])
                + (f" ({format_percent(sample['p_low'])}–{format_percent(sample['p_high'])})" if has_interval else "")
            )
        row += [format_percent(shares.after_L[i]), f"{shares.after_L[i] / shares.before_L[i]:.2f}×"]
        table.add_row(*row, *([f"{shares.epochs_L[i]:.2f}"] if shares.epochs_L is not None else []))
    yield table


def _describe_specialists(shares: Shares) -> Iterator[str]:
    """A sentence for each specialist: how the share of its favoured clusters changed."""
    for name, leaves in shares.sample_rows.items():
        favoured = shares.favoured_clusters(name)
        sample = sum(leaves[leaf]["p_raw"] for leaf in favoured)
        before, after = float(shares.before_L[favoured].sum()), float(shares.after_L[favoured].sum())
        yield (
            f"{name}: the {len(favoured):,} clusters that its sample favours hold {format_percent(sample)} of the sample, "
            f"{format_percent(before)} of the generalist corpus, and {format_percent(after)} of the new corpus."
        )


def _describe_repeats(graph: PipelineGraph, manifest: dict[str, Any]) -> Iterator[RenderableType]:
    """The share of repeated tokens, and the specialists whose share the limits on repeats changed."""
    rewritten = manifest["tokens_by_origin"].get("rephrased", 0) / max(1, manifest["tokens"])
    yield Text(
        f"{format_percent(manifest['first_tokens'] / max(1, manifest['tokens']))} of the tokens are first copies"
        + (f", {format_percent(rewritten)} are rewrites" if graph.config.rephrase else "")
        + f"; no cluster or stratum exceeds {compute_max_epochs(graph):.2f} epochs on average."
    )
    sampled: dict[str, int] = manifest["tokens_by_specialist"]
    total = max(1, manifest["tokens"])
    targets = target_shares(graph.config)
    missed = [name for name, share in targets.items() if abs(sampled.get(name, 0) / total - share) > SHARE_TOLERANCE]
    if missed:
        differences = ", ".join(
            f"{name} {format_percent(sampled.get(name, 0) / total)} instead of {format_percent(targets[name])}" for name in targets
        )
        yield Text(
            f"The limits on repeats (weights.max_epochs, weights.repeat_exponent) changed shares of the mixture: {differences}. "
            "To keep the shares, add generalist text similar to the sample, lower the budget, or raise the limits."
        )
    if not manifest["rows"]:
        yield Text("No window was sampled: sample.budget_tokens is less than half a window.")


def _build_table(title: str, headings: Sequence[str], left: Sequence[str]) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right")
    return table


def _render_diagnostics(weighted: Step, title: str) -> RenderableType:
    diagnostics = weighted.folder.read_table("diagnostics.parquet").to_pylist()
    table = _build_table(title, ["", "value", "90% interval", "meaning"], left=("", "meaning"))
    for row in diagnostics:
        if row["name"] in (_OF_SPECIALIST if row["specialist"] else _HEADLINE) or row["name"].startswith("alpha_"):
            interval = f"{format_number(row['low'])}–{format_number(row['high'])}" if row["low"] is not None else ""
            label = f"{row['specialist']}: {row['name']}" if row["specialist"] else row["name"]
            table.add_row(label, format_number(row["value"]), interval, row["meaning"])
    return table


def _render_sources(graph: PipelineGraph) -> Iterator[RenderableType]:
    manifest = graph.shards_step.manifest
    sources: dict[str, list[int]] = manifest["tokens_by_source"]
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
