"""The record of a pipeline graph: the steps of a config with their identities. `pipeline.graph` builds and runs it."""

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
        """The step of a stage; `corpus` is `generalist` or a specialist for stages that run once per corpus."""
        (step,) = (step for step in self.steps if (step.stage, step.corpus) == (stage, corpus))
        return step

    def windows_step(self, corpus: str) -> Step:
        """The last step that writes windows of a corpus; all later stages read its parts."""
        return [step for step in self.steps if STAGES[step.stage].makes_windows and step.corpus == corpus][-1]

    @property
    def sample_steps(self) -> list[Step]:
        """The steps that sample the new corpus: one, or two with `schedule.ending`."""
        return [step for step in self.steps if step.stage == "sample"]

    @property
    def weights_steps(self) -> list[Step]:
        """The weights steps of the sample steps, in the same order."""
        return [step for step in self.steps if step.stage == "weights"]

    @property
    def shards_step(self) -> Step:
        """The step whose output has all shards."""
        return self.steps[-1]

    @property
    def is_sampled(self) -> bool:
        """Whether the new corpus is complete: all shards, and the allocations that they were sampled from."""
        return self.shards_step.done and all(step.done for step in self.sample_steps)

    @property
    def shards(self) -> Folder:
        """The folder of the final output."""
        return self.workdir.child("shards")
