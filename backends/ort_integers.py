"""What this machine's integer kernels in ONNX Runtime do, found out by running one."""

from __future__ import annotations

import functools
import platform

import numpy as np
import onnx_ir

from optc.backends.ort import Session

_ARM = ("aarch64", "arm64")
#: Enough for the vectorized part of any kernel.
_SIZE = 64


@functools.cache
def host_capabilities() -> frozenset[str]:
    """Capabilities of this machine that decide how integers are placed.

    "arm": it is one. "vnni": products of unsigned and signed 8-bit integers are summed exactly, as they are where the
    processor has such instructions; without, pairs of them are added in 16 bits, and saturate.
    """
    found = {"arm"} if platform.machine().lower() in _ARM else set()
    if _exact():
        found.add("vnni")
    return frozenset(found)


def _exact() -> bool:
    a = onnx_ir.val("a", onnx_ir.DataType.UINT8, [_SIZE, _SIZE])
    weight = onnx_ir.val("w", const_value=onnx_ir.tensor(np.full((_SIZE, _SIZE), 127, np.int8), name="w"))
    product = onnx_ir.node("MatMulInteger", [a, weight])
    y = product.outputs[0]
    y.name, y.dtype, y.shape = "y", onnx_ir.DataType.INT32, onnx_ir.Shape([_SIZE, _SIZE])
    graph = onnx_ir.Graph([a], [y], nodes=[product], initializers=[weight], opset_imports={"": 13}, name="probe")
    result = Session(onnx_ir.Model(graph, ir_version=8)).run({"a": np.full((_SIZE, _SIZE), 255, np.uint8)})["y"]
    return bool((result == 255 * 127 * _SIZE).all())
