"""`prepare` with datatrove's filters against datatrove's own pipeline of them on its local executor, on the same cores.

    CRISPWRAP_CORPORA=../shared/corpora python benchmarks/prepare.py

`prepare` also finds duplicate ids, cuts windows with the embedder's tokenizer and writes them as Parquet. datatrove's pipeline
reads, filters and writes JSON lines. Both must keep the same documents; otherwise the benchmark stops.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import zstandard
from corpus import GENERALIST, own_ray, print_head, print_row, read_rows, stage_seconds, timed

from pipeline.graph import runner
from pipeline.refining.catalogue import build_step

STEPS: list[dict[str, Any]] = [
    {"type": "GopherRepetitionFilter"},
    {"type": "GopherQualityFilter"},
    {"type": "C4QualityFilter", "filter_no_terminal_punct": False},
    {"type": "FineWebQualityFilter"},
]
FILES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=12_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_corpus(root / "corpus", args.documents)
        print_head(f"prepare, {args.documents:,} documents, {', '.join(step['type'] for step in STEPS)}")
        ours, theirs = [], []
        for repeat in range(args.repeats):
            theirs.append(datatrove_seconds(root, repeat))
            ours.append(our_seconds(root, repeat))
            if (mine := kept_by_us(root, repeat)) != (its := kept_by_datatrove(root, repeat)):
                sys.exit(
                    f"prepare keeps {len(mine)} documents and datatrove {len(its)}; {len(mine ^ its)} are kept by only one of them"
                )
        for repeat in range(args.repeats):
            print_row(f"documents/s, pair {repeat + 1}", args.documents / ours[repeat], args.documents / theirs[repeat], "≥ 0.9")
        middle = [statistics.median(seconds) for seconds in (ours, theirs)]
        print_row("documents/s, medians", args.documents / middle[0], args.documents / middle[1], "≥ 0.9")


def write_corpus(folder: Path, documents: int) -> None:
    folder.mkdir()
    rows = list(islice(read_rows(GENERALIST), documents))
    for number in range(FILES):
        lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows[number::FILES])
        (folder / f"{number:02d}.jsonl.zst").write_bytes(zstandard.compress(lines))


def datatrove_seconds(root: Path, repeat: int) -> float:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    executor = LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(root / "corpus")),
            *(build_step(step, "steps") for step in STEPS),
            JsonlWriter(str(root / f"theirs-{repeat}"), compression="zstd"),
        ],
        tasks=FILES,
        workers=os.cpu_count(),
        logging_dir=str(root / f"logs-{repeat}"),
    )
    return timed(executor.run)[0]


def our_seconds(root: Path, repeat: int) -> float:
    sample = root / "sample.jsonl"
    sample.write_bytes(orjson.dumps({"id": "1", "text": "a sample of one sentence"}))
    with own_ray():
        made = runner.prepare(
            {
                "workdir": str(root / f"ours-{repeat}"),
                "generalist": {"paths": [str(root / "corpus")]},
                "specialists": {"any": {"paths": [str(sample)]}},
                "prepare": {"steps": STEPS},
                "window": {"tokens": 256},
                "embed": {"model": "bundled:all-MiniLM-L6-v2"},
                "sample": {"budget_tokens": 1},
            }
        )
        return stage_seconds(made, "prepare")


def kept_by_us(root: Path, repeat: int) -> set[str]:
    import pyarrow.parquet as pq

    parts = (root / f"ours-{repeat}" / "prepare").glob("*/part-*.parquet")
    return {identifier for part in parts for identifier in pq.read_table(part, columns=["doc_id"])["doc_id"].to_pylist()} - {"1"}


def kept_by_datatrove(root: Path, repeat: int) -> set[str]:
    found = set()
    for path in (root / f"theirs-{repeat}").glob("*.zst"):
        with zstandard.open(path, "rb") as file:
            found |= {orjson.loads(line)["id"] for line in file.read().splitlines()}
    shutil.rmtree(root / f"theirs-{repeat}")
    return found


if __name__ == "__main__":
    main()
