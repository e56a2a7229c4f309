"""Greedy descent through a 64 × 64 tree, against exact search over its leaves (faiss) and against sgemm with the same flops.

The centroids of the tree and the rows are random unit vectors with a fixed seed: the speed does not depend on their values.

    python benchmarks/assign.py --rows 200000 --threads 2
"""

import argparse

import faiss
import numpy as np
from corpus import interleaved, print_head, print_row
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.clustering.kmeans import KMeansFit
from pipeline.clustering.tree import Tree


def unit_rows(rng: np.random.Generator, num: int, dim: int) -> NDArray[np.float32]:
    x_ND = rng.standard_normal((num, dim), dtype=np.float32)
    return np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True))


def random_tree(rng: np.random.Generator, branching: int, dim: int) -> Tree:
    """Return a tree with two levels; the children of a node are near it."""

    def fit(middle_D: np.ndarray, spread: float) -> KMeansFit:
        centroid_KD = middle_D + np.float32(spread) * unit_rows(rng, branching, dim)
        return KMeansFit(centroid_KD, np.ones(branching, np.int64), np.zeros(branching), 0, 0.0, 0.0)

    tree = Tree.root_only(1.0, dim).grow({0: fit(np.zeros(dim, np.float32), 1.0)})
    return tree.grow({node: fit(tree.centroid_VD[node], 0.5) for node in tree.children(0)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=131_072)
    parser.add_argument(
        "--faiss-rows", type=int, default=16_384, help="number of rows that faiss searches; its rate does not depend on it"
    )
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--branching", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    tree = random_tree(rng, args.branching, args.dim)
    x_ND = tree.centroid_VD[rng.choice(tree.leaf_nodes, args.rows)] + np.float32(0.7) * unit_rows(rng, args.rows, args.dim)
    x16_ND, some_ND = x_ND.astype(np.float16), x_ND[: args.faiss_rows]
    child_DK = np.ascontiguousarray(tree.centroid_VD[1 : 1 + args.branching].T)
    out_NK = np.empty((args.rows, args.branching), np.float32)
    index = faiss.IndexFlatL2(args.dim)
    index.add(tree.centroid_VD[tree.leaf_nodes])
    faiss.omp_set_num_threads(args.threads)

    def sgemm_twice() -> None:
        with threadpool_limits(args.threads):
            np.matmul(x_ND, child_DK, out=out_NK)
            np.matmul(x_ND, child_DK, out=out_NK)

    works = {
        "descend": lambda: tree.descend(x_ND, threads=args.threads),
        "descend float16": lambda: tree.descend(x16_ND, threads=args.threads),
        "faiss": lambda: index.search(some_ND, 1),
        "sgemm": sgemm_twice,
    }
    interleaved(1, *works.values())  # warm-up
    seconds = dict(zip(works, interleaved(args.repeats, *works.values()), strict=True))
    rate = {name: (args.faiss_rows if name == "faiss" else args.rows) / taken for name, taken in seconds.items()}

    shape = f"{args.branching} x {args.branching} tree"
    print_head(f"windows/s for {args.rows} rows, D = {args.dim}, {shape}, {args.threads} threads, median of {args.repeats}")
    for ours in ("descend", "descend float16"):
        print_row(f"{ours} / faiss exact search", rate[ours], rate["faiss"], ">= 8")
        print_row(f"{ours} / sgemm with the same flops", rate[ours], rate["sgemm"], ">= 0.4")
    print(f"descend runs at {rate['descend'] * 4e-9 * args.dim * args.branching:.1f} GFLOP/s")


if __name__ == "__main__":
    main()
