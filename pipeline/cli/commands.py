"""The command line of every job: `--config FILE`, `--set section.key=value`, `--dry-run`, and the exit status."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# Read by loguru when it is imported: datatrove, when it is, makes the logger anew with the defaults.
os.environ.setdefault("LOGURU_FORMAT", "<dim>{time:HH:mm:ss}</dim> {message}")
os.environ.setdefault("LOGURU_LEVEL", "INFO")

import typer
from loguru import logger
from rich.table import Table

from pipeline.config import load_config
from pipeline.errors import ConfigError, CrispwrapError, RunError, shown
from pipeline.terminal.output import Captured, console, messages, use_utf8

if TYPE_CHECKING:
    from pipeline.execution.pipeline_graph import PipelineGraph


def job(until: str) -> None:
    """Run the command line of the job that ends with the stage `until`, and exit: 0 done, 2 a user's mistake, 1 a failure."""

    def main(
        config: Annotated[str, typer.Option(help="YAML file of the run; see README, Settings.")],
        overrides: Annotated[
            list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what is done and what would run, and stop.")] = False,
    ) -> None:
        sys.exit(_execute(config, overrides or [], until, dry_run=dry_run))

    main.__doc__ = f"Run crispwrap up to and with the stage `{until}`, leaving out what is done."
    _run_as_program(main)


def export_job() -> None:
    """Run the command line of `jobs/export.py`, and exit as other jobs do."""

    def main(
        config: Annotated[str, typer.Option(help="YAML file of the run; see README, Settings.")],
        to: Annotated[
            str | None, typer.Option(help="The shards: huggingface, megatron, nanotron, olmo-core, mds, webdataset or jsonl.")
        ] = None,
        mixture: Annotated[
            str | None, typer.Option(help="Weights instead of copies: huggingface, levanter, mds, megatron, nanotron or olmo-core.")
        ] = None,
        level: Annotated[int | None, typer.Option(help="Of the tree, whose nodes are mixed; by default 1.")] = None,
        tokenizer: Annotated[
            str | None, typer.Option(help="Where token ids are written: a model on the hub, a folder, or a tokenizer.json.")
        ] = None,
        eos: Annotated[str | None, typer.Option(help="Token that ends each text.")] = None,
        output: Annotated[
            str | None, typer.Option(help="Folder or URL; by default <workdir>/exports/<format>, or <format>-level-<level>.")
        ] = None,
        overrides: Annotated[
            list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
        ] = None,
    ) -> None:
        """Run crispwrap as far as it has not been run, and write its shards in the form that a trainer reads."""
        sys.exit(_guarded(lambda: _export(config, overrides or [], to, mixture, level, tokenizer, eos, output)))

    _run_as_program(main)


def look_job() -> None:
    """Run the command line of `jobs/look.py`, and exit as other jobs do."""

    def main(
        config: Annotated[str, typer.Option(help="YAML file of the run; see README, Settings.")],
        cluster: Annotated[int | None, typer.Option(help="Number of a cluster: shares, neighbours, examples.")] = None,
        document: Annotated[str | None, typer.Option(help="Id of a document: where it went, and why.")] = None,
        window: Annotated[
            str | None, typer.Option(metavar="ID:NUMBER", help="A window of a document: the whole of its text, and where it went.")
        ] = None,
        find: Annotated[str | None, typer.Option(help="Words: the clusters whose text has all of them.")] = None,
        like: Annotated[str | None, typer.Option(help="Text: the cluster that it would be in.")] = None,
        examples: Annotated[int, typer.Option(min=0, help="Texts shown of a cluster, of each corpus.")] = 3,
        overrides: Annotated[
            list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
        ] = None,
    ) -> None:
        """Look into a run: its clusters, or one of them, or where a document or a window of it went."""
        sys.exit(_guarded(lambda: _look(config, overrides or [], cluster, document, window, find, like, examples)))

    _run_as_program(main)


def status_job() -> None:
    """Run the command line of `jobs/status.py`, and exit as other jobs do; followed, a run that did not end well is 1."""

    def main(
        config: Annotated[str, typer.Option(help="YAML file of the run; see README, Settings.")],
        follow: Annotated[bool, typer.Option("--follow", help="Go on showing it until the run is over.")] = False,
        overrides: Annotated[
            list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
        ] = None,
    ) -> None:
        """Say who runs in the workdir of a config, whether it gives signs of life, and how far it is."""
        ended_well = True

        def work() -> None:
            nonlocal ended_well
            ended_well = _status(config, overrides or [], follow=follow)

        code = _guarded(work, interrupted="interrupted: the run goes on")
        sys.exit(code or int(not ended_well))

    _run_as_program(main)


def report_job() -> None:
    """Run the command line of `jobs/report.py`, and exit as other jobs do."""

    def main(
        config: Annotated[str, typer.Option(help="YAML file of the run; see README, Settings.")],
        against: Annotated[str | None, typer.Option(help="YAML file of another run: what moved between the two.")] = None,
        overrides: Annotated[
            list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
        ] = None,
    ) -> None:
        """Write the report page of a run, <workdir>/report.html, from what its stages left."""
        sys.exit(_guarded(lambda: _report(config, overrides or [], against)))

    _run_as_program(main)


def evidence_job() -> None:
    """Run the command line of `jobs/evidence.py`, and exit as other jobs do."""

    def main(
        config: Annotated[str, typer.Option(help="YAML file of the comparison; see README, Evidence.")],
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what is done and what would run, and stop.")] = False,
    ) -> None:
        """Train a proxy model on what each arm of a comparison draws, and print what held-out text says of it."""
        sys.exit(_guarded(lambda: _compare(config, dry_run=dry_run)))

    _run_as_program(main)


def _run_as_program(main: Callable[..., None]) -> None:
    use_utf8()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()


def _compare(config: str, *, dry_run: bool) -> None:
    from pipeline.evidence.plots import check, drawn
    from pipeline.evidence.settings import load_evidence

    evidence = load_evidence(config)
    from pipeline.evidence.steps import check_arms, compare, own_steps, plan_evidence
    from pipeline.evidence.table import rendered, rows_of, saved
    from pipeline.graph.runner import cost

    comparison = plan_evidence(evidence)
    if dry_run:
        table = Table("arm", "to run", "proxies", box=None, pad_edge=False)
        shared = [*comparison.held_out.values(), comparison.overlap, comparison.tokenizer]
        for arm, steps in {"": shared, **own_steps(comparison)}.items():
            left = [step.title for step in steps if not step.done]
            proxies = "" if not arm else "done" if comparison.proxies[arm].done else f"{evidence.seeds} to train"
            table.add_row(arm or "for all", ", ".join(left) or "-", proxies)
        console.print(table)
        for arm, run in comparison.runs.items():
            if said := cost(run):
                console.print(f"{arm}: {said}")
        check_arms(comparison)
        return
    check()
    compare(comparison)
    rows = rows_of(comparison)
    console.print(text := rendered(comparison, rows), soft_wrap=True)
    folder = comparison.runs[evidence.baseline].workdir.child(f"evidence/{Path(config).stem}")
    for path in (*saved(comparison, rows, text, folder), *drawn(comparison, rows, folder)):
        console.print(path, soft_wrap=True)


def _export(
    config: str,
    overrides: list[str],
    to: str | None,
    mixture: str | None,
    level: int | None,
    tokenizer: str | None,
    eos: str | None,
    output: str | None,
) -> None:
    if (to is None) == (mixture is None):
        raise ConfigError("give one of --to FORMAT, for the shards, and --mixture FORMAT, for groups of text with weights")
    if to is not None and level is not None:
        raise ConfigError("--level is of a mixture: shards have no level; leave it out, or give --mixture FORMAT")
    settings = load_config(config, overrides)
    from pipeline.graph import runner

    if to is not None:
        made, folder = runner.export(settings, to=to, tokenizer=tokenizer, eos_token=eos, output=output)
        _print_result(f"{made.manifest['rows']:,} rows in {len(made.manifest['shards'])} shards, {to}: {folder.url}")
    elif mixture is not None:
        level = 1 if level is None else level
        made, folder = runner.mix(settings, mixture=mixture, level=level, tokenizer=tokenizer, eos_token=eos, output=output)
        _print_result(f"{made.manifest['rows']:,} documents in {len(made.manifest['groups'])} groups, {mixture}: {folder.url}")


def _report(config: str, overrides: list[str], against: str | None) -> None:
    settings = load_config(config, overrides)
    other = load_config(against) if against else None
    from pipeline.graph import runner

    _print_result(runner.report(settings, against=other))


def _look(
    config: str,
    overrides: list[str],
    cluster: int | None,
    document: str | None,
    window: str | None,
    find: str | None,
    like: str | None,
    examples: int,
) -> None:
    if sum(asked is not None for asked in (cluster, document, window, find, like)) > 1:
        raise ConfigError("give one of --cluster, --document, --window, --find and --like, or none of them for a list of clusters")
    settings = load_config(config, overrides)
    from pipeline.graph.graph import build_graph
    from pipeline.results.inspection import Inspection

    inspection = Inspection(build_graph(settings))
    if cluster is not None:
        lines = inspection.cluster(cluster, examples)
    elif document is not None:
        lines = inspection.document(document)
    elif window is not None:
        lines = inspection.window(window)
    elif find is not None:
        lines = inspection.find(find)
    elif like is not None:
        lines = inspection.like(like, examples)
    else:
        lines = inspection.clusters()
    for line in lines:
        console.print(line)


def _status(config: str, overrides: list[str], *, follow: bool) -> bool:
    """False for a run that was followed and did not end well, or was not there."""
    settings = load_config(config, overrides)
    from pipeline.graph.graph import check_workdir
    from pipeline.results import status
    from pipeline.storage import Folder

    check_workdir(settings.workdir)
    watch = status.Watch(Folder(settings.workdir))
    if not watch.number:
        console.print(status.no_run(watch.workdir))
        return not follow
    if follow:
        return status.follow(watch)
    for line in status.render_status(watch.workdir, status.wait_for_status(watch), width=console.width):
        console.print(line)
    return True


def _execute(config: str, overrides: list[str], until: str, *, dry_run: bool) -> int:
    def work() -> None:
        settings = load_config(config, overrides)
        from pipeline.graph.graph import build_graph
        from pipeline.graph.runner import curate

        if dry_run:
            _print_plan(build_graph(settings), until)
        else:
            curate(settings, until=until)

    return _guarded(work)


def _make_shown(record: Any) -> None:
    record["message"] = shown(record["message"])


def _log_to_the_terminal() -> None:
    """Lines of the log go where the line that is alive knows of them: else each would leave a broken copy of it behind."""
    import datatrove.utils.logging  # noqa: F401  makes the logger anew when it is imported, so it has to be by now

    from pipeline.terminal.progress import written

    colorize = messages.file.isatty() and "NO_COLOR" not in os.environ
    logger.configure(handlers=[{"sink": written, "colorize": colorize}], patcher=_make_shown)


def _guarded(
    work: Callable[[], None], interrupted: str = "interrupted: finished parts are kept; run the same command to go on"
) -> int:
    """The exit status of a job: 0 done, 2 a user's mistake, 1 a failure, 130 and 143 interrupted by SIGINT and SIGTERM."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(number))
    try:
        captured = Captured()
    except OSError as error:
        print(f"error: no folder takes temporary files ({error}); set TMPDIR to one that is there and writable", file=sys.stderr)
        return ConfigError.exit_code
    with captured:
        _log_to_the_terminal()
        try:
            work()
        except CrispwrapError as error:
            _print_error(f"error: {shown(str(error))}")
            if error.exit_code == RunError.exit_code:
                _print_error(_logs(error, captured))
            return error.exit_code
        except KeyboardInterrupt:
            _print_error(interrupted)
            return 128 + signal.SIGINT
        except SystemExit as error:
            if error.code != signal.SIGTERM:
                raise
            _print_error(interrupted)
            return 128 + signal.SIGTERM
        except Exception as error:
            logs = _logs(error, captured)
            _print_error(traceback.format_exc().rstrip())
            _print_error(logs)
            _print_error("error: this is a fault of crispwrap, not of your input; please report it with the lines above")
            return 1
        return 0


def _print_result(line: str) -> None:
    console.print(line, soft_wrap=True)


def _print_error(lines: str) -> None:
    if lines:
        print(lines, file=messages.file)


def _logs(error: BaseException, captured: Captured) -> str:
    """Where the words of Ray and other libraries lie, in a line; empty where there are none."""
    printed = captured.keep()
    # The notes of an error are the engine's. They are taken from it, lest a traceback has them once more.
    places = [*vars(error).pop("__notes__", ()), *([f"what libraries printed here: {printed}"] if printed else ())]
    return f"logs: {'; '.join(places)}" if places else ""


def _print_plan(plan: "PipelineGraph", until: str) -> None:
    from pipeline.costs.estimate import render_estimate
    from pipeline.graph.preflight import run_preflight_checks
    from pipeline.graph.runner import cost, describe, reaches

    table = Table("step", "state", "output", box=None, pad_edge=False)
    states = describe(plan, until)
    for step, state in states:
        table.add_row(step.title, state, step.output)
    console.print(table)
    console.print(f"workdir {plan.workdir.url}")
    for line in render_estimate(plan, [step for step, _ in states]):
        console.print(line)
    if reaches(until, "rephrase") and (said := cost(plan)):
        console.print(said)
    run_preflight_checks(plan)
