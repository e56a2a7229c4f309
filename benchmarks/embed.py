"""Embedders against other implementations, on windows of real text.

    python benchmarks/embed.py --model bundled:all-MiniLM-L6-v2 --rows 128 --tokens 256

The text is CRISPWRAP_CORPORA/generalist.jsonl.zst (default ../shared/corpora). Results are medians of interleaved runs (ours,
baseline, ours, baseline), so that another process on the machine slows both.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

from corpus import interleaved, print_head, print_row, read_windows

from pipeline import embedders
from pipeline.config import Embed
from pipeline.execution.cpu import processor_has_bf16
from pipeline.storage import Folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled:all-MiniLM-L6-v2")
    parser.add_argument(
        "--rows", type=int, default=128, help="number of windows for the model; the static embedder gets 16 times as many"
    )
    parser.add_argument("--tokens", type=int, default=256, help="maximum number of tokens per window")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--static-folder", help="store the distilled table in this folder and reuse it")
    args = parser.parse_args()
    cfg = Embed(model=args.model, batch_size=args.batch_size)
    windows = read_windows(embedders.find_tokenizer_file(cfg), args.rows * 16, args.tokens)
    rows = windows[: args.rows]

    model = embedders.load(cfg, None, threads=args.threads)
    print(f"{model.hardware['device']}, precision auto is {model.hardware['precision']}")
    print_head(f"{len(rows)} windows of at most {args.tokens} tokens, {args.threads} threads, median of {args.runs}")
    bare = sentence_transformer(cfg, model.hardware["precision"], args.threads)
    ours_s, bare_s = interleaved(args.runs, lambda: model.encode(rows), lambda: bare(rows))
    print_row("windows/s / plain SentenceTransformer", len(rows) / ours_s, len(rows) / bare_s, ">= 0.95")

    fp32 = embedders.load(cfg.model_copy(update={"precision": "fp32"}), None, threads=args.threads)
    half = embedders.load(cfg.model_copy(update={"precision": "bf16"}), None, threads=args.threads)
    native = processor_has_bf16() or model.hardware["precision"] != "fp32"
    few = rows[:32] if native else rows[:4]  # emulation takes seconds per window
    half_s, fp32_s = interleaved(args.runs, lambda: half.encode(few), lambda: fp32.encode(few))
    cosine = float((half.encode(few) * fp32.encode(few)).sum(axis=1).min())
    target = ">= 1.8, cosine >= 0.999" if native else "none: emulated, this processor has no bf16 and auto is fp32"
    print_row(f"windows/s, bf16 / fp32 (cosine >= {cosine:.5f})", len(few) / half_s, len(few) / fp32_s, target)

    static_cfg = Embed(model=f"static:{args.model}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Folder(args.static_folder or temporary)
        if not folder.names():
            started = time.perf_counter()
            embedders.fit(static_cfg, seed=0, folder=folder)
            print(f"distilled in {time.perf_counter() - started:.0f} s on one core")
        # A new embedder for each run, so that its cache of words is empty.
        fresh = [embedders.load(static_cfg, folder, threads=args.threads) for _ in range(args.runs)]
    static_s, model_s = interleaved(args.runs, lambda: fresh.pop().encode(windows), lambda: model.encode(rows))
    print_row(f"windows/s, static / {args.model.split(':')[-1]}", len(windows) / static_s, len(rows) / model_s, ">= 50")


def sentence_transformer(cfg: Embed, precision: str, threads: int) -> Callable[[list[str]], Any]:
    """Return the baseline: the library's own `encode`, used as in its documentation, with the same precision."""
    import torch
    from sentence_transformers import SentenceTransformer

    from pipeline.embedders.base_model import find_model_folder

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    torch.set_num_threads(threads)
    model = SentenceTransformer(find_model_folder(cfg)).float()
    model.max_seq_length = cfg.max_tokens
    on_cpu = model.device.type == "cpu"
    if not on_cpu:
        model.to(dtype)

    def encode(texts: list[str]) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on_cpu and precision == "bf16"):
            return model.encode(texts, batch_size=cfg.batch_size, normalize_embeddings=True, show_progress_bar=False)

    return encode


if __name__ == "__main__":
    main()
