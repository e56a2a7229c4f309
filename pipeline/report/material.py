"""The tables of a run that several sections of the page need, read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.arrays import F64
from pipeline.clustering.tree import Tree, read_tree
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step
from pipeline.report.atlas import Drawn
from pipeline.results.shares import Shares
from pipeline.storage import Folder


@dataclass(frozen=True)
class Material:
    """A run whose `weights` step is done; `drawn` is None until its sampling is done too."""

    run: PipelineGraph
    tables: Folder  # of the report step
    tree: Tree
    shares: Shares
    drawn: Drawn | None

    @classmethod
    def of(cls, graph: PipelineGraph, made: Step, *, drawn: bool) -> "Material":
        """Read the tables of a run. `made` is its report step; `drawn` says whether sampling is done."""
        shares = Shares(graph, planned=drawn)
        of_leaves = Drawn.of_table(made.folder.read_table("drawn.parquet"), len(shares.before_L)) if drawn else None
        return cls(graph, made.folder, read_tree(graph.step("cluster").folder), shares, of_leaves)

    @property
    def after_L(self) -> F64:
        """(L,) cluster shares of the sampled tokens; before sampling, of the target mixture."""
        return self.drawn.tokens_L / max(1.0, float(self.drawn.tokens_L.sum())) if self.drawn else self.shares.after_L

    @property
    def manifest(self) -> Mapping[str, Any] | None:
        """The manifest of the step that holds all shards; None before sampling."""
        return self.run.corpus.manifest if self.drawn else None
