"""The outcomes of a finished rephrase step as text: accepted, rejected and quarantined answers, and collapsed styles."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

# A style has collapsed into a template when its answers begin alike. FinePhrase counted 40 distinct openings in 10,000 answers of
# one model, and 1,897 in those of another.
_MIN_DISTINCT_SHARE = 0.02  # distinct openings per answer: fewer mean collapse
_MAX_OPENING_SHARE = 0.5  # share of the most common opening: more means collapse
_MIN_ANSWERS = 200  # with fewer, no style counts as collapsed


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


def render_outcomes(facts: Mapping[str, Any], usage: Mapping[str, Any] | None) -> Iterator[RenderableType]:
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
