"""The estimated cost of rewriting before it runs, and the report on a finished rephrase step, both as text for a person."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.rewriting import prompts
from pipeline.rewriting.choosing import Tally, Way, asked_share
from pipeline.rewriting.styles import Style
from pipeline.text.windows import WindowCutter

# A style has collapsed into a template when its answers begin alike. FinePhrase counted 40 distinct openings in 10,000 answers of
# one model, and 1,897 in those of another.
_FEW_OPENINGS = 0.02  # distinct openings per answer: fewer mean collapse
_COMMON_OPENING = 0.5  # share of the most common opening: more means collapse
_ENOUGH = 200  # answers: with fewer, no style counts as collapsed


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of the first round, if answers have the lengths that the styles expect."""

    wanted_tokens: float
    passages: float
    prompt_tokens: float
    output_tokens: float
    met_share: float  # of wanted_tokens, if all available text were rewritten
    gpu_hours: float


def estimate(
    tally: Tally,
    used: list[Way],
    styles: Mapping[str, Style],
    *,
    by_leaf: bool,
    passage_tokens: float,
    tokens_per_second: float,
    cutter: WindowCutter,
) -> Estimate:
    """Estimate the cost of a plan before any prompt is sent, for passages of `passage_tokens` tokens each.

    Tokens are those of the embedder's tokenizer; the model's own count differs by a few percent. The estimate covers the first
    round, which allows for the usual rejections (`choosing._FIRST_ACCEPTANCE`). Further rejections, which later rounds replace,
    are not included.
    """
    rate_L = tally.next_rates(used, by_leaf=by_leaf)
    share_L = asked_share(rate_L, used) if rate_L is not None else np.zeros(len(tally.wanted_L))
    source = float((share_L * tally.tokens_L).sum() * len(used))
    weights = np.array([way.weight for way in used]) / sum(way.weight for way in used)
    ratio = mean_ratio(used)
    overhead = float(weights @ [cutter.count(prompts.instructions(styles[way.style])) for way in used])
    thoughts = float(weights @ [styles[way.style].thought_ratio for way in used])
    output = source * (ratio + thoughts)
    passages = source / passage_tokens
    most = float(np.minimum(tally.wanted_L, tally.tokens_L * len(used) * ratio).sum()) if by_leaf else source * ratio
    return Estimate(
        wanted_tokens=float(tally.wanted_L.sum()),
        passages=passages,
        prompt_tokens=source + passages * overhead,
        output_tokens=output,
        met_share=min(1.0, most / max(1.0, float(tally.wanted_L.sum()))),
        gpu_hours=output / tokens_per_second / 3600,
    )


def estimate_line(cost: Estimate, tokens_per_second: float) -> str:
    """Format the estimate as one line."""
    if not cost.wanted_tokens:
        return "rephrase: nothing to write, no cluster is asked for more than weights.max_epochs allows"
    line = (
        f"rephrase: {cost.wanted_tokens:,.0f} tokens wanted; about {cost.passages:,.0f} prompts, {cost.prompt_tokens:,.0f} "
        f"prompt tokens, {cost.output_tokens:,.0f} output tokens, {cost.gpu_hours:,.2g} GPU-hours at {tokens_per_second:,.0f} "
        "output tokens/s a GPU"
    )
    if cost.met_share < 0.99:
        line += (
            f"; all text of these clusters in these styles gives about {100 * cost.met_share:.0f}% of that: more styles or "
            "rephrase.variants give more"
        )
    return line


def account_line(facts: Mapping[str, Any]) -> str:
    """Format the numbers of prompts, and of accepted, rejected and quarantined answers, which add up to it."""
    counts = totals(facts["outcomes"])
    said = ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in ("accepted", "rejected", "quarantined"))
    return f"{facts['requests']:,} prompts: {said}"


