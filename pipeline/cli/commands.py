"""The command line of every job: options, exit status, and what is printed."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# loguru reads these when it is imported; datatrove reconfigures the logger from them when it is imported.
os.environ.setdefault("LOGURU_FORMAT", "<dim>{time:HH:mm:ss}</dim> {message}")
os.environ.setdefault("LOGURU_LEVEL", "INFO")

import typer
from loguru import logger
from rich.table import Table

from pipeline.config import load_config
from pipeline.errors import ConfigError, CrispwrapError, RunError, replace_controls
from pipeline.terminal.output import CapturedOutput, console, log_console, use_utf8

if TYPE_CHECKING:
    from pipeline.execution.pipeline_graph import PipelineGraph


def run_stage_job(until: str) -> None:
    """Run the command line of the job that ends with the stage `until`, and exit with the status of `_run_guarded`."""

    def main(
        config: Annotated[str, typer.Option(help="YAML file of the run; see README, Settings.")],
        overrides: Annotated[
            list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
        ] = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Print completed and pending steps and the estimated cost, and stop.")
        ] = False,
    ) -> None:
        sys.exit(_execute(config, overrides or [], until, dry_run=dry_run))

    main.__doc__ = f"Run all pending steps up to and including the stage `{until}`."
    _run_as_program(main)


def run_export_job() -> None:
    """Run the command line of `jobs/export.py`, and exit as the other jobs do."""

    def main(
        config: Annotated[str, typer.Option(help="YAML file of the run; see README, Settings.")],
        to: Annotated[
            str | None,
            typer.Option(help="Format of the shards: huggingface, megatron, nanotron, olmo-core, mds, webdataset or jsonl."),
        ] = None,
        mixture: Annotated[
            str | None,
            typer.Option(help="Weighted groups instead of copies: huggingface, levanter, mds, megatron, nanotron or olmo-core."),
        ] = None,
        level: Annotated[
            int | None, typer.Option(help="Level of the cluster tree whose nodes are the groups of --mixture; default 1.")
        ] = None,
        tokenizer: Annotated[
            str | None, typer.Option(help="Tokenizer for formats of token ids: a model on the hub, a folder, or a tokenizer.json.")
        ] = None,
        eos: Annotated[str | None, typer.Option(help="Token appended to each text.")] = None,
        output: Annotated[
            str | None, typer.Option(help="Folder or URL; default <workdir>/exports/<format>, or <format>-level-<level>.")
        ] = None,
        overrides: Annotated[
            list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
        ] = None,
    ) -> None:
        """Run all pending steps, and export the shards in the format of a trainer."""
        sys.exit(_run_guarded(lambda: _export(config, overrides or [], to, mixture, level, tokenizer, eos, output)))

    _run_as_program(main)


def run_look_job() -> None:
    """Run the command line of `jobs/look.py`, and exit as the other jobs do."""

    def main(
        config: Annotated[str, typer.Option(help="YAML file of the run; see README, Settings.")],
        cluster: Annotated[int | None, typer.Option(help="Number of a cluster: show its shares, neighbours and examples.")] = None,
        document: Annotated[str | None, typer.Option(help="Id of a document: show what happened to it, and why.")] = None,
        window: Annotated[
            str | None,
            typer.Option(metavar="ID:NUMBER", help="A window of a document: show what happened to it, and its full text."),
        ] = None,
        find: Annotated[str | None, typer.Option(help="Words: list the clusters whose text has all of them.")] = None,
        like: Annotated[str | None, typer.Option(help="Text: show the cluster that it would be assigned to.")] = None,
        examples: Annotated[int, typer.Option(min=0, help="Number of example texts per cluster and corpus.")] = 3,
        overrides: Annotated[
            list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
        ] = None,
    ) -> None:
        """Inspect a run: list its clusters, or show one cluster, or what happened to a document or window."""
        sys.exit(_run_guarded(lambda: _look(config, overrides or [], cluster, document, window, find, like, examples)))

    _run_as_program(main)


def run_status_job() -> None:
    """Run the command line of `jobs/status.py`, and exit as the other jobs do; with --follow, 1 if the run did not succeed."""

    def main(
        config: Annotated[str, typer.Option(help="YAML file of the run; see README, Settings.")],
        follow: Annotated[bool, typer.Option("--follow", help="Update the status until the run ends.")] = False,
        overrides: Annotated[
            list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
        ] = None,
    ) -> None:
        """Show who runs the latest run in the workdir, whether it is alive, and how far it is."""
        succeeded = True

        def work() -> None:
            nonlocal succeeded
            succeeded = _status(config, overrides or [], follow=follow)

        code = _run_guarded(work, interrupted="interrupted: the run continues")
        sys.exit(code or int(not succeeded))

    _run_as_program(main)


def run_report_job() -> None:
    """Run the command line of `jobs/report.py`, and exit as the other jobs do."""

    def main(
        config: Annotated[str, typer.Option(help="YAML file of the run; see README, Settings.")],
        against: Annotated[str | None, typer.Option(help="YAML file of another run to compare with.")] = None,
        overrides: Annotated[
            list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
        ] = None,
    ) -> None:
        """Write the report page of a run, <workdir>/report.html, from the outputs of its stages."""
        sys.exit(_run_guarded(lambda: _report(config, overrides or [], against)))

    _run_as_program(main)


def run_evidence_job() -> None:
    """Run the command line of `jobs/evidence.py`, and exit as the other jobs do."""

    def main(
        config: Annotated[str, typer.Option(help="YAML file of the comparison; see README, Evidence.")],
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Print completed and pending steps and the estimated cost, and stop.")
        ] = False,
    ) -> None:
        """Train a proxy model on the corpus of each arm of a comparison, and print the results on held-out text."""
        sys.exit(_run_guarded(lambda: _run_comparison(config, dry_run=dry_run)))

    _run_as_program(main)


def _run_as_program(main: Callable[..., None]) -> None:
    use_utf8()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()


def _run_comparison(config: str, *, dry_run: bool) -> None:
    from pipeline.evidence.plots import check_matplotlib, write_plots
    from pipeline.evidence.settings import load_evidence

    evidence = load_evidence(config)
    from pipeline.evidence.steps import check_arms, find_new_steps, plan_comparison, run_comparison
    from pipeline.evidence.table import compute_rows, render_tables, save_tables
    from pipeline.graph.runner import describe_rewriting_cost

    comparison = plan_comparison(evidence)
    if dry_run:
        table = Table("arm", "pending steps", "proxies", box=None, pad_edge=False)
        shared = [*comparison.held_out.values(), comparison.overlap, comparison.tokenizer]
        for arm, steps in {"": shared, **find_new_steps(comparison)}.items():
            pending = [step.title for step in steps if not step.done]
            proxies = "" if not arm else "done" if comparison.proxies[arm].done else f"{evidence.seeds} to train"
            table.add_row(arm or "all", ", ".join(pending) or "-", proxies)
        console.print(table)
        for arm, run in comparison.runs.items():
            if sentence := describe_rewriting_cost(run):
                console.print(f"{arm}: {sentence}")
        check_arms(comparison)
        return
    check_matplotlib()
    run_comparison(comparison)
    rows = compute_rows(comparison)
    console.print(text := render_tables(comparison, rows), soft_wrap=True)
    folder = comparison.runs[evidence.baseline].workdir.child(f"evidence/{Path(config).stem}")
    for path in (*save_tables(comparison, rows, text, folder), *write_plots(comparison, rows, folder)):
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
        raise ConfigError("give either --to FORMAT, for shards, or --mixture FORMAT, for weighted groups of text")
    if to is not None and level is not None:
        raise ConfigError("--level needs --mixture FORMAT: shards have no level; leave it out, or replace --to by --mixture")
    settings = load_config(config, overrides)
    from pipeline.graph import runner

    if to is not None:
        step, folder = runner.export(settings, to=to, tokenizer=tokenizer, eos_token=eos, output=output)
        _print_result(f"{step.manifest['rows']:,} rows in {len(step.manifest['shards'])} shards, {to}: {folder.url}")
    elif mixture is not None:
        level = 1 if level is None else level
        step, folder = runner.export_mixture(
            settings, mixture=mixture, level=level, tokenizer=tokenizer, eos_token=eos, output=output
        )
        _print_result(f"{step.manifest['rows']:,} documents in {len(step.manifest['groups'])} groups, {mixture}: {folder.url}")


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
    if sum(option is not None for option in (cluster, document, window, find, like)) > 1:
        raise ConfigError("give one of --cluster, --document, --window, --find and --like, or none of them to list the clusters")
    settings = load_config(config, overrides)
    from pipeline.graph.build import build_graph
    from pipeline.results.inspection import Inspection

    inspection = Inspection(build_graph(settings))
    if cluster is not None:
        lines = inspection.describe_cluster(cluster, examples)
    elif document is not None:
        lines = inspection.trace_document(document)
    elif window is not None:
        lines = inspection.trace_window(window)
    elif find is not None:
        lines = inspection.find_clusters(find)
    elif like is not None:
        lines = inspection.find_similar_cluster(like, examples)
    else:
        lines = inspection.list_clusters()
    for line in lines:
        console.print(line)


def _status(config: str, overrides: list[str], *, follow: bool) -> bool:
    """Print the status; return whether the run succeeded if `follow`, otherwise True."""
    settings = load_config(config, overrides)
    from pipeline.graph.build import check_workdir
    from pipeline.results import status
    from pipeline.storage import Folder

    check_workdir(settings.workdir)
    watcher = status.RunWatcher(Folder(settings.workdir))
    if not watcher.number:
        console.print(status.describe_no_run(watcher.workdir))
        return not follow
    if follow:
        return status.follow_run(watcher)
    for line in status.render_status(watcher.workdir, status.wait_for_status(watcher), width=console.width):
        console.print(line)
    return True


def _execute(config: str, overrides: list[str], until: str, *, dry_run: bool) -> int:
    def work() -> None:
        settings = load_config(config, overrides)
        from pipeline.graph.build import build_graph
        from pipeline.graph.runner import curate

        if dry_run:
            _print_dry_run(build_graph(settings), until)
        else:
            curate(settings, until=until)

    return _run_guarded(work)


def _escape_controls(record: Any) -> None:
    record["message"] = replace_controls(record["message"])


def _log_to_terminal() -> None:
    """Write log lines through the live progress line; otherwise each would leave a broken copy of it behind."""
    import datatrove.utils.logging  # noqa: F401  reconfigures the logger when it is imported, so import it first

    from pipeline.terminal.progress import write_log_line

    colorize = log_console.file.isatty() and "NO_COLOR" not in os.environ
    logger.configure(handlers=[{"sink": write_log_line, "colorize": colorize}], patcher=_escape_controls)


def _run_guarded(
    work: Callable[[], None], interrupted: str = "interrupted: finished parts are kept; run the same command to resume"
) -> int:
    """Run `work` and return the exit status: 0 success, 2 a user's mistake, 1 a failure, 130 and 143 after SIGINT and SIGTERM."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(number))
    try:
        captured = CapturedOutput()
    except OSError as error:
        print(f"error: cannot write temporary files ({error}); set TMPDIR to an existing, writable folder", file=sys.stderr)
        return ConfigError.exit_code
    with captured:
        _log_to_terminal()
        try:
            work()
        except CrispwrapError as error:
            _print_error(f"error: {replace_controls(str(error))}")
            if error.exit_code == RunError.exit_code:
                _print_error(_locate_logs(error, captured))
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
            logs = _locate_logs(error, captured)
            _print_error(traceback.format_exc().rstrip())
            _print_error(logs)
            _print_error("error: this is a bug in crispwrap, not in your input; please report it with the lines above")
            return 1
        return 0


