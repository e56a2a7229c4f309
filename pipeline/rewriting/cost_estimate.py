"""The cost of rewriting, estimated before any prompt is sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.rewriting import prompts
from pipeline.rewriting.selection import RewritingProgress, StyleVariant, compute_requested_share
from pipeline.rewriting.styles import Style
from pipeline.text.windows import WindowCutter


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


def compute_mean_ratio(style_variants: Sequence[StyleVariant]) -> float:
    """Return the expected answer tokens per passage token, averaged over the style variants by weight."""
    weights = [one.weight for one in style_variants]
    return float(np.average([one.expected_ratio for one in style_variants], weights=weights))
