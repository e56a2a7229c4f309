"""Prompts through `generate` (vLLM on Ray, results stored as Parquet) against plain `vllm.LLM.chat`: same prompts, same engine.

The model is the tiny random Llama of the tests. It computes so little that the benchmark measures the overhead around the engine.
Passages are real text. The two sides run in turn, each in a separate process; engine start and warm-up are not measured on either.

    python benchmarks/rephrase.py --prompts 6144 --repeats 3
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from corpus import own_ray, print_head, print_row, read_texts

from pipeline import config
from pipeline.engine import Engine
from pipeline.engine.llm_io import Answer, Failure, Request

ROOT = str(Path(__file__).parent.parent)
ENGINE: dict[str, Any] = {"enforce_eager": True, "max_model_len": 1024, "kv_cache_memory_bytes": 1 << 30, "disable_log_stats": True}
SAMPLING: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
WARM = "0.parquet"
TASK = "Rewrite the following passage in plain words, as an encyclopedia would put it."


def requests(num: int, max_tokens: int) -> list[Request]:
    """Return one request per passage of 200 to 600 characters; the maximum lengths of the answers vary."""
    made: list[Request] = []
    for text in read_texts():
        passage = " ".join(text.split())[:600]
        if len(passage) >= 200 and passage.isascii():  # the tiny tokenizer makes each byte of other scripts a token
            content = f"{TASK}\n\n{passage}"
            made.append(Request(len(made), [{"role": "user", "content": content}], max_tokens // 2 + len(made) % (max_tokens // 2)))
        if len(made) == num:
            return made
    return sys.exit(f"the corpus has only {len(made)} passages; set --prompts lower")


def read_block(block: Sequence[Request], folder: str) -> Sequence[Request]:
    """Return the block. The first block runs alone, as a warm-up; the others wait until it is stored."""
    while block[0].key and not os.path.exists(os.path.join(folder, WARM)):
        time.sleep(0.02)
    return block


def store(answers: Sequence[Answer], failures: Sequence[Failure], folder: str) -> tuple[int, float]:
    """Write the answers to a file; return the number of output tokens and the time at which the file existed."""
    assert not failures, failures
    columns = ("key", "text", "finish_reason", "prompt_tokens", "output_tokens")
    table = pa.table({name: [getattr(answer, name) for answer in answers] for name in columns})
    path = os.path.join(folder, f"{answers[0].key}.parquet")
    pq.write_table(table, f"{path}.part", compression="zstd")
    os.replace(f"{path}.part", path)
    return sum(answer.output_tokens for answer in answers), time.time()


def cpu_seconds() -> float:
    """Return the CPU time of this process and its children, including Ray and the engine. Load affects it less than wall time."""
    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in tree if process.is_running())


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """Measure from the time at which the first block is stored to the time at which the last one is."""
    import rephrase as here  # Ray's workers find the functions by this name

    from pipeline.engine.generation import generate

    asked = requests(args.prompts + args.batch, args.tokens)
    blocks = [asked[i : i + args.batch] for i in range(0, len(asked), args.batch)]
    settings = config.Rephrase(model=args.model, engine=ENGINE, sampling=SAMPLING, batch=args.batch)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with own_ray(), tempfile.TemporaryDirectory() as folder, Engine(config.Engine()) as engine:
        stored = generate(
            engine,
            blocks,
            read=here.read_block,
            store=here.store,
            settings=settings,
            model=args.model,
            title="rephrase",
            shared=folder,
        )
        _, started = next(stored)
        cpu_s = cpu_seconds()
        rest = [next(stored) for _ in blocks[1:]]
        cpu_s = cpu_seconds() - cpu_s  # before the engine ends, because its CPU time is then lost
        assert next(stored, None) is None
        return {"tokens": sum(tokens for tokens, _ in rest), "seconds": max(at for _, at in rest) - started, "cpu_s": cpu_s}


def bare(args: argparse.Namespace) -> dict[str, Any]:
    import vllm

    llm = vllm.LLM(args.model, **ENGINE)
    asked = requests(args.prompts + args.batch, args.tokens)
    params = [vllm.SamplingParams(**SAMPLING, max_tokens=request.max_tokens) for request in asked]
    messages: list[Any] = [request.messages for request in asked]
    llm.chat(messages[: args.batch], params[: args.batch], use_tqdm=False)
    cpu_s, started = cpu_seconds(), time.perf_counter()
    outputs = llm.chat(messages[args.batch :], params[args.batch :], use_tqdm=False)
    seconds = time.perf_counter() - started
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {"tokens": tokens, "seconds": seconds, "cpu_s": cpu_seconds() - cpu_s}


SIDES = {"ours": ours, "bare": bare}


def measured(side: str, args: argparse.Namespace) -> dict[str, float]:
    """Run one side in a separate process and return its output tokens per second of wall time and per core-second."""
    command = [sys.executable, __file__, "--side", side, "--model", args.model]
    command += ["--prompts", str(args.prompts), "--tokens", str(args.tokens), "--batch", str(args.batch)]
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-4000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    rates = {unit: result["tokens"] / result[unit] for unit in ("seconds", "cpu_s")}
    print(f"  {side}: {rates}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=6144)
    parser.add_argument(
        "--tokens", type=int, default=128, help="maximum number of output tokens per prompt; answers have at least half as many"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="", help="folder of a model; default: a tiny random Llama")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(SIDES[args.side](args)))
        return

    with tempfile.TemporaryDirectory() as folder:
        if not args.model:
            sys.path.append(ROOT)
            from tests.support.tiny_llama import make_tiny_llama

            args.model = make_tiny_llama(Path(folder))
        rates: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(args.repeats):
            for side, found in rates.items():
                found.append(measured(side, args))
    print_head(f"output tokens/s of {args.prompts} prompts, batches of {args.batch}, median of {args.repeats}")
    for unit, what, target in (("seconds", "generate / vllm.LLM.chat", ">= 0.9"), ("cpu_s", "the same, per core-second", "")):
        median = {side: statistics.median(rate[unit] for rate in found) for side, found in rates.items()}
        print_row(what, median["ours"], median["bare"], target)


if __name__ == "__main__":
    main()
