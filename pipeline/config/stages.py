"""The stages, each declared once: their order, their counts, and whether their tasks can be placed."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A kind of work, such as `embed`.

    Attributes:
        name: used in `engine.placement`, in the folders of a workdir, and in the table of steps.
        job: the job (`jobs/<job>.py`) that ends with this stage or includes it last; empty for a stage that `curate` does not run.
        has_tasks: whether it runs tasks on the cluster, which `engine.placement` can place.
        makes_windows: whether its parts are windows. Later stages read those of the last such stage of a corpus.
        output_counts: counts of its manifest that the table of steps shows, the main one first.
        excluded_counts: counts of excluded rows in its manifest, shown if they are not 0.
    """

    name: str
    job: str = ""
    has_tasks: bool = True
    makes_windows: bool = False
    output_counts: tuple[str, ...] = ()
    excluded_counts: tuple[str, ...] = ()


def _window_stage(name: str) -> Stage:
    return Stage(
        name=name,
        job="prepare",
        makes_windows=True,
        output_counts=("windows", "documents", "tokens"),
        excluded_counts=("quarantined", "dropped"),
    )


_STAGES = (
    _window_stage("prepare"),
    _window_stage("dedup"),
    Stage(name="held-out", job="prepare"),
    _window_stage("decontaminate"),
    Stage(name="embedder", job="embed"),
    Stage(name="embed", job="embed", output_counts=("windows",), excluded_counts=("invalid",)),
    Stage(name="cluster", job="cluster", output_counts=("leaves", "depth")),
    Stage(name="assign", job="cluster", output_counts=("windows",)),
    Stage(name="score", job="weights", output_counts=("windows",)),
    Stage(name="weights", job="weights", output_counts=("leaves",)),
    Stage(name="titles", job="rephrase", output_counts=("titles", "clusters")),
    Stage(name="rephrase", job="rephrase", output_counts=("rewrites", "requests", "tokens")),
    Stage(name="sample", job="sample", output_counts=("rows", "tokens")),
    Stage(name="schedule", job="sample", has_tasks=False, output_counts=("rows", "tokens")),
    Stage(name="report"),
    Stage(name="groups"),
    Stage(name="export"),
    Stage(name="mixture"),
    Stage(name="overlap"),
    Stage(name="tokenizer"),
    Stage(name="proxy"),
)

STAGES: Mapping[str, Stage] = {stage.name: stage for stage in _STAGES}
# In running order. A job also runs all pending earlier stages.
JOBS: tuple[str, ...] = tuple(dict.fromkeys(stage.job for stage in _STAGES if stage.job))
