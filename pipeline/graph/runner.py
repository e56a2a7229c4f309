"""Run a config up to a stage, a report or an export, and print the outcome."""

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
from pipeline.graph.build import build_graph, build_report_step
from pipeline.graph.steps import describe_state, run_steps
from pipeline.graph.write_report import write_page
from pipeline.report.comparison import check_comparable
from pipeline.report.page import check_packages
from pipeline.results.run_results import RunResults
from pipeline.results.step_table import build_step_table, read_step_rows
from pipeline.results.terminal_summary import describe_shards, render_results, render_rewriting
from pipeline.stages.export import export_step, link_output, mixture_step, reserve_output
from pipeline.stages.mixture_groups import groups_step
from pipeline.stages.publish import is_published, publish_shards
from pipeline.storage import Folder
from pipeline.terminal.output import console
from pipeline.terminal.progress import DONE, Progress


def curate(config: Config | Mapping[str, Any], *, until: str = "sample") -> PipelineGraph:
    """Run all pending steps up to and including the stage `until`, and log one line for each step.

    Raises:
        UserError: a mistake in config or input.
        RunError: the run failed; finished parts are kept, and the next run resumes from them.
    """
    graph = build_graph(config)
    with open_engine(graph) as engine:
        _curate(graph, until, engine)
    return graph


@contextmanager
def open_engine(graph: PipelineGraph) -> Iterator[Engine]:
    """Lock the workdir and yield an engine.

    Raises:
        ConfigError: another run is running there.
    """
    progress = Progress()
    with (
        WorkdirLock(graph.workdir, describe_run=progress.to_record) as lock,
        Engine(graph.config.engine, lock.check, progress) as engine,
    ):
        progress.on_change = lock.write_soon
        try:
            graph.workdir.abort_uploads()
        except StorageError as error:  # the role may read and write, but not list uploads
            logger.warning(f"uploads left by killed runs are not cleaned up: {error}")
        yield engine


def _curate(graph: PipelineGraph, until: str, engine: Engine) -> None:
    run_steps(graph, _steps_up_to(graph, until), engine)
    if until == "sample" and not is_published(graph.shards_step, graph.shards):
        publish_shards(graph.shards_step, graph.shards)
    results, page = None, None
    if includes_stage(until, "weights"):
        report_step = _run_report_step(graph, engine)
        results = RunResults(graph, report_step)
        page = _try_write_page(results, report_step, engine)
    _print_step_table(graph, engine)
    if includes_stage(until, "rephrase") and graph.config.rephrase:
        console.print(*render_rewriting(graph), sep="\n")
    if results and until != "rephrase":
        console.print(*render_results(results), sep="\n")
        if results.manifest:
            console.print(f"\n{describe_shards(results.manifest)}: {graph.shards.url}", soft_wrap=True)
    if page:
        console.print(f"Report: {page}", soft_wrap=True)


def _run_report_step(graph: PipelineGraph, engine: Engine) -> Step:
    """Run the step that collects the data of the report, if needed."""
    step = build_report_step(graph)
    if not step.done:
        run_steps(graph, [step], engine, explain=False)
    return step


def _try_write_page(results: RunResults, report_step: Step, engine: Engine) -> str | None:
    """Write the report page if needed and return its path; None if it cannot be written, such as without its packages."""
    try:
        return write_page(results, report_step, engine)
    except ConfigError as error:  # a missing page must not fail a finished run
        logger.warning(f"report.html was not written: {error}")
        return None


def report(config: Config | Mapping[str, Any], *, against: Config | None = None) -> str:
    """Write `<workdir>/report.html` for a run whose weights are done, and return its path or URL. `against` is a run to compare
    with.

    Raises:
        ConfigError: the weights are not done, a package is missing, or one of two runs to compare is not sampled.
    """
    check_packages()
    graph = build_graph(config)
    if missing := [step.title for step in _steps_up_to(graph, "weights") if not step.done]:
        raise ConfigError(f"the report needs the weights, but {missing[0]} is not done; run crispwrap weights or crispwrap curate")
    other = build_graph(against) if against else None
    if other:
        check_comparable(graph, other)
    with open_engine(graph) as engine:
        report_step = _run_report_step(graph, engine)
        return write_page(RunResults(graph, report_step), report_step, engine, against=other, force=True)


