"""Run a config up to a stage, to a report or to an export, and print the outcome."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from loguru import logger
from rich.text import Text

from pipeline.config import GENERALIST, Config
from pipeline.config.stages import JOBS, STAGES
from pipeline.engine import Engine
from pipeline.errors import ConfigError, StorageError
from pipeline.execution.lock import WorkdirLock
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step
from pipeline.graph.graph import build_graph
from pipeline.graph.report_page import write_report_page
from pipeline.graph.steps import describe_state, run_steps
from pipeline.results.step_table import build_step_table, read_step_rows
from pipeline.results.summary import summary
from pipeline.stages.export import begin_output, export_step, hand_over, mixture_step
from pipeline.stages.groups import groups_step
from pipeline.stages.publish import publish, published
from pipeline.storage import Folder
from pipeline.terminal.output import console
from pipeline.terminal.progress import DONE, Progress


def curate(config: Config | Mapping[str, Any], *, until: str = "sample") -> PipelineGraph:
    """Run everything up to and with the stage `until`, leaving out what is done, and print one line a step.

    Raises:
        UserError: a mistake in config or input.
        RunError: the run failed; finished parts are kept, and running again goes on from them.
    """
    graph = build_graph(config)
    with open_engine(graph) as engine:
        _curate(graph, until, engine)
    return graph


@contextmanager
def open_engine(graph: PipelineGraph) -> Iterator[Engine]:
    """The engine of a run that is alone in its workdir.

    Raises:
        ConfigError: another run is at work there.
    """
    progress = Progress()
    with WorkdirLock(graph.workdir, tell=progress.record) as alone, Engine(graph.config.engine, alone.check, progress) as engine:
        progress.changed = alone.tell_soon
        try:
            graph.workdir.abort_uploads()
        except StorageError as error:  # a role may read and write, and not list uploads
            logger.warning(f"uploads that killed runs left are not cleaned: {error}")
        yield engine


def _curate(graph: PipelineGraph, until: str, engine: Engine) -> None:
    run_steps(graph, _steps_until(graph, until), engine)
    if until == "sample" and not published(graph.corpus, graph.shards):
        publish(graph.corpus, graph.shards)
    page = _page(graph, engine) if reaches(until, "weights") else None
    _tell_made(graph, engine)
    for line in summary(graph, until):
        console.print(line)
    if page:
        console.print(f"Report: {page}")


def _page(graph: PipelineGraph, engine: Engine) -> str | None:
    """Where the report page is, which is written unless it is there; None without the packages for it."""
    try:
        return write_report_page(graph, engine)
    except ConfigError as error:  # the run is done, and a page is no reason to say it is not
        logger.warning(f"no report.html: {error}")
        return None


def report(config: Config | Mapping[str, Any], *, against: Config | None = None) -> str:
    """Write `<workdir>/report.html` for a run that has its weights at least; where it is. `against` is another run beside it.

    Raises:
        ConfigError: there are no weights yet, a package is missing, or one of two runs to compare has drawn nothing.
    """
    graph = build_graph(config)
    if missing := [step.title for step in _steps_until(graph, "weights") if not step.done]:
        raise ConfigError(
            f"nothing to report before the weights are done, and {missing[0]} is not; run jobs/weights.py or jobs/curate.py"
        )
    other = build_graph(against) if against else None
    with open_engine(graph) as engine:
        return write_report_page(graph, engine, against=other, anew=True)


def export(
    config: Config | Mapping[str, Any],
    *,
    to: str,
    tokenizer: str | None = None,
    eos_token: str | None = None,
    output: str | None = None,
) -> tuple[Step, Folder]:
    """Everything up to the shards, and these in the format `to` under `output` (by default `<workdir>/exports/<to>`): step, place.

    Raises:
        UserError: as `curate`; no such format or tokenizer, or `output` holds something else.
        RunError: as `curate`.
    """
    graph = build_graph(config)
    made = export_step(graph.corpus, to, tokenizer, eos_token)
    return made, _handed_over(graph, [made], output or graph.workdir.child(f"exports/{to}").url)


def mix(
    config: Config | Mapping[str, Any],
    *,
    mixture: str,
    level: int = 1,
    tokenizer: str | None = None,
    eos_token: str | None = None,
    output: str | None = None,
) -> tuple[Step, Folder]:
    """Everything up to the shards, and their text in groups of a level of the tree with weights, as `mixture`'s trainer reads them.

    Raises:
        UserError: as `export`; the tree has no such level.
        RunError: as `curate`.
    """
    graph = build_graph(config)
    if graph.config.schedule:
        raise ConfigError(
            "--mixture: schedule is of shards, which are read in order; leave the section out, and give the trainer a second "
            "mixture for the end of its training"
        )
    corpus = (graph.windows(GENERALIST), graph.step("assign", GENERALIST), graph.step("cluster"), graph.step("weights"))
    rephrased = graph.step("rephrase") if graph.config.rephrase else None
    grouped = groups_step(graph.config, level, *corpus, rephrased, graph.step("sample"))
    made = mixture_step(grouped, mixture, tokenizer, eos_token)
    return made, _handed_over(graph, [grouped, made], output or graph.workdir.child(f"exports/{mixture}-level-{level}").url)


def _handed_over(graph: PipelineGraph, steps: Sequence[Step], output: str) -> Folder:
    folder = Folder(output)
    begin_output(steps[-1], folder)
    with open_engine(graph) as engine:
        _curate(graph, "sample", engine)
        run_steps(graph, steps, engine)
        hand_over(steps[-1], folder)
    return folder


def _tell_made(graph: PipelineGraph, engine: Engine) -> None:
    """What each step holds and took, unless nothing had to be done."""
    steps = engine.progress.steps()
    if any(step["state"] == DONE for step in steps):
        console.print(Text(), build_step_table(read_step_rows(graph.workdir, steps), width=console.width))


def _stage(until: str) -> Callable[[Config | Mapping[str, Any]], PipelineGraph]:
    def stage(config: Config | Mapping[str, Any]) -> PipelineGraph:
        return curate(config, until=until)

    stage.__name__ = until
    stage.__doc__ = f"Run everything up to and with `{until}`, leaving out what is done; see `curate`."
    return stage


prepare, embed, cluster, weights, rephrase, sample = (_stage(name) for name in JOBS)


def _steps_until(graph: PipelineGraph, until: str) -> Sequence[Step]:
    if until == "rephrase" and graph.config.rephrase is None:
        raise ConfigError("the config has no section rephrase; add `rephrase: {model: …}` (README, Rewriting)")
    index = max(i for i, step in enumerate(graph.steps) if STAGES[step.stage].job == until)
    return graph.steps[: index + 1]


def describe(graph: PipelineGraph, until: str) -> list[tuple[Step, str]]:
    """Each step up to `until` with its state: done, how far it has come, or to do and why."""
    return [(step, describe_state(step)) for step in _steps_until(graph, until)]


def reaches(until: str, stage: str) -> bool:
    """Whether a run up to and with `until` gets to `stage`."""
    return JOBS.index(until) >= JOBS.index(stage)


def cost(graph: PipelineGraph) -> str | None:
    """What rewriting will cost, in a sentence; None where nothing is rewritten, or it is done."""
    if graph.config.rephrase is None or graph.step("rephrase").done:
        return None
    if not graph.step("weights").done:
        return "rephrase: what it costs is known once weights is done; run jobs/weights.py, then ask again"
    from pipeline.stages.rephrase import estimate_cost

    return estimate_cost(graph.config, graph.step("weights"))
