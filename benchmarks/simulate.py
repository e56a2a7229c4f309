"""The time of a run of 10^8 to 10^11 windows on 10 to 1,000 machines, as docs/scale.md has it: the model of `--dry-run`, no run.

python benchmarks/simulate.py               # the tables
python benchmarks/simulate.py --write       # ... into docs/scale.md
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import Config, parse_config
from pipeline.costs.corpus_size import CorpusSize
from pipeline.costs.stage_costs import Machines, StageCost, StageInputs, estimate_stage
from pipeline.terminal.formatting import format_bytes, format_duration

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
_BEGIN, _END = "<!-- simulated -->", "<!-- /simulated -->"
_CORES = 16  # of a machine
_WINDOWS = (10**8, 10**9, 10**10, 10**11)
_MACHINES = (10, 100, 1000)
_TOKENS, _BYTES = 500, 2150  # of a window
_PART_BYTES = (16 << 20, 256 << 20)
_DRAWN = 0.1  # of the corpus
_STAGES = ("prepare", "embed", "cluster", "assign", "score", "weights", "sample")


def settings(windows: float, part_bytes: int) -> Config:
    return parse_config(
        {
            "workdir": "/simulated",
            "generalist": {"paths": ["simulated"]},
            "specialists": {"simulated": {"paths": ["simulated"]}},
            "prepare": {"part_bytes": part_bytes, "part_documents": 1 << 30},
            "window": {"tokens": 512},
            "embed": {"model": "static:bundled:all-MiniLM-L6-v2", "dim": 256},
            "cluster": {"branching": 64, "depth": 3},
            "sample": {"budget_tokens": round(_DRAWN * windows * _TOKENS)},
        }
    )


def simulated(windows: float, machines: int, part_bytes: int) -> list[StageCost]:
    """The stages of a run; as many files as workers."""
    workers = machines * _CORES
    text_bytes = windows * _BYTES
    size = CorpusSize(
        files=max(workers, text_bytes / (1 << 30)),
        documents=windows / 2,
        text_bytes=text_bytes,
        tokens=windows * _TOKENS,
        windows=windows,
        parts=text_bytes / part_bytes,
    )
    config = settings(windows, part_bytes)
    inputs = StageInputs(config, size, Machines(workers, _CORES), config.embed.dim)
    costs = [estimate_stage(stage, inputs) for stage in _STAGES]
    return [cost for cost in costs if cost]


def tables() -> Iterator[str]:
    for part_bytes in _PART_BYTES:
        yield f"\nParts of {part_bytes >> 20} MiB; in brackets, the share of the time in which all workers wait for the driver:\n"
        yield "| windows | text | core-hours | stored | " + " | ".join(f"{machines:,} machines" for machines in _MACHINES) + " |"
        yield "|---|---|---|---|" + "---|" * len(_MACHINES)
        for windows in _WINDOWS:
            runs = [simulated(windows, machines, part_bytes) for machines in _MACHINES]
            core_h = sum(cost.core_s for cost in runs[0]) / 3600
            stored = sum(cost.stored_bytes for cost in runs[0])
            cells = [f"10^{len(str(windows)) - 1}", format_bytes(windows * _BYTES), f"{core_h:,.0f}", format_bytes(stored)]
            cells += [f"{format_duration(_wall(run))} ({_drivers(run):.0%})" for run in runs]
            yield "| " + " | ".join(cells) + " |"
    windows, machines, part_bytes = _WINDOWS[-2], _MACHINES[1], _PART_BYTES[1]
    yield f"\nStage by stage, 10^{len(str(windows)) - 1} windows on {machines} machines, parts of {part_bytes >> 20} MiB:\n"
    yield "| stage | core-hours | time | driver only | driver for tasks | tasks | stored |\n|---|---|---|---|---|---|---|"
    for cost in simulated(windows, machines, part_bytes):
        cells = [cost.stage, f"{cost.core_s / 3600:,.0f}", format_duration(cost.wall_s), format_duration(cost.driver_only_s)]
        cells += [format_duration(cost.driver_s), f"{cost.num_tasks:,}", format_bytes(cost.stored_bytes)]
        yield "| " + " | ".join(cells) + " |"


def _wall(run: list[StageCost]) -> float:
    return sum(cost.wall_s for cost in run)


def _drivers(run: list[StageCost]) -> float:
    """The share of a run in which workers wait for the driver."""
    return sum(cost.driver_only_s + cost.worker_wait_s for cost in run) / _wall(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put them into docs/scale.md")
    args = parser.parse_args()
    text = "\n".join(tables())
    print(text)
    if args.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
        after = rest.partition(_END)[2]
        PAGE.write_text(f"{before}{_BEGIN}\n{text}\n\n{_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
