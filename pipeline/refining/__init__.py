"""datatrove's extractors, formatters and filters as settings: found and checked by name, run document by document."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dropped:
    """A document that a step does not let through: the step's place in the config, its reason, the beginning of what it saw."""

    step: int
    reason: str
    text: str


class StepError(Exception):
    """A step could not deal with a document, which goes to quarantine."""
