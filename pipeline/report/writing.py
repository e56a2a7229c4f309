"""From a run to its page: `<workdir>/report.html`."""

from pipeline.engine import Engine
from pipeline.planning import Run
from pipeline.report import comparison as comparing
from pipeline.report import page
from pipeline.report.facts import facts
from pipeline.report.material import Material
from pipeline.run import run_steps

PAGE = "report.html"
_HEAD_BYTES = 1 << 10  # of a page: they have its stamp


def written(run: Run, engine: Engine, *, against: Run | None = None, anew: bool = False) -> str:
    """Where the page is; it is made where there is none of this run as it is, or `anew`.

    It is of the corpus that was drawn, or where there is none yet of what the weights ask for, which are done.

    Raises:
        ConfigError: a package is missing, or there is nothing to compare with.
        RunError: as other stages.
    """
    page.check()
    if against:
        comparing.check(run, against)
    drawn = run.drawn
    step = run.report(drawn=drawn)
    place = f"{run.workdir.url}/{PAGE}"
    if not anew and step.done and _is_there(run, step.fingerprint):
        return place
    run_steps(run, [step], engine, explain=False)
    material = Material.of(run, step, drawn=drawn)
    with engine.placed(step.stage):
        beside = comparing.comparison(engine, material, against) if against else None
    html = page.render(facts(material), fingerprint=step.fingerprint, comparison=beside)
    run.workdir.write_bytes(PAGE, html.encode())
    return place


def _is_there(run: Run, fingerprint: str) -> bool:
    return run.workdir.exists(PAGE) and page.stamp(fingerprint).encode() in run.workdir.read_bytes(PAGE, _HEAD_BYTES)
