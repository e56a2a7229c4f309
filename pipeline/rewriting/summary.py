"""Estimate the cost of rewriting before it runs, and summarise a finished rephrase step, both as text for a person."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.rewriting import prompts
from pipeline.rewriting.selection import RewritingProgress, StyleVariant, compute_requested_share
from pipeline.rewriting.styles import Style
from pipeline.text.windows import WindowCutter

# A style has collapsed into a template when its answers begin alike. FinePhrase counted 40 distinct openings in 10,000 answers of
# one model, and 1,897 in those of another.
_MIN_DISTINCT_SHARE = 0.02  # distinct openings per answer: fewer mean collapse
_MAX_OPENING_SHARE = 0.5  # share of the most common opening: more means collapse
_MIN_ANSWERS = 200  # with fewer, no style counts as collapsed


@dataclass(frozen=True)
class CostEstimate:
    """The estimated cost of the first round, if answers have the lengths that the styles expect."""

    wanted_tokens: float
    num_passages: float
    prompt_tokens: float
    output_tokens: float
    met_share: float  # of wanted_tokens, if all available text were rewritten
    gpu_hours: float


def estimate_first_round(
    progress: RewritingProgress,
    style_variants: Sequence[StyleVariant],
    styles: Mapping[str, Style],
    *,
    by_leaf: bool,
    passage_tokens: float,
    tokens_per_second: float,
    cutter: WindowCutter,
) -> CostEstimate:
    """Estimate the cost of a plan before any prompt is sent, for passages of `passage_tokens` tokens each.

    Tokens are those of the embedder's tokenizer; the model's own count differs by a few percent. The estimate covers the first
    round, which allows for the usual rejections (`selection._PRIOR_ACCEPTANCE`). Further rejections, which later rounds replace,
    are not included.
    """
    rate_L = progress.compute_next_rates(style_variants, by_leaf=by_leaf)
    share_L = compute_requested_share(rate_L, style_variants) if rate_L is not None else np.zeros(len(progress.wanted_L))
    source_tokens = float((share_L * progress.tokens_L).sum() * len(style_variants))
    weights = np.array([one.weight for one in style_variants]) / sum(one.weight for one in style_variants)
    ratio = compute_mean_ratio(style_variants)
    instructions = [prompts.get_instructions(styles[one.style]) for one in style_variants]
    instruction_tokens = float(weights @ [cutter.count(text) for text in instructions])
    thought_ratio = float(weights @ [styles[one.style].thought_ratio for one in style_variants])
    output_tokens = source_tokens * (ratio + thought_ratio)
    num_passages = source_tokens / passage_tokens
    if by_leaf:
        available = float(np.minimum(progress.wanted_L, progress.tokens_L * len(style_variants) * ratio).sum())
    else:
        available = source_tokens * ratio
    return CostEstimate(
        wanted_tokens=float(progress.wanted_L.sum()),
        num_passages=num_passages,
        prompt_tokens=source_tokens + num_passages * instruction_tokens,
        output_tokens=output_tokens,
        met_share=min(1.0, available / max(1.0, float(progress.wanted_L.sum()))),
        gpu_hours=output_tokens / tokens_per_second / 3600,
    )


def format_estimate(cost: CostEstimate, tokens_per_second: float) -> str:
    """Format the estimate as one line."""
    if not cost.wanted_tokens:
        return "rephrase: nothing to rewrite; no cluster exceeds weights.max_epochs"
    line = (
        f"rephrase: {cost.wanted_tokens:,.0f} tokens wanted; about {cost.num_passages:,.0f} prompts, {cost.prompt_tokens:,.0f} "
        f"prompt tokens, {cost.output_tokens:,.0f} output tokens, {cost.gpu_hours:,.2g} GPU-hours at {tokens_per_second:,.0f} "
        "output tokens/s per GPU"
    )
    if cost.met_share < 0.99:
        line += (
            f"; rewriting all text of these clusters in these styles gives only about {100 * cost.met_share:.0f}% of that; "
            "add styles or raise rephrase.variants"
        )
    return line


def format_outcomes(facts: Mapping[str, Any]) -> str:
    """Format the number of prompts, and the numbers of accepted, rejected and quarantined answers, which add up to it."""
    counts = count_outcomes(facts["outcomes"])
    parts = ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in ("accepted", "rejected", "quarantined"))
    return f"{facts['requests']:,} prompts: {parts}"


def count_outcomes(outcomes: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Count the passages accepted, rejected and quarantined, over all styles."""
    accepted = sum(style_counts.get("accepted", 0) for style_counts in outcomes.values())
    quarantined = sum(style_counts.get("no_answer", 0) for style_counts in outcomes.values())
    total = sum(sum(style_counts.values()) for style_counts in outcomes.values())
    return {"accepted": accepted, "rejected": total - accepted - quarantined, "quarantined": quarantined}


