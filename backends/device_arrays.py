"""Arrays on a GPU, exchanged with other libraries without copying: DLPack and ``__cuda_array_interface__``.

Needs none of these libraries, nor a compiler: DLPack's structures are read and written through ctypes.

Sources: dlpack.h of DLPack 1.1; the Python array API standard, "Data interchange mechanisms"; Numba's "CUDA Array
Interface" (version 3).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from optc.backends import cuda
from optc.ir.errors import DataError

#: DLPack's kinds of devices: memory of a GPU, and memory that both sides can use.
_CUDA, _CUDA_MANAGED = 2, 13
#: What the driver calls the default stream of a program. Its other name, 0, means nothing here.
LEGACY_STREAM = 1
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
#: DLPack's code of a type, by NumPy's letter for its kind.
_CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_KINDS = {code: kind for kind, code in _CODES.items()}
_BFLOAT = 4
_NAMES = (b"dltensor_versioned", b"dltensor")


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


# Capsules are passed as plain addresses: their destructor is called when nobody may refer to them any more.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
#: What capsules that were given out refer to, by the address of their structure, until they are given back.
_given_out: dict[int, tuple[Any, ...]] = {}


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _delete(address: int) -> None:
    _given_out.pop(address, None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _destroy(capsule: int) -> None:
    """The end of a capsule: what nobody took over ends with it. Who takes over renames it, and deletes by itself."""
    if _is_valid(capsule, _NAMES[1]):
        _given_out.pop(_pointer(capsule, _NAMES[1]), None)


@dataclass(frozen=True)
class View:
    """Somebody else's array on the GPU, contiguous in row-major order.

    Attributes:
        address: Where its first element is.
        shape: Its dims.
        dtype: Its elements.
        owner: What keeps its memory.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def on_gpu(value: Any) -> bool:
    """Whether something is an array in the memory of a GPU."""
    if isinstance(value, np.ndarray):
        return False
    where = getattr(value, "__dlpack_device__", None)
    return where()[0] in (_CUDA, _CUDA_MANAGED) if where is not None else hasattr(value, "__cuda_array_interface__")


