"""The nearest centroid of each row, with NumPy: bit-identical for any block, order or number of threads.

Work is cut into fixed blocks. Each block runs on one BLAS thread, and sums over blocks are added in the order of the blocks
(docs/decisions/0005).

Shapes: N rows, D width, K centroids, B rows of a block, R rows with a near-tie, P pairs of such a row and a close centroid.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from pipeline.arrays import F32, F64, I32, I64

BlockMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]

BLOCK = 1024  # rows of one sgemm: rows, centroids and scores fit a core's share of the cache
_HALF_BIAS = np.float32(2.0**112)  # difference of the exponent biases of float32 (127) and float16 (15)


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()  # cached: it scans the libraries of the process


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread per call: the way it splits a product over threads changes the last bits of the result."""
    with _blas().limit(limits=1, user_api="blas"):
        yield


@contextmanager
def block_map(threads: int) -> Iterator[BlockMap]:
    """Yield a `map` that keeps order and runs on `threads` threads, each with one BLAS thread."""
    with one_blas_thread():
        if threads == 1:
            yield map  # handing a small block to another thread costs more than the work
            return
        with ThreadPoolExecutor(threads) as executor:
            yield executor.map


def blocks(num_rows: int, size: int = BLOCK) -> list[slice]:
    """Consecutive blocks of `size` rows; the last may be shorter."""
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def to_float32(x_ND: NDArray[Any]) -> F32:
    """Finite rows as float32, exactly.

    float16 is converted by its bits, five times as fast as NumPy's cast: shift exponent and mantissa to their places in float32,
    then correct the exponent bias by one multiplication. It is exact for subnormal numbers too; infinities and NaN would come out
    finite.
    """
    if x_ND.dtype != np.float16:
        return x_ND.astype(np.float32, copy=False)
    bits_ND = np.ascontiguousarray(x_ND).view(np.int16).astype(np.int32)  # sign extension fills the upper half
    bits_ND <<= 13
    bits_ND &= np.int32(-0x70002000)  # 0x8FFFE000: sign, exponent, mantissa
    wide_ND = bits_ND.view(np.float32)
    wide_ND *= _HALF_BIAS
    return wide_ND


def half_sq_norms(centroid_KD: F32) -> F32:
    """(K,) |c|² / 2; `x·c - |c|²/2` is largest for the centroid nearest to x."""
    wide_KD = centroid_KD.astype(np.float64)
    half_sq_K: F64 = 0.5 * np.einsum("kd,kd->k", wide_KD, wide_KD)
    return half_sq_K.astype(np.float32)


def nearest_in_block(x_BD: F32, centroid_KD: F32, half_sq_K: F32) -> I64:
    """(B,) nearest centroid of each row by L2, ties to the lowest; a row gets the same centroid in any block.

    The last bits of sgemm depend on a row's position in the block. So where the two best scores are closer than the rounding error
    (at most D·u·|x|·|c| per score, u = 2⁻²⁴), the distances are compared in float64.
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
        label_B[close_R] = _break_near_ties(x_BD, centroid_KD, close_R, score_BK[close_R] >= floor_B[close_R, None])
    return label_B


def _break_near_ties(x_BD: F32, centroid_KD: F32, row_R: I64, close_RK: NDArray[np.bool_]) -> I64:
    """(R,) the nearest of each row's close centroids, in float64; ties to the lowest."""
    owner_P, label_P = np.nonzero(close_RK)
    sq_dist_P = np.empty(len(owner_P))
    for part in blocks(len(owner_P)):
        gap_PD = x_BD[row_R[owner_P[part]]].astype(np.float64) - centroid_KD[label_P[part]]
        sq_dist_P[part] = np.einsum("pd,pd->p", gap_PD, gap_PD)
    order_P = np.lexsort((label_P, sq_dist_P, owner_P))
    first_R = np.searchsorted(owner_P, np.arange(len(row_R)))  # owners are sorted, in `owner_P` and in `order_P`
    decided_R: I64 = label_P[order_P[first_R]]
    return decided_R


def sq_dists(x_BD: F32, centroid_KD: F32, label_B: NDArray[np.integer]) -> F32:
    """(B,) squared distance of each row to its centroid, from the difference vector: exactly 0 for a row equal to its centroid."""
    gap_BD = x_BD - centroid_KD[label_B]
    sq_dist_B: F32 = np.einsum("bd,bd->b", gap_BD, gap_BD)
    return sq_dist_B


def check_width(x_ND: NDArray[Any], dim: int) -> None:
    """Raise ValueError unless the shape is (N, dim)."""
    if x_ND.ndim != 2 or x_ND.shape[1] != dim:
        raise ValueError(f"vectors must have shape (N, {dim}) to fit the centroids, got {x_ND.shape}")


def assign_nearest(x_ND: NDArray[Any], centroid_KD: F32) -> tuple[I32, F32]:
    """Index of the nearest centroid and the squared L2 distance to it, (N,) each; ties go to the lowest index.

    Memory beyond the result does not grow with N. Rows are float16 or float32, and finite.

    Raises:
        ValueError: rows and centroids differ in width.
    """
    check_width(x_ND, centroid_KD.shape[1])
    label_N, sq_dist_N = np.empty(len(x_ND), np.int32), np.empty(len(x_ND), np.float32)
    half_sq_K = half_sq_norms(centroid_KD)
    with one_blas_thread():
        for block in blocks(len(x_ND)):
            x_BD = to_float32(x_ND[block])
            label_B = nearest_in_block(x_BD, centroid_KD, half_sq_K)
            label_N[block], sq_dist_N[block] = label_B, sq_dists(x_BD, centroid_KD, label_B)
    return label_N, sq_dist_N
