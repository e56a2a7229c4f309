"""Compare a run with another one: numbers, settings, sources and clusters.

If both runs sample from the same windows, their parts are aligned, and the copies that the other run sampled are counted by this
run's clusters, even if its own cluster tree differs. Otherwise only numbers, settings and sources are compared.

Shapes: L leaves of this run, N windows of a part.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import GENERALIST, Config
from pipeline.engine import Engine
from pipeline.errors import ConfigError, shown
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import fold_groups, part_names
from pipeline.report.charts import Spec, dots
from pipeline.report.material import Material
from pipeline.report.verdict import numbers
from pipeline.results.cluster_names import Name
from pipeline.results.shares import Shares
from pipeline.storage import Folder
from pipeline.terminal.formatting import percent

_MOVERS = 20
_SOURCES = 20


def check(graph: PipelineGraph, other: PipelineGraph) -> None:
    """Check that both runs can be compared.

    Raises:
        ConfigError: one of the two has not finished sampling.
    """
    for one, setting in ((graph, "--config"), (other, "--against")):
        if not one.drawn:
            raise ConfigError(f"{setting}: the run in {one.workdir.url} has drawn nothing yet; run jobs/curate.py with it first")


def comparison(engine: Engine, here: Material, other: PipelineGraph) -> dict[str, Any]:
    """The page's comparison of this run (`here`) with another (`there`); both have finished sampling.

    `clusters` lists up to 20 clusters, largest change first. It is empty if the runs do not share their windows.
    """
    run = here.run
    there = other.corpus.manifest
    mine, theirs = (
        numbers(one, shares, shares.after_L) for one, shares in ((run, here.shares), (other, Shares(other, planned=True)))
    )
    found: dict[str, Any] = {
        "name": name_of(run, other),
        "numbers": [{"label": one["label"], "here": one, "there": two} for one, two in zip(mine, theirs, strict=True)],
        "settings": differing(run.config, other.config),
        "clusters": [],
        "sources": _sources(here.run.corpus.manifest["tokens_by_source"], there["tokens_by_source"]),
    }
    if run.windows(GENERALIST).fingerprint != other.windows(GENERALIST).fingerprint:
        found["sentences"] = [
            "The two runs draw from other windows (other input, filters or window size), so they cannot be compared by cluster."
        ]
        return found
    tokens_L, mine_L, theirs_L, same = _by_leaf(engine, run, other)
    total = max(1.0, float(min(mine_L.sum(), theirs_L.sum())))
    p_mine_L, p_theirs_L = mine_L / max(1.0, float(mine_L.sum())), theirs_L / max(1.0, float(theirs_L.sum()))
    moved_L = np.abs(p_mine_L - p_theirs_L)
    found["sentences"] = [
        f"Of the smaller of the two corpora {percent(same / total)} of the tokens are in the other too, window for window; by "
        f"cluster {percent(float(moved_L.sum()) / 2)} of the mixture lies elsewhere."
        + ("" if _same_tree(run, other) else " The trees differ: clusters here are this run's."),
    ]
    if there["tokens_by_origin"].get("rephrased") or run.corpus.manifest["tokens_by_origin"].get("rephrased"):
        found["sentences"].append("Rewrites are not in these two figures, nor in the clusters below.")
    order = np.argsort(-moved_L, kind="stable")[:_MOVERS]
    p_L = tokens_L / max(1, tokens_L.sum())
    found["clusters"] = [
        {
            "cluster": f"{leaf}  {shown(here.shares.names.get(int(leaf), Name()).shown)}",
            "before": float(p_L[leaf]),
            "here": float(p_mine_L[leaf]),
            "there": float(p_theirs_L[leaf]),
        }
        for leaf in order
        if moved_L[leaf] > 0
    ]
    return found


def name_of(graph: PipelineGraph, other: PipelineGraph) -> str:
    """A short name for the other run.

    It is the last component of its workdir, the last two if the last one is the same in both, or "the other config" if both runs
    share the workdir.
    """
    here, there = (one.workdir.url.rstrip("/").split("/") for one in (graph, other))
    name = there[-1] if there[-1] != here[-1] else "/".join(there[-2:])
    return shown(name) if there != here else "the other config"


def specifications(comparison: Mapping[str, Any]) -> dict[str, Spec]:
    """The charts of a comparison, by their place in the page."""
    series = [("here", "this run", "$after"), ("there", str(comparison["name"]), "$sample")]
    found = {}
    if comparison["clusters"]:
        found["against_clusters"] = dots(comparison["clusters"], [("before", "corpus", "$before"), *series], "cluster")
    if len(comparison["sources"]) > 1:
        found["against_sources"] = dots(comparison["sources"], series, "source")
    return found


def differing(here: Config, there: Config) -> list[dict[str, str]]:
    """Settings whose values differ, with their dotted names, sorted by name; `weights` is compared with its defaults resolved."""
    mine, theirs = (_flat({**one.model_dump(mode="json"), "weights": one.full_weights.model_dump()}) for one in (here, there))
    names = sorted(name for name in mine.keys() | theirs if mine.get(name) != theirs.get(name))
    return [{"setting": name, "here": _said(mine.get(name)), "there": _said(theirs.get(name))} for name in names]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {key: one for part, inner in value.items() for key, one in _flat(inner, f"{name}.{part}" if name else part).items()}
    return {name: value}


def _said(value: Any) -> str:
    if value is None:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _same_tree(graph: PipelineGraph, other: PipelineGraph) -> bool:
    return graph.step("cluster").fingerprint == other.step("cluster").fingerprint


def _by_leaf(engine: Engine, graph: PipelineGraph, other: PipelineGraph) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], float]:
    """Token counts by this run's clusters.

    Returns:
        (L,) generalist tokens; (L,) tokens sampled by this run; (L,) tokens sampled by the other run; the tokens that both sampled,
        counting for each window the smaller number of copies.
    """
    assigned = graph.step("assign", GENERALIST)
    num_leaves = int(graph.step("cluster").manifest["leaves"])
    draws = [[sample.folder.child("draws") for sample in one.samples] for one in (graph, other)]
    sums = engine.fold(
        _sums_of_parts,
        fold_groups(engine, part_names(assigned)),
        np.add,
        np.zeros((4, num_leaves)),
        title="both corpora by cluster",
        shared=(assigned.folder, draws, num_leaves),
    )
    return sums[0], sums[1], sums[2], float(sums[3].sum())


def _sums_of_parts(names: Sequence[str], assignments: Folder, draws: Sequence[Sequence[Folder]], num_leaves: int) -> NDArray[Any]:
    sums = np.zeros((4, num_leaves))
    for name in names:
        table = assignments.read_table(f"{name}.parquet", columns=["leaf", "tokens"])
        leaf_N, tokens_N = table["leaf"].to_numpy(), table["tokens"].to_numpy().astype(np.float64)
        mine_N, theirs_N = (
            np.sum([one.read_table(f"{name}.parquet", columns=["copies"])["copies"].to_numpy() for one in of_run], axis=0)
            for of_run in draws
        )
        for row, times_N in enumerate((np.ones(len(leaf_N)), mine_N, theirs_N, np.minimum(mine_N, theirs_N))):
            held = leaf_N >= 0
            sums[row] += np.bincount(leaf_N[held], weights=(tokens_N * times_N)[held], minlength=num_leaves)
    return sums


def _sources(here: Mapping[str, Sequence[int]], there: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    mine, theirs = (max(1, sum(counts[1] for counts in one.values())) for one in (here, there))
    rows: list[dict[str, Any]] = [
        {
            "source": shown(name),
            "here": here.get(name, (0, 0))[1] / mine,
            "there": there.get(name, (0, 0))[1] / theirs,
        }
        for name in sorted(here.keys() | there.keys())
    ]
    rows.sort(key=lambda row: (-abs(row["here"] - row["there"]), row["source"]))
    return rows[:_SOURCES]
