"""Tensors that stay in the file they were found in until somebody asks for their contents.

All tensors of one file share one memory map and no open file, however many there are.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import onnx_ir

FileRange = tuple[str, int, int]


class MappedFile:
    """A file that is mapped into memory when its contents are first needed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(Path(path).absolute())
        self._map: mmap.mmap | None = None

    def array(self, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        """A read-only view of a part of the file."""
        if self._map is None:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._map, dtype.newbyteorder("<"), count, offset).reshape(shape)


class MappedTensor(onnx_ir.LazyTensor):
    """A tensor of whole-byte elements in a file.

    Attributes:
        file: The file.
        offset: Where its bytes begin.
        embedded: Whether the file is the ONNX file itself, not external data beside it.
    """

    def __init__(
        self, file: MappedFile, offset: int, dtype: onnx_ir.DataType, shape: onnx_ir.Shape, name: str, embedded: bool
    ) -> None:
        super().__init__(self._read, dtype, shape, name=name)
        self.file, self.offset, self.embedded = file, offset, embedded

    def _read(self) -> onnx_ir.Tensor:
        if self.size == 0:
            return onnx_ir.Tensor(np.empty(self.shape.numpy(), self.dtype.numpy()), dtype=self.dtype, name=self.name)
        array = self.file.array(np.dtype(self.dtype.numpy()), self.offset, self.shape.numpy())
        return onnx_ir.Tensor(array, dtype=self.dtype, name=self.name)


def can_map(dtype: onnx_ir.DataType) -> bool:
    """Whether elements of a type lie in whole bytes."""
    return dtype not in (onnx_ir.DataType.STRING, onnx_ir.DataType.UNDEFINED) and dtype.bitwidth % 8 == 0


def file_range(tensor: onnx_ir.TensorProtocol | None) -> FileRange | None:
    """Where a tensor's bytes lie: the file, the offset and the length; None if they are in memory."""
    if isinstance(tensor, MappedTensor):
        return tensor.file.path, tensor.offset, tensor.nbytes
    if isinstance(tensor, onnx_ir.ExternalTensor):
        return tensor.path, tensor.offset or 0, tensor.nbytes
    return None


def is_external(tensor: onnx_ir.TensorProtocol | None) -> bool:
    """Whether a tensor's bytes lie in a file beside the model."""
    return isinstance(tensor, onnx_ir.ExternalTensor) or (isinstance(tensor, MappedTensor) and not tensor.embedded)
