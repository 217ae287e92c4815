"""Products of a few rows with a matrix: the matrix is read once, and reading it is all that takes time.

Tensor cores want 16 rows. Up to about 4 (M at run time or not: ROWS is the power of two that holds it) multiplying and
adding is enough to keep up with memory; 5 to 16 rows are for the product on tensor cores with BLOCK_M = 16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from optc.kernels.base import Kernel
from optc.kernels.matmul import reference


@triton.jit
def gemv(
    args,
    M,
    N,
    K,
    BATCH,
    LOAD_A: tl.constexpr,
    LOAD_B: tl.constexpr,
    STORE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``acc[z, m, n] = sum over k of a[z, m, k] * b[z, k, n]`` in float32, for M <= ROWS.

    A program computes BLOCK_N columns for all rows: products are added up in place, and across threads only at the end.
    LOAD_A(args, z, m, k, mask) returns (ROWS, 1, BLOCK_K); LOAD_B(args, z, k, n, mask) returns (1, BLOCK_N, BLOCK_K),
    0 where the mask is not set. STORE(args, z, m, n, acc, mask) gets (ROWS, BLOCK_N), as that of a product does.
    """
    _store_sums(args, M, N, K, tl.program_id(1), 0, K, LOAD_A, LOAD_B, STORE, False, ROWS, BLOCK_N, BLOCK_K)


@triton.jit
def gemv_split(
    args,
    M,
    N,
    K,
    BATCH,
    LOAD_A: tl.constexpr,
    LOAD_B: tl.constexpr,
    STORE_PARTIAL: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One of SPLITS parts of the same, for :data:`optc.kernels.splitk.SPLIT_REDUCE`.

    STORE_PARTIAL(args, split, z, m, n, acc, mask) gets (ROWS, BLOCK_N) of float32.
    """
    part = tl.cdiv(tl.cdiv(K, SPLITS), BLOCK_K) * BLOCK_K
    begin = tl.program_id(1) * part
    end = min(begin + part, K)
    _store_sums(
        args, M, N, K, tl.program_id(2), begin, end, LOAD_A, LOAD_B, STORE_PARTIAL, True, ROWS, BLOCK_N, BLOCK_K
    )


@triton.jit
def _store_sums(
    args,
    M,
    N,
    K,
    z,
    begin,
    end,
    LOAD_A: tl.constexpr,
    LOAD_B: tl.constexpr,
    STORE: tl.constexpr,
    PARTIAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The sums over ``k`` from ``begin`` to ``end``."""
    m = tl.arange(0, ROWS)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((ROWS, BLOCK_N, BLOCK_K), tl.float32)
    for start in range(begin, end, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K))[None, None, :]
        a = LOAD_A(args, z, m[:, None, None], k, (m[:, None, None] < M) & (k < K))
        b = LOAD_B(args, z, k, n[None, :, None], (k < K) & (n[None, :, None] < N))
        acc += a.to(tl.float32) * b.to(tl.float32)
    total = tl.sum(acc, axis=2)
    m, n = m[:, None], n[None, :]
    if PARTIAL:
        STORE(args, tl.program_id(1), z, m, n, total, (m < M) & (n < N))
    else:
        STORE(args, z, m, n, total, (m < M) & (n < N))


_SIZES = ("M", "N", "K", "BATCH")
_LOADS = {"LOAD_A": ("z", "m", "k"), "LOAD_B": ("z", "k", "n")}
_CONSTANTS = {"ROWS": 1, "BLOCK_N": None, "BLOCK_K": None}

GEMV = Kernel(
    name="gemv",
    function=gemv,
    grid=("ceildiv(N, BLOCK_N)", "BATCH"),
    sizes=_SIZES,
    hooks={**_LOADS, "STORE": ("z", "m", "n")},
    constants=_CONSTANTS,
    reference=reference,
)
GEMV_SPLIT = Kernel(
    name="gemv_split",
    function=gemv_split,
    grid=("ceildiv(N, BLOCK_N)", "SPLITS", "BATCH"),
    sizes=_SIZES,
    hooks={**_LOADS, "STORE_PARTIAL": ("split", "z", "m", "n")},
    constants={"SPLITS": None, **_CONSTANTS},
    reference=reference,
)
