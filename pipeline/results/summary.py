"""What a person reads in the terminal at the end of a run: what changed in the mixture, and how sure we are."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import USAGE, Step
from pipeline.results.cluster_names import Name
from pipeline.results.shares import SHARE_OFF, Shares, asked_shares, most_passes
from pipeline.rewriting.accounts import account
from pipeline.terminal.formatting import format_number, percent

_MOVERS = 6  # clusters and sources shown at each end
_HEADLINE = ("unique_share", "epochs_max", "epochs_p99", "repeats_value", "effective_windows", "clipped_mass", "deficit_share")
_OF_SPECIALIST = ("kl_generalist", "kl_output", "effective_leaves", "without_text")


def summary(graph: PipelineGraph, until: str) -> Iterator[RenderableType]:
    """What there is to say at the end of a job."""
    if until == "rephrase" or (until == "sample" and graph.config.rephrase):
        rephrased = graph.step("rephrase")
        yield from account(rephrased.manifest, rephrased.folder.read_json(USAGE))
    if until not in ("weights", "sample"):
        return
    shares = Shares(graph, planned=until == "sample")
    yield from _movers(shares)
    titles = ["What that does"] if len(graph.weighings) == 1 else ["What its beginning does", "What its end does"]
    for weighted, title in zip(graph.weighings, titles, strict=True):
        yield _diagnostics(weighted, title)
    if until == "sample":
        yield from _sources(graph)
    yield Text()
    yield from (Text(sentence) for sentence in _verdict(shares))
    if until == "sample":
        manifest = graph.corpus.manifest
        yield from _realised(graph, manifest)
        yield Text(
            f"{manifest['rows']:,} windows, {manifest['tokens']:,} tokens (asked for {manifest['budget_tokens']:,}) "
            f"in {len(manifest['shards'])} shard{'s' if len(manifest['shards']) > 1 else ''}: {graph.shards.url}"
        )


def _movers(shares: Shares) -> Iterator[RenderableType]:
    """The clusters that gained and lost most."""
    moved_L = shares.after_L - shares.before_L
    order = [int(i) for i in np.argsort(-moved_L, kind="stable") if shares.before_L[i] > 0]
    up = [i for i in order[:_MOVERS] if moved_L[i] > 0]
    down = [i for i in order[-_MOVERS:] if moved_L[i] < 0 and i not in up]
    only = next(iter(shares.samples)) if len(shares.samples) == 1 else None
    headings = ["cluster", "what sets its text apart", "generalist"]
    headings += ["its sample", "asked for (90% interval)"] if only else []
    headings += ["new corpus", "change"] + (["epochs"] if shares.epochs_L is not None else [])
    table = _table("Clusters that moved most (share of tokens)", headings, left=("what sets its text apart",))
    for i in [*up, *down]:
        row = [str(i), shares.names.get(i, Name()).shown, percent(shares.before_L[i])]
        if only:
            found = shares.samples[only].get(i, {"p_raw": 0.0, "p": 0.0, "p_low": 0.0, "p_high": 0.0})
            known = np.isfinite(found["p_low"])
            row.append(percent(found["p_raw"]))
            row.append(percent(found["p"]) + (f" ({percent(found['p_low'])}–{percent(found['p_high'])})" if known else ""))
        row += [percent(shares.after_L[i]), f"{shares.after_L[i] / shares.before_L[i]:.2f}×"]
        table.add_row(*row, *([f"{shares.epochs_L[i]:.2f}"] if shares.epochs_L is not None else []))
    yield table


def _verdict(shares: Shares) -> Iterator[str]:
    """A sentence for each specialist: whether the mixture moved its way."""
    for name, leaves in shares.samples.items():
        favoured = shares.favoured(name)
        sample = sum(leaves[leaf]["p_raw"] for leaf in favoured)
        before, after = float(shares.before_L[favoured].sum()), float(shares.after_L[favoured].sum())
        yield (
            f"{name}: the {len(favoured):,} clusters that its sample favours ({percent(sample)} of it) are {percent(before)} "
            f"of the generalist corpus and {percent(after)} of the new one."
        )


def _realised(graph: PipelineGraph, manifest: dict[str, Any]) -> Iterator[RenderableType]:
    """How much is repeated, and whose share the cap on repeats changed."""
    rewritten = manifest["tokens_by_origin"].get("rephrased", 0) / max(1, manifest["tokens"])
    yield Text(
        f"{percent(manifest['first_tokens'] / max(1, manifest['tokens']))} of its tokens are not repeats"
        + (f", {percent(rewritten)} are rewrites" if graph.config.rephrase else "")
        + f"; on the mean no cluster's text is passed over more than {most_passes(graph):.2f} times."
    )
    drawn: dict[str, int] = manifest["tokens_by_specialist"]
    total = max(1, manifest["tokens"])
    asked = asked_shares(graph.config)
    off = [name for name, share in asked.items() if abs(drawn.get(name, 0) / total - share) > SHARE_OFF]
    if off:
        said = ", ".join(f"{name} {percent(drawn.get(name, 0) / total)} instead of {percent(asked[name])}" for name in asked)
        yield Text(
            f"The limits on repeats (weights.max_epochs, weights.repeat_exponent) moved shares of the mixture: {said}. More "
            "generalist text like the sample, a smaller budget or higher limits keep them."
        )
    if not manifest["rows"]:
        yield Text("Nothing was drawn: sample.budget_tokens is less than half a window.")


def _table(title: str, headings: Sequence[str], left: Sequence[str]) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right")
    return table


def _diagnostics(weighted: Step, title: str) -> RenderableType:
    facts = weighted.folder.read_table("diagnostics.parquet").to_pylist()
    shown = _table(title, ["", "value", "90% interval", "meaning"], left=("", "meaning"))
    for fact in facts:
        if fact["name"] in (_OF_SPECIALIST if fact["specialist"] else _HEADLINE) or fact["name"].startswith("alpha_"):
            interval = f"{format_number(fact['low'])}–{format_number(fact['high'])}" if fact["low"] is not None else ""
            label = f"{fact['specialist']}: {fact['name']}" if fact["specialist"] else fact["name"]
            shown.add_row(label, format_number(fact["value"]), interval, fact["meaning"])
    return shown


def _sources(graph: PipelineGraph) -> Iterator[RenderableType]:
    manifest = graph.corpus.manifest
    sources: dict[str, list[int]] = manifest["tokens_by_source"]
    if len(sources) < 2:
        return
    held, drawn = (sum(counts[i] for counts in sources.values()) for i in (0, 1))
    rows = sorted(
        ((name, a / max(held, 1), b / max(drawn, 1)) for name, (a, b) in sources.items()), key=lambda row: (row[1] - row[2], row[0])
    )
    if len(rows) > 2 * _MOVERS:
        rows = rows[:_MOVERS] + rows[-_MOVERS:]
    table = _table("Sources that moved most (share of tokens)", ["source", "generalist", "new corpus", "change"], left=("source",))
    for name, before, after in rows:
        table.add_row(
            "".join(c if c.isprintable() else "?" for c in name),
            percent(before),
            percent(after),
            f"{after / before:.2f}×" if before else "",
        )
    yield table
