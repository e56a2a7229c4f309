"""The config of a run: all sections, defaults that depend on several settings, and checks across sections."""

from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.config.corpora import GENERALIST, NATURAL, Corpus, Decontaminate, Dedup, Generalist, Prepare, Specialist
from pipeline.config.execution import Engine
from pipeline.config.rewriting import Rephrase
from pipeline.config.schedule import Conditioning, Ending, Schedule
from pipeline.config.section import EXECUTION, Section
from pipeline.config.selection import DEFAULT_NATURAL_SHARE, Cluster, Embed, Sample, Weights, Window
from pipeline.config.validation_errors import format_validation_error


class Config(Section):
    """The config of a run."""

    workdir: str = Field(min_length=1, json_schema_extra=EXECUTION, description="folder of all output; any fsspec URL")
    seed: int = Field(0, ge=0, description="seed of every random choice")
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, json_schema_extra=EXECUTION, description="maximum share of quarantined rows in a corpus"
    )
    generalist: Generalist
    specialists: dict[str, Specialist] = Field(min_length=1)
    prepare: Prepare = Prepare()
    dedup: Dedup | None = None
    decontaminate: Decontaminate | None = None
    window: Window = Window()
    embed: Embed = Embed()
    cluster: Cluster = Cluster()
    weights: Weights = Weights()
    sample: Sample
    rephrase: Rephrase | None = None
    schedule: Schedule | None = None
    engine: Engine = Engine()

    @field_validator("specialists")
    @classmethod
    def _check_names(cls, specialists: dict[str, Specialist]) -> dict[str, Specialist]:
        for name in specialists:
            if name in (NATURAL, GENERALIST) or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"{name!r} is not a valid specialist name: use letters, digits, - and _, but not natural or generalist"
                )
        # Sorted, because the order in the file must not change which specialist a copy is sampled for.
        return dict(sorted(specialists.items()))

    def resolve_steps(self, corpus: Corpus) -> tuple[list[dict[str, Any]], bool]:
        """The steps of a corpus, and False if they are those of `prepare.steps`, the default of the generalist corpus."""
        if corpus.steps is None and isinstance(corpus, Generalist):
            return self.prepare.steps, False
        return corpus.steps or [], True

    @property
    def repeat_exponent(self) -> float:
        """`weights.repeat_exponent`, or its default (docs/decisions/0014); always 1 with `overflow: leave`."""
        if self.weights.overflow == "leave":
            return 1.0
        return self.weights.repeat_exponent or (0.25 if self.weights.estimator == "density" and self.rephrase is None else 1.0)

    @property
    def sharpness(self) -> float:
        """`weights.sharpness`, or its default: 2 for density with `repeat_exponent` < 1, otherwise 1."""
        return self.weights.sharpness or (2.0 if self.weights.estimator == "density" and self.repeat_exponent < 1 else 1.0)

    @property
    def natural_share(self) -> float:
        """`weights.natural_share`, or its default (docs/decisions/0022)."""
        if self.weights.natural_share is not None:
            return self.weights.natural_share
        return DEFAULT_NATURAL_SHARE.get(self.weights.estimator, 0.0)

    @property
    def resolved_weights(self) -> Weights:
        """`weights` with defaults instead of nulls: equal for two configs with the same weighting."""
        resolved = {name: getattr(self, name) for name in ("natural_share", "sharpness", "repeat_exponent")}
        return self.weights.model_copy(update=resolved)

    @property
    def conditioning(self) -> Conditioning | None:
        """`schedule.conditioning`, or None."""
        return self.schedule.conditioning if self.schedule else None

    @property
    def ending(self) -> Ending | None:
        """`schedule.ending`, or None."""
        return self.schedule.ending if self.schedule else None

    @property
    def phases(self) -> "list[Config]":
        """The config of each phase of the corpus: one, or with `schedule.ending` two."""
        ending = self.ending
        if ending is None:
            return [self]
        last_tokens = round(ending.share * self.sample.budget_tokens)
        budgets = (self.sample.budget_tokens - last_tokens, last_tokens)
        samples = [self.sample.model_copy(update={"budget_tokens": budget}) for budget in budgets]
        shares = ending.specialists or {name: specialist.share for name, specialist in self.specialists.items()}
        last = {
            "weights": Weights.model_validate({**self.weights.model_dump(), **ending.weights}),
            "specialists": {name: self.specialists[name].model_copy(update={"share": shares[name]}) for name in sorted(shares)},
            "sample": samples[1],
        }
        return [self.model_copy(update={"sample": samples[0]}), self.model_copy(update=last)]

    def budget_share(self, phase: "Config") -> float:
        """The share of the budget of a phase."""
        return phase.sample.budget_tokens / self.sample.budget_tokens

    @model_validator(mode="after")
    def _check_ending(self) -> "Config":
        ending = self.ending
        if ending is None:
            return self
        for name in ending.specialists:
            self._check_specialist("schedule.ending.specialists", name)
        try:
            first, last = self.phases
        except ValidationError as error:
            message = format_validation_error(error, Weights)
            raise ValueError(f"schedule.ending.weights: {message}") from error
        if (first.resolved_weights, first.specialists) == (last.resolved_weights, last.specialists):
            raise ValueError("schedule.ending changes nothing; give other weights or specialists, or leave it out")
        if last.sample.budget_tokens < 1 or first.sample.budget_tokens < 1:
            raise ValueError(
                f"schedule.ending.share {ending.share:g} leaves one phase without tokens of sample.budget_tokens "
                f"{self.sample.budget_tokens}; change one of them"
            )
        return self

    @model_validator(mode="after")
    def _check_held_out(self) -> "Config":
        for name, held_out in (self.decontaminate.held_out if self.decontaminate else {}).items():
            if held_out.of is not None:
                self._check_specialist(f"decontaminate.held_out.{name}.of", held_out.of)
        return self

    def _check_specialist(self, setting: str, name: str) -> None:
        if name not in self.specialists:
            raise ValueError(f"{setting}: {name!r} is not one of the specialists ({', '.join(self.specialists)})")

    @model_validator(mode="after")
    def _check_pooling(self) -> "Config":
        if self.embed.pool == "mean" and self.embed.model.startswith(("static:", "lsi")):
            raise ValueError(f"embed.pool: mean has no effect with {self.embed.model}, which reads whole windows; leave it out")
        return self
