"""Names for clusters: words and phrases that set a cluster's text apart (class-based TF-IDF, arXiv 2203.05794, eq. 2), and a title
where a language model gave one.

Shapes: C clusters, N texts, G words and phrases.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipeline.execution.pipeline_graph import PipelineGraph


class Name(NamedTuple):
    """What a cluster is called. Both are text that a corpus, or a model that read it, may have chosen."""

    title: str = ""
    terms: str = ""

    @property
    def shown(self) -> str:
        """The title if there is one, else the terms, else a dash."""
        return self.title or self.terms or "-"


def names_of(graph: "PipelineGraph") -> dict[int, Name]:
    """The names of a run's clusters, by leaf, once its `weights` are done; titles, once those are. Not every leaf has one."""
    terms = graph.step("weights").folder.read_table("names.parquet")
    titles: dict[int, str] = {}
    for step in graph.steps:
        if step.stage == "titles" and step.done:
            table = step.folder.read_table("titles.parquet")
            titles = dict(zip(table["leaf"].to_pylist(), table["title"].to_pylist(), strict=True))
    pairs = zip(terms["leaf"].to_pylist(), terms["terms"].to_pylist(), strict=True)
    return {leaf: Name(titles.get(leaf, ""), of_leaf) for leaf, of_leaf in pairs}
