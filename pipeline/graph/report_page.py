"""Write the report page of a run: `<workdir>/report.html`."""

from pipeline.engine import Engine
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.graph.graph import build_report_step
from pipeline.graph.steps import run_steps
from pipeline.report import comparison as comparing
from pipeline.report import page
from pipeline.report.facts import facts
from pipeline.report.material import Material

PAGE = "report.html"
_HEAD_BYTES = 1 << 10  # of a page: they have its stamp


def write_report_page(graph: PipelineGraph, engine: Engine, *, against: PipelineGraph | None = None, anew: bool = False) -> str:
    """Write the page where there is none of this run as it is, or `anew`; return its path or URL.

    It is of the corpus that was drawn, or where there is none yet of what the weights ask for, which are done.

    Raises:
        ConfigError: a package is missing, or there is nothing to compare with.
        RunError: as other stages.
    """
    page.check()
    if against:
        comparing.check(graph, against)
    drawn = graph.drawn
    step = build_report_step(graph, drawn=drawn)
    place = f"{graph.workdir.url}/{PAGE}"
    if not anew and step.done and _is_there(graph, step.fingerprint):
        return place
    run_steps(graph, [step], engine, explain=False)
    material = Material.of(graph, step, drawn=drawn)
    beside = comparing.comparison(engine.for_stage(step.stage), material, against) if against else None
    html = page.render(facts(material), fingerprint=step.fingerprint, comparison=beside)
    graph.workdir.write_bytes(PAGE, html.encode())
    return place


def _is_there(graph: PipelineGraph, fingerprint: str) -> bool:
    return graph.workdir.exists(PAGE) and page.stamp(fingerprint).encode() in graph.workdir.read_bytes(PAGE, _HEAD_BYTES)
