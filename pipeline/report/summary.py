"""The summary at the top of the page: three sentences, six numbers, and warnings to check before training."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.arrays import F64
from pipeline.config import GENERALIST
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.report.inputs import ReportInputs
from pipeline.results.shares import (
    SHARE_TOLERANCE,
    Shares,
    compute_max_epochs,
    kl_divergence,
    read_diagnostic,
    read_diagnostics,
    target_shares,
)
from pipeline.terminal.formatting import format_percent

# Thresholds of the warnings.
_MIN_FIRST_COPY_SHARE = 0.6
_MAX_KL_RATIO = 0.5  # KL to the sample, new corpus / generalist corpus
_MAX_SHARE_WITHOUT_TEXT = 0.02
_MAX_ERROR = 0.2
_MAX_DEFICIT_SHARE = 0.01


def build_summary(inputs: ReportInputs, uncertainty: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The summary section; `uncertainty` is the result of `describe_uncertainty` for each specialist."""
    max_copies = inputs.sampled.max_copies if inputs.sampled else None
    return {
        "sentences": list(_write_sentences(inputs, uncertainty)),
        "numbers": build_headline_numbers(inputs.graph, inputs.shares, inputs.after_L, max_copies=max_copies),
        "warnings": list(_write_warnings(inputs, uncertainty)),
    }


def build_headline_numbers(
    graph: PipelineGraph, shares: Shares, after_L: F64, *, max_copies: int | None = None
) -> list[dict[str, str]]:
    """Six numbers about the new corpus, or before sampling about the target mixture: label, value and note of each.

    Args:
        after_L: cluster shares of the new corpus.
        max_copies: the largest number of copies of one window; None: the largest epochs in the allocation are shown instead.
    """
    weights, corpus, is_sampled = graph.step("weights"), graph.windows_step(GENERALIST).manifest, graph.is_sampled
    manifest = graph.shards_step.manifest if is_sampled else None
    budget = graph.config.sample.budget_tokens
    samples = [shares.sample_column(name, "p_raw") for name in graph.config.specialists]
    before, after = (np.mean([kl_divergence(raw_L, share_L) for raw_L in samples]) for share_L in (shares.before_L, after_L))
    caps = " and ".join(f"{cap:g}" for cap in dict.fromkeys(phase.weights.max_epochs for phase in graph.config.phases))
    over_cap = mean_over_phases(graph, "clipped_mass") if is_sampled else read_diagnostic(weights, "clipped_mass")
    max_epochs = compute_max_epochs(graph) if is_sampled else read_diagnostic(weights, "epochs_max")
    mean_note = "; mean of the specialists" if len(graph.config.specialists) > 1 else ""
    numbers = [
        ("tokens", f"{manifest['tokens'] if manifest else budget:,}", f"of a budget of {budget:,}"),
        ("first copies", format_percent(_compute_first_copy_share(graph, is_sampled=is_sampled)), "of the tokens are not repeats"),
        (
            "effective sample size",
            f"{read_diagnostic(weights, 'effective_windows'):,.0f}",
            f"windows, of {corpus['windows']:,}" + (", in the first phase" if len(graph.config.phases) > 1 else ""),
        ),
        ("KL to the sample", f"{before:.2f} → {after:.2f}", f"nats over clusters, corpus → new corpus{mean_note}"),
        ("over the cap", format_percent(over_cap), "of the budget was requested above the cap on epochs"),
        ("most epochs", f"{max_epochs:.2f}", f"of any cluster or stratum, as allocated; the cap is {caps}")
        if max_copies is None
        else ("most copies", f"{max_copies}", f"of one window; the cap on the mean epochs of its cluster or stratum is {caps}"),
    ]
    return [{"label": label, "value": value, "note": note} for label, value, note in numbers]


def mean_over_phases(graph: PipelineGraph, name: str) -> float:
    """A value of the sample steps' manifests, averaged over the phases by their share of the budget."""
    phases = zip(graph.config.phases, graph.sample_steps, strict=True)
    return sum(graph.config.budget_share(phase) * float(sample.manifest[name]) for phase, sample in phases)


def _compute_first_copy_share(graph: PipelineGraph, *, is_sampled: bool) -> float:
    if not is_sampled:
        return read_diagnostic(graph.step("weights"), "unique_share")
    manifest = graph.shards_step.manifest
    return float(manifest["first_tokens"] / max(1, manifest["tokens"]))


