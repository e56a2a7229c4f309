"""k-means against scikit-learn's on vectors of real text, and a 16 × 16 tree against flat k-means of 256 centroids.

Vectors come from `--vectors FILE.npy`, or are made of the generalist corpus in $CRISPWRAP_CORPORA (../shared/corpora): tf-idf of
runs of 1,500 characters, LSI to `--dim`, unit length. They are kept in the system's folder for temporary files.

    python benchmarks/kmeans.py --rows 100000 --repeats 3 --threads 2
"""

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import orjson
import zstandard
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from threadpoolctl import threadpool_limits

from pipeline.kmeans import fit_kmeans
from pipeline.tree import fit_tree

CHARACTERS = 1500  # of a run of text; shorter rests are left out


def read_texts(path: Path) -> Iterator[str]:
    with path.open("rb") as raw:
        for line in io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)):
            text = orjson.loads(line)["text"]
            yield from (text[start : start + CHARACTERS] for start in range(0, len(text) - CHARACTERS + 1, CHARACTERS))


def make_vectors(num: int, dim: int) -> np.ndarray:
    """(num, dim) unit vectors of real text, from the file that an earlier run left or from the corpus."""
    path = Path(os.environ.get("CRISPWRAP_CORPORA", "../shared/corpora")) / "generalist.jsonl.zst"
    kept = Path(tempfile.gettempdir()) / f"crispwrap-lsi-{num}-{dim}.npy"
    if kept.exists():
        return np.load(kept)
    if not path.exists():
        sys.exit(f"no corpus at {path}: name its folder in CRISPWRAP_CORPORA, or pass --vectors FILE.npy; nothing was measured")
    print(f"making vectors of {path}, a minute or two", flush=True)
    texts = list(islice(read_texts(path), num))
    counts = HashingVectorizer(
        n_features=1 << 15, alternate_sign=False, stop_words="english", norm=None, dtype=np.float32
    ).transform(texts)
    tfidf = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    lsi = TruncatedSVD(dim, n_iter=2, random_state=0).fit(tfidf[::5])
    x_ND = lsi.transform(tfidf).astype(np.float32)
    x_ND /= np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
    np.save(kept, x_ND)
    return x_ND


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, help=".npy of (N, D); made of the corpora where absent")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384, help="of vectors that are made")
    parser.add_argument("--branching", type=int, default=16, help="of the tree; k is its square")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    x_ND = np.load(args.vectors)[: args.rows] if args.vectors else make_vectors(args.rows, args.dim)
    x_ND, k = x_ND.astype(np.float32), args.branching**2
    key_N = np.arange(len(x_ND), dtype=np.uint64)
    names = ("ours", "scikit-learn", "tree")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    objective: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(args.repeats):  # interleaved, so that a busy machine slows all of them
        start = time.perf_counter()
        fit = fit_kmeans(x_ND, k=k, key_N=key_N, seed=seed, threads=args.threads)
        seconds["ours"].append(time.perf_counter() - start)
        objective["ours"].append(fit.objective)

        start = time.perf_counter()
        with threadpool_limits(args.threads):
            rival = KMeans(k, init="k-means++", n_init=1, random_state=seed).fit(x_ND)
        seconds["scikit-learn"].append(time.perf_counter() - start)
        objective["scikit-learn"].append(float(rival.inertia_))

        start = time.perf_counter()
        tree = fit_tree(
            x_ND,
            key_N,
            branching=args.branching,
            depth=2,
            fit_windows=len(x_ND),
            steps=20,
            balance=1.5,
            min_windows=32,
            seed=seed,
            threads=args.threads,
        )
        seconds["tree"].append(time.perf_counter() - start)
        objective["tree"].append(float(tree.descend(x_ND)[1].sum(dtype=np.float64)))
        print(f"seed {seed}: {fit.steps} steps against {rival.n_iter_}; tree of {tree.num_leaves} leaves", flush=True)

    print(f"{len(x_ND)} rows, D = {x_ND.shape[1]}, k = {k}, {args.threads} threads; median of {args.repeats}")
    print(f"{'':<36}{'ours':>12}{'rival':>12}{'ratio':>8}  target")
    for what, values, ours, other, target in (
        ("objective / scikit-learn", objective, "ours", "scikit-learn", 1.01),
        ("seconds / scikit-learn", seconds, "ours", "scikit-learn", 1.0),
        ("objective of tree / flat", objective, "tree", "ours", 1.10),
        ("seconds of tree / flat", seconds, "tree", "ours", None),
    ):
        a, b = statistics.median(values[ours]), statistics.median(values[other])
        print(f"{what:<36}{a:>12.5g}{b:>12.5g}{a / b:>8.3f}  {'' if target is None else f'<= {target}'}")


if __name__ == "__main__":
    main()
