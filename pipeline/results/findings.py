"""What a run found, in words: sentences, headline numbers, and warnings to check before training.

The terminal's summary and the report show the same text.
"""

from collections.abc import Iterator

import numpy as np

from pipeline.config import GENERALIST
from pipeline.results.run_results import RunResults
from pipeline.results.uncertainty import kl_divergence
from pipeline.terminal.formatting import format_percent

# Thresholds of the warnings.
_MIN_FIRST_COPY_SHARE = 0.6
_MAX_KL_RATIO = 0.5  # KL to the sample, new corpus / generalist corpus
_MAX_SHARE_WITHOUT_TEXT = 0.02
_MAX_ERROR = 0.2
_MAX_DEFICIT_SHARE = 0.01
_SHARE_TOLERANCE = 0.02  # smaller differences between a realised share and its target are not reported


def write_sentences(results: RunResults) -> Iterator[str]:
    """Write what the corpora hold, what changed for each specialist, and how certain the mixture is."""
    graph, manifest = results.graph, results.manifest
    corpus = graph.windows_step(GENERALIST).manifest
    yield (
        f"The generalist corpus has {corpus['tokens']:,} tokens in {corpus['documents']:,} documents and {results.num_leaves:,} "
        "clusters."
    )
    tokens = manifest["tokens"] if manifest else graph.config.sample.budget_tokens
    rewritten = f", {format_percent(results.rewritten_share())} are rewrites" if results.rewritten_share() else ""
    yield (
        f"The new corpus {'has' if manifest else 'will have'} {tokens:,} tokens; {format_percent(results.first_copy_share())} of "
        f"its tokens are first copies{rewritten}."
    )
    for name in graph.config.specialists:
        favoured = results.favoured_clusters(name)
        sample = sum(results.specialist_rows[name][leaf]["p_raw"] for leaf in favoured)
        before, after = (float(share_L[favoured].sum()) for share_L in (results.before_L, results.after_L))
        yield (
            f"{name}: the {_count_clusters(len(favoured))} with a larger share of its sample than of the generalist corpus "
            f"hold{'s' if len(favoured) == 1 else ''} "
            f"{format_percent(sample)} of the sample, {format_percent(before)} of the generalist corpus, and "
            f"{format_percent(after)} of the new corpus."
        )
    yield _describe_error(results)


def _count_clusters(number: int) -> str:
    return f"{number:,} clusters" if number != 1 else "one cluster"


def _describe_error(results: RunResults) -> str:
    errors = {name: uncertainty.error for name, uncertainty in results.uncertainty.items() if uncertainty.error is not None}
    if not errors:
        return (
            "The uncertainty of the mixture is unknown: nothing can be resampled, because the sample is one document or the "
            "estimator does not weight clusters."
        )
    name = max(errors, key=lambda name: errors[name])
    return (
        f"Because the sample of {name} is finite, about {format_percent(errors[name])} of its mixture is expected to be in "
        "other clusters than with an unlimited sample."
    )


def list_headline_numbers(results: RunResults) -> list[dict[str, str]]:
    """Six numbers about the new corpus, or before sampling about the target mixture: label, value and note of each.

    Where the sampled tokens are not counted, the largest epochs of the allocation take the place of the most copies of a window.
    """
    config, manifest = results.graph.config, results.manifest
    budget, corpus = config.sample.budget_tokens, results.graph.windows_step(GENERALIST).manifest
    diagnostics = results.read_diagnostics()
    samples = [results.specialist_column(name, "p_raw") for name in config.specialists]
    before, after = (
        np.mean([kl_divergence(raw_L, share_L) for raw_L in samples]) for share_L in (results.before_L, results.after_L)
    )
    caps = " and ".join(f"{cap:g}" for cap in dict.fromkeys(phase.weights.max_epochs for phase in config.phases))
    over_cap = results.mean_over_phases("clipped_mass") if manifest else diagnostics["clipped_mass"]["value"]
    mean_note = "; mean of the specialists" if len(config.specialists) > 1 else ""
    numbers = [
        ("tokens", f"{manifest['tokens'] if manifest else budget:,}", f"of a budget of {budget:,}"),
        ("first copies", format_percent(results.first_copy_share()), "of the tokens are not repeats"),
        (
            "effective sample size",
            f"{diagnostics['effective_windows']['value']:,.0f}",
            f"windows, of {corpus['windows']:,}" + (", in the first phase" if len(config.phases) > 1 else ""),
        ),
        ("KL to the sample", f"{before:.2f} → {after:.2f}", f"nats over clusters, corpus → new corpus{mean_note}"),
        ("over the cap", format_percent(over_cap), "of the budget was requested above the cap on epochs"),
        (
            (
                "most copies",
                f"{results.sampled.max_copies}",
                f"of one window; the cap on the mean epochs of its cluster is {caps}",
            )
            if results.sampled
            else ("most epochs", f"{results.max_epochs():.2f}", f"of any cluster or stratum, as allocated; the cap is {caps}")
        ),
    ]
    return [{"label": label, "value": value, "note": note} for label, value, note in numbers]


