"""The cost estimate of `--dry-run`: a row per pending step, totals with more workers, and notes on what limits the run."""

import os
from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.config import GENERALIST, Config
from pipeline.costs.corpus_size import CorpusSize, find_corpus_size
from pipeline.costs.stage_costs import (
    Machines,
    StageCost,
    StageInputs,
    count_transformer_tokens,
    estimate_stage,
    get_embedder_kind,
    read_rates,
)
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step
from pipeline.terminal.formatting import format_bytes, format_duration

_WORKER_FACTORS = (1, 8, 64)
_TRANSFORMER_DIM = 384  # MiniLM's; the width of another model is unknown until it is loaded
_MAX_DRIVER_SHARE = 0.5  # of the total time; a note suggests larger parts above it
_HOUR_S = 3600.0

StepCosts = Sequence[tuple[Step, StageCost]]


def estimate_steps(
    graph: PipelineGraph, steps: Sequence[Step], sizes: Mapping[str, CorpusSize], machines: Machines
) -> list[tuple[Step, StageCost]]:
    """Estimate the cost of each step whose stage is modelled, ignoring parts that it has finished."""
    dim = graph.config.embed.dim if get_embedder_kind(graph.config) != "transformer" else _TRANSFORMER_DIM
    first, last = graph.config.phases[0], graph.config.phases[-1]
    costs = []
    for step in steps:
        config = last if step.corpus == "ending" else first
        corpus = step.corpus if step.corpus in sizes else GENERALIST
        if cost := estimate_stage(step.stage, StageInputs(config, sizes[corpus], machines, dim, corpus)):
            costs.append((step, cost))
    return costs


def render_estimate(graph: PipelineGraph, steps: Sequence[Step]) -> Iterator[RenderableType]:
    """Yield the sizes of the corpora, a table with the estimated cost of the pending steps, and notes; nothing if all are done.

    Raises:
        InputError: an input file cannot be read.
    """
    pending = [step for step in steps if not step.done]
    if not pending:
        return
    config = graph.config
    sizes = {}
    for corpus in (GENERALIST, *config.specialists):
        windows_step = graph.windows_step(corpus)
        size = find_corpus_size(config, corpus, windows_step if windows_step.done else graph.step("prepare", corpus))
        if size is None:
            yield Text(f"{corpus}: a dataset's size is unknown until prepare is done; run crispwrap prepare, then repeat --dry-run")
            return
        sizes[corpus] = size
    yield Text()
    yield from (Text(_format_size(corpus, size)) for corpus, size in sizes.items())
    cores = os.cpu_count() or 1
    num_workers = config.engine.workers or cores
    machines = [Machines(num_workers * factor, cores) for factor in _WORKER_FACTORS]
    estimates = [estimate_steps(graph, pending, sizes, each) for each in machines]
    yield _render_table(estimates, machines)
    yield from (Text(note) for note in _list_notes(config, sizes, estimates, machines, pending))


def _format_size(corpus: str, size: CorpusSize) -> str:
    text = f"{format_bytes(size.text_bytes)} of text, {size.tokens:,.0f} tokens, {size.windows:,.0f} windows"
    if size.estimated_from_rows is None:
        return f"{corpus}: {text}"
    return f"{corpus}: about {text} (estimated from {size.estimated_from_rows:,} rows, before filtering)"


def _render_table(estimates: Sequence[StepCosts], machines: Sequence[Machines]) -> RenderableType:
    """Render a row per step and a row of totals; `estimates` has one list of the same steps for each of the machines."""
    title = "\nEstimated cost of the pending steps, each in full: finished parts are not subtracted"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("step", "core time", "disk space", *(f"time, {each.num_workers:,} workers" for each in machines)):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for row in zip(*estimates, strict=True):
        step, cost = row[0]
        times = [format_duration(of_machines.wall_s) for _, of_machines in row]
        table.add_row(step.title, format_duration(cost.core_s), format_bytes(cost.stored_bytes), *times)
    first_costs = [cost for _, cost in estimates[0]]
    table.add_row(
        "total",
        format_duration(sum(cost.core_s for cost in first_costs)),
        format_bytes(sum(cost.stored_bytes for cost in first_costs)),
        *(format_duration(_sum_wall_s(estimate)) for estimate in estimates),
    )
    return table


def _sum_wall_s(estimate: StepCosts) -> float:
    return sum(cost.wall_s for _, cost in estimate)


def _list_notes(
    config: Config,
    sizes: Mapping[str, CorpusSize],
    estimates: Sequence[StepCosts],
    machines: Sequence[Machines],
    pending: Sequence[Step],
) -> Iterator[str]:
    prices = config.engine.prices
    if prices and prices.core:
        amounts = [
            _sum_wall_s(estimate) / _HOUR_S * each.num_workers * prices.core
            for estimate, each in zip(estimates, machines, strict=True)
        ]
        yield f"price of the workers for the whole run (engine.prices.core {prices.core:g} per hour): " + ", ".join(
            f"{amount:,.2f} with {each.num_workers:,}" for amount, each in zip(amounts, machines, strict=True)
        )
    to_embed = [step.corpus for step in pending if step.stage == "embed"]
    if get_embedder_kind(config) == "transformer" and to_embed:
        tokens = sum(count_transformer_tokens(config, sizes[corpus]) for corpus in to_embed)
        rate = config.embed.gpu_tokens_per_second
        hours = tokens / rate / _HOUR_S
        price = f", price {hours * prices.gpu:,.2f} (engine.prices.gpu {prices.gpu:g} per hour)" if prices and prices.gpu else ""
        yield (
            f"embed on GPUs instead of cores: {hours:,.2f} GPU-hours at {rate:,.0f} tokens per second and GPU "
            f"(embed.gpu_tokens_per_second){price}"
        )
    num_files, max_workers = sizes[GENERALIST].files, machines[-1].num_workers
    if num_files < max_workers and any(step.stage == "prepare" for step, _ in estimates[0]):
        yield f"prepare first scans each input file with one worker: more workers than files ({num_files:,.0f}) do not speed it up"
    driver_s = sum(cost.driver_s + cost.driver_only_s for _, cost in estimates[-1])
    if driver_s > _MAX_DRIVER_SHARE * _sum_wall_s(estimates[-1]):
        yield (
            f"with {max_workers:,} workers the driver is busy for {format_duration(driver_s)} of this time; fewer and larger parts "
            "(prepare.part_documents, prepare.part_bytes) reduce that"
        )
    estimated = [step for step, _ in estimates[0]]
    if others := [step.title for step in pending if step not in estimated]:
        yield f"not included: {', '.join(others)}; the start of Ray, which takes some seconds"
    machine = read_rates()["measured"]["machine"]
    yield (
        f"The rates were measured on {machine}, those of transformers with MiniLM. "
        "Estimates are accurate to a factor of about two (docs/scale.md)."
    )