def render_summary(facts: Mapping[str, Any], usage: Mapping[str, Any] | None) -> Iterator[RenderableType]:
    """Yield the summary of a finished rephrase step; `usage` holds the resources that the step used, if known."""
    table = Table(title="\nRewrites", title_justify="left", box=None, pad_edge=False)
    for heading in ("style", "prompts", "accepted", "rejected by rule", "distinct openings"):
        table.add_column(heading, justify="right" if heading in ("prompts", "accepted") else "left")
    for style, counts in facts["outcomes"].items():
        num_prompts = sum(counts.values())
        rules = sorted(((n, rule) for rule, n in counts.items() if rule != "accepted"), reverse=True)
        openings = facts["openings"].get(style)
        table.add_row(
            style,
            f"{num_prompts:,}",
            f"{100 * counts.get('accepted', 0) / max(1, num_prompts):.1f}%",
            ", ".join(f"{rule} {100 * n / num_prompts:.1f}%" for n, rule in rules[:5]) or "-",
            f"{openings['distinct']:,} in {openings['answers']:,} answers" if openings else "-",
        )
    if facts["outcomes"]:
        yield table
        yield Text()
    yield Text(format_outcomes(facts) + f", in {facts['rounds']} round{'s' if facts['rounds'] != 1 else ''}.")
    if facts["tokens"]:
        yield Text(
            f"{facts['tokens']:,} tokens of rewrites; {100 * facts['moved_tokens'] / facts['tokens']:.1f}% of them fall into "
            "another cluster than their source window."
        )
    yield Text(_format_ending(facts))
    for style, openings in facts["openings"].items():
        if is_collapsed(openings):
            yield Text(
                f"{style} has collapsed into a template: {openings['distinct']:,} distinct openings in {openings['answers']:,} "
                f"answers, and {100 * openings['commonest_share']:.0f}% of them begin with {openings['commonest']!r}; "
                "try another model or a higher temperature."
            )
    if usage and usage.get("generated_tokens"):
        yield Text(
            f"{usage['generated_tokens']:,} output tokens in {usage['generating_s']:,.0f} s: "
            f"{usage['generated_tokens'] / max(1e-9, usage['generating_s']):,.0f} tokens/s, including engine start"
            + (f", GPUs {100 * usage['gpu_utilisation']:.0f}% busy." if usage.get("gpu_utilisation") is not None else ".")
        )


def is_collapsed(openings: Mapping[str, Any]) -> bool:
    """Return whether a style's answers begin so alike that they follow a template."""
    few_distinct = openings["distinct"] < _MIN_DISTINCT_SHARE * openings["answers"]
    return bool(openings["answers"] >= _MIN_ANSWERS and (few_distinct or openings["commonest_share"] > _MAX_OPENING_SHARE))


def _format_ending(facts: Mapping[str, Any]) -> str:
    wanted, missing = facts["wanted_tokens"], facts["missing_tokens"]
    if not wanted:
        return "No cluster exceeds weights.max_epochs, so nothing was rewritten."
    target = "deficit" if facts["mode"] == "deficit" else "target"
    covered = f"Rewrites cover {100 * (1 - missing / wanted):.1f}% of the {target} of {wanted:,.0f} tokens"
    return (
        covered
        + {
            "met": ".",
            "exhausted": f"; these clusters have almost no text left to rewrite; {_suggest_fix(facts)}.",
            "rounds": "; stopped after rephrase.rounds; raise it and run again, stored answers are reused.",
        }[facts["ended"]]
    )


def _suggest_fix(facts: Mapping[str, Any]) -> str:
    counts = count_outcomes(facts["outcomes"])
    unusable = counts["rejected"] + counts["quarantined"]
    if unusable <= counts["accepted"]:
        return "add styles or raise rephrase.variants"
    rules: dict[str, int] = {}
    for style_counts in facts["outcomes"].values():
        for rule, number in style_counts.items():
            rules[rule] = rules.get(rule, 0) + number * (rule != "accepted")
    commonest = max(rules, key=lambda rule: rules[rule])
    return (
        f"{unusable:,} of {facts['requests']:,} answers are unusable, most often because of {commonest}; "
        "see passages/ and try another model"
    )


def compute_mean_ratio(style_variants: Sequence[StyleVariant]) -> float:
    """Return the expected answer tokens per passage token, averaged over the style variants by weight."""
    weights = [one.weight for one in style_variants]
    return float(np.average([one.expected_ratio for one in style_variants], weights=weights))
