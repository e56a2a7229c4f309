"""The command line: `crispwrap COMMAND`, and `jobs/COMMAND.py`, which `ray job submit` runs."""

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pipeline.cli.guard import run_guarded
from pipeline.config import load_config
from pipeline.config.stages import JOBS
from pipeline.errors import ConfigError, replace_controls
from pipeline.terminal.output import console, use_utf8

if TYPE_CHECKING:
    from pipeline.execution.pipeline_graph import PipelineGraph

ConfigFile = Annotated[str, typer.Option("--config", metavar="FILE", help="YAML file of the run (README, Settings).")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print completed and pending steps and the estimated cost, and stop.")]

_STAGES_PANEL, _RESULTS_PANEL = "Run one part of the pipeline", "Look at a run"

app = typer.Typer(
    name="crispwrap",
    help="Turn a generalist text corpus and a small specialist sample into a specialist pretraining corpus.",
    epilog="Example: crispwrap curate --config my.yaml --set sample.budget_tokens=500_000_000",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command `crispwrap`."""
    use_utf8()
    app()


def run_job(name: str) -> None:
    """Run one command as the program `jobs/NAME.py`."""
    use_utf8()
    (command,) = (info.callback for info in app.registered_commands if info.name == name)
    assert command
    job = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    job.command()(command)
    job()


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"crispwrap {version('crispwrap')}")
        raise typer.Exit


@app.callback()
def _read_global_options(
    _version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def _register_stage_command(name: str, until: str, panel: str | None) -> None:
    def run(config: ConfigFile, overrides: Overrides = None, dry_run: DryRun = False) -> None:
        sys.exit(run_guarded(lambda: _run_stages(config, overrides or [], until, dry_run=dry_run)))

    run.__doc__ = (
        "Run the whole pipeline: all pending steps, up to the shards."
        if name == "curate"
        else f"Run all pending steps up to and including the stage `{until}`."
    )
    app.command(name, rich_help_panel=panel)(run)


_register_stage_command("curate", "sample", None)
for _name in JOBS:
    _register_stage_command(_name, _name, _STAGES_PANEL)


@app.command("export")
def export(
    config: ConfigFile,
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
    overrides: Overrides = None,
) -> None:
    """Run all pending steps, and export the shards in the format of a trainer."""
    sys.exit(run_guarded(lambda: _export(config, overrides or [], to, mixture, level, tokenizer, eos, output)))


@app.command("report", rich_help_panel=_RESULTS_PANEL)
def report(
    config: ConfigFile,
    against: Annotated[str | None, typer.Option(metavar="FILE", help="YAML file of another run to compare with.")] = None,
    overrides: Overrides = None,
) -> None:
    """Write the report page of a run, <workdir>/report.html, from the outputs of its stages."""
    sys.exit(run_guarded(lambda: _report(config, overrides or [], against)))


@app.command("status", rich_help_panel=_RESULTS_PANEL)
def status(
    config: ConfigFile,
    follow: Annotated[
        bool, typer.Option("--follow", help="Update the status until the run ends; the exit status is 1 if it did not succeed.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Show who runs the latest run in the workdir, whether it is alive, and how far it is."""
    _exit_with_result(lambda: _print_status(config, overrides or [], follow=follow), "interrupted: the run continues")


@app.command("inspect", rich_help_panel=_RESULTS_PANEL)
def inspect(
    config: ConfigFile,
    cluster: Annotated[int | None, typer.Option(help="Number of a cluster: show its shares, neighbours and examples.")] = None,
    document: Annotated[str | None, typer.Option(help="Id of a document: show what happened to it, and why.")] = None,
    window: Annotated[
        str | None,
        typer.Option(metavar="ID:NUMBER", help="A window of a document: show what happened to it, and its full text."),
    ] = None,
    find: Annotated[str | None, typer.Option(help="Words: list the clusters whose text has all of them.")] = None,
    like: Annotated[str | None, typer.Option(help="Text: show the cluster that it would be assigned to.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="Number of example texts per cluster and corpus.")] = 3,
    overrides: Overrides = None,
) -> None:
    """Inspect a run: list its clusters, or show one cluster, or what happened to a document or window."""
    sys.exit(run_guarded(lambda: _inspect(config, overrides or [], cluster, document, window, find, like, examples)))


@app.command("evidence")
def evidence(
    config: Annotated[str, typer.Option(metavar="FILE", help="YAML file of the comparison (README, Evidence).")],
    dry_run: DryRun = False,
) -> None:
    """Train a proxy model on the corpus of each arm of a comparison, and print the results on held-out text."""
    sys.exit(run_guarded(lambda: _run_comparison(config, dry_run=dry_run)))


@app.command("doctor")
def doctor(
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="YAML file of a run, whose storage, input files and models are checked too.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check whether runs can work here, and print the fix for each problem."""
    _exit_with_result(lambda: _print_checks(config, overrides or []), "interrupted")


def _exit_with_result(work: Callable[[], bool], interrupted: str) -> None:
    """Run `work`, and exit as other commands do, or with status 1 if it returns False."""
    succeeded = True

    def run() -> None:
        nonlocal succeeded
        succeeded = work()

    code = run_guarded(run, interrupted=interrupted)
    sys.exit(code or int(not succeeded))


def _print_checks(config: str | None, overrides: list[str]) -> bool:
    """Print each check when it is done; return whether none failed."""
    settings = load_config(config, overrides) if config else None
    from pipeline.cli.doctor import run_checks

    marks = {"ok": "ok", "warning": "warning", "failure": "FAILED"}
    states = []
    for check in run_checks(settings):
        console.print(replace_controls(f"{marks[check.state]:8} {check.subject}: {check.found}"), soft_wrap=True)
        if check.fix:
            console.print(replace_controls(f"{'':8} fix: {check.fix}"), soft_wrap=True)
        states.append(check.state)
    counts = {state: states.count(state) for state in ("failure", "warning")}
    console.print(", ".join(f"{count} {state}{'s' if count != 1 else ''}" for state, count in counts.items()))
    return not counts["failure"]


def _run_stages(config: str, overrides: list[str], until: str, *, dry_run: bool) -> None:
    settings = load_config(config, overrides)
    from pipeline.graph.build import build_graph
    from pipeline.graph.runner import curate

    if dry_run:
        _print_dry_run(build_graph(settings), until)
    else:
        curate(settings, until=until)


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


def _inspect(
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


def _print_status(config: str, overrides: list[str], *, follow: bool) -> bool:
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


def _print_result(line: str) -> None:
    console.print(line, soft_wrap=True)
