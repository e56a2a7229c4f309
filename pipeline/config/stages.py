"""The stages, each declared once: what runs in which order, what it counts, and where it may be placed."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A kind of work, such as `embed`.

    Attributes:
        name: as in `engine.placement`, in the folders of a workdir, and in the table of steps.
        job: the job (`jobs/<job>.py`) that ends with this stage or passes through it last; empty for a stage outside of `curate`.
        has_tasks: whether it runs tasks on the cluster, which `engine.placement` can place.
        makes_windows: whether its parts are windows. Later stages read those of the last such stage of a corpus.
        counts: counts of its manifest that the table of steps shows, the main one first.
        left_out: counts of its manifest that are shown where they are not 0.
    """

    name: str
    job: str = ""
    has_tasks: bool = True
    makes_windows: bool = False
    counts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def _window_stage(name: str) -> Stage:
    counts = ("windows", "documents", "tokens")
    return Stage(name=name, job="prepare", makes_windows=True, counts=counts, left_out=("quarantined", "dropped"))


_STAGES = (
    _window_stage("prepare"),
    _window_stage("dedup"),
    Stage(name="held-out", job="prepare"),
    _window_stage("decontaminate"),
    Stage(name="embedder", job="embed"),
    Stage(name="embed", job="embed", counts=("windows",), left_out=("invalid",)),
    Stage(name="cluster", job="cluster", counts=("leaves", "depth")),
    Stage(name="assign", job="cluster", counts=("windows",)),
    Stage(name="score", job="weights", counts=("windows",)),
    Stage(name="weights", job="weights", counts=("leaves",)),
    Stage(name="titles", job="rephrase", counts=("titles", "clusters")),
    Stage(name="rephrase", job="rephrase", counts=("rewrites", "requests", "tokens")),
    Stage(name="sample", job="sample", counts=("rows", "tokens")),
    Stage(name="schedule", job="sample", has_tasks=False, counts=("rows", "tokens")),
    Stage(name="report"),
    Stage(name="groups"),
    Stage(name="export"),
    Stage(name="mixture"),
    Stage(name="overlap"),
    Stage(name="tokenizer"),
    Stage(name="proxy"),
)

STAGES: Mapping[str, Stage] = {stage.name: stage for stage in _STAGES}
# In the order in which they run. A job runs its stages and whatever is missing before them.
JOBS: tuple[str, ...] = tuple(dict.fromkeys(stage.job for stage in _STAGES if stage.job))
