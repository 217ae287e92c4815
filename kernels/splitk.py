"""Matrix products whose sums are shared by several programs: few outputs, long sums.

Too few tiles leave most of a GPU without work. MATMUL_SPLIT gives SPLITS programs a part each of every sum, which they
write to memory of the caller; SPLIT_REDUCE adds the parts up, always in the same order (no atomics, so the same input
gives the same bits), and has the epilogue.
"""

from __future__ import annotations

import triton
import triton.language as tl

from optc.kernels.base import Kernel
from optc.kernels.matmul import reference


@triton.jit
def matmul_split(
    args,
    M,
    N,
    K,
    BATCH,
    LOAD_A: tl.constexpr,
    LOAD_B: tl.constexpr,
    STORE_PARTIAL: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One of SPLITS parts of ``acc[z, m, n] = sum over k of a[z, m, k] * b[z, k, n]``, in float32.

    Loads are those of :func:`optc.kernels.matmul.matmul`. STORE_PARTIAL(args, split, z, m, n, acc, mask) gets the
    float32 tile of one part; a part with nothing in it is 0.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    m = (tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    n = (tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    split = tl.program_id(1)
    z = tl.program_id(2)
    part = tl.cdiv(tl.cdiv(K, SPLITS), BLOCK_K) * BLOCK_K
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(split * part, min(split * part + part, K), BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = LOAD_A(args, z, m, k[None, :], (m < M) & (k[None, :] < K))
        b = LOAD_B(args, z, k[:, None], n, (k[:, None] < K) & (n < N))
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    STORE_PARTIAL(args, split, z, m, n, acc, (m < M) & (n < N))


@triton.jit
def split_reduce(
    args,
    M,
    N,
    BATCH,
    LOAD_PARTIAL: tl.constexpr,
    STORE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add up SPLITS parts.

    LOAD_PARTIAL(args, split, z, m, n, mask) reads float32; STORE(args, z, m, n, acc, mask) is that of the product.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    m = (tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    n = (tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    z = tl.program_id(1)
    mask = (m < M) & (n < N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for split in tl.static_range(SPLITS):
        acc += tl.where(mask, LOAD_PARTIAL(args, split, z, m, n, mask), 0.0)
    STORE(args, z, m, n, acc, mask)


_TILES = "ceildiv(M, BLOCK_M) * ceildiv(N, BLOCK_N)"

MATMUL_SPLIT = Kernel(
    name="matmul_split",
    function=matmul_split,
    grid=(_TILES, "SPLITS", "BATCH"),
    sizes=("M", "N", "K", "BATCH"),
    hooks={"LOAD_A": ("z", "m", "k"), "LOAD_B": ("z", "k", "n"), "STORE_PARTIAL": ("split", "z", "m", "n")},
    constants={"SPLITS": None, "BLOCK_M": None, "BLOCK_N": None, "BLOCK_K": None, "PRECISION": "tf32"},
    reference=reference,
)
SPLIT_REDUCE = Kernel(
    name="split_reduce",
    function=split_reduce,
    grid=(_TILES, "BATCH"),
    sizes=("M", "N", "BATCH"),
    hooks={"LOAD_PARTIAL": ("split", "z", "m", "n"), "STORE": ("z", "m", "n")},
    constants={"SPLITS": None, "BLOCK_M": 1, "BLOCK_N": None},
)
