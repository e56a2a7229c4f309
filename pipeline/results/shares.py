"""Shares of the leaves: in the generalist corpus, in each sample, and in the new corpus.

Shapes: L leaves.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.arrays import F64, I64
from pipeline.config import NATURAL, Config
from pipeline.execution.step import Step
from pipeline.results.cluster_names import names_of

if TYPE_CHECKING:
    from pipeline.execution.pipeline_graph import PipelineGraph


SHARE_OFF = 0.02  # said, when a share of the mixture is this far from what was asked


class Shares:
    """Of a run that has its weights.

    `planned`: what the new corpus holds by its plan, else what is asked of it, before the limits on repeats.
    """

    def __init__(self, graph: "PipelineGraph", *, planned: bool) -> None:
        folder = graph.step("weights").folder
        mixture = folder.read_table("mixture.parquet")
        self.names = names_of(graph)
        self.windows_L: I64 = mixture["windows"].to_numpy()
        self.tokens_L: I64 = mixture["tokens"].to_numpy()
        self.before_L: F64 = mixture["p_generalist"].to_numpy()
        parts = [graph.config.share_of(phase) for phase in graph.config.phases]
        asked = [step.folder.read_table("mixture.parquet")["p_target"].to_numpy() for step in graph.weighings]
        self.asked_L: F64 = np.sum([part * p_L for part, p_L in zip(parts, asked, strict=True)], axis=0)
        self.after_L = self.asked_L
        self.epochs_L: F64 | None = None
        self.deficit_L: F64 | None = None
        if planned:
            allocations = [step.folder.read_table("allocation.parquet") for step in graph.samples]
            columns = ("allocated_tokens", "rewritten_tokens")
            allocated_L = np.sum([allocation[name].to_numpy() for allocation in allocations for name in columns], axis=0)
            self.after_L = allocated_L / max(1e-9, float(allocated_L.sum()))
            self.epochs_L = np.sum([allocation["epochs"].to_numpy() for allocation in allocations], axis=0)
            self.deficit_L = np.sum([allocation["deficit_tokens"].to_numpy() for allocation in allocations], axis=0)
        # Rows of SPECIALISTS: `p_raw` is the sample as it is, `p` what the estimator asks for in its name, and may be far from it.
        self.samples: dict[str, dict[int, dict[str, float]]] = {name: {} for name in graph.config.specialists}
        for row in folder.read_table("specialists.parquet").to_pylist():
            self.samples[row["specialist"]][row["leaf"]] = row

    def favoured(self, name: str) -> list[int]:
        """The leaves with text that hold more of a specialist's sample than of the generalist corpus."""
        return [leaf for leaf, row in self.samples[name].items() if row["p_raw"] > self.before_L[leaf] > 0]

    def of_sample(self, name: str, column: str) -> F64:
        """(L,) a column of SPECIALISTS for one of them, 0 where it has no row."""
        found_L = np.zeros(len(self.before_L))
        rows = self.samples[name]
        found_L[list(rows)] = [row[column] for row in rows.values()]
        return found_L


def asked_shares(config: Config) -> dict[str, float]:
    """The share of the corpus that each specialist, and natural text, is to have, over all its phases."""
    asked = dict.fromkeys((*config.specialists, NATURAL), 0.0)
    for phase in config.phases:
        part, natural = config.share_of(phase), phase.natural_share
        shares = {name: specialist.share for name, specialist in phase.specialists.items()}
        for name, share in shares.items():
            asked[name] += part * (1 - natural) * share / sum(shares.values())
        asked[NATURAL] += part * natural
    return asked


def divergence(p_L: F64, q_L: F64) -> float:
    """KL(p || q) in nats over the leaves where q has something, p scaled to 1 there; 0 where they share nothing."""
    both_L = (p_L > 0) & (q_L > 0)
    if not both_L.any():
        return 0.0
    p_M, q_M = p_L[both_L] / p_L[both_L].sum(), q_L[both_L]
    return float(p_M @ np.log(p_M / q_M))


def most_passes(graph: "PipelineGraph") -> float:
    """The most passes over any text that is drawn alike: a leaf, or a stratum of one."""
    most = 0.0
    for weighted, sampled in zip(graph.weighings, graph.samples, strict=True):
        of_leaves = float(sampled.folder.read_table("allocation.parquet")["epochs"].to_numpy().max())
        most += max(fact(weighted, "epochs_max"), of_leaves)
    return most


def facts_of(weighted: Step, specialist: str = "") -> dict[str, dict[str, Any]]:
    """The diagnostics of a weights step, of the whole mixture or of a specialist, by name."""
    rows = weighted.folder.read_table("diagnostics.parquet").to_pylist()
    return {row["name"]: row for row in rows if row["specialist"] == specialist}


def fact(weighted: Step, name: str, specialist: str = "") -> float:
    """The value of one diagnostic."""
    return float(facts_of(weighted, specialist)[name]["value"])
