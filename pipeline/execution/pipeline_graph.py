"""The steps of a config, each with the identity of its output: a record that `pipeline.graph` builds and runs."""

from dataclasses import dataclass

from pipeline.config import Config
from pipeline.config.stages import STAGES
from pipeline.execution.step import Step
from pipeline.storage import Folder


@dataclass(frozen=True)
class PipelineGraph:
    """The steps of a config, in the order in which they run."""

    config: Config
    workdir: Folder
    steps: tuple[Step, ...]

    def step(self, stage: str, corpus: str = "") -> Step:
        """The step of a stage; `corpus` is `generalist` or a specialist for the stages that run for each corpus."""
        (step,) = (step for step in self.steps if (step.stage, step.corpus) == (stage, corpus))
        return step

    def windows(self, corpus: str) -> Step:
        """The step whose parts are the windows of a corpus that everything after it reads."""
        return [step for step in self.steps if STAGES[step.stage].makes_windows and step.corpus == corpus][-1]

    @property
    def samples(self) -> list[Step]:
        """The steps that draw the corpus: one, or with `schedule.ending` two."""
        return [step for step in self.steps if step.stage == "sample"]

    @property
    def weighings(self) -> list[Step]:
        """The steps that weigh for those."""
        return [step for step in self.steps if step.stage == "weights"]

    @property
    def corpus(self) -> Step:
        """The step that has all shards."""
        return self.steps[-1]

    @property
    def drawn(self) -> bool:
        """Whether the corpus is drawn: all shards, and the plans that they were drawn by."""
        return self.corpus.done and all(step.done for step in self.samples)

    @property
    def shards(self) -> Folder:
        """Where the final output lies."""
        return self.workdir.child("shards")