def write_warnings(results: RunResults) -> Iterator[str]:
    """Write what should be checked before a model is trained on the new corpus."""
    graph = results.graph
    if (first_copies := results.first_copy_share()) < _MIN_FIRST_COPY_SHARE:
        yield (
            f"{format_percent(1 - first_copies)} of the tokens are repeats: lower sample.budget_tokens, add generalist text, or "
            "enable rephrase."
        )
    for name in graph.config.specialists:
        yield from _write_specialist_warnings(results, name)
    if results.manifest:
        yield from _write_target_warnings(results)
    quarantined = sum(step.manifest["quarantined"] for step in graph.steps if step.stage == "prepare")
    if quarantined:
        rows = f"{quarantined:,} input row{'s were' if quarantined > 1 else ' was'}"
        yield f"{rows} not usable and went to quarantine (see Quarantine and filters in the report)."
    if graph.config.dedup is None:
        yield "Near-duplicates were not checked (dedup); they count more in favoured clusters."
    if graph.config.decontaminate is None:
        yield "Contamination with test text was not checked (decontaminate); such text counts more in favoured clusters."


def _write_specialist_warnings(results: RunResults, name: str) -> Iterator[str]:
    uncertainty = results.uncertainty[name]
    if uncertainty.kl_after > _MAX_KL_RATIO * uncertainty.kl_before:
        yield (
            f"{name}: the new corpus is not much closer to the sample than the generalist corpus (KL over clusters: "
            f"{uncertainty.kl_after:.2f} nats, was {uncertainty.kl_before:.2f})."
        )
    without_text = results.read_diagnostics(name)["without_text"]["value"]
    if without_text > _MAX_SHARE_WITHOUT_TEXT:
        yield (
            f"{name}: {format_percent(without_text)} of the sample is in clusters without generalist text, so no similar text can "
            "be sampled."
        )
    if uncertainty.error is not None and uncertainty.error > _MAX_ERROR:
        yield (
            f"{name}: the sample is small for this number of clusters; about {format_percent(uncertainty.error)} of its mixture is "
            "due to chance. Add documents to the sample, or use fewer clusters."
        )
    unused = [str(influence.level) for influence in uncertainty.levels if np.isinf(influence.alpha)]
    if unused:
        yield (
            f"{name}: the sample is too small for level {' and '.join(unused)} of the cluster tree; that level keeps the shares of "
            "the generalist corpus."
        )


def _find_tolerance(share: float, rows: int) -> float:
    """The difference to a target share that is not reported: each row is attributed at random in proportion to the shares."""
    return float(max(_SHARE_TOLERANCE, 3 * np.sqrt(share * (1 - share) / max(1, rows))))


def _write_target_warnings(results: RunResults) -> Iterator[str]:
    """Warnings about a new corpus that misses its target: no rows, other shares of the specialists, an unfilled budget."""
    manifest = results.manifest
    assert manifest
    if not manifest["rows"]:
        yield "No window was sampled: sample.budget_tokens is less than half a window."
    total = max(1, manifest["tokens"])
    targets = results.target_shares()
    shares = {name: manifest["tokens_by_specialist"].get(name, 0) / total for name in targets}
    if any(abs(shares[name] - target) > _find_tolerance(target, manifest["rows"]) for name, target in targets.items()):
        differences = ", ".join(
            f"{name} {format_percent(shares[name])} instead of {format_percent(targets[name])}" for name in targets
        )
        yield (
            f"The limits on repeats (weights.max_epochs, weights.repeat_exponent) changed shares of the mixture: {differences}. "
            "To keep the shares, add generalist text similar to the sample, lower the budget, or raise the limits."
        )
    deficit = results.mean_over_phases("deficit_share")
    if deficit > _MAX_DEFICIT_SHARE:
        yield f"{format_percent(deficit)} of the budget is unfilled: too little text is available below the cap on epochs."
