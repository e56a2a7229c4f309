"""Write the report page of a run: `<workdir>/report.html`."""

from pipeline.engine import Engine
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.graph.build import build_report_step
from pipeline.graph.steps import run_steps
from pipeline.report import page
from pipeline.report.comparison import check_comparable, compare_runs
from pipeline.report.inputs import ReportInputs
from pipeline.report.page_content import collect_content

PAGE = "report.html"
_HEAD_BYTES = 1 << 10  # the beginning of a page, which has its stamp


def write_report_page(graph: PipelineGraph, engine: Engine, *, against: PipelineGraph | None = None, force: bool = False) -> str:
    """Write the page unless it is up to date, or always with `force`; return its path or URL.

    The page describes the sampled corpus, or the mixture if only the weights are done.

    Raises:
        ConfigError: a package is missing, or there is nothing to compare with.
        RunError: as other stages.
    """
    page.check_packages()
    if against:
        check_comparable(graph, against)
    is_sampled = graph.is_sampled
    step = build_report_step(graph, is_sampled=is_sampled)
    location = f"{graph.workdir.url}/{PAGE}"
    if not force and step.done and _is_current(graph, step.fingerprint):
        return location
    run_steps(graph, [step], engine, explain=False)
    inputs = ReportInputs.read(graph, step, is_sampled=is_sampled)
    comparison = compare_runs(engine.for_stage(step.stage), inputs, against) if against else None
    html = page.render_page(collect_content(inputs), fingerprint=step.fingerprint, comparison=comparison)
    graph.workdir.write_bytes(PAGE, html.encode())
    return location


def _is_current(graph: PipelineGraph, fingerprint: str) -> bool:
    return graph.workdir.exists(PAGE) and page.build_stamp(fingerprint).encode() in graph.workdir.read_bytes(PAGE, _HEAD_BYTES)
