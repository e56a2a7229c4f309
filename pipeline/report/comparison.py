"""Compare this run with another run: numbers, settings, sources and clusters.

If both runs sample from the same windows, their parts are aligned, and the copies that the other run sampled are counted by this
run's clusters, even if its own cluster tree differs. Otherwise only numbers, settings and sources are compared.

Shapes: L leaves of this run, N windows of a part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import GENERALIST, Config
from pipeline.engine import Engine
from pipeline.errors import ConfigError, replace_controls
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import group_for_fold, part_names
from pipeline.report.charts import Spec, build_dot_plot
from pipeline.results.findings import list_headline_numbers
from pipeline.results.run_results import RunResults
from pipeline.storage import Folder
from pipeline.terminal.formatting import format_percent

_MAX_CLUSTERS = 20
_MAX_SOURCES = 20


def check_comparable(graph: PipelineGraph, other: PipelineGraph) -> None:
    """Check that both runs can be compared.

    Raises:
        ConfigError: one of the two has not finished sampling.
    """
    for run, option in ((graph, "--config"), (other, "--against")):
        if not run.is_sampled:
            raise ConfigError(
                f"{option}: the run in {run.workdir.url} has not finished sampling; run crispwrap curate with this config first"
            )


def compare_runs(engine: Engine, graph: PipelineGraph, other: PipelineGraph) -> dict[str, Any]:
    """The page's comparison of this run (values under `this`) with another (under `other`); both have finished sampling.

    `clusters` lists up to 20 clusters, largest change first. It is empty if the runs do not share their windows.
    """
    # Without report steps: the other run may have none, and both must be counted alike.
    results, other_results = RunResults(graph), RunResults(other)
    manifest, other_manifest = graph.shards_step.manifest, other.shards_step.manifest
    content: dict[str, Any] = {
        "name": choose_run_name(graph, other),
        "numbers": [
            {"label": number["label"], "this": number, "other": other_number}
            for number, other_number in zip(list_headline_numbers(results), list_headline_numbers(other_results), strict=True)
        ],
        "settings": find_differences(graph.config, other.config),
        "clusters": [],
        "sources": _compare_sources(manifest["tokens_by_source"], other_manifest["tokens_by_source"]),
    }
    if graph.windows_step(GENERALIST).fingerprint != other.windows_step(GENERALIST).fingerprint:
        content["sentences"] = [
            "The two runs sample from different windows (different input, filters or window size), so their clusters cannot be "
            "compared."
        ]
        return content
    tokens_L, this_L, other_L, common_tokens = _count_tokens_by_leaf(engine, graph, other)
    smaller = max(1.0, float(min(this_L.sum(), other_L.sum())))
    p_this_L, p_other_L = this_L / max(1.0, float(this_L.sum())), other_L / max(1.0, float(other_L.sum()))
    difference_L = np.abs(p_this_L - p_other_L)
    content["sentences"] = [
        f"The two new corpora share {format_percent(common_tokens / smaller)} of the tokens of the smaller one, window by window. "
        f"By cluster, {format_percent(float(difference_L.sum()) / 2)} of the mixture is distributed differently."
        + ("" if _have_same_tree(graph, other) else " The cluster trees differ; the clusters below are those of this run."),
    ]
    if other_manifest["tokens_by_origin"].get("rephrased") or manifest["tokens_by_origin"].get("rephrased"):
        content["sentences"].append("Rewrites are not included in these two figures or in the clusters below.")
    order = np.argsort(-difference_L, kind="stable")[:_MAX_CLUSTERS]
    p_L = tokens_L / max(1, tokens_L.sum())
    content["clusters"] = [
        {
            "cluster": f"{leaf}  {replace_controls(results.get_name(int(leaf)))}",
            "before": float(p_L[leaf]),
            "this": float(p_this_L[leaf]),
            "other": float(p_other_L[leaf]),
        }
        for leaf in order
        if difference_L[leaf] > 0
    ]
    return content


def choose_run_name(graph: PipelineGraph, other: PipelineGraph) -> str:
    """A short name for the other run.

    It is the last component of its workdir, the last two if the last one is the same in both, or "the other config" if both runs
    share the workdir.
    """
    this_path, other_path = (run.workdir.url.rstrip("/").split("/") for run in (graph, other))
    name = other_path[-1] if other_path[-1] != this_path[-1] else "/".join(other_path[-2:])
    return replace_controls(name) if other_path != this_path else "the other config"


def build_comparison_charts(comparison: Mapping[str, Any]) -> dict[str, Spec]:
    """The charts of a comparison, by their place in the page."""
    series = [("this", "this run", "$after"), ("other", str(comparison["name"]), "$sample")]
    charts = {}
    if comparison["clusters"]:
        with_corpus = [("before", "corpus", "$before"), *series]
        charts["against_clusters"] = build_dot_plot(comparison["clusters"], with_corpus, "cluster")
    if len(comparison["sources"]) > 1:
        charts["against_sources"] = build_dot_plot(comparison["sources"], series, "source")
    return charts


def find_differences(config: Config, other: Config) -> list[dict[str, str]]:
    """Settings whose values differ, with their dotted names, sorted by name; `weights` is compared with its defaults resolved."""
    values, other_values = (
        _flatten({**one.model_dump(mode="json"), "weights": one.resolved_weights.model_dump()}) for one in (config, other)
    )
    names = sorted(name for name in values.keys() | other_values if values.get(name) != other_values.get(name))
    return [
        {"setting": name, "this": _format_value(values.get(name)), "other": _format_value(other_values.get(name))} for name in names
    ]


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            full_name: leaf
            for key, inner in value.items()
            for full_name, leaf in _flatten(inner, f"{name}.{key}" if name else key).items()
        }
    return {name: value}


def _format_value(value: Any) -> str:
    if value is None:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _have_same_tree(graph: PipelineGraph, other: PipelineGraph) -> bool:
    return graph.step("cluster").fingerprint == other.step("cluster").fingerprint


def _count_tokens_by_leaf(
    engine: Engine, graph: PipelineGraph, other: PipelineGraph
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], float]:
    """Token counts by this run's clusters.

    Returns:
        (L,) generalist tokens; (L,) tokens sampled by this run; (L,) tokens sampled by the other run; the tokens that both sampled,
        counting for each window the smaller number of copies.
    """
    assigned = graph.step("assign", GENERALIST)
    num_leaves = int(graph.step("cluster").manifest["leaves"])
    draws = [[sample.folder.child("draws") for sample in run.sample_steps] for run in (graph, other)]
    sums = engine.fold(
        _sum_parts,
        group_for_fold(engine, part_names(assigned)),
        np.add,
        np.zeros((4, num_leaves)),
        title="comparing both corpora by cluster",
        shared=SumInputs(assigned.folder, draws, num_leaves),
    )
    return sums[0], sums[1], sums[2], float(sums[3].sum())


@dataclass(frozen=True)
class SumInputs:
    """Inputs shared by the tasks that count tokens by cluster."""

    assignments: Folder
    draws: Sequence[Sequence[Folder]]  # of this run and of the other one, by sample step
    num_leaves: int


def _sum_parts(names: Sequence[str], inputs: SumInputs) -> NDArray[np.float64]:
    """Return (4, L) sums over several parts: all tokens, those this run sampled, those the other run sampled, those of both."""
    sums = np.zeros((4, inputs.num_leaves))
    for name in names:
        table = inputs.assignments.read_table(f"{name}.parquet", columns=["leaf", "tokens"])
        leaf_N, tokens_N = table["leaf"].to_numpy(), table["tokens"].to_numpy().astype(np.float64)
        this_N, other_N = (
            np.sum([folder.read_table(f"{name}.parquet", columns=["copies"])["copies"].to_numpy() for folder in folders], axis=0)
            for folders in inputs.draws
        )
        for row, copies_N in enumerate((np.ones(len(leaf_N)), this_N, other_N, np.minimum(this_N, other_N))):
            assigned_N = leaf_N >= 0
            sums[row] += np.bincount(leaf_N[assigned_N], weights=(tokens_N * copies_N)[assigned_N], minlength=inputs.num_leaves)
    return sums


def _compare_sources(by_source: Mapping[str, Sequence[int]], other: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    total, other_total = (max(1, sum(counts[1] for counts in one.values())) for one in (by_source, other))
    rows: list[dict[str, Any]] = [
        {
            "source": replace_controls(name),
            "this": by_source.get(name, (0, 0))[1] / total,
            "other": other.get(name, (0, 0))[1] / other_total,
        }
        for name in sorted(by_source.keys() | other.keys())
    ]
    rows.sort(key=lambda row: (-abs(row["this"] - row["other"]), row["source"]))
    return rows[:_MAX_SOURCES]
