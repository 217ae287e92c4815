"""Codes as they lie in files: several in a byte, the first in the lowest bits."""

from __future__ import annotations

import numpy as np
import onnx_ir


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack along the last axis, which is filled up with zeros to whole bytes.

    Args:
        codes: (..., n) uint8, each below 2^bits.
        bits: 2, 4 or 8.

    Returns:
        (..., ceil(n * bits / 8)) uint8.
    """
    per_byte = _per_byte(bits)
    missing = -codes.shape[-1] % per_byte
    if missing:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    packed = codes[..., 0::per_byte].copy()
    for place in range(1, per_byte):
        packed |= codes[..., place::per_byte] << np.uint8(place * bits)
    return packed


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first ``count`` codes along the last axis of what :func:`pack` made, uint8."""
    per_byte = _per_byte(bits)
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * per_byte), np.uint8)
    for place in range(per_byte):
        codes[..., place::per_byte] = (packed >> np.uint8(place * bits)) & np.uint8((1 << bits) - 1)
    return codes[..., :count]


def tensor_of(codes: np.ndarray, dtype: onnx_ir.DataType) -> onnx_ir.TensorProtocol:
    """A tensor of a 4-bit or 8-bit integer type, whose elements are ``codes`` (uint8, two's complement if signed)."""
    if dtype.bitwidth == 8:
        return onnx_ir.Tensor(codes.view(dtype.numpy()), dtype=dtype)
    packed = pack(np.ascontiguousarray(codes & np.uint8((1 << dtype.bitwidth) - 1)).reshape(-1), dtype.bitwidth)
    return onnx_ir.PackedTensor(packed, dtype, shape=onnx_ir.Shape(codes.shape))


def _per_byte(bits: int) -> int:
    if bits not in (2, 4, 8):
        raise ValueError(f"codes of {bits} bits do not fill bytes")
    return 8 // bits
