"""The comparisons of docs/evidence.md: proxy models for each specialist of the corpora, and means over all specialists.

    python benchmarks/evidence.py --workdir /tmp/evidence
    python benchmarks/evidence.py --workdir /tmp/evidence --specialists legal_contracts --arms cap --documents 5500

*general* is held-out text from the corpus's own sources: one group of documents (a book, a forum, an article) in 25, which no arm
can sample from. *other* is the held-out text of the other specialists, of which the corpus contains little. Training a proxy takes
about a minute on one core. An interrupted comparison resumes. The config of each comparison stays in the workdir.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash
import yaml
import zstandard
from corpus import GENERALIST, LABELS, corpus_file, read_rows

from pipeline.evidence.settings import load_evidence
from pipeline.evidence.steps import plan_comparison, run_comparison
from pipeline.evidence.table import Row, compute_rows, render_tables

CORPUS, HELD_OUT = "corpus.jsonl.zst", "general.jsonl.zst"
ONE_IN = 25  # one group of documents in 25 is held out


def crisp(leaves: int, **weights: Any) -> dict[str, Any]:
    """Return an arm with CRISP on a flat clustering; the natural share is 0 by default."""
    return {"weights": {"estimator": "crisp", "natural_share": 0.0, **weights}, "cluster": {"depth": 1, "branching": leaves}}


def density(share: int) -> dict[str, Any]:
    """Return an arm with the default estimator and a natural share in percent."""
    return {"weights": {"estimator": "density", "natural_share": share / 100}}


ARMS: dict[str, dict[str, Any]] = {
    "main": {
        "natural": None,
        "dsir": None,
        "crisp-64": crisp(64),
        "crisp-64-natural-25": crisp(64, natural_share=0.25),
        "density": density(0),
        **{f"density-natural-{share}": density(share) for share in (10, 25, 50, 75)},
    },
    "curves": {
        "natural": None,
        "dsir": None,
        "crisp-64": crisp(64),
        "crisp-64-natural-25": crisp(64, natural_share=0.25),
        "crisp-512": crisp(512),
        "density": density(0),
        **{f"density-natural-{share}": density(share) for share in (10, 25, 50, 75, 90)},
    },
    "shape": {
        "natural": None,
        "specialist-only": None,
        "crisp-shuffled": {"cluster": {"depth": 1, "branching": 64}},
        "crisp-top-cluster": {"cluster": {"depth": 1, "branching": 64}},
        **{f"crisp-{leaves}": crisp(leaves) for leaves in (8, 64, 512)},
        "density": density(0),
    },
    "cap": {
        "natural": None,
        **{f"crisp-{leaves}-uncapped": crisp(leaves, max_epochs=1000) for leaves in (8, 64, 512)},
        "crisp-512": crisp(512),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--specialists", nargs="*", default=[], help="names of the specialists; default: all")
    parser.add_argument("--arms", choices=[*ARMS, "sample"], default="main")
    parser.add_argument("--documents", type=int, default=22_000, help="number of documents of the generalist corpus")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()

    every = sorted(os.listdir(os.path.dirname(os.path.dirname(corpus_file("specialists/recipes/test.jsonl.zst")))))
    divide(Path(args.workdir))
    found: list[dict[str, Row]] = []
    for specialist in args.specialists or every:
        path = Path(args.workdir, f"{specialist}-{args.arms}.yaml")
        path.write_text(yaml.safe_dump(settings(args, specialist, every), sort_keys=False), encoding="utf-8")
        comparison = plan_comparison(load_evidence(path))
        run_comparison(comparison)
        rows = compute_rows(comparison)
        found.append({row.arm: row for row in rows})
        print(f"\n{specialist}\n{render_tables(comparison, rows)}", flush=True)
    print(f"Means over {len(found)} specialists, relative to natural")
    for arm in found[0]:
        gain = np.mean([mean(of[arm], "specialist") / mean(of["natural"], "specialist") - 1 for of in found])
        losses = [np.mean([mean(of[arm], name) - mean(of["natural"], name) for of in found]) for name in ("general", "other")]
        print(f"{arm:<24} specialist {100 * gain:+.1f}%   general {losses[0]:+.3f}   other {losses[1]:+.3f}")


def mean(row: Row, text: str) -> float:
    return row.figures[text].mean


def arms_of(which: str, specialist: str) -> dict[str, Any]:
    """Return the arms of a comparison. Those of `sample` vary the number of documents in the specialist sample."""
    if which != "sample":
        return ARMS[which]
    estimators = {"crisp-64": crisp(64), "density": density(0)}
    given = {documents: {"specialists": {specialist: {"limit": documents}}} for documents in (25, 100, 400)}
    return {
        "natural": None,
        **{f"{name}-of-{documents}": {**arm, **few} for name, arm in estimators.items() for documents, few in given.items()},
    }


def divide(workdir: Path) -> None:
    """Split the generalist corpus into the corpus to sample from and the held-out groups of documents."""
    workdir.mkdir(parents=True, exist_ok=True)
    if (workdir / HELD_OUT).exists():
        return
    begun = {name: workdir / f"{name}.begun" for name in (CORPUS, HELD_OUT)}
    with zstandard.open(begun[CORPUS], "wb") as corpus, zstandard.open(begun[HELD_OUT], "wb") as held:
        for row, label in zip(read_rows(GENERALIST), read_rows(LABELS), strict=True):
            group = label["orig"].rsplit("/", 1)[0].encode()
            sink = held if xxhash.xxh3_64_intdigest(group) % ONE_IN == 0 else corpus
            sink.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    for name in (CORPUS, HELD_OUT):
        begun[name].rename(workdir / name)


def settings(args: argparse.Namespace, specialist: str, every: list[str]) -> dict[str, Any]:
    """Return the settings of the comparison for one specialist."""

    def of(name: str, file: str) -> str:
        return corpus_file(f"specialists/{name}/{file}.jsonl.zst")

    return {
        "run": {
            "workdir": args.workdir,
            "generalist": {"paths": [str(Path(args.workdir, CORPUS))], "limit": args.documents},
            "specialists": {specialist: {"paths": [of(specialist, "sample")]}},
            "window": {"tokens": 256},
            "embed": {"model": "static:bundled:all-MiniLM-L6-v2"},
            "weights": {"bootstrap": 0},
            "sample": {"budget_tokens": 500_000},
        },
        "arms": arms_of(args.arms, specialist),
        "held_out": {
            "specialist": {"paths": [of(specialist, "test")]},
            "general": {"paths": [str(Path(args.workdir, HELD_OUT))]},
            "other": {"paths": [of(name, "valid") for name in every if name != specialist]},
        },
        "held_out_windows": 250,
        "seeds": args.seeds,
        "proxy": {"size": "1M", "vocabulary": 2048, "tokens": 600_000, "evaluations": 1},
    }


if __name__ == "__main__":
    main()