def export(
    config: Config | Mapping[str, Any],
    *,
    to: str,
    tokenizer: str | None = None,
    eos_token: str | None = None,
    output: str | None = None,
) -> tuple[Step, Folder]:
    """Run everything up to the shards, and export these in the format `to`; return the step and the folder.

    The folder is `output`, by default `<workdir>/exports/<to>`.

    Raises:
        UserError: as `curate`; unknown format or tokenizer, or `output` contains something else.
        RunError: as `curate`.
    """
    graph = build_graph(config)
    step = export_step(graph.shards_step, to, tokenizer, eos_token)
    return step, _run_and_export(graph, [step], output or graph.workdir.child(f"exports/{to}").url)


def export_mixture(
    config: Config | Mapping[str, Any],
    *,
    mixture: str,
    level: int = 1,
    tokenizer: str | None = None,
    eos_token: str | None = None,
    output: str | None = None,
) -> tuple[Step, Folder]:
    """Run everything up to the shards, and export their text as weighted groups for the trainer `mixture`; return step and folder.

    The groups are the nodes of one level of the cluster tree.

    Raises:
        UserError: as `export`; the tree has no such level.
        RunError: as `curate`.
    """
    graph = build_graph(config)
    if graph.config.schedule:
        raise ConfigError(
            "--mixture cannot be combined with the section schedule, which needs ordered shards; remove the section, and give the "
            "trainer a second mixture for the end of its training"
        )
    inputs = (graph.windows_step(GENERALIST), graph.step("assign", GENERALIST), graph.step("cluster"), graph.step("weights"))
    rephrased = graph.step("rephrase") if graph.config.rephrase else None
    grouped = groups_step(graph.config, level, *inputs, rephrased, graph.step("sample"))
    step = mixture_step(grouped, mixture, tokenizer, eos_token)
    return step, _run_and_export(graph, [grouped, step], output or graph.workdir.child(f"exports/{mixture}-level-{level}").url)


def _run_and_export(graph: PipelineGraph, steps: Sequence[Step], output: str) -> Folder:
    folder = Folder(output)
    reserve_output(steps[-1], folder)
    with open_engine(graph) as engine:
        _curate(graph, "sample", engine)
        run_steps(graph, steps, engine)
        link_output(steps[-1], folder)
    return folder


def _print_step_table(graph: PipelineGraph, engine: Engine) -> None:
    """Print a table of all steps, unless all of them were cached."""
    steps = engine.progress.steps()
    if any(step["state"] == DONE for step in steps):
        console.print(Text(), build_step_table(read_step_rows(graph.workdir, steps), width=console.width))


def _make_stage_runner(until: str) -> Callable[[Config | Mapping[str, Any]], PipelineGraph]:
    def stage(config: Config | Mapping[str, Any]) -> PipelineGraph:
        return curate(config, until=until)

    stage.__name__ = until
    stage.__doc__ = f"Run all pending steps up to and including `{until}`; see `curate`."
    return stage


prepare, embed, cluster, weights, rephrase, sample = (_make_stage_runner(name) for name in JOBS)


def _steps_up_to(graph: PipelineGraph, until: str) -> Sequence[Step]:
    if until == "rephrase" and graph.config.rephrase is None:
        raise ConfigError("the config has no section rephrase; add `rephrase: {model: …}` (README, Rewriting)")
    index = max(i for i, step in enumerate(graph.steps) if STAGES[step.stage].job == until)
    return graph.steps[: index + 1]


def describe_steps(graph: PipelineGraph, until: str) -> list[tuple[Step, str]]:
    """Each step up to `until` with its state: done, or pending with the finished parts or the changed settings."""
    return [(step, describe_state(step)) for step in _steps_up_to(graph, until)]


def includes_stage(until: str, stage: str) -> bool:
    """Whether a run up to and including `until` includes `stage`."""
    return JOBS.index(until) >= JOBS.index(stage)


def describe_rewriting_cost(graph: PipelineGraph) -> str | None:
    """The estimated cost of rewriting in a sentence; None if nothing is rewritten or rewriting is done."""
    if graph.config.rephrase is None or graph.step("rephrase").done:
        return None
    if not graph.step("weights").done:
        return "rephrase: the cost can be estimated once weights is done; run crispwrap weights, then repeat --dry-run"
    from pipeline.stages.rephrase import estimate_cost

    return estimate_cost(graph.config, graph.step("weights"))
