"""The embed stage on Ray against plain `SentenceTransformer.encode` on the same windows, in fp32, each with all cores.

Both are warm: Ray runs, and its workers and the baseline have loaded the model. The time until then is printed separately.

    python benchmarks/stage_embed.py --documents 400 --tokens 256
"""

import argparse
import os
import shutil
import tempfile
import time

from corpus import SPECIALIST, corpus_file, interleaved, own_ray, print_head, print_row, timed
from embed import sentence_transformer

from pipeline.config import Config, parse_config
from pipeline.engine import Engine
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import part_names
from pipeline.graph.build import build_graph

CORES = os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled:all-MiniLM-L6-v2")
    parser.add_argument(
        "--documents", type=int, default=400, help="number of documents of the generalist corpus; about 3 windows each"
    )
    parser.add_argument("--tokens", type=int, default=256, help="maximum number of tokens per window")
    parser.add_argument("--parts", type=int, default=16, help="number of parts")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as workdir:
        config = settings(args, workdir)
        # Small parts, so that every worker gets one and loads the model.
        small = config.model_copy(
            update={
                "generalist": config.generalist.model_copy(update={"limit": 4 * CORES}),
                "prepare": config.prepare.model_copy(update={"part_documents": 1}),
            }
        )
        started = time.perf_counter()
        with own_ray(), Engine(config.engine) as engine:
            for run in (build_graph(small), build_graph(config)):
                run.step("prepare", "generalist").run(engine)
            prepare_s = time.perf_counter() - started
            load_s, _ = timed(build_graph(small).step("embed", "generalist").run, engine)
            run = build_graph(config)
            windows = read_prepared(run)
            rival = sentence_transformer(config.embed, "fp32", CORES)
            rival(windows[:32])
            ours_s, rival_s = interleaved(args.repeats, lambda: embed_again(run, engine), lambda: rival(windows))

    print_head(f"{len(windows)} windows of at most {args.tokens} tokens in {args.parts} parts, fp32, median of {args.repeats}")
    print_row("embed stage, windows/s", len(windows) / ours_s, len(windows) / rival_s, ">= 0.95")
    print(f"not included: start of Ray and prepare {prepare_s:.1f} s, loading the model in all workers {load_s:.1f} s")


def settings(args: argparse.Namespace, workdir: str) -> Config:
    return parse_config(
        {
            "workdir": workdir,
            "generalist": {"paths": [corpus_file()], "limit": args.documents},
            "specialists": {"recipes": {"paths": [corpus_file(SPECIALIST)]}},
            "prepare": {"part_documents": -(-args.documents // args.parts)},
            "window": {"tokens": args.tokens},
            "embed": {"model": args.model, "max_tokens": args.tokens, "precision": "fp32"},
            "sample": {"budget_tokens": 1000},
        }
    )


def read_prepared(run: PipelineGraph) -> list[str]:
    """Return the windows of all parts, in order."""
    step = run.step("prepare", "generalist")
    tables = (step.folder.read_table(f"{name}.parquet", columns=["text"]) for name in part_names(step))
    return [text for table in tables for text in table["text"].to_pylist()]


def embed_again(run: PipelineGraph, engine: Engine) -> None:
    step = run.step("embed", "generalist")
    shutil.rmtree(step.folder.path, ignore_errors=True)
    step.run(engine)


if __name__ == "__main__":
    main()
