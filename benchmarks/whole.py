"""A whole run, from `curate()` and the start of Ray to the published shards, against the sum of its kernels in one process.

The kernels do the same work one after another, with all cores and without a pipeline: datatrove's reader and the tokenizer,
`SentenceTransformer.encode`, `fit_tree`, `Tree.descend`, and pyarrow reading and writing the sampled text. The time to load the
model is included in ours and not in the baseline. Then the command line runs again in a new process, with all steps cached.

    python benchmarks/whole.py --model bundled:all-MiniLM-L6-v2 --documents 4500 --tokens 64
    python benchmarks/whole.py --model static:bundled:all-MiniLM-L6-v2 --documents 20000 --tokens 256
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from corpus import SPECIALIST, corpus_file, own_ray, print_head, print_row, stage_seconds, timed
from embed import sentence_transformer
from sample import rewrite, shard_files

from pipeline import embedders
from pipeline.config import Config, parse_config
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.graph.runner import curate
from pipeline.hashing import window_keys
from pipeline.storage import Folder

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support.tree_oracle import fit_tree

CORES = os.cpu_count() or 1
_TEXTS_AT_ONCE = 256  # documents tokenized together
# Runs a job with the given arguments, and prints on the last line whether Ray was imported.
_JOB = """
import atexit, runpy, sys
atexit.register(lambda: print("ray" in sys.modules))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled:all-MiniLM-L6-v2")
    parser.add_argument("--documents", type=int, default=4500, help="number of documents of the generalist corpus")
    parser.add_argument("--tokens", type=int, default=64, help="maximum number of tokens per window")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as workdir:
        config = settings(args, workdir)
        whole_s, run = timed(curate_alone, config)
        load = [os.getloadavg()[0]]
        kernel_s = bare_kernels(config, run)
        load.append(os.getloadavg()[0])
        second_s, ray_imported = second_run(config)

        num_windows = run.step("prepare", "generalist").manifest["windows"]
        print_head(f"{num_windows} windows of at most {args.tokens} tokens, {args.model}, one run, seconds")
        print(f"the two do not alternate, so compare the load: {load[0]:.1f} after ours, {load[1]:.1f} after the baseline")
        print_row("whole run / sum of the kernels", whole_s, sum(kernel_s.values()), "<= 1.25")
        for stage, rival_s in kernel_s.items():
            print_row(f"  {stage}", stage_seconds(run, stage), rival_s)
        steps_s = sum(stage_seconds(run, stage) for stage in {step.stage for step in run.steps})
        print(f"  weights {stage_seconds(run, 'weights'):.1f} s; start and stop of Ray, and the rest {whole_s - steps_s:.1f} s")
        print_row("second run, all steps cached", second_s, 3.0, "<= 3 s")
        print(f"second run {'imported Ray, which it must not do' if ray_imported else 'did not import Ray'}")


def settings(args: argparse.Namespace, workdir: str) -> Config:
    return parse_config(
        {
            "workdir": workdir,
            "generalist": {"paths": [corpus_file()], "limit": args.documents},
            "specialists": {"recipes": {"paths": [corpus_file(SPECIALIST)]}},
            "prepare": {"part_documents": max(64, args.documents // 32)},
            "window": {"tokens": args.tokens},
            "embed": {"model": args.model, "max_tokens": args.tokens, "precision": "fp32"},
            "cluster": {"branching": 16, "depth": 2},
            "sample": {"budget_tokens": args.documents * 100, "shard_bytes": 4 << 20},
        }
    )


def curate_alone(config: Config) -> PipelineGraph:
    """Run `curate()` without its printed summary; return the run."""
    with own_ray(), contextlib.redirect_stdout(io.StringIO()):
        return curate(config)


def second_run(config: Config) -> tuple[float, bool]:
    """Return the seconds of `jobs/curate.py` in a new process, and whether it imported Ray."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config.model_dump(mode="json"), file)
        file.flush()
        command = [sys.executable, "-c", _JOB, "jobs/curate.py", "--config", file.name]
        seconds, done = timed(subprocess.run, command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return seconds, done.stdout.splitlines()[-1] == "True"


def bare_kernels(config: Config, run: PipelineGraph) -> dict[str, float]:
    """Return the seconds of each kernel, by the stage that does the same work."""
    seconds = {}
    corpora = (config.generalist, *config.specialists.values())
    seconds["prepare"], windows = timed(lambda: [read_and_cut(config, corpus.paths[0], corpus.limit) for corpus in corpora])
    if embedders.get_fit_input(config.embed) == "model":
        folder = Folder(f"{config.workdir}/bare")
        seconds["embedder"], _ = timed(embedders.fit, config.embed, seed=config.seed, folder=folder)
        encode = static_encode(folder)
    else:
        encode = sentence_transformer(config.embed, "fp32", CORES)
    encode(windows[0][:32])
    seconds["embed"], vectors = timed(lambda: [encode(texts).astype(np.float16) for texts in windows])
    x_ND = vectors[0][np.isfinite(vectors[0]).all(axis=1)]
    key_N = window_keys([str(number) for number in range(len(x_ND))], [0] * len(x_ND))
    seconds["cluster"], tree = timed(fit_tree, x_ND, key_N, **config.cluster.identity(), seed=config.seed, threads=CORES)
    seconds["assign"], _ = timed(lambda: [tree.descend(np.nan_to_num(part), threads=CORES) for part in vectors])
    seconds["sample"], _ = timed(rewrite, shard_files(run), f"{config.workdir}/rewritten")
    return seconds


def read_and_cut(config: Config, path: str, limit: int | None) -> list[str]:
    """Return the windows of a file: datatrove's reader, the tokenizer on all cores, and a cut every `window.tokens`."""
    from datatrove.pipeline.readers import JsonlReader
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"], os.environ["RAYON_NUM_THREADS"] = "true", str(CORES)
    tokenizer = Tokenizer.from_file(embedders.find_tokenizer_file(config.embed))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    folder, name = os.path.split(path)
    texts = [document.text for document in JsonlReader(folder, glob_pattern=name, limit=limit or -1)()]
    windows = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[start : start + _TEXTS_AT_ONCE]
        for text, encoding in zip(some, tokenizer.encode_batch(some, add_special_tokens=False), strict=True):
            starts = [encoding.offsets[token][0] for token in range(config.window.tokens, len(encoding), config.window.tokens)]
            windows += [text[a:b] for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]
    return windows


def static_encode(folder: Folder) -> Callable[[list[str]], Any]:
    """Return `encode` of sentence-transformers' static runtime for the distilled table."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer

    torch.set_num_threads(CORES)
    with np.load(folder.file("static.npz")) as arrays:
        table_VD = arrays["table_VD"].astype(np.float32)
    tokenizer = Tokenizer.from_file(folder.file("tokenizer.json"))
    tokenizer.no_truncation()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table_VD)], device="cpu")
    return lambda texts: model.encode(texts, batch_size=256, normalize_embeddings=True, show_progress_bar=False)


if __name__ == "__main__":
    main()
