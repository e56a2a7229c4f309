"""k-means on NumPy: the same bits for any number of threads (see `pipeline.clustering.assignment`).

Shapes: N rows, D width, K centroids, M rows of a batch, P pairs of a row and a centroid.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F32, F64, I64
from pipeline.clustering.assignment import BlockMap, block_map, blocks, half_sq_norms, sq_dists, widen
from pipeline.hashing import keyed_hash

_SEED_ROWS = 32  # rows a centroid that seeding looks at, but 4,096 at the least
_SEED_DIM = 64  # width that seeding projects to
_MEMORY = 0.8  # how much of the batches before a balanced step keeps
_CLOSING_STEPS = 50  # most full Lloyd steps
_CLOSING_GAIN = 2e-4  # stop when a full step lowers the objective by less than this part of it


@dataclass(frozen=True)
class KMeansFit:
    """K centroids, and how the fitting sample falls to them when nothing is balanced."""

    centroid_KD: F32
    count_K: I64
    sq_dist_K: F64
    steps: int
    moved: float
    objective: float


def fit_kmeans(
    x_ND: NDArray[Any],
    *,
    k: int,
    key_N: NDArray[np.uint64],
    seed: int,
    steps: int = 20,
    balance: float = 1.5,
    threads: int = 1,
) -> KMeansFit:
    """k-means of float16 or float32 rows: the same for rows in any order, as long as their keys travel with them.

    As CRISP does (arXiv 2410.03735, appendix), k-means++ and `steps` EM steps, each on a fresh batch in the order of the
    hashed keys; in these a centroid that holds more than `balance` even shares gives the excess to the smallest. Then Lloyd steps
    on all rows, unbalanced, until one gains less than 0.02%. No centroid is left empty; fewer than `k` distinct rows give
    fewer centroids.

    Raises:
        ValueError: no rows, a row that is not finite, keys that do not match the rows, or k < 1.
    """
    if x_ND.ndim != 2 or len(x_ND) == 0 or key_N.shape != (len(x_ND),):
        raise ValueError(f"fitting takes rows (N, D) and their keys (N,), N > 0; got {x_ND.shape} and {key_N.shape}")
    if k < 1 or steps < 0 or not balance > 1 or threads < 1:
        raise ValueError(f"fitting takes k, threads >= 1, steps >= 0, balance > 1; got {k=}, {threads=}, {steps=}, {balance=}")
    if num_bad := np.count_nonzero(~np.isfinite(x_ND).all(axis=1)):
        raise ValueError(f"{num_bad} of {len(x_ND)} rows are not finite; leave them out of the fit")
    order_N = np.argsort(keyed_hash(key_N, seed=seed, purpose="kmeans order"), kind="stable")
    x_ND = widen(x_ND[order_N])
    sq_N = np.einsum("nd,nd->n", x_ND, x_ND)
    rng = np.random.default_rng(keyed_hash(key_N[order_N[:1]], seed=seed, purpose="kmeans seeds"))
    with block_map(threads) as run:
        seed_K = _seed_rows(x_ND, k, rng)
        if len(seed_K) < k:
            seed_K = _distinct_rows(x_ND, k, seed_K)
        if len(seed_K) < k:
            steps = 0  # a centroid for each kind of row: balancing could only spoil it
        lloyd = _Lloyd(run, x_ND, sq_N, x_ND[seed_K])
        moved = lloyd.balanced_steps(steps, balance)
        return lloyd.fit(steps + lloyd.closing_steps(), moved)


def _seed_rows(x_ND: F32, k: int, rng: np.random.Generator) -> I64:
    """Rows chosen by greedy k-means++ (Arthur & Vassilvitskii 2007); fewer than `k` where no other row lies apart.

    On the first rows and a random projection of them: seeds only start the EM steps, and at full width and length they would
    cost more than all of these.
    """
    sample_MD = x_ND[: max(_SEED_ROWS * k, 4096)]
    if x_ND.shape[1] > _SEED_DIM:
        sample_MD = sample_MD @ rng.standard_normal((x_ND.shape[1], _SEED_DIM), dtype=np.float32)
    sq_M = np.einsum("md,md->m", sample_MD, sample_MD)
    chosen = [int(rng.integers(len(sample_MD)))]
    left_M = _left(sample_MD, sq_M, np.array(chosen))[0]
    trials = 2 + int(np.log(k))
    while len(chosen) < k and (total_M := np.cumsum(left_M, dtype=np.float64))[-1] > 0:
        candidate_T = np.searchsorted(total_M, rng.random(trials) * total_M[-1], side="right")
        left_TM = np.minimum(_left(sample_MD, sq_M, candidate_T), left_M)
        best = int(left_TM.sum(axis=1).argmin())
        chosen.append(int(candidate_T[best]))
        left_M = left_TM[best]
    return np.array(chosen)


def _left(x_MD: F32, sq_M: F32, candidate_T: I64) -> F32:
    """(T, M) squared distances to candidates; 0 where rounding cannot tell them from 0."""
    sq_dist_TM = (-2 * x_MD[candidate_T]) @ x_MD.T
    sq_dist_TM += sq_M
    sq_dist_TM += sq_M[candidate_T, None]
    sq_dist_TM[sq_dist_TM <= 1e-5 * sq_M] = 0
    return sq_dist_TM


def _distinct_rows(x_ND: F32, k: int, seed_K: I64) -> I64:
    """`k` rows that all differ, the given ones among them; or one of each kind, if there are fewer kinds."""
    byte_N = np.ascontiguousarray(x_ND + np.float32(0)).view(np.dtype((np.void, 4 * x_ND.shape[1]))).ravel()  # -0 becomes 0
    _, first_U, kind_N = np.unique(byte_N, return_index=True, return_inverse=True)
    other_U = np.setdiff1d(first_U, first_U[kind_N[seed_K]])
    return np.concatenate([seed_K, other_U[: k - len(seed_K)]])


class _Lloyd:
    """Centroids, and the rows that they are fitted to."""

    def __init__(self, run: BlockMap, x_ND: F32, sq_N: F32, centroid_KD: F32) -> None:
        self.run, self.x_ND, self.sq_N, self.centroid_KD = run, x_ND, sq_N, centroid_KD

    def assign(self, rows: slice) -> tuple[I64, F32]:
        """(M,) nearest centroids of a run of rows, and the squared distances to them."""
        x_MD, half_sq_K = self.x_ND[rows], half_sq_norms(self.centroid_KD)
        label_M, sq_dist_M = np.empty(len(x_MD), np.int64), self.sq_N[rows].copy()

        def assign_block(block: slice) -> None:
            score_BK = x_MD[block] @ self.centroid_KD.T
            score_BK -= half_sq_K
            label_M[block] = score_BK.argmax(axis=1)
            sq_dist_M[block] -= 2 * score_BK[np.arange(len(score_BK)), label_M[block]]

        list(self.run(assign_block, blocks(len(x_MD))))
        return label_M, sq_dist_M

    def sums(self, row_M: I64, label_M: I64) -> F64:
        """(K, D) sums of the rows of each label; one thread adds all rows of a label, so their order is fixed."""
        sum_KD, end_K = np.zeros(self.centroid_KD.shape), np.cumsum(np.bincount(label_M, minlength=len(self.centroid_KD)))
        row_M = row_M[np.argsort(label_M, kind="stable")]

        def sum_label(label: int) -> None:
            row_L = row_M[end_K[label - 1] if label else 0 : end_K[label]]
            for block in blocks(len(row_L)):
                sum_KD[label] += np.add.reduce(self.x_ND[row_L[block]], axis=0)

        list(self.run(sum_label, np.unique(label_M)))
        return sum_KD

    def balanced_steps(self, steps: int, balance: float) -> float:
        """EM on one fresh batch a step; returns the share of the last batch that balancing moved."""
        k, moved = len(self.centroid_KD), 0.0
        sum_KD, count_K = self.centroid_KD.astype(np.float64), np.ones(k)  # a seed counts as one row
        for batch in blocks(len(self.x_ND), -(-len(self.x_ND) // max(steps, 1)))[:steps]:
            nearest_M, _ = self.assign(batch)
            label_M = _balanced(nearest_M, k, balance)
            moved = float(np.mean(label_M != nearest_M))
            sum_KD = _MEMORY * sum_KD + self.sums(np.arange(batch.start, batch.stop), label_M)
            count_K = _MEMORY * count_K + np.bincount(label_M, minlength=k)
            self.centroid_KD = (sum_KD / count_K[:, None]).astype(np.float32)
        return moved

    def closing_steps(self) -> int:
        """Lloyd's steps on all rows, until one gains little and no centroid is empty; returns how many.

        Only rows that change hands change the sums. Skipping rows by bounds (Hamerly 2010) is no use at these widths: 90% of the
        rows have to be looked at all the same, though after ten steps 2% move.
        """
        k, rows, last = len(self.centroid_KD), slice(0, len(self.x_ND)), np.inf
        self.label_N, sq_dist_N = self.assign(rows)
        sum_KD, step = self.sums(np.arange(rows.stop), self.label_N), 0
        while True:
            empty_E = np.flatnonzero(np.bincount(self.label_N, minlength=k) == 0)
            objective = float(sq_dist_N.sum(dtype=np.float64))
            done = step >= _CLOSING_STEPS or objective > (1 - _CLOSING_GAIN) * last
            if (done and not len(empty_E)) or step >= _CLOSING_STEPS + k:  # a step fills one empty centroid at least
                return step
            label_N = self.label_N.copy()
            label_N[np.argsort(-sq_dist_N, kind="stable")[: len(empty_E)]] = empty_E  # the farthest rows, one each
            self.move(sum_KD, label_N)
            count_K = np.bincount(self.label_N, minlength=k)
            self.centroid_KD = (sum_KD / np.maximum(count_K, 1)[:, None]).astype(np.float32)
            label_N, sq_dist_N = self.assign(rows)
            self.move(sum_KD, label_N)
            last, step = objective, step + 1

    def move(self, sum_KD: F64, label_N: I64) -> None:
        """Hand rows to other centroids, and their share of the sums with them."""
        row_M = np.flatnonzero(label_N != self.label_N)
        sum_KD += self.sums(row_M, label_N[row_M]) - self.sums(row_M, self.label_N[row_M])
        self.label_N = label_N

    def fit(self, steps: int, moved: float) -> KMeansFit:
        """What comes out; sums of distances are taken from differences, which cancel nothing."""
        sq_dist_N = np.empty(len(self.x_ND))

        def measure(block: slice) -> None:
            sq_dist_N[block] = sq_dists(self.x_ND[block], self.centroid_KD, self.label_N[block])

        list(self.run(measure, blocks(len(self.x_ND))))
        count_K = np.bincount(self.label_N, minlength=len(self.centroid_KD))
        sum_K = np.bincount(self.label_N, weights=sq_dist_N, minlength=len(self.centroid_KD))
        full_K = count_K > 0
        return KMeansFit(
            centroid_KD=self.centroid_KD[full_K],
            count_K=count_K[full_K],
            sq_dist_K=sum_K[full_K] / count_K[full_K],
            steps=steps,
            moved=moved,
            objective=float(sum_K.sum()),
        )


def _balanced(label_M: I64, k: int, balance: float) -> I64:
    """The labels after each centroid beyond `balance` even shares gave its excess to the smallest ones.

    Rows are in hash order, so the last rows of a centroid are a random choice. Excess of one centroid stays together: rows from
    everywhere would pull whom they are given to into the middle of all rows, where it is nearest to none.
    """
    count_K, limit = np.bincount(label_M, minlength=k), int(np.ceil(balance * len(label_M) / k))
    order_M = np.argsort(label_M, kind="stable")
    rank_M = np.arange(len(label_M)) - np.repeat(np.cumsum(count_K) - count_K, count_K)
    excess_E = order_M[rank_M >= limit]
    place_P = np.arange(k * limit)  # all places, lowest first: place p is number p // k of centroid p % k
    free_P = place_P[place_P // k >= count_K[place_P % k]]
    label_M = label_M.copy()
    label_M[excess_E] = np.sort(free_P[: len(excess_E)] % k)
    return label_M
