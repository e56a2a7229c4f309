"""Refining of documents: datatrove's extractors, formatters and filters, contamination checks, and MinHash signatures.

A refining step is one of the datatrove steps listed in `prepare.steps` of the config; it is not a step of the pipeline graph.

The package may import `pipeline.sources`, `pipeline.clustering` and the layers below them. It must not import the other packages of
its own layer, such as `pipeline.scoring` and `pipeline.mixture`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dropped:
    """A document that a refining step dropped: index of the step in the config, reason, and beginning of the text at that point."""

    step: int
    reason: str
    text: str


class RefiningError(Exception):
    """A refining step failed on a document; the document is quarantined."""
