"""The tables of a run that several sections of the page need, read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.arrays import F64
from pipeline.clustering.tree import Tree, read_tree
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step
from pipeline.report.cluster_map import SampledTokens
from pipeline.results.shares import Shares
from pipeline.storage import Folder


@dataclass(frozen=True)
class ReportInputs:
    """A run whose `weights` step is done; `sampled` is None until its sampling is done too."""

    graph: PipelineGraph
    tables: Folder  # of the report step
    tree: Tree
    shares: Shares
    sampled: SampledTokens | None

    @classmethod
    def read(cls, graph: PipelineGraph, report_step: Step, *, is_sampled: bool) -> "ReportInputs":
        """Read the tables of a run; `is_sampled` says whether its sampling is done."""
        shares, folder = Shares(graph, planned=is_sampled), report_step.folder
        num_leaves = len(shares.before_L)
        sampled = SampledTokens.from_table(folder.read_table("sampled_tokens.parquet"), num_leaves) if is_sampled else None
        return cls(graph, folder, read_tree(graph.step("cluster").folder), shares, sampled)

    @property
    def after_L(self) -> F64:
        """(L,) cluster shares of the sampled tokens; before sampling, of the target mixture."""
        return self.sampled.tokens_L / max(1.0, float(self.sampled.tokens_L.sum())) if self.sampled else self.shares.after_L

    @property
    def manifest(self) -> Mapping[str, Any] | None:
        """The manifest of the step that holds all shards; None before sampling."""
        return self.graph.shards_step.manifest if self.sampled else None
