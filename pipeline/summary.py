"""What a person reads in the terminal at the end of a run: what changed in the mixture, and how sure we are."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.config import NATURAL, Config
from pipeline.rewriting.accounts import account
from pipeline.step import USAGE, Step

if TYPE_CHECKING:
    from pipeline.run import Run

# A log has no width: there, lines are as long as tables like.
console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 130)

_MOVERS = 6  # clusters and sources shown at each end
_HEADLINE = ("unique_share", "epochs_max", "epochs_p99", "repeats_value", "effective_windows", "clipped_mass", "deficit_share")
_SHARE_OFF = 0.02  # said, when a share of the mixture is this far from what was asked
_OF_SPECIALIST = ("kl_generalist", "kl_output", "effective_leaves", "without_text")


def summary(run: "Run", until: str) -> Iterator[RenderableType]:
    """What there is to say at the end of a job."""
    if until == "rephrase" or (until == "sample" and run.config.rephrase):
        rephrased = run.step("rephrase")
        yield from account(rephrased.manifest, rephrased.folder.read_json(USAGE))
    if until not in ("weights", "sample"):
        return
    shares = _Shares(run, planned=until == "sample")
    yield from shares.movers()
    titles = ["What that does"] if len(run.weighings) == 1 else ["What its beginning does", "What its end does"]
    for weighted, title in zip(run.weighings, titles, strict=True):
        yield _diagnostics(weighted, title)
    if until == "sample":
        yield from _sources(run)
    yield Text()
    yield from (Text(sentence) for sentence in shares.verdict())
    if until == "sample":
        manifest = run.corpus.manifest
        yield from _realised(run, manifest)
        yield Text(
            f"{manifest['rows']:,} windows, {manifest['tokens']:,} tokens (asked for {manifest['budget_tokens']:,}) "
            f"in {len(manifest['shards'])} shard{'s' if len(manifest['shards']) > 1 else ''}: {run.shards.url}"
        )


class _Shares:
    """Shares of the leaves in the generalist corpus, in each sample, and in the new corpus: as planned, or before as asked for."""

    def __init__(self, run: "Run", *, planned: bool) -> None:
        folder = run.step("weights").folder
        mixture = folder.read_table("mixture.parquet")
        self.names = dict(zip(*folder.read_table("names.parquet").to_pydict().values(), strict=True))
        self.before_L = mixture["p_generalist"].to_numpy()
        parts = [run.config.share_of(phase) for phase in run.config.phases]
        asked = [step.folder.read_table("mixture.parquet")["p_target"].to_numpy() for step in run.weighings]
        self.after_L = sum(part * p_L for part, p_L in zip(parts, asked, strict=True))
        self.epochs_L = None
        if planned:
            plans = [step.folder.read_table("plan.parquet") for step in run.samples]
            planned_L = sum(plan[name].to_numpy() for plan in plans for name in ("planned_tokens", "rewritten_tokens"))
            self.after_L = planned_L / max(1e-9, float(planned_L.sum()))
            self.epochs_L = sum(plan["epochs"].to_numpy() for plan in plans)
        self.samples: dict[str, dict[int, dict[str, float]]] = {name: {} for name in run.config.specialists}
        for row in folder.read_table("specialists.parquet").to_pylist():
            self.samples[row["specialist"]][row["leaf"]] = row

    def movers(self) -> Iterator[RenderableType]:
        """The clusters that gained and lost most."""
        moved_L = self.after_L - self.before_L
        order = [int(i) for i in np.argsort(-moved_L, kind="stable") if self.before_L[i] > 0]
        up = [i for i in order[:_MOVERS] if moved_L[i] > 0]
        down = [i for i in order[-_MOVERS:] if moved_L[i] < 0 and i not in up]
        only = next(iter(self.samples)) if len(self.samples) == 1 else None
        headings = ["cluster", "what sets its text apart", "generalist"]
        headings += [f"{only} (90% interval)"] if only else []
        headings += ["new corpus", "change"] + (["epochs"] if self.epochs_L is not None else [])
        table = _table("Clusters that moved most (share of tokens)", headings, left=("what sets its text apart",))
        for i in [*up, *down]:
            row = [str(i), self.names.get(i, "") or "-", percent(self.before_L[i])]
            if only:
                found = self.samples[only].get(i, {"p": 0.0, "p_low": 0.0, "p_high": 0.0})
                known = np.isfinite(found["p_low"])
                row.append(percent(found["p"]) + (f" ({percent(found['p_low'])}–{percent(found['p_high'])})" if known else ""))
            row += [percent(self.after_L[i]), f"{self.after_L[i] / self.before_L[i]:.2f}×"]
            table.add_row(*row, *([f"{self.epochs_L[i]:.2f}"] if self.epochs_L is not None else []))
        yield table

    def verdict(self) -> Iterator[str]:
        """A sentence for each specialist: whether the mixture moved its way."""
        for name, leaves in self.samples.items():
            favoured = [leaf for leaf, row in leaves.items() if row["p"] > self.before_L[leaf]]
            sample = sum(leaves[leaf]["p"] for leaf in favoured)
            before, after = float(self.before_L[favoured].sum()), float(self.after_L[favoured].sum())
            yield (
                f"{name}: the {len(favoured):,} clusters that its sample favours ({percent(sample)} of it) are {percent(before)} "
                f"of the generalist corpus and {percent(after)} of the new one."
            )


def _realised(run: "Run", manifest: dict[str, Any]) -> Iterator[RenderableType]:
    """How much is repeated, and whose share the cap on repeats changed."""
    most = 0.0
    for weighted, sampled in zip(run.weighings, run.samples, strict=True):
        facts = weighted.folder.read_table("diagnostics.parquet").to_pylist()
        (of_cells,) = (fact["value"] for fact in facts if fact["name"] == "epochs_max")
        most += max(of_cells, float(sampled.folder.read_table("plan.parquet")["epochs"].to_numpy().max()))
    rewritten = manifest["tokens_by_origin"].get("rephrased", 0) / max(1, manifest["tokens"])
    yield Text(
        f"{percent(manifest['first_tokens'] / max(1, manifest['tokens']))} of its tokens are not repeats"
        + (f", {percent(rewritten)} are rewrites" if run.config.rephrase else "")
        + f"; no text is passed over more than {most:.2f} times."
    )
    drawn: dict[str, int] = manifest["tokens_by_specialist"]
    total = max(1, manifest["tokens"])
    asked = _asked(run.config)
    off = [name for name, share in asked.items() if abs(drawn.get(name, 0) / total - share) > _SHARE_OFF]
    if off:
        said = ", ".join(f"{name} {percent(drawn.get(name, 0) / total)} instead of {percent(asked[name])}" for name in asked)
        yield Text(
            f"The limits on repeats (weights.max_epochs, weights.repeat_exponent) moved shares of the mixture: {said}. More "
            "generalist text like the sample, a smaller budget or higher limits keep them."
        )
    if not manifest["rows"]:
        yield Text("Nothing was drawn: sample.budget_tokens is less than half a window.")


def _asked(config: Config) -> dict[str, float]:
    """The share of the corpus that each specialist, and natural text, is to have, over all its phases."""
    asked = dict.fromkeys((*config.specialists, NATURAL), 0.0)
    for phase in config.phases:
        part, natural = config.share_of(phase), phase.weights.natural_share
        shares = {name: specialist.share for name, specialist in phase.specialists.items()}
        for name, share in shares.items():
            asked[name] += part * (1 - natural) * share / sum(shares.values())
        asked[NATURAL] += part * natural
    return asked


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
            interval = f"{_number(fact['low'])}–{_number(fact['high'])}" if fact["low"] is not None else ""
            label = f"{fact['specialist']}: {fact['name']}" if fact["specialist"] else fact["name"]
            shown.add_row(label, _number(fact["value"]), interval, fact["meaning"])
    return shown


def _sources(run: "Run") -> Iterator[RenderableType]:
    manifest = run.corpus.manifest
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


def percent(share: float, digits: int = 1) -> str:
    """A share in percent."""
    return f"{100 * share:.{digits}f}%"


def _number(value: Any) -> str:
    if abs(value) < 1e-9:  # what is left of sums that cancel
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
