"""Weight-only and dynamic INT8 forms of ``x @ W`` that ONNX Runtime's CPU kernels run.

* ``dynamic-int8``: activations are quantized per tensor when they arrive (com.microsoft::DynamicQuantizeMatMul); fast,
  but one outlier channel costs everybody precision.
* ``block-int8-B``: weights in blocks of B along K, activations quantized per block when they arrive
  (com.microsoft::MatMulNBits with 8 bits and accuracy level 4); less fast, far more precise.

Both need no calibration. See onnxruntime/docs/ContribOperators.md for the operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir

from optc.ir.rewriter import Rewriter

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Scheme:
    """One way to compute ``x @ W`` with integers.

    Attributes:
        name: How reports call it.
        op: The com.microsoft operator it needs.
        encode: Weight of shape (K, N), float and finite -> the arrays to store, or None if its shape does not fit.
        emit: Inserts the operator for an input of shape (..., K); returns the output of shape (..., N).
    """

    name: str
    op: str
    encode: Callable[[np.ndarray], Arrays | None]
    emit: Callable[[Rewriter, onnx_ir.Value, Arrays, str], onnx_ir.Value]


def encode_per_column(weight: np.ndarray) -> Arrays:
    """Symmetric INT8 with one scale per output column.

    Args:
        weight: (K, N), float.

    Returns:
        ``weight`` (K, N) int8 and ``scale`` (N,) float32 with W ~ weight * scale.
    """
    scale = _nonzero(np.abs(weight).max(axis=0) / 127).astype(np.float32)
    return {"weight": np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), "scale": scale}


def encode_blocks(weight: np.ndarray, block: int) -> Arrays | None:
    """Symmetric INT8 in blocks along K, as MatMulNBits stores it (zero point 128).

    Args:
        weight: (K, N), float; K a multiple of ``block``.
        block: Weights per scale.

    Returns:
        ``weight`` (N, K / block, block) uint8 and ``scale`` (N, K / block) float32; None if ``block`` does not
        divide K.
    """
    rows, columns = weight.shape
    if rows % block:
        return None
    blocks = np.ascontiguousarray(weight.T).reshape(columns, rows // block, block)
    # A block of zeros keeps the scale 0: the kernel sums codes first, and 1 would let its rounding errors through.
    scale = (np.abs(blocks).max(axis=2) / 127).astype(np.float32)
    codes = np.rint(blocks / _nonzero(scale)[..., None])
    return {
        "weight": (np.clip(codes, -127, 127) + 128).astype(np.uint8),
        "scale": scale,
        "shape": np.array([rows, columns]),
    }


def _nonzero(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 0, scale, 1.0)


def _emit_dynamic(rewriter: Rewriter, x: onnx_ir.Value, arrays: Arrays, name: str) -> onnx_ir.Value:
    weight = rewriter.constant(arrays["weight"], f"{name}_int8")
    scale = rewriter.constant(arrays["scale"], f"{name}_scale")
    return rewriter.op("DynamicQuantizeMatMul", x, weight, scale, domain="com.microsoft")


def _emit_blocks(rewriter: Rewriter, x: onnx_ir.Value, arrays: Arrays, name: str) -> onnx_ir.Value:
    rows, columns = (int(n) for n in arrays["shape"])
    return rewriter.op(
        "MatMulNBits",
        x,
        rewriter.constant(arrays["weight"], f"{name}_int8"),
        rewriter.constant(arrays["scale"], f"{name}_scale"),
        domain="com.microsoft",
        K=rows,
        N=columns,
        bits=8,
        block_size=arrays["weight"].shape[2],
        accuracy_level=4,
    )


def _blocks(block: int) -> Scheme:
    return Scheme(f"block-int8-{block}", "MatMulNBits", lambda weight: encode_blocks(weight, block), _emit_blocks)


#: All schemes by name, fastest first as a rule.
SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("dynamic-int8", "DynamicQuantizeMatMul", encode_per_column, _emit_dynamic),
        _blocks(128),
        _blocks(64),
        _blocks(32),
    )
}
