"""The results of a run, read from the tables and manifests of its steps. The terminal, the inspection and the report start from it.

Shapes: L leaves.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import F64, I64
from pipeline.clustering.tree import Tree, read_tree
from pipeline.config import NATURAL
from pipeline.errors import ConfigError
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step
from pipeline.results.cluster_names import ClusterName, read_cluster_names
from pipeline.results.uncertainty import SampleUncertainty, estimate_error, kl_divergence, measure_sample_influence
from pipeline.storage import Folder

Diagnostics = dict[str, dict[str, Any]]  # rows of DIAGNOSTICS by name


@dataclass(frozen=True)
class LeafAllocation:
    """The allocation of the token budget to the leaves, summed over the phases."""

    tokens_L: F64  # raw text and rewrites
    epochs_L: F64  # of raw text
    deficit_L: F64  # tokens that could not be filled


@dataclass(frozen=True)
class SampledTokens:
    """Sampled tokens by leaf, and by copy number."""

    tokens_L: F64
    first_copy_L: F64  # tokens of first copies
    rewritten_L: F64
    by_copy: Mapping[tuple[int, str], int]  # tokens by (copy number of a window, 0 first; origin), sorted by key

    @property
    def max_copies(self) -> int:
        """The largest number of copies of one window; 0 if nothing was sampled."""
        return 1 + max((copy for copy, _ in self.by_copy), default=-1)

    @classmethod
    def from_table(cls, table: pa.Table, num_leaves: int) -> "SampledTokens":
        """Aggregate a table with the SAMPLED_TOKENS schema."""
        leaf, tokens = table["leaf"].to_numpy(), table["tokens"].to_numpy().astype(np.float64)
        copy, origin = table["copy"].to_numpy(), np.array(table["origin"].to_pylist(), dtype=object)

        def sum_by_leaf(rows: NDArray[np.bool_]) -> F64:
            return np.bincount(leaf[rows], weights=tokens[rows], minlength=num_leaves).astype(np.float64)

        all_rows = np.ones(len(leaf), bool)
        by_copy = table.group_by(["copy", "origin"]).aggregate([("tokens", "sum")]).to_pylist()
        tokens_of = {(row["copy"], row["origin"]): row["tokens_sum"] for row in by_copy}
        return cls(
            sum_by_leaf(all_rows), sum_by_leaf(copy == 0), sum_by_leaf(origin == "rephrased"), dict(sorted(tokens_of.items()))
        )


class RunResults:
    """The results of a run whose weights are done, over all phases of its corpus.

    Attributes:
        names: title and terms of the leaves; not every leaf has a name.
        windows_L, tokens_L: generalist windows and tokens.
        before_L: share of the generalist corpus.
        target_L: share of the target mixture, before the limits on repeats.
        weight_L_by_phase: weight of the leaves in each phase.
        diagnostics_by_phase: rows of DIAGNOSTICS of each phase.
        specialist_rows: rows of SPECIALISTS by specialist and leaf. `p_raw` is the share in the specialist sample, `p` its estimate
            for the mixture, which may differ a lot.
        allocation: None until the new corpus is complete.
        manifest: of the step that has all shards; None until the new corpus is complete.
        sampled: None until the new corpus is complete, or without a report step.
    """

    def __init__(self, graph: PipelineGraph, report_step: Step | None = None) -> None:
        """Read the tables that every reader needs; the others are read when they are first used.

        Args:
            report_step: a finished report step of the run, which counted the sampled tokens.

        Raises:
            ConfigError: the weights of the run are not done.
        """
        if not all(step.done for step in graph.weights_steps):
            raise ConfigError(f"the run in {graph.workdir.url} has no weights yet; run crispwrap weights or crispwrap curate first")
        self.graph = graph
        self.names: dict[int, ClusterName] = read_cluster_names(graph)
        mixtures = [step.folder.read_table("mixture.parquet") for step in graph.weights_steps]
        self.windows_L: I64 = mixtures[0]["windows"].to_numpy()
        self.tokens_L: I64 = mixtures[0]["tokens"].to_numpy()
        self.before_L: F64 = mixtures[0]["p_generalist"].to_numpy()
        phase_shares = [graph.config.budget_share(phase) for phase in graph.config.phases]
        targets = [mixture["p_target"].to_numpy() for mixture in mixtures]
        self.target_L: F64 = np.sum([share * p_L for share, p_L in zip(phase_shares, targets, strict=True)], axis=0)
        self.weight_L_by_phase: list[F64] = [mixture["weight"].to_numpy() for mixture in mixtures]
        self.specialist_rows: dict[str, dict[int, dict[str, float]]] = {name: {} for name in graph.config.specialists}
        for row in graph.step("weights").folder.read_table("specialists.parquet").to_pylist():
            self.specialist_rows[row["specialist"]][row["leaf"]] = row
        is_sampled = graph.is_sampled  # looks for the files of all shards
        self._allocations = [step.folder.read_table("allocation.parquet") for step in graph.sample_steps] if is_sampled else []
        self.allocation = _sum_allocations(self._allocations) if is_sampled else None
        self.manifest: Mapping[str, Any] | None = graph.shards_step.manifest if is_sampled else None
        self._report_folder = report_step.folder if report_step else None
        self.sampled: SampledTokens | None = None
        if report_step and is_sampled:
            self.sampled = SampledTokens.from_table(self.report_folder.read_table("sampled_tokens.parquet"), self.num_leaves)

    @property
    def num_leaves(self) -> int:
        return len(self.before_L)

    @property
    def report_folder(self) -> Folder:
        """The folder of the report step."""
        assert self._report_folder is not None
        return self._report_folder

    @functools.cached_property
    def tree(self) -> Tree:
        return read_tree(self.graph.step("cluster").folder)

    @property
    def after_L(self) -> F64:
        """(L,) share of the new corpus: of its sampled tokens, or if these are not counted of the allocation; before sampling, of
        the target mixture."""
        if self.allocation is None:
            return self.target_L
        tokens_L = self.sampled.tokens_L if self.sampled else self.allocation.tokens_L
        return np.asarray(tokens_L / max(1.0, float(tokens_L.sum())))

    def get_name(self, leaf: int) -> str:
        """The title of a cluster, or its terms without a title; a dash without either."""
        return self.names.get(leaf, ClusterName()).label

    def favoured_clusters(self, name: str) -> list[int]:
        """The leaves with generalist text whose share of the specialist sample exceeds their share of the generalist corpus."""
        return [leaf for leaf, row in self.specialist_rows[name].items() if row["p_raw"] > self.before_L[leaf] > 0]

    def specialist_column(self, name: str, column: str) -> F64:
        """(L,) a column of SPECIALISTS for one specialist; 0 for leaves without a row."""
        values_L = np.zeros(self.num_leaves)
        rows = self.specialist_rows[name]
        values_L[list(rows)] = [row[column] for row in rows.values()]
        return values_L

    def read_diagnostics(self, specialist: str = "") -> Diagnostics:
        """The diagnostics of the first phase, for the whole mixture or for a specialist."""
        return {row["name"]: row for row in self.diagnostics_by_phase[0] if row["specialist"] == specialist}

    @functools.cached_property
    def diagnostics_by_phase(self) -> list[list[dict[str, Any]]]:
        return [step.folder.read_table("diagnostics.parquet").to_pylist() for step in self.graph.weights_steps]

    def max_epochs(self) -> float:
        """An upper bound on the epochs of any leaf or stratum: the highest of each phase, summed."""
        max_epochs = 0.0
        for number, rows in enumerate(self.diagnostics_by_phase):
            (of_strata,) = (float(row["value"]) for row in rows if (row["name"], row["specialist"]) == ("epochs_max", ""))
            if self._allocations:
                of_strata = max(of_strata, float(self._allocations[number]["epochs"].to_numpy().max()))
            max_epochs += of_strata
        return max_epochs

    def mean_over_phases(self, name: str) -> float:
        """A value of the sample steps' manifests, averaged over the phases by their share of the budget."""
        phases = zip(self.graph.config.phases, self.graph.sample_steps, strict=True)
        return sum(self.graph.config.budget_share(phase) * float(sample.manifest[name]) for phase, sample in phases)

    def first_copy_share(self) -> float:
        """The share of the tokens that are first copies; before sampling, as estimated."""
        if self.manifest is None:
            return float(self.read_diagnostics()["unique_share"]["value"])
        return float(self.manifest["first_tokens"] / max(1, self.manifest["tokens"]))

    def rewritten_share(self) -> float:
        """The share of the tokens that are rewrites; 0 before sampling."""
        if self.manifest is None:
            return 0.0
        return float(self.manifest["tokens_by_origin"].get("rephrased", 0) / max(1, self.manifest["tokens"]))

    def target_shares(self) -> dict[str, float]:
        """The share of the new corpus that each specialist, and natural text, should have over all phases."""
        config = self.graph.config
        targets = dict.fromkeys((*config.specialists, NATURAL), 0.0)
        for phase in config.phases:
            phase_share, natural = config.budget_share(phase), phase.natural_share
            shares = {name: specialist.share for name, specialist in phase.specialists.items()}
            for name, share in shares.items():
                targets[name] += phase_share * (1 - natural) * share / sum(shares.values())
            targets[NATURAL] += phase_share * natural
        return targets

    @functools.cached_property
    def uncertainty(self) -> dict[str, SampleUncertainty]:
        """The uncertainty of the mixture of each specialist."""
        return {name: self._measure_uncertainty(name) for name in self.graph.config.specialists}

    def _measure_uncertainty(self, name: str) -> SampleUncertainty:
        raw_L, low_L, high_L = (self.specialist_column(name, column) for column in ("p_raw", "p_low", "p_high"))
        has_row_L = np.zeros(self.num_leaves, bool)
        has_row_L[list(self.specialist_rows[name])] = True
        diagnostics = self.read_diagnostics(name)
        alphas = {int(key.rpartition("_")[2]): row["value"] for key, row in diagnostics.items() if key.startswith("alpha_level_")}
        windows_L = self.specialist_column(name, "windows").astype(np.int64)
        return SampleUncertainty(
            documents=int(diagnostics["documents"]["value"]),
            windows=int(diagnostics["windows"]["value"]),
            error=estimate_error(low_L[has_row_L], high_L[has_row_L]),
            levels=tuple(measure_sample_influence(self.tree, windows_L, [alphas[level] for level in sorted(alphas)])),
            kl_before=kl_divergence(raw_L, self.before_L),
            kl_after=kl_divergence(raw_L, self.after_L),
        )


def _sum_allocations(tables: Sequence[pa.Table]) -> LeafAllocation:
    def sum_columns(*names: str) -> F64:
        return np.asarray(np.sum([table[name].to_numpy() for table in tables for name in names], axis=0))

    return LeafAllocation(
        tokens_L=sum_columns("allocated_tokens", "rewritten_tokens"),
        epochs_L=sum_columns("epochs"),
        deficit_L=sum_columns("deficit_tokens"),
    )
