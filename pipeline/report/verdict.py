"""The summary at the top of the page: three sentences, six numbers, and warnings to check before training."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.arrays import F64
from pipeline.config import GENERALIST
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.report.material import Material
from pipeline.results.shares import SHARE_OFF, Shares, asked_shares, divergence, fact, facts_of, most_passes
from pipeline.terminal.formatting import percent

_UNIQUE, _NEAR, _WITHOUT, _ERROR, _DEFICIT = 0.6, 0.5, 0.02, 0.2, 0.01  # thresholds of the warnings


def verdict(material: Material, sure: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The verdict section; `sure` is the result of `facts.certainty` for each specialist."""
    return {
        "sentences": list(_sentences(material, sure)),
        "numbers": numbers(
            material.run, material.shares, material.after_L, copies=material.drawn.most_copies if material.drawn else None
        ),
        "warnings": list(_warnings(material, sure)),
    }


def numbers(graph: PipelineGraph, shares: Shares, after_L: F64, *, copies: int | None = None) -> list[dict[str, str]]:
    """Six numbers about the new corpus, or before sampling about the target mixture: label, value and note of each.

    Args:
        after_L: cluster shares of the new corpus.
        copies: the largest number of copies of one window; None: the largest epochs in the plan are shown instead.
    """
    weighted, corpus, drawn = graph.step("weights"), graph.windows(GENERALIST).manifest, graph.drawn
    manifest = graph.corpus.manifest if drawn else None
    budget = graph.config.sample.budget_tokens
    samples = [shares.of_sample(name, "p_raw") for name in graph.config.specialists]
    before, after = (np.mean([divergence(raw_L, of_L) for raw_L in samples]) for of_L in (shares.before_L, after_L))
    caps = " and ".join(f"{cap:g}" for cap in dict.fromkeys(phase.weights.max_epochs for phase in graph.config.phases))
    clipped = of_phases(graph, "clipped_mass") if drawn else fact(weighted, "clipped_mass")
    passes = most_passes(graph) if drawn else fact(weighted, "epochs_max")
    several = "; mean of the specialists" if len(graph.config.specialists) > 1 else ""
    found = [
        ("tokens", f"{manifest['tokens'] if manifest else budget:,}", f"of {budget:,} asked for"),
        ("no repeats", percent(_unique(graph, drawn=drawn)), "of the tokens"),
        (
            "effective sample",
            f"{fact(weighted, 'effective_windows'):,.0f}",
            f"windows, of {corpus['windows']:,}" + (", for its first part" if len(graph.config.phases) > 1 else ""),
        ),
        ("KL to the sample", f"{before:.2f} → {after:.2f}", f"nats over clusters, corpus → new corpus{several}"),
        ("clipped", percent(clipped), "of the budget was asked for beyond the cap"),
        ("repeated most", f"{passes:.2f}×", f"passes over a text, by the plan; the cap is {caps}")
        if copies is None
        else ("repeated most", f"{copies}×", f"one window; the cap, on a cluster's mean, is {caps}"),
    ]
    return [{"label": label, "value": value, "note": note} for label, value, note in found]


def of_phases(graph: PipelineGraph, name: str) -> float:
    """A value of the sample steps' manifests, averaged over the phases by their part of the budget."""
    phases = zip(graph.config.phases, graph.samples, strict=True)
    return sum(graph.config.share_of(phase) * float(sampled.manifest[name]) for phase, sampled in phases)


def _unique(graph: PipelineGraph, *, drawn: bool) -> float:
    if not drawn:
        return fact(graph.step("weights"), "unique_share")
    manifest = graph.corpus.manifest
    return float(manifest["first_tokens"] / max(1, manifest["tokens"]))


