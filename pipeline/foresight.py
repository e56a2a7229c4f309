"""What a run cannot give, as far as its windows tell: said before hours of embedding, not after them."""

import orjson

from pipeline.config import GENERALIST, Config
from pipeline.errors import ConfigError
from pipeline.planning import Run
from pipeline.step import Step, hash_chosen, part_names

_PARTS_FOR_FIELDS = 16


def refuse_what_cannot_be(run: Run) -> None:
    """Say nothing where the windows of the generalist corpus are not there yet, or the corpus is drawn.

    Raises:
        ConfigError: the budget is more than all of the text gives, or no row has the field of `schedule.conditioning`.
    """
    windows = run.windows(GENERALIST)
    if windows.done and not run.drawn:
        _check_budget(run.config, windows)
        _check_conditioning(run.config, windows)


def _check_budget(config: Config, prepared: Step) -> None:
    """No mixture meets a budget above what all text gives; the plan refuses the rest, once it knows the clusters."""
    if config.rephrase and config.rephrase.mode == "deficit":
        return  # rewrites fill what the text does not give
    for number, phase in enumerate(config.phases):
        most, asked = int(phase.weights.max_epochs * prepared.manifest["tokens"]), phase.sample.budget_tokens
        if phase.weights.overflow == "spread" and asked > most:
            where = " (the part of schedule.ending)" if number else ""
            raise ConfigError(
                f"sample.budget_tokens {asked:,}{where} is more than weights.max_epochs {phase.weights.max_epochs:g} allows: the "
                f"generalist corpus holds {prepared.manifest['tokens']:,} tokens, so at most {most:,} can be had; lower the "
                "budget, raise weights.max_epochs, set weights.overflow: leave, or add generalist text"
            )


def _check_conditioning(config: Config, prepared: Step) -> None:
    """No row has the field, going by some of the parts."""
    conditioning = config.conditioning
    if conditioning is None or conditioning.field == "source":
        return
    known: set[str] = set()
    for name in hash_chosen(part_names(prepared), _PARTS_FOR_FIELDS, seed=config.seed, purpose="schedule.field"):
        for row in prepared.folder.read_table(f"{name}.parquet", columns=["metadata"])["metadata"].to_pylist():
            known |= orjson.loads(row).keys()
    if conditioning.field not in known:
        has = f"; there are {', '.join(sorted(known))}" if known else ""
        raise ConfigError(
            f"schedule.conditioning.field: no row has a {conditioning.field}: the columns of the input beside text and id are its "
            f"metadata{has}; name one of them, or source"
        )
