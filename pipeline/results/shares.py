"""Shares of the leaves in the generalist corpus, in each specialist sample, and in the new corpus.

Shapes: L leaves.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.arrays import F64, I64
from pipeline.config import NATURAL, Config
from pipeline.execution.step import Step
from pipeline.results.cluster_names import read_cluster_names

if TYPE_CHECKING:
    from pipeline.execution.pipeline_graph import PipelineGraph


SHARE_TOLERANCE = 0.02  # larger differences between a realised share and its target are reported


class Shares:
    """Shares of the leaves in a run whose weights are done.

    Attributes:
        before_L: share in the generalist corpus.
        target_L: the mixture, before the limits on repeats.
        after_L: share in the new corpus: by the allocation if `planned`, otherwise the mixture.
        epochs_L: epochs by the allocation; None unless `planned`.
        deficit_L: tokens that the allocation could not fill; None unless `planned`.
        sample_rows: rows of SPECIALISTS by specialist and leaf. `p_raw` is the share in the specialist sample, `p` its estimate for
            the mixture, which may differ a lot.
    """

    def __init__(self, graph: "PipelineGraph", *, planned: bool) -> None:
        folder = graph.step("weights").folder
        mixture = folder.read_table("mixture.parquet")
        self.names = read_cluster_names(graph)
        self.windows_L: I64 = mixture["windows"].to_numpy()
        self.tokens_L: I64 = mixture["tokens"].to_numpy()
        self.before_L: F64 = mixture["p_generalist"].to_numpy()
        phase_shares = [graph.config.budget_share(phase) for phase in graph.config.phases]
        targets = [step.folder.read_table("mixture.parquet")["p_target"].to_numpy() for step in graph.weights_steps]
        self.target_L: F64 = np.sum([share * p_L for share, p_L in zip(phase_shares, targets, strict=True)], axis=0)
        self.after_L = self.target_L
        self.epochs_L: F64 | None = None
        self.deficit_L: F64 | None = None
        if planned:
            allocations = [step.folder.read_table("allocation.parquet") for step in graph.sample_steps]
            columns = ("allocated_tokens", "rewritten_tokens")
            allocated_L = np.sum([allocation[name].to_numpy() for allocation in allocations for name in columns], axis=0)
            self.after_L = allocated_L / max(1e-9, float(allocated_L.sum()))
            self.epochs_L = np.sum([allocation["epochs"].to_numpy() for allocation in allocations], axis=0)
            self.deficit_L = np.sum([allocation["deficit_tokens"].to_numpy() for allocation in allocations], axis=0)
        self.sample_rows: dict[str, dict[int, dict[str, float]]] = {name: {} for name in graph.config.specialists}
        for row in folder.read_table("specialists.parquet").to_pylist():
            self.sample_rows[row["specialist"]][row["leaf"]] = row

    def favoured_clusters(self, name: str) -> list[int]:
        """The leaves with generalist text whose share of the specialist sample exceeds their share of the generalist corpus."""
        return [leaf for leaf, row in self.sample_rows[name].items() if row["p_raw"] > self.before_L[leaf] > 0]

    def sample_column(self, name: str, column: str) -> F64:
        """(L,) a column of SPECIALISTS for one specialist; 0 for leaves without a row."""
        values_L = np.zeros(len(self.before_L))
        rows = self.sample_rows[name]
        values_L[list(rows)] = [row[column] for row in rows.values()]
        return values_L


def target_shares(config: Config) -> dict[str, float]:
    """The share of the new corpus that each specialist, and natural text, should have over all phases."""
    targets = dict.fromkeys((*config.specialists, NATURAL), 0.0)
    for phase in config.phases:
        phase_share, natural = config.budget_share(phase), phase.natural_share
        shares = {name: specialist.share for name, specialist in phase.specialists.items()}
        for name, share in shares.items():
            targets[name] += phase_share * (1 - natural) * share / sum(shares.values())
        targets[NATURAL] += phase_share * natural
    return targets


def kl_divergence(p_L: F64, q_L: F64) -> float:
    """KL(p || q) in nats over the leaves where both are positive, with p normalised there; 0 if there is none."""
    both_L = (p_L > 0) & (q_L > 0)
    if not both_L.any():
        return 0.0
    p_M, q_M = p_L[both_L] / p_L[both_L].sum(), q_L[both_L]
    return float(p_M @ np.log(p_M / q_M))


def compute_max_epochs(graph: "PipelineGraph") -> float:
    """An upper bound on the epochs of any leaf or stratum: the highest of each phase, summed."""
    max_epochs = 0.0
    for weighted, sampled in zip(graph.weights_steps, graph.sample_steps, strict=True):
        leaf_epochs = float(sampled.folder.read_table("allocation.parquet")["epochs"].to_numpy().max())
        max_epochs += max(read_diagnostic(weighted, "epochs_max"), leaf_epochs)
    return max_epochs


def read_diagnostics(weighted: Step, specialist: str = "") -> dict[str, dict[str, Any]]:
    """Read the diagnostics of a weights step by name, for the whole mixture or for a specialist."""
    rows = weighted.folder.read_table("diagnostics.parquet").to_pylist()
    return {row["name"]: row for row in rows if row["specialist"] == specialist}


def read_diagnostic(weighted: Step, name: str, specialist: str = "") -> float:
    """Read the value of one diagnostic."""
    return float(read_diagnostics(weighted, specialist)[name]["value"])
