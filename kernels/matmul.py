"""Matrix products: one kernel for GEMM and batched GEMM, with whatever comes before and after handed in."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from optc.kernels.base import Kernel


@triton.jit
def matmul(
    args,
    M,
    N,
    K,
    BATCH,
    LOAD_A: tl.constexpr,
    LOAD_B: tl.constexpr,
    STORE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``acc[z, m, n] = sum over k of a[z, m, k] * b[z, k, n]`` in float32; ``z`` counts BATCH products.

    One program computes a tile of BLOCK_M x BLOCK_N. Tiles are visited in groups of GROUP_M rows, so that those which
    run at a time share what they read through the L2 cache (Triton tutorial 03).

    LOAD_A(args, z, m, k, mask) and LOAD_B(args, z, k, n, mask) return a tile of the operand, 0 where the mask is not
    set; both of one dtype. STORE(args, z, m, n, acc, mask) gets the float32 tile. PRECISION is that of float32
    operands: "tf32", "tf32x3" or "ieee".
    """
    tile = tl.program_id(0)
    z = tl.program_id(1)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    in_group = GROUP_M * tiles_n
    first = (tile // in_group) * GROUP_M
    rows = min(tiles_m - first, GROUP_M)
    m = ((first + (tile % in_group) % rows) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    n = (((tile % in_group) // rows) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = LOAD_A(args, z, m, k[None, :], (m < M) & (k[None, :] < K))
        b = LOAD_B(args, z, k[:, None], n, (k[:, None] < K) & (n < N))
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    STORE(args, z, m, n, acc, (m < M) & (n < N))


def reference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The products, accumulated in float32.

    Args:
        a: (BATCH, M, K).
        b: (BATCH, K, N).

    Returns:
        (BATCH, M, N), float32.
    """
    return np.matmul(a.astype(np.float32), b.astype(np.float32))


MATMUL = Kernel(
    name="matmul",
    function=matmul,
    grid=("ceildiv(M, BLOCK_M) * ceildiv(N, BLOCK_N)", "BATCH"),
    sizes=("M", "N", "K", "BATCH"),
    hooks={"LOAD_A": ("z", "m", "k"), "LOAD_B": ("z", "k", "n"), "STORE": ("z", "m", "n")},
    constants={"BLOCK_M": None, "BLOCK_N": None, "BLOCK_K": None, "GROUP_M": 8, "PRECISION": "tf32"},
    reference=reference,
)
