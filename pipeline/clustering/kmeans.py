"""k-means with NumPy: bit-identical for any number of threads (see `pipeline.clustering.assignment`).

Shapes: N rows, D width, K centroids, M rows of a batch, B rows of a block, T candidates for a seed, U distinct rows, E rows or
centroids to change, P slots of a balanced assignment, L rows of one label.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F32, F64, I64
from pipeline.clustering.assignment import BlockMap, block_map, blocks, half_sq_norms, sq_dists, to_float32
from pipeline.hashing import keyed_hash

_SEED_ROWS = 32  # rows per centroid for seeding; at least 4,096 in all
_SEED_DIM = 64  # width of the random projection for seeding
_DECAY = 0.8  # factor on the sums of earlier batches in a balanced step
_CLOSING_STEPS = 50  # full Lloyd steps at most
_CLOSING_GAIN = 2e-4  # stop when a full step lowers the objective by a smaller share


@dataclass(frozen=True)
class KMeansFit:
    """K centroids, and the unbalanced assignment of the fitting rows to them."""

    centroid_KD: F32
    count_K: I64  # fitting rows
    sq_dist_K: F64  # mean squared distance of the rows to their centroid
    steps: int  # balanced and closing steps
    moved_share: float  # share of rows that balancing moved in its last step
    objective: float  # sum of squared distances


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
    """Fit k-means to float16 or float32 rows. The result does not depend on the order of the rows and their keys.

    As in CRISP (arXiv 2410.03735, appendix): k-means++, then `steps` EM steps, each on a new batch in the order of the hashed keys.
    In these steps a centroid with more than `balance` times the even share of rows gives the excess to the smallest centroids. Then
    unbalanced Lloyd steps on all rows, until a step lowers the objective by less than 0.02%. No centroid is left empty. Fewer than
    `k` distinct rows give fewer centroids.

    Raises:
        ValueError: no rows, a row that is not finite, keys that do not match the rows, or a setting out of range (k < 1, steps < 0,
            balance <= 1, threads < 1).
    """
    if x_ND.ndim != 2 or len(x_ND) == 0 or key_N.shape != (len(x_ND),):
        raise ValueError(f"fitting takes rows (N, D) and their keys (N,), N > 0; got {x_ND.shape} and {key_N.shape}")
    if k < 1 or steps < 0 or not balance > 1 or threads < 1:
        raise ValueError(f"fitting takes k, threads >= 1, steps >= 0, balance > 1; got {k=}, {threads=}, {steps=}, {balance=}")
    if num_bad := np.count_nonzero(~np.isfinite(x_ND).all(axis=1)):
        raise ValueError(f"{num_bad} of {len(x_ND)} rows are not finite; leave them out of the fit")
    order_N = np.argsort(keyed_hash(key_N, seed=seed, purpose="kmeans order"), kind="stable")
    x_ND = to_float32(x_ND[order_N])
    sq_N = np.einsum("nd,nd->n", x_ND, x_ND)
    rng = np.random.default_rng(keyed_hash(key_N[order_N[:1]], seed=seed, purpose="kmeans seeds"))
    with block_map(threads) as run:
        seed_K = _seed_rows(x_ND, k, rng)
        if len(seed_K) < k:
            seed_K = _distinct_rows(x_ND, k, seed_K)
        if len(seed_K) < k:
            steps = 0  # one centroid per distinct row is exact: balancing could only move it
        lloyd = _Lloyd(run, x_ND, sq_N, x_ND[seed_K])
        moved_share = lloyd.balanced_steps(steps, balance)
        return lloyd.fit(steps + lloyd.closing_steps(), moved_share)


def _seed_rows(x_ND: F32, k: int, rng: np.random.Generator) -> I64:
    """Rows chosen by greedy k-means++ (Arthur & Vassilvitskii 2007); fewer than `k` if the rows are not distinct enough.

    It reads only the first rows, in a random projection: seeds merely start the EM steps, and seeding on all rows at full width
    would cost more than all EM steps together.
    """
    sample_MD = x_ND[: max(_SEED_ROWS * k, 4096)]
    if x_ND.shape[1] > _SEED_DIM:
        sample_MD = sample_MD @ rng.standard_normal((x_ND.shape[1], _SEED_DIM), dtype=np.float32)
    sq_M = np.einsum("md,md->m", sample_MD, sample_MD)
    chosen = [int(rng.integers(len(sample_MD)))]
    left_M = _sq_dists_to(sample_MD, sq_M, np.array(chosen))[0]
    trials = 2 + int(np.log(k))
    while len(chosen) < k and (total_M := np.cumsum(left_M, dtype=np.float64))[-1] > 0:
        candidate_T = np.searchsorted(total_M, rng.random(trials) * total_M[-1], side="right")
        left_TM = np.minimum(_sq_dists_to(sample_MD, sq_M, candidate_T), left_M)
        best = int(left_TM.sum(axis=1).argmin())
        chosen.append(int(candidate_T[best]))
        left_M = left_TM[best]
    return np.array(chosen)


def _sq_dists_to(x_MD: F32, sq_M: F32, candidate_T: I64) -> F32:
    """(T, M) squared distances to the candidates; 0 where they are within rounding error of 0."""
    sq_dist_TM = (-2 * x_MD[candidate_T]) @ x_MD.T
    sq_dist_TM += sq_M
    sq_dist_TM += sq_M[candidate_T, None]
    sq_dist_TM[sq_dist_TM <= 1e-5 * sq_M] = 0
    return sq_dist_TM


def _distinct_rows(x_ND: F32, k: int, seed_K: I64) -> I64:
    """`k` distinct rows that include `seed_K`; or one of each distinct row, if there are fewer than `k`."""
    byte_N = np.ascontiguousarray(x_ND + np.float32(0)).view(np.dtype((np.void, 4 * x_ND.shape[1]))).ravel()  # -0 becomes 0
    _, first_U, kind_N = np.unique(byte_N, return_index=True, return_inverse=True)
    other_U = np.setdiff1d(first_U, first_U[kind_N[seed_K]])
    return np.concatenate([seed_K, other_U[: k - len(seed_K)]])


class _Lloyd:
    """The state of a fit: centroids, and the rows that they are fitted to."""

    def __init__(self, run: BlockMap, x_ND: F32, sq_N: F32, centroid_KD: F32) -> None:
        self.run, self.x_ND, self.sq_N, self.centroid_KD = run, x_ND, sq_N, centroid_KD

    def assign(self, rows: slice) -> tuple[I64, F32]:
        """(M,) nearest centroids of a slice of rows, and (M,) squared distances to them."""
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
        """(K, D) sums of the rows of each label. One thread adds all rows of a label, so the order of additions is fixed."""
        sum_KD, end_K = np.zeros(self.centroid_KD.shape), np.cumsum(np.bincount(label_M, minlength=len(self.centroid_KD)))
        row_M = row_M[np.argsort(label_M, kind="stable")]

        def sum_label(label: int) -> None:
            row_L = row_M[end_K[label - 1] if label else 0 : end_K[label]]
            for block in blocks(len(row_L)):
                sum_KD[label] += np.add.reduce(self.x_ND[row_L[block]], axis=0)

        list(self.run(sum_label, np.unique(label_M)))
        return sum_KD

    def balanced_steps(self, steps: int, balance: float) -> float:
        """Run EM steps, each on a new batch; return the share of the last batch that balancing moved."""
        k, moved_share = len(self.centroid_KD), 0.0
        sum_KD, count_K = self.centroid_KD.astype(np.float64), np.ones(k)  # a seed counts as one row
        for batch in blocks(len(self.x_ND), -(-len(self.x_ND) // max(steps, 1)))[:steps]:
            nearest_M, _ = self.assign(batch)
            label_M = _balance_labels(nearest_M, k, balance)
            moved_share = float(np.mean(label_M != nearest_M))
            sum_KD = _DECAY * sum_KD + self.sums(np.arange(batch.start, batch.stop), label_M)
            count_K = _DECAY * count_K + np.bincount(label_M, minlength=k)
            self.centroid_KD = (sum_KD / count_K[:, None]).astype(np.float32)
        return moved_share

    def closing_steps(self) -> int:
        """Run Lloyd steps on all rows until a step gains little and no centroid is empty; return their number.

        Only rows that change their centroid update the sums. Skipping rows by bounds (Hamerly 2010) does not help at these widths:
        90% of the rows must still be checked, although after ten steps only 2% move.
        """
        k, rows, last = len(self.centroid_KD), slice(0, len(self.x_ND)), np.inf
        self.label_N, sq_dist_N = self.assign(rows)
        sum_KD, step = self.sums(np.arange(rows.stop), self.label_N), 0
        while True:
            empty_E = np.flatnonzero(np.bincount(self.label_N, minlength=k) == 0)
            objective = float(sq_dist_N.sum(dtype=np.float64))
            done = step >= _CLOSING_STEPS or objective > (1 - _CLOSING_GAIN) * last
            if (done and not len(empty_E)) or step >= _CLOSING_STEPS + k:  # each step fills at least one empty centroid
                return step
            label_N = self.label_N.copy()
            label_N[np.argsort(-sq_dist_N, kind="stable")[: len(empty_E)]] = empty_E  # the farthest rows, one per empty centroid
            self.relabel(sum_KD, label_N)
            count_K = np.bincount(self.label_N, minlength=k)
            self.centroid_KD = (sum_KD / np.maximum(count_K, 1)[:, None]).astype(np.float32)
            label_N, sq_dist_N = self.assign(rows)
            self.relabel(sum_KD, label_N)
            last, step = objective, step + 1

    def relabel(self, sum_KD: F64, label_N: I64) -> None:
        """Set the labels, and update the sums by the rows whose label changed."""
        row_M = np.flatnonzero(label_N != self.label_N)
        sum_KD += self.sums(row_M, label_N[row_M]) - self.sums(row_M, self.label_N[row_M])
        self.label_N = label_N

    def fit(self, steps: int, moved_share: float) -> KMeansFit:
        """The result. Distances are computed from difference vectors, which avoids cancellation; empty centroids are dropped."""
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
            moved_share=moved_share,
            objective=float(sum_K.sum()),
        )


def _balance_labels(label_M: I64, k: int, balance: float) -> I64:
    """(M,) labels after each centroid with more than `balance` times the even share gave its excess to the smallest centroids.

    Rows are in hash order, so the last rows of a centroid are a random choice. The excess of one centroid stays together: rows from
    many centroids would pull the receiving one to the mean of all rows, where it is the nearest centroid of no row.
    """
    count_K, limit = np.bincount(label_M, minlength=k), int(np.ceil(balance * len(label_M) / k))
    order_M = np.argsort(label_M, kind="stable")
    rank_M = np.arange(len(label_M)) - np.repeat(np.cumsum(count_K) - count_K, count_K)
    excess_E = order_M[rank_M >= limit]
    place_P = np.arange(k * limit)  # slots, emptiest level first: slot p is the (p // k)-th row of centroid p % k
    free_P = place_P[place_P // k >= count_K[place_P % k]]
    label_M = label_M.copy()
    label_M[excess_E] = np.sort(free_P[: len(excess_E)] % k)
    return label_M
