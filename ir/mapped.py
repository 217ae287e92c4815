"""Tensors that stay in the file they were found in until somebody asks for their contents.

All tensors of one file share one memory map and no open file, however many there are.
"""

from __future__ import annotations

import copy
import mmap
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir

from optc.ir.errors import OutputError

FileRange = tuple[str, int, int]

#: Tensors in a spool begin at multiples of this.
_ALIGNMENT = 64


class MappedFile:
    """A file that is mapped into memory: its contents stay what they were, even if another file takes its name."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(Path(path).absolute())
        with open(self.path, "rb") as file:
            self._identity = _identity(os.fstat(file.fileno()))
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def array(self, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        """A read-only view of a part of the file."""
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._map, dtype.newbyteorder("<"), count, offset).reshape(shape)

    def release(self, offset: int, length: int) -> None:
        """Give back the memory that a part's pages take; they are read again from the file when they are needed."""
        if hasattr(self._map, "madvise"):
            start = offset - offset % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, offset + length - start)

    def in_place(self) -> bool:
        """Whether the file that is mapped is still the one that its path leads to."""
        try:
            return _identity(os.stat(self.path)) == self._identity
        except OSError:
            return False


class MappedTensor(onnx_ir.LazyTensor):
    """A tensor in a file.

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

    def _read(self) -> onnx_ir.Tensor | onnx_ir.PackedTensor:
        if self.dtype.bitwidth % 8:
            packed = self.file.array(np.dtype(np.uint8), self.offset, (self.nbytes,))
            return onnx_ir.PackedTensor(packed, self.dtype, shape=self.shape, name=self.name)
        array = self.file.array(np.dtype(self.dtype.numpy()), self.offset, self.shape.numpy())
        return onnx_ir.Tensor(array, dtype=self.dtype, name=self.name)


class Spool(MappedFile):
    """A file without a name into which tensors are written that memory should not hold; it goes with the last of them.

    Args:
        capacity: The most bytes that it can take. Room that is not used takes none on the disk.

    Raises:
        OutputError: There is no folder for temporary files, or no room in it.
    """

    def __init__(self, capacity: int) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="optc-")  # noqa: SIM115  # open as long as its map
            self._file.truncate(max(capacity, 1))
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise OutputError.of(error, tempfile.gettempdir()) from error
        self.path, self._end = "", 0

    def in_place(self) -> bool:
        return False

    def keep(self, tensor: onnx_ir.TensorProtocol) -> MappedTensor:
        """Write a tensor's contents down; the same tensor, read from there."""
        offset = self._end
        try:
            self._file.seek(offset)
            self._file.write(tensor.tobytes())
            self._file.flush()
        except OSError as error:
            raise OutputError.of(error, tempfile.gettempdir()) from error
        self._end = -(-(offset + tensor.nbytes) // _ALIGNMENT) * _ALIGNMENT
        shape = onnx_ir.Shape(tensor.shape.numpy())
        return MappedTensor(self, offset, tensor.dtype, shape, tensor.name or "", embedded=True)


def release(tensor: onnx_ir.TensorProtocol | None) -> None:
    """Give back the memory that reading a mapped tensor took; others are left alone."""
    if isinstance(tensor, MappedTensor):
        tensor.file.release(tensor.offset, tensor.nbytes)


def file_range(tensor: onnx_ir.TensorProtocol | None) -> FileRange | None:
    """Where a tensor's bytes lie: the file, the offset and the length; None if they are in memory alone."""
    if isinstance(tensor, MappedTensor):
        return (tensor.file.path, tensor.offset, tensor.nbytes) if tensor.file.in_place() else None
    if isinstance(tensor, onnx_ir.ExternalTensor):
        return tensor.path, tensor.offset or 0, tensor.nbytes
    return None


def is_external(tensor: onnx_ir.TensorProtocol | None) -> bool:
    """Whether a tensor's bytes lie in a file beside the model."""
    return isinstance(tensor, onnx_ir.ExternalTensor) or (isinstance(tensor, MappedTensor) and not tensor.embedded)


def named(tensor: onnx_ir.TensorProtocol, name: str | None) -> onnx_ir.TensorProtocol:
    """The same contents as a tensor of its own, so that naming it does not rename what it was made from."""
    if isinstance(tensor, onnx_ir.serde.TensorProtoTensor):  # its name is that of the proto
        own: onnx_ir.TensorProtocol = onnx_ir.LazyTensor(lambda: tensor, tensor.dtype, tensor.shape, name=name)
        own.doc_string = tensor.doc_string
        own.metadata_props.update(tensor.metadata_props)
        return own
    own = copy.copy(tensor)
    own.name = name
    return own


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
