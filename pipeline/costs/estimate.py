"""What `--dry-run` says of the cost: a line a stage, the whole with more workers, and what stands in the way."""

import os
from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.config import GENERALIST, Config
from pipeline.costs.model import Machines, StageCost, kind_of, read_rates, read_tokens, stage_cost
from pipeline.costs.size import Size, size_of
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step
from pipeline.terminal.formatting import format_bytes, format_duration

_MORE = (1, 8, 64)  # times the workers
_TRANSFORMER_WIDTH = 384  # MiniLM's, where the model has not been asked
_DRIVERS = 0.5  # of the time: said
_HOUR = 3600.0


def costs_of(
    graph: PipelineGraph, steps: list[Step], sizes: Mapping[str, Size], machines: Machines
) -> list[tuple[Step, StageCost]]:
    """Each of the steps whose stage is modelled, with what all of it takes."""
    dim = graph.config.embed.dim if kind_of(graph.config) != "transformer" else _TRANSFORMER_WIDTH
    first, last = graph.config.phases[0], graph.config.phases[-1]
    found = []
    for step in steps:
        config = last if step.corpus == "ending" else first
        corpus = step.corpus if step.corpus in sizes else GENERALIST
        if cost := stage_cost(config, step.stage, sizes[corpus], machines, dim, corpus):
            found.append((step, cost))
    return found


def render_estimate(graph: PipelineGraph, steps: list[Step]) -> Iterator[RenderableType]:
    """What those of the steps that are not done will take.

    Raises:
        InputError: an input file cannot be read.
    """
    steps = [step for step in steps if not step.done]
    if not steps:
        return
    config = graph.config
    sizes = {}
    for corpus in (GENERALIST, *config.specialists):
        size = size_of(config, corpus, graph.windows(corpus) if graph.windows(corpus).done else graph.step("prepare", corpus))
        if size is None:
            yield Text(f"{corpus}: a dataset's size is known once prepare is done; run jobs/prepare.py, then ask again")
            return
        sizes[corpus] = size
    yield Text()
    yield from (Text(_size_line(corpus, size)) for corpus, size in sizes.items())
    cores = os.cpu_count() or 1
    workers = config.engine.workers or cores
    machines = [Machines(workers * times, cores) for times in _MORE]
    found = [costs_of(graph, steps, sizes, each) for each in machines]
    yield _table(found, machines)
    yield from (Text(line) for line in _lines(config, sizes, found, machines, steps))


def _size_line(corpus: str, size: Size) -> str:
    held = f"{format_bytes(size.text_bytes)} of text, {size.tokens:,.0f} tokens, {size.windows:,.0f} windows"
    if size.rows_read is None:
        return f"{corpus}: {held}"
    return f"{corpus}: about {held}, going by {size.rows_read:,} rows of it, before any steps"


def _table(found: list[list[tuple[Step, StageCost]]], machines: list[Machines]) -> RenderableType:
    table = Table(title="\nSteps to do, each as if nothing of it were there", title_justify="left", box=None, pad_edge=False)
    for heading in ("step", "work of a core", "stored", *(f"time, {each.workers:,} workers" for each in machines)):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for row in zip(*found, strict=True):
        step, cost = row[0]
        times = [format_duration(of.wall_s) for _, of in row]
        table.add_row(step.title, format_duration(cost.core_s), format_bytes(cost.stored_bytes), *times)
    first = [cost for _, cost in found[0]]
    table.add_row(
        "together",
        format_duration(sum(cost.core_s for cost in first)),
        format_bytes(sum(cost.stored_bytes for cost in first)),
        *(format_duration(_seconds(of)) for of in found),
    )
    return table


def _seconds(found: list[tuple[Step, StageCost]]) -> float:
    return sum(cost.wall_s for _, cost in found)


def _lines(
    config: Config,
    sizes: Mapping[str, Size],
    found: list[list[tuple[Step, StageCost]]],
    machines: list[Machines],
    steps: list[Step],
) -> Iterator[str]:
    prices = config.engine.prices
    if prices and prices.core:
        costs = [_seconds(of) / _HOUR * each.workers * prices.core for of, each in zip(found, machines, strict=True)]
        yield f"price of these workers, kept throughout (engine.prices.core {prices.core:g} an hour): " + ", ".join(
            f"{cost:,.2f} with {each.workers:,}" for cost, each in zip(costs, machines, strict=True)
        )
    to_embed = [step.corpus for step in steps if step.stage == "embed"]
    if kind_of(config) == "transformer" and to_embed:
        tokens, rate = sum(read_tokens(config, sizes[corpus]) for corpus in to_embed), config.embed.gpu_tokens_per_second
        hours = tokens / rate / _HOUR
        price = f", {hours * prices.gpu:,.2f} at engine.prices.gpu {prices.gpu:g}" if prices and prices.gpu else ""
        yield (
            f"embed, on GPUs instead of cores: {hours:,.2f} GPU-hours at {rate:,.0f} tokens a second and GPU "
            f"(embed.gpu_tokens_per_second){price}"
        )
    files, most = sizes[GENERALIST].files, machines[-1].workers
    if files < most and any(step.stage == "prepare" for step, _ in found[0]):
        yield f"prepare reads each file from end to end first: of more workers than files ({files:,.0f}) it has nothing there"
    driver_s = sum(cost.driver_s + cost.alone_s for _, cost in found[-1])
    if driver_s > _DRIVERS * _seconds(found[-1]):
        yield (
            f"with {most:,} workers the driver is busy for {format_duration(driver_s)} of it: fewer and larger parts "
            "(prepare.part_documents, prepare.part_bytes) spare it"
        )
    if others := [step.title for step in steps if step not in [counted for counted, _ in found[0]]]:
        yield f"not in it: {', '.join(others)}; nor the start of Ray, some seconds"
    machine = read_rates()["measured"]["machine"]
    yield f"Rates are of {machine}, and of MiniLM where a transformer reads: right to a factor of two or so (docs/scale.md)."
