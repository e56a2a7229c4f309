"""Selection from a corpus, from input files to output files, against `data-selection`, the package of DSIR's authors.

Ours is `curate()`: windows, static embeddings, tree, scores, sampling and shards. A static model is distilled once per machine
(`pipeline.execution.cache`). So the first run distills it and the later runs use it, each in a new workdir. `data-selection` fits
its n-gram model, weights each document and writes the selected ones, with as many processes. It reads only uncompressed JSON
lines, so `curate()` reads the same files. The two run in turn.

    python benchmarks/selection.py --estimator density
    python benchmarks/selection.py --documents 20000 --estimator dsir
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from corpus import SPECIALIST, own_ray, print_head, print_row, read_texts, stage_seconds, timed

from pipeline.config import Config, parse_config
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.graph.runner import curate

CORES = os.cpu_count() or 1
BUDGET = 1_500_000  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1 << 30, help="number of documents of the generalist corpus; default: all")
    parser.add_argument("--estimator", default="density")
    parser.add_argument("--tokens", type=int, default=256, help="maximum number of tokens per window")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after the first; the one with the median ratio is printed")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as workdir:
        raw, target = (str(Path(workdir, name)) for name in ("raw.jsonl", "target.jsonl"))
        num_bytes = write_lines(raw, read_texts(), args.documents)
        write_lines(target, read_texts(SPECIALIST), 1 << 30)
        os.environ["XDG_CACHE_HOME"] = f"{workdir}/cache"
        rounds = []
        for name in range(args.rounds + 1):
            config = parse_config(
                {
                    "workdir": f"{workdir}/{name}",
                    "generalist": {"paths": [raw], "id_key": None},
                    "specialists": {"recipes": {"paths": [target], "id_key": None}},
                    "window": {"tokens": args.tokens},
                    "embed": {"model": "static:bundled:all-MiniLM-L6-v2"},
                    "weights": {"estimator": args.estimator},
                    "sample": {"budget_tokens": BUDGET},
                }
            )
            with_ray_s, (ours_s, run) = timed(select, config)
            share = BUDGET / run.step("prepare", "generalist").manifest["tokens"]
            theirs_s, _ = timed(data_selection, raw, target, f"{workdir}/their-{name}", share)
            rounds.append((ours_s, with_ray_s, theirs_s))
        (_, first_s, first_theirs_s), *later = rounds
        ours_s, with_ray_s, theirs_s = sorted(later, key=lambda times: times[0] / times[2])[(len(later) - 1) // 2]
        print_head(f"{num_bytes / 1e6:.0f} MB of text, {args.estimator}, static embedder, seconds")
        print_row("selection / data-selection", ours_s, theirs_s, "<= 0.5")
        print_row("the same, with start and stop of Ray", with_ray_s, theirs_s)
        print_row("the same, also with distillation", first_s, first_theirs_s)
        for stage in dict.fromkeys(step.stage for step in run.steps):
            print(f"  {stage:<12}{stage_seconds(run, stage):7.1f} s")


def select(config: Config) -> tuple[float, PipelineGraph]:
    """Run `curate()` in a Ray started for it; return the seconds without the start of Ray, and the run."""
    with own_ray(), contextlib.redirect_stdout(io.StringIO()):
        return timed(curate, config)


def write_lines(path: str, texts: Iterator[str], most: int) -> int:
    """Write at most `most` texts as JSON lines; return the number of bytes of text."""
    num_bytes = 0
    with open(path, "w", encoding="utf-8") as file:
        for text in itertools.islice(texts, most):
            num_bytes += len(text.encode())
            file.write(json.dumps({"text": text}) + "\n")
    return num_bytes


def data_selection(raw: str, target: str, workdir: str, share: float) -> None:
    """Select as in the README of the package; `share` of the documents is what our budget is of the tokens."""
    from data_selection import HashedNgramDSIR

    os.mkdir(workdir)
    with contextlib.redirect_stderr(io.StringIO()):
        selector = HashedNgramDSIR([raw], [target], f"{workdir}/cache", num_proc=CORES)
        selector.fit_importance_estimator(num_tokens_to_fit="auto")
        selector.compute_importance_weights()
        with open(raw, "rb") as file:
            num_documents = sum(1 for _ in file)
        selector.resample(f"{workdir}/chosen", max(1, int(share * num_documents)), cache_dir=f"{workdir}/resampling")


if __name__ == "__main__":
    main()
