"""k-means against scikit-learn's on vectors of real text, and a 16 × 16 tree against flat k-means with 256 centroids.

Vectors are read from `--vectors FILE.npy`, or computed from the generalist corpus in $CRISPWRAP_CORPORA (../shared/corpora): tf-idf
of chunks of 1,500 characters, LSI with `--dim` dimensions, unit length. They are kept in the system's folder for temporary files.

    python benchmarks/kmeans.py --rows 100000 --repeats 3 --threads 2
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from corpus import corpus_file, print_head, print_row, read_texts, timed
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from threadpoolctl import threadpool_limits

from pipeline.clustering.kmeans import fit_kmeans
from pipeline.config import Cluster

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support.tree_oracle import fit_tree

CHARACTERS = 1500  # per chunk of text; a shorter rest of a document is not used


def read_runs() -> Iterator[str]:
    """Yield chunks of `CHARACTERS` characters from the documents, in order."""
    for text in read_texts():
        yield from (text[start : start + CHARACTERS] for start in range(0, len(text) - CHARACTERS + 1, CHARACTERS))


def make_vectors(num: int, dim: int) -> NDArray[np.float32]:
    """Return (num, dim) unit vectors of real text, from the file of an earlier run or computed from the corpus."""
    kept = Path(tempfile.gettempdir()) / f"crispwrap-lsi-{num}-{dim}.npy"
    if kept.exists():
        return np.asarray(np.load(kept), np.float32)
    print(f"computing vectors from {corpus_file()}; this takes a minute or two", flush=True)
    texts = list(islice(read_runs(), num))
    counts = HashingVectorizer(
        n_features=1 << 15, alternate_sign=False, stop_words="english", norm=None, dtype=np.float32
    ).transform(texts)
    tfidf = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    lsi = TruncatedSVD(dim, n_iter=2, random_state=0).fit(tfidf[::5])
    x_ND = lsi.transform(tfidf).astype(np.float32)
    x_ND /= np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
    np.save(kept, x_ND)
    return np.asarray(x_ND)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, help=".npy file with an (N, D) array; default: computed from the corpora")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384, help="dimension of computed vectors")
    parser.add_argument("--branching", type=int, default=16, help="branching factor of the tree; k is its square")
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
        taken, fit = timed(fit_kmeans, x_ND, k=k, key_N=key_N, seed=seed, threads=args.threads)
        seconds["ours"].append(taken)
        objective["ours"].append(fit.objective)

        with threadpool_limits(args.threads):
            taken, rival = timed(KMeans(k, init="k-means++", n_init=1, random_state=seed).fit, x_ND)
        seconds["scikit-learn"].append(taken)
        objective["scikit-learn"].append(float(rival.inertia_))

        settings = Cluster(branching=args.branching, depth=2, fit_windows=len(x_ND)).identity()
        taken, tree = timed(fit_tree, x_ND, key_N, **settings, seed=seed, threads=args.threads)
        seconds["tree"].append(taken)
        objective["tree"].append(float(tree.descend(x_ND)[1].sum(dtype=np.float64)))
        print(f"seed {seed}: {fit.steps} iterations, scikit-learn {rival.n_iter_}; tree with {tree.num_leaves} leaves", flush=True)

    print_head(f"{len(x_ND)} rows, D = {x_ND.shape[1]}, k = {k}, {args.threads} threads, median of {args.repeats}")
    for what, values, ours, other, target in (
        ("objective / scikit-learn", objective, "ours", "scikit-learn", "<= 1.01"),
        ("seconds / scikit-learn", seconds, "ours", "scikit-learn", "<= 1"),
        ("objective of tree / flat", objective, "tree", "ours", "<= 1.10"),
        ("seconds of tree / flat", seconds, "tree", "ours", ""),
    ):
        print_row(what, statistics.median(values[ours]), statistics.median(values[other]), target)


if __name__ == "__main__":
    main()
