"""Run the pending steps of a pipeline graph, and explain why a step is pending."""

import time
from collections.abc import Sequence

from loguru import logger

from pipeline import embedders
from pipeline.config import GENERALIST
from pipeline.engine import Engine
from pipeline.execution.fingerprint import diff_identities
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import USAGE, Step
from pipeline.graph.preflight import run_preflight_checks
from pipeline.results.step_table import format_step_row, read_step_rows
from pipeline.storage import MANIFEST, Folder


def run_steps(graph: PipelineGraph, steps: Sequence[Step], engine: Engine, *, explain: bool = True, preflight: bool = True) -> None:
    """Run the pending steps among `steps`, one after the other; `explain` logs what changed since an earlier run.

    Raises:
        ConfigError: `preflight` is true, and a preflight check fails; or the embedding model is needed and unavailable.
    """
    if preflight:
        run_preflight_checks(graph)
    if any(step.stage in ("embedder", "embed") and not step.done for step in steps):
        embedders.download(graph.config.embed)  # an unavailable model ends the run before hours of other steps
    first, num_cached = engine.progress.add([(step.title, step.output) for step in steps]), 0
    for number, step in enumerate(steps, first):
        if step.done:
            engine.progress.mark_cached(number)
            num_cached += 1
            continue
        if num_cached:
            logger.info(_describe_cached(num_cached, steps))
            num_cached = 0
        if explain:
            _log_changes(step)
        engine.start()
        stage_engine = engine.for_stage(step.stage)
        started = time.monotonic()
        with engine.progress.step(number):
            step.run(stage_engine)
            usage = {"seconds": time.monotonic() - started, "workers": engine.num_workers, **vars(stage_engine.usage)}
            step.folder.write_json(USAGE, usage)
        logger.info(format_step_row(read_step_rows(graph.workdir, engine.progress.steps()[number : number + 1])[0]))
        if preflight and step is graph.windows_step(GENERALIST):
            run_preflight_checks(graph)
    if num_cached:
        logger.info(_describe_cached(num_cached, steps))


def _describe_cached(num_cached: int, steps: Sequence[Step]) -> str:
    return f"{num_cached} of {len(steps)} steps {'are' if num_cached > 1 else 'is'} cached"


def describe_state(step: Step) -> str:
    """The state of a step: done, or pending with the number of finished parts, or with the changed settings."""
    if step.done:
        return "done"
    if present := len(step.folder.names(".parquet")):
        return f"pending, {present} parts are finished"
    old = _find_most_similar_output(step)
    return f"pending: {'; '.join(old[1])}" if old else "pending"


def _log_changes(step: Step) -> None:
    """Log what changed if an output with other settings exists; it stays in its own folder."""
    if not step.folder.names() and (old := _find_most_similar_output(step)):
        logger.info(f"{step.title}: differs from {old[0].url} ({'; '.join(old[1])}); that output is kept")


def _find_most_similar_output(step: Step) -> tuple[Folder, list[str]] | None:
    """The finished output of this stage and corpus that differs in the fewest fields, and those fields."""
    stage_folder = step.workdir.child(step.stage)
    others = []
    for name in stage_folder.names():
        folder = stage_folder.child(name)
        manifest = folder.read_json(MANIFEST)
        if manifest is None:
            continue  # unfinished
        if manifest.get("corpus", "") == step.corpus and manifest["fingerprint"] != step.fingerprint:
            others.append((folder, diff_identities(manifest["identity"], step.identity)))
    return min(others, key=lambda other: len(other[1]), default=None)
