"""What a run cannot give, as far as its windows tell: said before hours of embedding, not after them."""

import orjson
from loguru import logger

from pipeline.config import GENERALIST, Config
from pipeline.errors import ConfigError
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step, hash_chosen, part_names

_PARTS_FOR_FIELDS = 256  # seconds, and only where none of them has it


def run_preflight_checks(graph: PipelineGraph) -> None:
    """Say nothing where the windows of the generalist corpus are not there yet, or the corpus is drawn.

    Raises:
        ConfigError: the budget is more than all of the text gives, or no row has the field of `schedule.conditioning`.
    """
    windows = graph.windows(GENERALIST)
    if windows.done and not graph.drawn:
        _check_budget(graph.config, windows)
        _check_conditioning(graph.config, windows)


def _check_budget(config: Config, prepared: Step) -> None:
    """No mixture meets a budget above what all text gives; the plan refuses the rest, once it knows the clusters."""
    for number, phase in enumerate(config.phases):
        if config.rephrase and not number:
            continue  # rewrites are for the first part, and fill what the text does not give
        most, asked = int(phase.weights.max_epochs * prepared.manifest["tokens"]), phase.sample.budget_tokens
        if phase.weights.overflow == "spread" and asked > most:
            part = "the part of schedule.ending" if number else "what schedule.ending leaves of it"
            where = f" ({part})" if len(config.phases) > 1 else ""
            raise ConfigError(
                f"sample.budget_tokens {asked:,}{where} is more than weights.max_epochs {phase.weights.max_epochs:g} allows: the "
                f"generalist corpus holds {prepared.manifest['tokens']:,} tokens, so at most {most:,} can be had; lower the "
                "budget, raise weights.max_epochs, set weights.overflow: leave, or add generalist text"
            )


def _check_conditioning(config: Config, prepared: Step) -> None:
    """No row has the field; of more parts than are looked at, that is likely and no more."""
    conditioning = config.conditioning
    if conditioning is None or conditioning.field == "source":
        return
    known: set[str] = set()
    names = part_names(prepared)
    for name in hash_chosen(names, _PARTS_FOR_FIELDS, seed=config.seed, purpose="schedule.field"):
        for row in prepared.folder.read_table(f"{name}.parquet", columns=["metadata"])["metadata"].to_pylist():
            known |= orjson.loads(row).keys()
        if conditioning.field in known:
            return
    has = f"; there are {', '.join(sorted(known))}" if known else ""
    if len(names) > _PARTS_FOR_FIELDS:
        logger.warning(
            f"schedule.conditioning.field: no row of {_PARTS_FOR_FIELDS} parts, of {len(names):,}, has a {conditioning.field}{has}"
        )
    else:
        raise ConfigError(
            f"schedule.conditioning.field: no row has a {conditioning.field}: the columns of the input beside text and id are its "
            f"metadata{has}; name one of them, or source"
        )
