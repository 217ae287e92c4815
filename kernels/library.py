"""All kernels, by name."""

from __future__ import annotations

from collections.abc import Mapping

from optc.kernels.attention import ATTENTION, ATTENTION_COMBINE, ATTENTION_SPLIT
from optc.kernels.base import Kernel
from optc.kernels.depthwise import DEPTHWISE
from optc.kernels.gemv import GEMV, GEMV_SPLIT
from optc.kernels.matmul import MATMUL
from optc.kernels.pointwise import POINTWISE
from optc.kernels.pooling import POOL
from optc.kernels.resize import RESIZE
from optc.kernels.rows import ARG, NORM, NORM_LOOP, REDUCE, SOFTMAX, SOFTMAX_LOOP
from optc.kernels.scan import SCAN
from optc.kernels.splitk import MATMUL_SPLIT

_PRODUCTS = (MATMUL, MATMUL_SPLIT, GEMV, GEMV_SPLIT, DEPTHWISE)
_ROWS = (NORM, NORM_LOOP, SOFTMAX, SOFTMAX_LOOP, REDUCE, ARG, SCAN)
_WINDOWS = (POOL, RESIZE)
_ATTENTION = (ATTENTION, ATTENTION_SPLIT, ATTENTION_COMBINE)
KERNELS: Mapping[str, Kernel] = {
    kernel.name: kernel for kernel in (*_PRODUCTS, *_ROWS, *_ATTENTION, *_WINDOWS, POINTWISE)
}