def _sentences(material: Material, sure: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    run, shares, manifest = material.run, material.shares, material.manifest
    corpus, names = run.windows(GENERALIST).manifest, list(run.config.specialists)
    favoured = sorted({leaf for name in names for leaf in shares.favoured(name)})
    before, after = float(shares.before_L[favoured].sum()), float(material.after_L[favoured].sum())
    whose = f"{names[0]}'s sample favours" if len(names) == 1 else f"the {len(names)} samples favour"
    yield (
        f"The corpus has {corpus['tokens']:,} tokens in {corpus['documents']:,} documents and {len(shares.before_L):,} clusters; "
        f"{percent(before)} of it is in the {len(favoured):,} that {whose}."
    )
    tokens = manifest["tokens"] if manifest else run.config.sample.budget_tokens
    unique = percent(_unique(run, drawn=manifest is not None))
    rewritten = manifest["tokens_by_origin"].get("rephrased", 0) / max(1, tokens) if manifest else 0.0
    yield (
        f"The new corpus {'has' if manifest else 'is to have'} {tokens:,} tokens, {percent(after)} of them from those clusters; "
        f"{unique} of them are no repeats{f', {percent(rewritten)} are rewrites' if rewritten else ''}."
    )
    errors = {name: found["error"] for name, found in sure.items() if found["error"] is not None}
    if errors:
        name = max(errors, key=lambda name: errors[name])
        yield (
            f"By the size of its sample, about {percent(errors[name])} of what is asked for {name} is in other clusters than with "
            "an endless sample."
        )
    else:
        yield "How sure the mixture is cannot be said: the estimator, or a sample of one document, leaves nothing to resample."


def _warnings(material: Material, sure: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    run, manifest, weighted = material.run, material.manifest, material.run.step("weights")
    unique = _unique(run, drawn=manifest is not None)
    if unique < _UNIQUE:
        yield f"{percent(1 - unique)} of the tokens are repeats: ask for fewer tokens, bring more generalist text, or rewrite."
    for name in run.config.specialists:
        found = {key: row["value"] for key, row in facts_of(weighted, name).items()}
        before, after = sure[name]["kl_before"], sure[name]["kl_after"]
        if after > _NEAR * before:
            yield (
                f"{name}: the new corpus is not much nearer to the sample than the corpus was ({after:.2f} of {before:.2f} nats "
                "are left)."
            )
        if found["without_text"] > _WITHOUT:
            yield (
                f"{name}: {percent(found['without_text'])} of the sample is in clusters where the corpus has no text; nothing like "
                "it can be drawn."
            )
        error = sure[name]["error"]
        if error is not None and error > _ERROR:
            yield f"{name}: the sample is small for so many clusters; {percent(error)} of what is asked for it is by chance."
        unused = [str(level.level) for level in sure[name]["levels"] if np.isinf(level.alpha)]
        if unused:
            yield f"{name}: the sample is too small for level {' and '.join(unused)} of the tree, which is not used."
    if manifest:
        yield from _off(run, manifest)
    quarantined = sum(step.manifest["quarantined"] for step in run.steps if step.stage == "prepare")
    if quarantined:
        yield f"{quarantined:,} row{'s' if quarantined > 1 else ''} of the input could not be used (Quarantine and filters)."
    absent = [
        what
        for what, section in (
            ("near-duplicates (dedup)", run.config.dedup),
            ("test text (decontaminate)", run.config.decontaminate),
        )
        if section is None
    ]
    if absent:
        yield f"Nobody looked for {' or '.join(absent)}: in clusters that are favoured such text weighs more."


def _off(graph: PipelineGraph, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about a corpus that misses its target: shares of specialists, and the unfilled budget."""
    total = max(1, manifest["tokens"])
    for name, share in asked_shares(graph.config).items():
        got = manifest["tokens_by_specialist"].get(name, 0) / total
        if abs(got - share) > SHARE_OFF:
            yield f"{name} has {percent(got)} of the new corpus instead of {percent(share)}: the limits on repeats moved it."
    deficit = of_phases(graph, "deficit_share")
    if deficit > _DEFICIT:
        yield f"{percent(deficit)} of the budget stays unfilled."
