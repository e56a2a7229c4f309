"""Nearest centroid and k-means, on NumPy: the same bits for any number of threads.

Work is cut into fixed blocks; each block runs on one thread of BLAS, and whatever is summed over blocks is summed in their order.

Shapes: N rows, D width, K centroids, B rows of a block, P pairs of a row and a centroid.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from pipeline.hashing import keyed_hash

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
BlockMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]

BLOCK = 1024  # rows of one sgemm: rows, centroids and scores then fit in a core's share of the cache
_SEED_ROWS = 32  # rows a centroid that seeding looks at, but 4,096 at the least
_SEED_DIM = 64  # width that seeding projects to
_MEMORY = 0.8  # how much of the batches before a balanced step keeps
_CLOSING_STEPS = 50  # most full Lloyd steps
_CLOSING_GAIN = 2e-4  # stop when a full step lowers the objective by less than this part of it
_HALF_BIAS = np.float32(2.0**112)  # between the exponents of float16 (15) and float32 (127)


@dataclass(frozen=True)
class KMeansFit:
    """K centroids, and how the fitting sample falls to them when nothing is balanced."""

    centroid_KD: F32
    count_K: I64
    sq_dist_K: F64
    steps: int
    moved: float
    objective: float


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()  # scans the process for libraries, so once


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS on one thread a call: how it splits a product over threads changes the last bits of the result."""
    with _blas().limit(limits=1, user_api="blas"):
        yield


@contextmanager
def block_map(threads: int) -> Iterator[BlockMap]:
    """A `map` that keeps order and runs on `threads` threads, each with one thread of BLAS."""
    with one_blas_thread():
        if threads == 1:
            yield map  # handing work over costs more than a small block does
            return
        with ThreadPoolExecutor(threads) as executor:
            yield executor.map


def blocks(num_rows: int, size: int = BLOCK) -> list[slice]:
    """The fixed blocks of `size` rows that work is cut into."""
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def widen(x_ND: NDArray[Any]) -> F32:
    """The finite rows as float32, exactly.

    float16 by its bits, five times as fast as NumPy's cast: exponent and mantissa move into float32's places, and one
    multiplication mends the bias, for subnormal numbers too (infinities and NaN would come out finite).
    """
    if x_ND.dtype != np.float16:
        return x_ND.astype(np.float32, copy=False)
    bits_ND = np.ascontiguousarray(x_ND).view(np.int16).astype(np.int32)  # repeats the sign in the upper half
    bits_ND <<= 13
    bits_ND &= np.int32(-0x70002000)  # 0x8FFFE000: sign, exponent, mantissa
    wide_ND = bits_ND.view(np.float32)
    wide_ND *= _HALF_BIAS
    return wide_ND


def half_sq_norms(centroid_KD: F32) -> F32:
    """(K,) |c|² / 2: `x·c - |c|²/2` is greatest where |x - c| is least."""
    wide_KD = centroid_KD.astype(np.float64)
    half_sq_K: F64 = 0.5 * np.einsum("kd,kd->k", wide_KD, wide_KD)
    return half_sq_K.astype(np.float32)


def nearest_in_block(x_BD: F32, centroid_KD: F32, half_sq_K: F32) -> I64:
    """(B,) nearest centroid of each row, by L2, ties to the lowest; the same for a row in any block.

    The last bits of sgemm depend on a row's place in the block. So where the two best scores lie closer than rounding can
    reach (its bound is D·u·|x|·|c| a score, u = 2⁻²⁴), float64 decides.
    """
    score_BK = x_BD @ centroid_KD.T
    score_BK -= half_sq_K
    label_B: I64 = score_BK.argmax(axis=1)
    row_B = np.arange(len(x_BD))
    best_B = score_BK[row_B, label_B]
    score_BK[row_B, label_B] = -np.inf
    norm = np.sqrt(2.0 * half_sq_K.max())
    reach_B = x_BD.shape[1] * 2.0**-22 * norm * (np.sqrt(np.einsum("bd,bd->b", x_BD, x_BD)) + norm)
    floor_B = best_B - reach_B.astype(np.float32)
    close_R = np.flatnonzero(score_BK.max(axis=1) >= floor_B)
    if len(close_R):
        score_BK[row_B, label_B] = best_B
        label_B[close_R] = _decide(x_BD, centroid_KD, close_R, score_BK[close_R] >= floor_B[close_R, None])
    return label_B


def _decide(x_BD: F32, centroid_KD: F32, row_R: I64, close_RK: NDArray[np.bool_]) -> I64:
    """The nearest of each row's close centroids, in float64."""
    owner_P, label_P = np.nonzero(close_RK)
    sq_dist_P = np.empty(len(owner_P))
    for part in blocks(len(owner_P)):
        gap_PD = x_BD[row_R[owner_P[part]]].astype(np.float64) - centroid_KD[label_P[part]]
        sq_dist_P[part] = np.einsum("pd,pd->p", gap_PD, gap_PD)
    order_P = np.lexsort((label_P, sq_dist_P, owner_P))
    first_R = np.searchsorted(owner_P, np.arange(len(row_R)))  # owners are sorted, before and after
    decided_R: I64 = label_P[order_P[first_R]]
    return decided_R


def sq_dists(x_BD: F32, centroid_KD: F32, label_B: NDArray[np.integer]) -> F32:
    """(B,) squared distance of each row to its centroid, from the difference: exactly 0 on it."""
    gap_BD = x_BD - centroid_KD[label_B]
    sq_dist_B: F32 = np.einsum("bd,bd->b", gap_BD, gap_BD)
    return sq_dist_B


def check_rows(x_ND: NDArray[Any], dim: int) -> None:
    """Refuse what is not (N, dim)."""
    if x_ND.ndim != 2 or x_ND.shape[1] != dim:
        raise ValueError(f"vectors must have shape (N, {dim}) to fit the centroids, got {x_ND.shape}")


def nearest(x_ND: NDArray[Any], centroid_KD: F32) -> tuple[NDArray[np.int32], F32]:
    """Index of the nearest centroid and the squared L2 distance to it, (N,) each; ties go to the lowest index.

    Memory beyond the answer does not grow with N. Rows are float16 or float32, and finite.

    Raises:
        ValueError: the widths differ.
    """
    check_rows(x_ND, centroid_KD.shape[1])
    label_N, sq_dist_N = np.empty(len(x_ND), np.int32), np.empty(len(x_ND), np.float32)
    half_sq_K = half_sq_norms(centroid_KD)
    with one_blas_thread():
        for block in blocks(len(x_ND)):
            x_BD = widen(x_ND[block])
            label_B = nearest_in_block(x_BD, centroid_KD, half_sq_K)
            label_N[block], sq_dist_N[block] = label_B, sq_dists(x_BD, centroid_KD, label_B)
    return label_N, sq_dist_N


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
