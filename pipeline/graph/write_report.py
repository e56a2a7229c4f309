"""Write the report page of a run: `<workdir>/report.html`."""

from pipeline.engine import Engine
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step
from pipeline.report import page
from pipeline.report.comparison import compare_runs
from pipeline.report.page_content import collect_content
from pipeline.results.run_results import RunResults

PAGE = "report.html"
_HEAD_BYTES = 1 << 10  # the beginning of a page, which has its stamp


def write_page(
    results: RunResults, report_step: Step, engine: Engine, *, against: PipelineGraph | None = None, force: bool = False
) -> str:
    """Write the page unless it is up to date, or always with `force`; return its path or URL.

    Args:
        results: read with `report_step`.

    Raises:
        ConfigError: a package is missing.
        RunError: as other stages.
    """
    page.check_packages()
    graph = results.graph
    location = f"{graph.workdir.url}/{PAGE}"
    if not force and _is_current(graph, report_step.fingerprint):
        return location
    comparison = compare_runs(engine.for_stage(report_step.stage), graph, against) if against else None
    content = collect_content(results)
    html = page.render_page(content, fingerprint=report_step.fingerprint, comparison=comparison)
    graph.workdir.write_bytes(PAGE, html.encode())
    return location


def _is_current(graph: PipelineGraph, fingerprint: str) -> bool:
    return graph.workdir.exists(PAGE) and page.build_stamp(fingerprint).encode() in graph.workdir.read_bytes(PAGE, _HEAD_BYTES)
