"""Preflight checks: reject an infeasible config as soon as the windows are known, before hours of embedding."""

import orjson
from loguru import logger

from pipeline.config import GENERALIST, Config
from pipeline.errors import ConfigError
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step, choose_by_hash, part_names

_MAX_PARTS_SEARCHED = 256  # takes seconds, and only if no part has the field


def run_preflight_checks(graph: PipelineGraph) -> None:
    """Check budget and conditioning; does nothing before the generalist windows exist, or after the corpus is sampled.

    Raises:
        ConfigError: the budget exceeds what the text allows, or no row has the field of `schedule.conditioning`.
    """
    windows = graph.windows_step(GENERALIST)
    if windows.done and not graph.is_sampled:
        _check_budget(graph.config, windows)
        _check_conditioning(graph.config, windows)


def _check_budget(config: Config, prepared: Step) -> None:
    """Reject a budget that no mixture can meet. The allocation checks the rest, once the clusters are known."""
    for number, phase in enumerate(config.phases):
        if config.rephrase and not number:
            continue  # rewrites fill the deficit of the first phase
        available, budget = int(phase.weights.max_epochs * prepared.manifest["tokens"]), phase.sample.budget_tokens
        if phase.weights.overflow == "spread" and budget > available:
            part = "the share of schedule.ending" if number else "the share before schedule.ending"
            where = f" ({part})" if len(config.phases) > 1 else ""
            raise ConfigError(
                f"sample.budget_tokens {budget:,}{where} is more than weights.max_epochs {phase.weights.max_epochs:g} allows: the "
                f"generalist corpus has {prepared.manifest['tokens']:,} tokens, so at most {available:,} are available; lower the "
                "budget, raise weights.max_epochs, set weights.overflow: leave, or add generalist text"
            )


def _check_conditioning(config: Config, prepared: Step) -> None:
    """Reject a field that no row has; only warn if there are more parts than are searched."""
    conditioning = config.conditioning
    if conditioning is None or conditioning.field == "source":
        return
    known: set[str] = set()
    names = part_names(prepared)
    for name in choose_by_hash(names, _MAX_PARTS_SEARCHED, seed=config.seed, purpose="schedule.field"):
        for row in prepared.folder.read_table(f"{name}.parquet", columns=["metadata"])["metadata"].to_pylist():
            known |= orjson.loads(row).keys()
        if conditioning.field in known:
            return
    fields = f" ({', '.join(sorted(known))})" if known else ""
    if len(names) > _MAX_PARTS_SEARCHED:
        logger.warning(
            f"schedule.conditioning.field: no row in {_MAX_PARTS_SEARCHED} of {len(names):,} parts has the metadata field "
            f"{conditioning.field}{fields}"
        )
    else:
        raise ConfigError(
            f"schedule.conditioning.field: no row has the metadata field {conditioning.field}; use source, or an input column "
            f"other than text and id{fields}"
        )