def totals(outcomes: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Count the passages accepted, rejected and quarantined, over all styles."""
    accepted = sum(of_style.get("accepted", 0) for of_style in outcomes.values())
    quarantined = sum(of_style.get("no_answer", 0) for of_style in outcomes.values())
    asked = sum(sum(of_style.values()) for of_style in outcomes.values())
    return {"accepted": accepted, "rejected": asked - accepted - quarantined, "quarantined": quarantined}


def account(facts: Mapping[str, Any], usage: Mapping[str, Any] | None) -> Iterator[RenderableType]:
    """Yield the report on a finished rephrase step; `usage` holds the resources that the step used, if known."""
    table = Table(title="\nRewrites", title_justify="left", box=None, pad_edge=False)
    for heading in ("style", "prompts", "accepted", "rejected because", "openings"):
        table.add_column(heading, justify="right" if heading in ("prompts", "accepted") else "left")
    for style, counts in facts["outcomes"].items():
        asked = sum(counts.values())
        rules = sorted(((n, rule) for rule, n in counts.items() if rule != "accepted"), reverse=True)
        opened = facts["openings"].get(style)
        table.add_row(
            style,
            f"{asked:,}",
            f"{100 * counts.get('accepted', 0) / max(1, asked):.1f}%",
            ", ".join(f"{rule} {100 * n / asked:.1f}%" for n, rule in rules[:5]) or "-",
            f"{opened['distinct']:,} in {opened['answers']:,}" if opened else "-",
        )
    if facts["outcomes"]:
        yield table
        yield Text()
    yield Text(account_line(facts) + f", in {facts['rounds']} round{'s' if facts['rounds'] != 1 else ''}.")
    if facts["tokens"]:
        yield Text(
            f"{facts['tokens']:,} tokens of rewrites; {100 * facts['moved_tokens'] / facts['tokens']:.1f}% of them lie in another "
            "cluster than the text they were made from."
        )
    yield Text(_ended(facts))
    for style, opened in facts["openings"].items():
        if collapsed(opened):
            yield Text(
                f"{style} has collapsed into a template: {opened['distinct']:,} openings in {opened['answers']:,} answers, "
                f"{100 * opened['commonest_share']:.0f}% begin with {opened['commonest']!r}; "
                "try another model or a higher temperature."
            )
    if usage and usage.get("generated_tokens"):
        yield Text(
            f"{usage['generated_tokens']:,} output tokens in {usage['generating_s']:,.0f} s: "
            f"{usage['generated_tokens'] / max(1e-9, usage['generating_s']):,.0f} tokens/s, engine start included"
            + (f", GPUs {100 * usage['gpu_utilisation']:.0f}% busy." if usage.get("gpu_utilisation") is not None else ".")
        )


def collapsed(opened: Mapping[str, Any]) -> bool:
    """Return whether a style's answers begin so alike that they follow a template."""
    few = opened["distinct"] < _FEW_OPENINGS * opened["answers"] or opened["commonest_share"] > _COMMON_OPENING
    return bool(opened["answers"] >= _ENOUGH and few)


def _ended(facts: Mapping[str, Any]) -> str:
    wanted, missing = facts["wanted_tokens"], facts["missing_tokens"]
    if not wanted:
        return "No cluster is asked for more than weights.max_epochs allows, so nothing was rewritten."
    share = f"{100 * (1 - missing / wanted):.1f}% of the {wanted:,.0f} tokens wanted of rewrites were gained"
    return (
        share
        + {
            "met": ".",
            "exhausted": f": hardly anything is left to ask for in these clusters; {_mend(facts)}.",
            "rounds": ": rephrase.rounds ended it; raise that and run again, answers are kept.",
        }[facts["ended"]]
    )


def _mend(facts: Mapping[str, Any]) -> str:
    counts = totals(facts["outcomes"])
    lost = counts["rejected"] + counts["quarantined"]
    if lost <= counts["accepted"]:
        return "add styles or rephrase.variants for more"
    rules: dict[str, int] = {}
    for of_style in facts["outcomes"].values():
        for rule, number in of_style.items():
            rules[rule] = rules.get(rule, 0) + number * (rule != "accepted")
    commonest = max(rules, key=lambda rule: rules[rule])
    return f"{lost:,} of {facts['requests']:,} answers cannot be used, most for {commonest}: see passages/, and try another model"


def mean_ratio(used: Sequence[Way]) -> float:
    """Return the expected answer tokens per passage token, averaged over the ways by weight."""
    return float(np.average([way.expected_ratio for way in used], weights=[way.weight for way in used]))
