"""Selecting from a corpus, files to files, against the package of DSIR's authors (`data-selection`), with as many processes.

Ours is `curate()` with Ray's start, a static embedder distilled on the way, the tree, scores, draws and shards; theirs fits its
n-gram model, weighs each document and writes the chosen ones. Theirs reads plain JSON lines (it knows no other), ours the same.

    python benchmarks/selection.py --estimator density
    python benchmarks/selection.py --documents 20000 --estimator dsir
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path

from corpus import SPECIALIST, own_ray, print_head, print_row, read_texts, timed

from pipeline.config import Config, parse_config
from pipeline.run import Run, curate

CORES = os.cpu_count() or 1
BUDGET = 1_500_000  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1 << 30, help="of the generalist corpus; all by default")
    parser.add_argument("--estimator", default="density")
    parser.add_argument("--tokens", type=int, default=256, help="most tokens of a window")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as workdir:
        raw, target = (str(Path(workdir, name)) for name in ("raw.jsonl", "target.jsonl"))
        num_bytes = write_lines(raw, read_texts(), args.documents)
        write_lines(target, read_texts(SPECIALIST), 1 << 30)
        config = parse_config(
            {
                "workdir": f"{workdir}/run",
                "generalist": {"paths": [raw], "id_key": None},
                "specialists": {"recipes": {"paths": [target], "id_key": None}},
                "window": {"tokens": args.tokens},
                "embed": {"model": "static:bundled:all-MiniLM-L6-v2"},
                "weights": {"estimator": args.estimator},
                "sample": {"budget_tokens": BUDGET},
            }
        )
        ours_s, run = timed(curate_alone, config)
        load = os.getloadavg()[0]
        share = BUDGET / run.step("prepare", "generalist").manifest["tokens"]
        theirs_s, _ = timed(data_selection, raw, target, workdir, share)
        print_head(f"{num_bytes / 1e6:.0f} MB of text, {args.estimator}, static embedder, one run, seconds")
        print(f"they do not take turns, so watch the load: {load:.1f} at the end of ours, {os.getloadavg()[0]:.1f} of theirs")
        print_row("selection / data-selection", ours_s, theirs_s, "<= 0.5")
        for stage in dict.fromkeys(step.stage for step in run.steps):
            print(f"  {stage:<12}{stage_seconds(run, stage):7.1f} s")


def write_lines(path: str, texts: object, most: int) -> int:
    """Write JSON lines, as many as there are or `most`; the bytes of their text."""
    num_bytes = 0
    with open(path, "w", encoding="utf-8") as file:
        for number, text in enumerate(texts):  # type: ignore[call-overload]
            if number == most:
                break
            num_bytes += len(text.encode())
            file.write(json.dumps({"text": text}) + "\n")
    return num_bytes


def curate_alone(config: Config) -> Run:
    """The run, without the report that it prints."""
    with own_ray(), contextlib.redirect_stdout(io.StringIO()):
        return curate(config)


def stage_seconds(run: Run, stage: str) -> float:
    return sum(step.folder.read_json("usage.json")["seconds"] for step in run.steps if step.stage == stage)


def data_selection(raw: str, target: str, workdir: str, share: float) -> None:
    """The package's README, line by line; as large a part of the documents as ours takes of the tokens."""
    from data_selection import HashedNgramDSIR

    with contextlib.redirect_stderr(io.StringIO()):
        selector = HashedNgramDSIR([raw], [target], f"{workdir}/cache", num_proc=CORES)
        selector.fit_importance_estimator(num_tokens_to_fit="auto")
        selector.compute_importance_weights()
        with open(raw, "rb") as file:
            num_documents = sum(1 for _ in file)
        selector.resample(f"{workdir}/chosen", max(1, int(share * num_documents)), cache_dir=f"{workdir}/resampling")


if __name__ == "__main__":
    main()
