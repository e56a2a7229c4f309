"""A whole run: the steps that a config asks for, which of them are done, and running the rest in order."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import orjson
from loguru import logger
from rich.text import Text

from pipeline import embedders
from pipeline.alone import Alone
from pipeline.config import GENERALIST, WINDOW_ESTIMATORS, Config, parse_config
from pipeline.engine import Engine, Usage
from pipeline.errors import ConfigError, StorageError
from pipeline.identity import differences
from pipeline.made import made_line, made_of, made_table
from pipeline.progress import DONE, Progress
from pipeline.stages.assign import assign_step
from pipeline.stages.cluster import cluster_step
from pipeline.stages.decontaminate import decontaminate_step, index_step
from pipeline.stages.dedup import dedup_step
from pipeline.stages.embed import embed_step, embedder_step
from pipeline.stages.export import begin_output, export_step, hand_over, mixture_step
from pipeline.stages.groups import groups_step
from pipeline.stages.prepare import prepare_step
from pipeline.stages.publish import publish, published
from pipeline.stages.sample import sample_step
from pipeline.stages.schedule import schedule_step
from pipeline.stages.score import score_step
from pipeline.stages.titles import titles_step
from pipeline.stages.weights import weights_step
from pipeline.step import USAGE, Step, hash_chosen, part_names
from pipeline.storage import MANIFEST, Folder
from pipeline.summary import summary
from pipeline.terminal import console

# A job runs its stage and whatever is missing before it.
_WINDOWS = ("prepare", "dedup", "decontaminate")  # of the stage `prepare`
_PARTS_FOR_FIELDS = 16
STAGES = ("prepare", "embed", "cluster", "weights", "rephrase", "sample")


@dataclass(frozen=True)
class Run:
    """The steps of a run, in the order in which they are run."""

    config: Config
    workdir: Folder
    steps: tuple[Step, ...]

    def step(self, stage: str, corpus: str = "") -> Step:
        """The step of a stage; `corpus` is `generalist` or a specialist for the stages that run for each corpus."""
        (step,) = (step for step in self.steps if (step.stage, step.corpus) == (stage, corpus))
        return step

    def windows(self, corpus: str) -> Step:
        """The step whose parts are the windows of a corpus that everything after it reads."""
        return [step for step in self.steps if step.stage in _WINDOWS and step.corpus == corpus][-1]

    @property
    def samples(self) -> list[Step]:
        """The steps that draw the corpus: one, or with `schedule.ending` two."""
        return [step for step in self.steps if step.stage == "sample"]

    @property
    def weighings(self) -> list[Step]:
        """The steps that weigh for those."""
        return [step for step in self.steps if step.stage == "weights"]

    @property
    def corpus(self) -> Step:
        """The step that has all shards."""
        return self.steps[-1]

    def report(self, *, drawn: bool) -> Step:
        """The step that makes what the report page needs, of what is drawn or, before that, of what is asked for."""
        from pipeline.stages.report import report_step

        corpora = (GENERALIST, *self.config.specialists)
        rephrased = self.step("rephrase") if drawn and self.config.rephrase else None
        windows = {name: self.windows(name) for name in corpora}
        assigned = {name: self.step("assign", name) for name in corpora}
        samples = self.samples if drawn else []
        return report_step(self.config, windows, assigned, self.step("cluster"), self.step("weights"), samples, rephrased)

    @property
    def drawn(self) -> bool:
        """Whether the corpus is drawn: all shards, and the plans that they were drawn by."""
        return self.corpus.done and all(step.done for step in self.samples)

    @property
    def shards(self) -> Folder:
        """Where the final output lies."""
        return self.workdir.child("shards")


def plan(config: Config | Mapping[str, Any]) -> Run:
    """The steps of a config with their fingerprints; reads no more than the digests of its input files.

    Raises:
        UserError: a mistake in config or input that can be found without running.
    """
    config = config if isinstance(config, Config) else parse_config(dict(config))
    refuse_workdir(config.workdir)
    workdir = Folder(config.workdir)
    config = config.model_copy(update={"embed": embedders.pinned(config.embed)})
    corpora = {GENERALIST: config.generalist, **config.specialists}
    prepared = {name: prepare_step(config, name, corpus, workdir) for name, corpus in corpora.items()}
    deduplicated = dedup_step(config, prepared[GENERALIST]) if config.dedup else None
    windows = {**prepared, GENERALIST: deduplicated or prepared[GENERALIST]}
    held_out = index_step(config, workdir) if config.decontaminate else None
    if held_out:
        windows = {name: decontaminate_step(config, name, step, held_out) for name, step in windows.items()}
    fitted = embedder_step(config, windows[GENERALIST])
    embedded = {name: embed_step(config, name, windows[name], fitted) for name in corpora}
    clustered = cluster_step(config, embedded[GENERALIST])
    assigned = {name: assign_step(name, windows[name], embedded[name], clustered) for name in corpora}
    phases = config.phases
    weighings = [_weighing(phase, windows, embedded, assigned, clustered, number) for number, phase in enumerate(phases)]
    scores: dict[str, Step] = {}  # phases may have the same
    for scored, _ in weighings:
        if scored:
            scores.setdefault(scored.fingerprint, scored)
    of_generalist = (windows[GENERALIST], embedded[GENERALIST], assigned[GENERALIST])
    weighted = weighings[0][1]
    titled = titles_step(config, windows[GENERALIST], assigned[GENERALIST], weighted) if _has_titles(config) else None
    rephrased = _rephrase_step(phases[0], windows, *of_generalist[1:], fitted, clustered, weighted) if config.rephrase else None
    sampled: list[Step] = []
    for phase, weighing, share in zip(phases, weighings, _prefixed_shares(config, phases), strict=True):
        after = sampled[-1] if sampled else None
        rewrites = None if after else rephrased
        sampled.append(sample_step(phase, *of_generalist, clustered, *weighing, rewrites, after=after, prefixed_share=share))
    steps = (
        *prepared.values(),
        *([deduplicated] if deduplicated else []),
        *([held_out, *windows.values()] if held_out else []),
        *([fitted] if fitted else []),
        *embedded.values(),
        clustered,
        *assigned.values(),
        *scores.values(),
        *(weighted for _, weighted in weighings),
        *([titled] if titled else []),
        *([rephrased] if rephrased else []),
        *sampled,
        *([schedule_step(sampled)] if len(sampled) > 1 else []),
    )
    return Run(config, workdir, steps)


def _weighing(
    config: Config,
    windows: Mapping[str, Step],
    embedded: Mapping[str, Step],
    assigned: Mapping[str, Step],
    clustered: Step,
    number: int,
) -> tuple[Step | None, Step]:
    """The steps that score and weigh for a phase of the corpus: the first, or its ending."""
    own = (GENERALIST, *config.specialists)
    windows, embedded, assigned = ({name: steps[name] for name in own} for steps in (windows, embedded, assigned))
    corpus = "ending" if number else ""
    scored = score_step(config, windows, embedded) if config.weights.estimator in WINDOW_ESTIMATORS else None
    weighted = weights_step(config, windows, assigned, clustered, scored, corpus=corpus)
    return replace(scored, corpus=corpus) if scored else None, weighted


def _prefixed_shares(config: Config, phases: Sequence[Config]) -> list[float]:
    """Of the shards of each phase, those that begin with where they are from: all but the last `plain_share` of the corpus.

    In whole hundredths, so that `sample_step` never makes more than a hundred shards for the sake of a share.
    """
    if config.conditioning is None:
        return [0.0 for _ in phases]
    shares, left = [], 1.0 - config.conditioning.plain_share
    for phase in phases:
        share = config.share_of(phase)
        shares.append(round(min(1.0, left / share), 2))
        left = max(0.0, left - share)
    return shares


def _has_titles(config: Config) -> bool:
    return config.rephrase is not None and config.rephrase.titles


def _rephrase_step(config: Config, *steps: Any) -> Step:
    try:
        from pipeline.stages.rephrase import rephrase_step
    except ImportError as error:
        raise ConfigError(f'rephrase needs a package that is not here ({error.name}): pip install "crispwrap[rephrase]"') from error
    return rephrase_step(config, *steps)


def _check_budget(config: Config, prepared: Step) -> None:
    """Refuse a budget that no mixture can meet before hours of embedding; the plan refuses the rest, once it knows the clusters."""
    if config.rephrase and config.rephrase.mode == "deficit":
        return  # rewrites fill what the text does not give
    for number, phase in enumerate(config.phases):
        most, asked = int(phase.weights.max_epochs * prepared.manifest["tokens"]), phase.sample.budget_tokens
        if phase.weights.overflow == "spread" and asked > most:
            where = " (the part of schedule.ending)" if number else ""
            raise ConfigError(
                f"sample.budget_tokens {asked:,}{where} is more than weights.max_epochs {phase.weights.max_epochs:g} allows: the "
                f"generalist corpus holds {prepared.manifest['tokens']:,} tokens, so at most {most:,} can be had; lower the "
                "budget, raise weights.max_epochs, set weights.overflow: leave, or add generalist text"
            )


def _check_conditioning(config: Config, prepared: Step) -> None:
    """Refuse a field that no row has before hours of embedding, by some of the parts."""
    conditioning = config.conditioning
    if conditioning is None or conditioning.field == "source":
        return
    known: set[str] = set()
    for name in hash_chosen(part_names(prepared), _PARTS_FOR_FIELDS, seed=config.seed, purpose="schedule.field"):
        for row in prepared.folder.read_table(f"{name}.parquet", columns=["metadata"])["metadata"].to_pylist():
            known |= orjson.loads(row).keys()
    if conditioning.field not in known:
        has = f"; there are {', '.join(sorted(known))}" if known else ""
        raise ConfigError(
            f"schedule.conditioning.field: no row has a {conditioning.field}: the columns of the input beside text and id are its "
            f"metadata{has}; name one of them, or source"
        )


def refuse_workdir(workdir: str) -> None:
    """Under `ray job submit` the working directory is a copy that Ray deletes; and a file is no folder."""
    if "://" not in workdir and os.path.exists(workdir) and not os.path.isdir(workdir):
        raise ConfigError(f"workdir {workdir} is a file; name a folder, which need not be there yet")
    if "://" not in workdir and not os.path.isabs(workdir) and "working_dir_files" in os.getcwd():
        raise ConfigError(
            f"workdir {workdir} is relative, and this is a submitted job, whose working directory Ray deletes; give an absolute "
            "path on storage that all nodes share, or a URL such as s3://bucket/run"
        )


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


def run_steps(run: Run, steps: Sequence[Step], engine: Engine, *, explain: bool = True) -> None:
    """Run those of some steps that are not done, one after the other; `explain` says what changed since an earlier run."""
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
        engine.usage, engine.stage = Usage(), step.stage
        started = time.monotonic()
        with engine.progress.step(number):
            step.run(engine)
            usage = {"seconds": time.monotonic() - started, "workers": engine.num_workers, **vars(engine.usage)}
            step.folder.write_json(USAGE, usage)
        logger.info(made_line(made_of(run.workdir, engine.progress.steps()[number : number + 1])[0]))
        if step is run.windows(GENERALIST):
            _check_budget(run.config, step)
            _check_conditioning(run.config, step)
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
    last = {"cluster": ("assign",), "prepare": _WINDOWS, "sample": ("sample", "schedule")}.get(until, (until,))
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