def _write_sentences(inputs: ReportInputs, uncertainty: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    graph, shares, manifest = inputs.graph, inputs.shares, inputs.manifest
    corpus, names = graph.windows_step(GENERALIST).manifest, list(graph.config.specialists)
    favoured = sorted({leaf for name in names for leaf in shares.favoured_clusters(name)})
    before, after = float(shares.before_L[favoured].sum()), float(inputs.after_L[favoured].sum())
    sample = f"the sample of {names[0]}" if len(names) == 1 else f"at least one of the {len(names)} samples"
    yield (
        f"The generalist corpus has {corpus['tokens']:,} tokens in {corpus['documents']:,} documents and {len(shares.before_L):,} "
        f"clusters; {format_percent(before)} of its tokens are in the {len(favoured):,} clusters that have a larger share of "
        f"{sample} than of the corpus."
    )
    tokens = manifest["tokens"] if manifest else graph.config.sample.budget_tokens
    first_copies = format_percent(_compute_first_copy_share(graph, is_sampled=manifest is not None))
    rewritten = manifest["tokens_by_origin"].get("rephrased", 0) / max(1, tokens) if manifest else 0.0
    yield (
        f"The new corpus {'has' if manifest else 'will have'} {tokens:,} tokens, {format_percent(after)} of them in these "
        "clusters; "
        f"{first_copies} of its tokens are first copies{f', {format_percent(rewritten)} are rewrites' if rewritten else ''}."
    )
    errors = {name: section["error"] for name, section in uncertainty.items() if section["error"] is not None}
    if errors:
        name = max(errors, key=lambda name: errors[name])
        yield (
            f"Because the sample of {name} is finite, about {format_percent(errors[name])} of its mixture is expected to be in "
            "other clusters than with an unlimited sample."
        )
    else:
        yield (
            "The uncertainty of the mixture is unknown: nothing can be resampled, because the sample is one document or the "
            "estimator does not weight clusters."
        )


def _write_warnings(inputs: ReportInputs, uncertainty: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    graph, manifest, weights = inputs.graph, inputs.manifest, inputs.graph.step("weights")
    first_copies = _compute_first_copy_share(graph, is_sampled=manifest is not None)
    if first_copies < _MIN_FIRST_COPY_SHARE:
        yield (
            f"{format_percent(1 - first_copies)} of the tokens are repeats: lower sample.budget_tokens, add generalist text, or "
            "enable rephrase."
        )
    for name in graph.config.specialists:
        values = {key: row["value"] for key, row in read_diagnostics(weights, name).items()}
        before, after = uncertainty[name]["kl_before"], uncertainty[name]["kl_after"]
        if after > _MAX_KL_RATIO * before:
            yield (
                f"{name}: the new corpus is not much closer to the sample than the generalist corpus (KL over clusters: "
                f"{after:.2f} nats, was {before:.2f})."
            )
        if values["without_text"] > _MAX_SHARE_WITHOUT_TEXT:
            yield (
                f"{name}: {format_percent(values['without_text'])} of the sample is in clusters without generalist text, so no "
                "similar text can be sampled."
            )
        error = uncertainty[name]["error"]
        if error is not None and error > _MAX_ERROR:
            yield (
                f"{name}: the sample is small for this number of clusters; about {format_percent(error)} of its mixture is due to "
                "chance. Add documents to the sample, or use fewer clusters."
            )
        unused = [str(influence.level) for influence in uncertainty[name]["levels"] if np.isinf(influence.alpha)]
        if unused:
            yield (
                f"{name}: the sample is too small for level {' and '.join(unused)} of the cluster tree; that level keeps the "
                "shares of the generalist corpus."
            )
    if manifest:
        yield from _write_target_warnings(graph, manifest)
    quarantined = sum(step.manifest["quarantined"] for step in graph.steps if step.stage == "prepare")
    if quarantined:
        rows = f"{quarantined:,} input row{'s were' if quarantined > 1 else ' was'}"
        yield f"{rows} not usable and went to quarantine (see Quarantine and filters)."
    if graph.config.dedup is None:
        yield "Near-duplicates were not checked (dedup); they count more in favoured clusters."
    if graph.config.decontaminate is None:
        yield "Contamination with test text was not checked (decontaminate); such text counts more in favoured clusters."


def _write_target_warnings(graph: PipelineGraph, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about a corpus that misses its target: shares of specialists, and the unfilled budget."""
    total = max(1, manifest["tokens"])
    for name, target in target_shares(graph.config).items():
        share = manifest["tokens_by_specialist"].get(name, 0) / total
        if abs(share - target) > SHARE_TOLERANCE:
            yield (
                f"{name} has {format_percent(share)} of the new corpus instead of {format_percent(target)}, because of the cap on "
                "epochs."
            )
    deficit = mean_over_phases(graph, "deficit_share")
    if deficit > _MAX_DEFICIT_SHARE:
        yield f"{format_percent(deficit)} of the budget is unfilled: too little text is available below the cap on epochs."
