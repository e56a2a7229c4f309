"""Running the steps of a run that are not done, in order, and what there is to say of it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from loguru import logger
from rich.text import Text

from pipeline.alone import Alone
from pipeline.config import GENERALIST, Config
from pipeline.engine import Engine, Usage
from pipeline.errors import ConfigError, StorageError
from pipeline.foresight import refuse_what_cannot_be
from pipeline.identity import differences
from pipeline.made import made_line, made_of, made_table
from pipeline.planning import OF_WINDOWS, Run, plan
from pipeline.progress import DONE, Progress
from pipeline.stages.export import begin_output, export_step, hand_over, mixture_step
from pipeline.stages.groups import groups_step
from pipeline.stages.publish import publish, published
from pipeline.step import USAGE, Step
from pipeline.storage import MANIFEST, Folder
from pipeline.summary import summary
from pipeline.terminal import console

# A job runs its stage and whatever is missing before it.
STAGES = ("prepare", "embed", "cluster", "weights", "rephrase", "sample")


def curate(config: Config | Mapping[str, Any], *, until: str = "sample") -> Run:
    """Run everything up to and with the stage `until`, leaving out what is done, and print one line a step.

    Raises:
        UserError: a mistake in config or input.
        RunError: the run failed; finished parts are kept, and running again goes on from them.
    """
    run = plan(config)
    with at_work(run) as engine:
        _curate(run, until, engine)
    return run


@contextmanager
def at_work(run: Run) -> Iterator[Engine]:
    """The engine of a run that is alone in its workdir.

    Raises:
        ConfigError: another run is at work there.
    """
    progress = Progress()
    with Alone(run.workdir, tell=progress.record) as alone, Engine(run.config.engine, alone.check) as engine:
        engine.progress, progress.changed = progress, alone.tell_soon
        try:
            run.workdir.abort_uploads()
        except StorageError as error:  # a role may read and write, and not list uploads
            logger.warning(f"uploads that killed runs left are not cleaned: {error}")
        yield engine


def _curate(run: Run, until: str, engine: Engine) -> None:
    run_steps(run, _steps_until(run, until), engine)
    if until == "sample" and not published(run.corpus, run.shards):
        publish(run.corpus, run.shards)
    page = _page(run, engine) if reaches(until, "weights") else None
    _tell_made(run, engine)
    for line in summary(run, until):
        console.print(line)
    if page:
        console.print(f"Report: {page}")


def _page(run: Run, engine: Engine) -> str | None:
    """Where the report page is, which is written unless it is there; None without the packages for it."""
    from pipeline.report.writing import written

    try:
        return written(run, engine)
    except ConfigError as error:  # the run is done, and a page is no reason to say it is not
        logger.warning(f"no report.html: {error}")
        return None


def report(config: Config | Mapping[str, Any], *, against: Config | None = None) -> str:
    """Write `<workdir>/report.html` for a run that has its weights at least; where it is. `against` is another run beside it.

    Raises:
        ConfigError: there are no weights yet, a package is missing, or one of two runs to compare has drawn nothing.
    """
    from pipeline.report.writing import written

    run = plan(config)
    if missing := [step.title for step in _steps_until(run, "weights") if not step.done]:
        raise ConfigError(
            f"nothing to report before the weights are done, and {missing[0]} is not; run jobs/weights.py or jobs/curate.py"
        )
    other = plan(against) if against else None
    with at_work(run) as engine:
        return written(run, engine, against=other, anew=True)


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
    run = plan(config)
    made = export_step(run.corpus, to, tokenizer, eos_token)
    return made, _handed_over(run, [made], output or run.workdir.child(f"exports/{to}").url)


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
    run = plan(config)
    if run.config.schedule:
        raise ConfigError(
            "--mixture: schedule is of shards, which are read in order; leave the section out, and give the trainer a second "
            "mixture for the end of its training"
        )
    corpus = (run.windows(GENERALIST), run.step("assign", GENERALIST), run.step("cluster"), run.step("weights"))
    rephrased = run.step("rephrase") if run.config.rephrase else None
    grouped = groups_step(run.config, level, *corpus, rephrased, run.step("sample"))
    made = mixture_step(grouped, mixture, tokenizer, eos_token)
    return made, _handed_over(run, [grouped, made], output or run.workdir.child(f"exports/{mixture}-level-{level}").url)


def _handed_over(run: Run, steps: Sequence[Step], output: str) -> Folder:
    folder = Folder(output)
    begin_output(steps[-1], folder)
    with at_work(run) as engine:
        _curate(run, "sample", engine)
        run_steps(run, steps, engine)
        hand_over(steps[-1], folder)
    return folder


def run_steps(run: Run, steps: Sequence[Step], engine: Engine, *, explain: bool = True, draws: bool = True) -> None:
    """Run those of some steps that are not done, one after the other; `explain` says what changed since an earlier run.

    Raises:
        ConfigError: the run `draws`, and what it asks for cannot be.
    """
    if draws:
        refuse_what_cannot_be(run)
    first, there = engine.progress.add([(step.title, step.output) for step in steps]), 0
    for number, step in enumerate(steps, first):
        if step.done:
            engine.progress.was_there(number)
            there += 1
            continue
        if there:
            logger.info(_said_there(there, steps))
            there = 0
        if explain:
            _explain_new(step)
        engine.start()
        engine.usage = Usage()
        started = time.monotonic()
        with engine.progress.step(number), engine.placed(step.stage):
            step.run(engine)
            usage = {"seconds": time.monotonic() - started, "workers": engine.num_workers, **vars(engine.usage)}
            step.folder.write_json(USAGE, usage)
        logger.info(made_line(made_of(run.workdir, engine.progress.steps()[number : number + 1])[0]))
        if draws and step is run.windows(GENERALIST):
            refuse_what_cannot_be(run)
    if there:
        logger.info(_said_there(there, steps))


def _said_there(there: int, steps: Sequence[Step]) -> str:
    return f"{there} of {len(steps)} steps {'were' if there > 1 else 'was'} there"


def _tell_made(run: Run, engine: Engine) -> None:
    """What each step holds and took, unless nothing had to be done."""
    steps = engine.progress.steps()
    if any(step["state"] == DONE for step in steps):
        console.print(Text(), made_table(made_of(run.workdir, steps), width=console.width))


def _stage(until: str) -> Callable[[Config | Mapping[str, Any]], Run]:
    def stage(config: Config | Mapping[str, Any]) -> Run:
        return curate(config, until=until)

    stage.__name__ = until
    stage.__doc__ = f"Run everything up to and with `{until}`, leaving out what is done; see `curate`."
    return stage


prepare, embed, cluster, weights, rephrase, sample = (_stage(name) for name in STAGES)


def _steps_until(run: Run, until: str) -> Sequence[Step]:
    # `cluster` gives every window its cluster, so it ends with the assignment; `prepare` with what takes documents out.
    last = {"cluster": ("assign",), "prepare": OF_WINDOWS, "sample": ("sample", "schedule")}.get(until, (until,))
    if until == "rephrase" and run.config.rephrase is None:
        raise ConfigError("the config has no section rephrase; add `rephrase: {model: …}` (README, Rewriting)")
    index = max(i for i, step in enumerate(run.steps) if step.stage in last)
    return run.steps[: index + 1]


def describe(run: Run, until: str) -> list[tuple[Step, str]]:
    """Each step up to `until` with its state: done, how far it has come, or to do and why."""
    return [(step, _state(step)) for step in _steps_until(run, until)]


def reaches(until: str, stage: str) -> bool:
    """Whether a run up to and with `until` gets to `stage`."""
    return STAGES.index(until) >= STAGES.index(stage)


def cost(run: Run) -> str | None:
    """What rewriting will cost, in a sentence; None where nothing is rewritten, or it is done."""
    if run.config.rephrase is None or run.step("rephrase").done:
        return None
    if not run.step("weights").done:
        return "rephrase: what it costs is known once weights is done; run jobs/weights.py, then ask again"
    from pipeline.stages.rephrase import estimate_cost

    return estimate_cost(run.config, run.step("weights"))


def _state(step: Step) -> str:
    if step.done:
        return "done"
    if present := len(step.folder.names(".parquet")):
        return f"to do, {present} parts are there"
    old = _nearest_other(step)
    return f"to do: {'; '.join(old[1])}" if old else "to do"


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
