"""All kernels, by name."""

from __future__ import annotations

from collections.abc import Mapping

from optc.kernels.attention import ATTENTION
from optc.kernels.base import Kernel
from optc.kernels.depthwise import DEPTHWISE
from optc.kernels.gemv import GEMV
from optc.kernels.matmul import MATMUL
from optc.kernels.pointwise import POINTWISE
from optc.kernels.rows import NORM, NORM_LOOP, REDUCE, SOFTMAX, SOFTMAX_LOOP

KERNELS: Mapping[str, Kernel] = {
    kernel.name: kernel
    for kernel in (MATMUL, GEMV, DEPTHWISE, POINTWISE, NORM, NORM_LOOP, SOFTMAX, SOFTMAX_LOOP, REDUCE, ATTENTION)
}
