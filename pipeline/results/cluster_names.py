"""Names of clusters: terms that distinguish a cluster's text, and a title if a language model wrote one.

The terms are words and phrases with a high class-based TF-IDF (arXiv 2203.05794, eq. 2).
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipeline.execution.pipeline_graph import PipelineGraph


class ClusterName(NamedTuple):
    """The title and terms of a cluster. Both are untrusted text from a corpus, or from a model that read it."""

    title: str = ""
    terms: str = ""

    @property
    def label(self) -> str:
        """The title, or the terms without a title, or a dash without either."""
        return self.title or self.terms or "-"


def read_cluster_names(graph: "PipelineGraph") -> dict[int, ClusterName]:
    """Read the names of a run's clusters, by leaf, once its `weights` are done. Titles are included once they are done.

    Not every leaf has a name.
    """
    terms = graph.step("weights").folder.read_table("names.parquet")
    titles: dict[int, str] = {}
    for step in graph.steps:
        if step.stage == "titles" and step.done:
            table = step.folder.read_table("titles.parquet")
            titles = dict(zip(table["leaf"].to_pylist(), table["title"].to_pylist(), strict=True))
    pairs = zip(terms["leaf"].to_pylist(), terms["terms"].to_pylist(), strict=True)
    return {leaf: ClusterName(titles.get(leaf, ""), leaf_terms) for leaf, leaf_terms in pairs}
