"""Pointwise work: everything that computes each element of its outputs from elements of its inputs."""

from __future__ import annotations

import triton
import triton.language as tl

from optc.kernels.base import Kernel


@triton.jit
def pointwise(args, COUNT, BODY: tl.constexpr, BLOCK: tl.constexpr):
    """Call BODY for every index below COUNT.

    BODY(args, i, mask) loads what it needs at index ``i`` (int32, BLOCK of them), computes, and stores.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    BODY(args, i, i < COUNT)


POINTWISE = Kernel(
    name="pointwise",
    function=pointwise,
    grid=("ceildiv(COUNT, BLOCK)",),
    sizes=("COUNT",),
    hooks={"BODY": ("i",)},
    constants={"BLOCK": 1024},
)
