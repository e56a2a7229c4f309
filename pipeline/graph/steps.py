"""Run those steps of a pipeline graph that are not done, and say why a step is not."""

import time
from collections.abc import Sequence

from loguru import logger

from pipeline.config import GENERALIST
from pipeline.engine import Engine
from pipeline.execution.fingerprint import differences
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import USAGE, Step
from pipeline.graph.preflight import run_preflight_checks
from pipeline.results.step_table import format_step_row, read_step_rows
from pipeline.storage import MANIFEST, Folder


def run_steps(graph: PipelineGraph, steps: Sequence[Step], engine: Engine, *, explain: bool = True, draws: bool = True) -> None:
    """Run those of some steps that are not done, one after the other; `explain` says what changed since an earlier run.

    Raises:
        ConfigError: the run `draws`, and what it asks for cannot be.
    """
    if draws:
        run_preflight_checks(graph)
    first, there = engine.progress.add([(step.title, step.output) for step in steps]), 0
    for number, step in enumerate(steps, first):
        if step.done:
            engine.progress.skip(number)
            there += 1
            continue
        if there:
            logger.info(_describe_cached(there, steps))
            there = 0
        if explain:
            _explain_new(step)
        engine.start()
        of_stage = engine.for_stage(step.stage)
        started = time.monotonic()
        with engine.progress.step(number):
            step.run(of_stage)
            usage = {"seconds": time.monotonic() - started, "workers": engine.num_workers, **vars(of_stage.usage)}
            step.folder.write_json(USAGE, usage)
        logger.info(format_step_row(read_step_rows(graph.workdir, engine.progress.steps()[number : number + 1])[0]))
        if draws and step is graph.windows(GENERALIST):
            run_preflight_checks(graph)
    if there:
        logger.info(_describe_cached(there, steps))


def _describe_cached(there: int, steps: Sequence[Step]) -> str:
    return f"{there} of {len(steps)} steps {'are' if there > 1 else 'is'} cached"


def describe_state(step: Step) -> str:
    if step.done:
        return "done"
    if present := len(step.folder.names(".parquet")):
        return f"pending, {present} parts are finished"
    old = _nearest_other(step)
    return f"pending: {'; '.join(old[1])}" if old else "pending"


def _explain_new(step: Step) -> None:
    """Say what changed where an output of other settings is there; it stays, in its own folder."""
    if not step.folder.names() and (old := _nearest_other(step)):
        logger.info(f"{step.title}: not as in {old[0].url} ({'; '.join(old[1])}), which stays")


def _nearest_other(step: Step) -> tuple[Folder, list[str]] | None:
    """The finished output of this stage and corpus that differs in the fewest fields, and these fields."""
    stage_folder = step.workdir.child(step.stage)
    others = []
    for name in stage_folder.names():
        folder = stage_folder.child(name)
        manifest = folder.read_json(MANIFEST)
        if manifest is None:
            continue  # unfinished
        if manifest.get("corpus", "") == step.corpus and manifest["fingerprint"] != step.fingerprint:
            others.append((folder, differences(manifest["identity"], step.identity)))
    return min(others, key=lambda other: len(other[1]), default=None)
