"""Arrays in and out of ONNX Runtime, for element types that NumPy lacks too.

ONNX Runtime exchanges NumPy's own types directly. The others (bfloat16, float8, 4- and 2-bit integers), which
``ml_dtypes`` gives a NumPy face, travel through ``OrtValue`` as raw memory.
"""

from __future__ import annotations

import ctypes
import re
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime

from optc.backends.base import Kind

#: Element types that ONNX Runtime exchanges with NumPy directly.
_NUMPY_TYPES = frozenset(
    dtype
    for dtype in onnx_ir.DataType
    if re.fullmatch(r"FLOAT|FLOAT16|DOUBLE|BOOL|STRING|U?INT(8|16|32|64)", dtype.name)
)
_BY_ORT_NAME = {dtype.name.lower(): dtype for dtype in onnx_ir.DataType}
_KINDS: dict[str, Kind] = {"seq": "sequence", "optional": "optional", "map": "map", "sparse_tensor": "sparse"}


def is_native(dtype: onnx_ir.DataType | None) -> bool:
    """Whether ONNX Runtime exchanges arrays of this type with NumPy without help."""
    return dtype is None or dtype in _NUMPY_TYPES


def parse_type(text: str) -> tuple[Kind, onnx_ir.DataType | None]:
    """Read ONNX Runtime's type text, such as ``tensor(float)`` or ``optional(seq(tensor(int64)))``."""
    outer = text.split("(", 1)[0]
    inner = re.search(r"tensor\((\w+)\)", text)
    return _KINDS.get(outer, "tensor"), _BY_ORT_NAME.get(inner.group(1).lower()) if inner else None


def type_text(dtype: onnx_ir.DataType) -> str:
    """ONNX Runtime's text for a tensor of ``dtype``."""
    return f"tensor({dtype.name.lower()})"


def to_ort_value(array: np.ndarray, dtype: onnx_ir.DataType) -> onnxruntime.OrtValue:
    """Wrap ``array`` without copying where its memory layout allows; the value keeps the memory alive."""
    if is_native(dtype):
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
    if dtype.bitwidth >= 8:
        raw = np.asarray(array, order="C").view(np.uint16 if dtype.bitwidth == 16 else np.uint8)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, int(dtype))
    # A sub-byte tensor's shape counts elements while its memory counts bytes: a buffer of the full shape whose first
    # bytes hold the packed elements satisfies both.
    packed = np.frombuffer(onnx_ir.Tensor(array, dtype=dtype).tobytes(), np.uint8)
    raw = np.zeros(array.shape, np.uint8)
    raw.reshape(-1)[: packed.size] = packed
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, int(dtype))


def from_ort_value(value: onnxruntime.OrtValue, dtype: onnx_ir.DataType | None) -> Any:
    """The NumPy face of a result; tensors of types unknown to NumPy are copied bit by bit."""
    if is_native(dtype) or not value.is_tensor():
        return value.numpy()
    assert dtype is not None
    shape = tuple(value.shape())
    nbytes = value.tensor_size_in_bytes()
    if nbytes == 0:
        return np.zeros(shape, dtype.numpy())
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(value.data_ptr())).copy()
    if dtype.bitwidth >= 8:
        return raw.view(dtype.numpy()).reshape(shape)
    return onnx_ir.PackedTensor(raw, dtype, shape=onnx_ir.Shape(shape)).numpy()