def view(value: Any, name: str, stream: int) -> View:
    """An array of another library, to be used in place.

    Args:
        value: Something that :func:`on_gpu` is true of.
        name: What it is, for messages ("input 'x'").
        stream: The stream on which it will be used; what is still being written into it is waited for there.

    Raises:
        DataError: It is on another GPU, its elements are not next to each other, or its library does not give it away.
    """
    try:
        if hasattr(value, "__dlpack__"):
            return _from_dlpack(value, name, stream)
        return _from_interface(value, name, stream)
    except (BufferError, TypeError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{name} cannot be taken from {type(value).__name__}: {error}") from error


def _from_dlpack(value: Any, name: str, stream: int) -> View:
    _, device = value.__dlpack_device__()
    if device != 0:
        raise DataError(f"{name} is on GPU {device}; the model runs on GPU 0")
    capsule = value.__dlpack__(stream=stream or LEGACY_STREAM)
    kind = next((kind for kind in _NAMES if _is_valid(id(capsule), kind)), None)
    if kind is None:
        raise DataError(f"{name} comes in a capsule that is not DLPack's")
    address = _pointer(id(capsule), kind)
    tensor = (_Versioned if kind == _NAMES[0] else _Managed).from_address(address).tensor
    shape = tuple(tensor.shape[: tensor.ndim]) if tensor.ndim else ()
    dtype = _dtype(tensor.code, tensor.bits, tensor.lanes)
    if dtype is None:
        raise DataError(f"{name} has elements of a type that NumPy has none for")
    if tensor.strides and tensor.ndim:
        _check_order(name, shape, tuple(tensor.strides[: tensor.ndim]))
    # The capsule is not taken over: it gives its memory back by itself when the view is no more.
    return View((tensor.data or 0) + tensor.byte_offset, shape, dtype, (value, capsule))


def _from_interface(value: Any, name: str, stream: int) -> View:
    told = value.__cuda_array_interface__
    shape, dtype = tuple(told["shape"]), np.dtype(told["typestr"])
    if told.get("mask") is not None:
        raise DataError(f"{name} has a mask")
    if told.get("strides") is not None:
        _check_order(name, shape, tuple(step / dtype.itemsize for step in told["strides"]))
    written = told.get("stream")
    if written is not None and written != (stream or LEGACY_STREAM):
        cuda.call(cuda.driver().cuStreamSynchronize, written, doing=f"wait for {name}")
    return View(told["data"][0] or 0, shape, dtype, value)


def _check_order(name: str, shape: Sequence[int], strides: Sequence[float]) -> None:
    """Refuse what is not contiguous in row-major order; strides are in elements."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step and 0 not in shape:
            raise DataError(f"the elements of {name} are not next to each other", hint="make it contiguous first")
        step *= size


def _dtype(code: int, bits: int, lanes: int) -> np.dtype[Any] | None:
    if lanes != 1 or bits % 8:
        return None
    if code == _BFLOAT:
        return _BFLOAT16 if bits == 16 else None
    try:
        return np.dtype(f"{_KINDS[code]}{bits // 8}")
    except (KeyError, TypeError):
        return None


class DeviceArray:
    """An array that a run left on the GPU.

    Other libraries take it without copying: ``torch.from_dlpack(array)``, ``cupy.asarray(array)``,
    ``jax.dlpack.from_dlpack(array)``. Its memory stays as long as the array, or whatever was made of it.

    Args:
        memory: What it lies in, from its beginning on.
        shape: Its dims.
        dtype: Its elements.
        ready: When it is written.
    """

    def __init__(self, memory: cuda.Handle, shape: Sequence[int], dtype: np.dtype[Any], ready: cuda.Event) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._memory, self._ready = memory, ready

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def address(self) -> int:
        """Where it lies in the GPU's memory."""
        return int(self._memory.value)

    def numpy(self) -> np.ndarray:
        """A copy in the host's memory."""
        array = np.empty(self.shape, self.dtype)
        self._ready.synchronize()
        if array.nbytes:
            cuda.call(cuda.driver().cuMemcpyDtoH, array.ctypes.data, self.address, array.nbytes, doing="copy back")
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("it lies on a GPU: NumPy needs a copy")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._ready.synchronize()
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address if self.nbytes else 0, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, 0

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """The array in a capsule.

        Args:
            stream: Where it will be used, which waits until it is written. None is the default stream; -1 does not
                wait.
            max_version: Not used: what every version understands is given.
            dl_device: Only where it is.
            copy: Only not.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("it is given only as it is, on the GPU where it lies")
        if stream != -1:
            self._ready.wait(LEGACY_STREAM if stream is None else stream)
        return _capsule(self)


def _capsule(array: DeviceArray) -> Any:
    rank = len(array.shape)
    shape = (ctypes.c_int64 * max(rank, 1))(*array.shape)
    strides = (ctypes.c_int64 * max(rank, 1))(*(math.prod(array.shape[axis + 1 :]) for axis in range(rank)))
    kind, index = array.__dlpack_device__()
    code = _BFLOAT if array.dtype == _BFLOAT16 else _CODES[array.dtype.kind]
    managed = _Managed(
        _Tensor(array.address, kind, index, rank, code, 8 * array.dtype.itemsize, 1, shape, strides, 0),
        None,
        ctypes.cast(_delete, ctypes.c_void_p).value,
    )
    address = ctypes.addressof(managed)
    _given_out[address] = (managed, shape, strides, array)
    return _new(address, _NAMES[1], ctypes.cast(_destroy, ctypes.c_void_p).value)


#: What tells a stream's handle: the protocol of NVIDIA's Python libraries.
_StreamProtocol = Callable[[], tuple[int, int]]


def stream_handle(stream: Any) -> int:
    """The driver's handle of a stream: itself, or what has ``__cuda_stream__`` (cuda.core, CuPy, PyTorch).

    Raises:
        DataError: It is no stream.
    """
    protocol: _StreamProtocol | None = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int(protocol()[1])
    if isinstance(stream, int):
        return stream
    raise DataError(f"{type(stream).__name__} is no CUDA stream", hint="give its handle, as an integer")
