"""What each stage costs by the size of the corpus.

Whole runs over the first documents of the generalist corpus, each in a Ray of its own. Of each stage: the core-seconds that its
tasks took (work that any number of workers share), and what it took beside them, its time less that work over the workers: what the
driver does alone, what starts and ends a stage, and, in runs of few parts, workers that wait for the last. Both are fitted by a
line through the sizes. The latter must not be drawn out to large corpora: its waiting grows with parts only while they are few.

    python benchmarks/scale.py --documents 4000 12000 36000
"""

import argparse
import json
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from corpus import SPECIALIST, corpus_file

from pipeline.config import parse_config
from pipeline.run import curate


@dataclass
class Line:
    """Seconds by the millions of windows: never less than nothing."""

    fixed_s: float
    per_million_s: float

    @classmethod
    def through(cls, millions: list[float], seconds: list[float]) -> "Line":
        """The line of least squares of relative errors, with neither coefficient below zero."""
        weight = 1.0 / np.maximum(np.array(seconds), 1e-3)
        slope_first = np.stack([np.ones(len(millions)), np.array(millions)], axis=1) * weight[:, None]
        from scipy.optimize import nnls

        (fixed_s, per_million_s), _ = nnls(slope_first, np.array(seconds) * weight)
        return cls(float(fixed_s), float(per_million_s))

    def at(self, millions: float) -> float:
        return self.fixed_s + self.per_million_s * millions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[4000, 16_000, 64_000])
    parser.add_argument("--model", default="static:bundled:all-MiniLM-L6-v2")
    parser.add_argument("--tokens", type=int, default=256)
    args = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as workdir:
        for documents in [min(args.documents), *args.documents]:  # the first once more: it distils the model
            found.append(measured(args, documents, f"{workdir}/{documents}-{len(found)}"))
            print(json.dumps(found[-1]), flush=True)
    found = found[1:]
    millions = [one["windows"] / 1e6 for one in found]
    stages = list(found[0]["stages"])
    work = {stage: Line.through(millions, [one["stages"][stage]["busy_s"] for one in found]) for stage in stages}
    beside = {stage: Line.through(millions, [one["stages"][stage]["beside_s"] for one in found]) for stage in stages}
    bytes_a_window = {stage: found[-1]["stages"][stage]["bytes"] / found[-1]["windows"] for stage in stages}

    print(f"\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; to {found[-1]['windows']:,} windows")
    print(f"{'stage':<14}{'core-s / 10^6':>14}{'+ fixed':>9}{'beside / 10^6':>15}{'+ fixed':>9}{'bytes / window':>16}")
    for stage in stages:
        a, b = work[stage], beside[stage]
        numbers = f"{a.per_million_s:>14.1f}{a.fixed_s:>9.1f}{b.per_million_s:>15.2f}{b.fixed_s:>9.1f}"
        print(f"{stage:<14}{numbers}{bytes_a_window[stage]:>16.0f}")
    print("\nthe lines against the largest run, on its own workers")
    largest = found[-1]
    told = sum(work[stage].at(millions[-1]) / largest["workers"] + beside[stage].at(millions[-1]) for stage in stages)
    print(f"told {told:.0f} s, measured {sum(one['seconds'] for one in largest['stages'].values()):.0f} s")


def measured(args: argparse.Namespace, documents: int, workdir: str) -> dict[str, Any]:
    """Windows of a run, and of each stage its seconds, core-seconds and bytes."""
    config = parse_config(
        {
            "workdir": workdir,
            "generalist": {"paths": [corpus_file()], "limit": documents},
            "specialists": {"recipes": {"paths": [corpus_file(SPECIALIST)]}},
            "window": {"tokens": args.tokens},
            "prepare": {"part_documents": 512},
            "embed": {"model": args.model},
            "cluster": {"branching": 32, "depth": 2},
            "sample": {"budget_tokens": documents * 50},
            "engine": {"address": "local"},
        }
    )
    run = curate(config)
    windows = run.step("prepare", "generalist").manifest["windows"]
    stages: dict[str, dict[str, float]] = {}
    for step in run.steps:
        usage = step.folder.read_json("usage.json")
        of_stage = stages.setdefault(step.stage, {"seconds": 0.0, "busy_s": 0.0, "beside_s": 0.0, "bytes": 0.0})
        of_stage["seconds"] += usage["seconds"]
        of_stage["busy_s"] += usage["busy_s"]
        of_stage["beside_s"] += max(0.0, usage["seconds"] - usage["busy_s"] / usage["workers"])
        of_stage["bytes"] += held_bytes(step.folder.path)
    return {"documents": documents, "windows": windows, "workers": usage["workers"], "stages": stages}


def held_bytes(path: str) -> float:
    return float(sum(os.path.getsize(os.path.join(root, name)) for root, _, names in os.walk(path) for name in names))


if __name__ == "__main__":
    main()