def _print_result(line: str) -> None:
    console.print(line, soft_wrap=True)


def _print_error(lines: str) -> None:
    if lines:
        print(lines, file=log_console.file)


def _locate_logs(error: BaseException, captured: CapturedOutput) -> str:
    """One line with the locations of the logs of Ray and of other libraries; empty if there are none."""
    printed = captured.keep()
    # The engine adds notes to errors. They are removed here, so that a traceback does not repeat them.
    locations = [*vars(error).pop("__notes__", ()), *([f"output of libraries: {printed}"] if printed else ())]
    return f"logs: {'; '.join(locations)}" if locations else ""


def _print_dry_run(graph: "PipelineGraph", until: str) -> None:
    from pipeline.costs.estimate import render_estimate
    from pipeline.graph.preflight import run_preflight_checks
    from pipeline.graph.runner import describe_rewriting_cost, describe_steps, includes_stage

    table = Table("step", "state", "output", box=None, pad_edge=False)
    step_states = describe_steps(graph, until)
    for step, state in step_states:
        table.add_row(step.title, state, step.output)
    console.print(table)
    console.print(f"workdir {graph.workdir.url}")
    for line in render_estimate(graph, [step for step, _ in step_states]):
        console.print(line)
    if includes_stage(until, "rephrase") and (sentence := describe_rewriting_cost(graph)):
        console.print(sentence)
    run_preflight_checks(graph)
