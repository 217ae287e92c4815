"""Arrays in ``.npy`` and ``.npz`` files, read piece by piece: the header first, then as much as is wanted.

A stack of a thousand images never lies in memory: ``.npy`` files are mapped, members of an archive are read (and
unpacked) as a stream.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from optc.ir.errors import DataError

#: What NumPy and zipfile raise at damaged files; a header may be no Python, or promise more than memory holds.
UNREADABLE = (
    *(OSError, ValueError, EOFError, SyntaxError, TypeError, KeyError, NotImplementedError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


class ArraySource(Protocol):
    """An array that need not be in memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def whole(self) -> np.ndarray:
        """All of it."""

    def slices(self, size: int) -> Iterator[np.ndarray]:
        """Pieces of ``size`` along the first axis, of which there are at least one."""


@dataclass(frozen=True)
class InMemory:
    """An array in memory, or mapped from a file."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def whole(self) -> np.ndarray:
        return np.asarray(self.array)

    def slices(self, size: int) -> Iterator[np.ndarray]:
        return (np.asarray(self.array[start : start + size]) for start in range(0, len(self.array), size))


@dataclass(frozen=True)
class Member:
    """An array in an archive.

    Attributes:
        path: The ``.npz`` file.
        name: The member's name there.
        shape, dtype, fortran: What its header says.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    def whole(self) -> np.ndarray:
        with reading(self.path), zipfile.ZipFile(self.path) as archive, archive.open(self.name) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)

    def slices(self, size: int) -> Iterator[np.ndarray]:
        if self.fortran:  # its first axis is the last in the file
            yield from InMemory(self.whole()).slices(size)
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(self.name) as stream:
            with reading(self.path):
                _header(stream)
            for start in range(0, self.shape[0], size):
                shape = (min(size, self.shape[0] - start), *self.shape[1:])
                wanted = math.prod(shape) * self.dtype.itemsize
                with reading(self.path):
                    data = stream.read(wanted)
                    if len(data) != wanted:
                        raise EOFError(f"the data of {self.name!r} is cut off")
                yield np.frombuffer(data, self.dtype).reshape(shape)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in reading a file into an error about that file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError("no such file", where=str(path), hint="check the path") from error
    except UNREADABLE as error:
        kind = path.suffix if path.suffix == ".npy" else ".npz"
        raise DataError(
            f"not an {kind} file that can be read: {error}",
            where=str(path),
            hint="write it with numpy.savez (or numpy.save); objects and pickles are refused",
        ) from error


def open_npz(path: Path) -> dict[str, ArraySource]:
    """The arrays of an archive by name; only their headers are read."""
    with reading(path):
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                if file.read(6) == np.lib.format.MAGIC_PREFIX:
                    raise DataError(
                        "this is a single array without a name", where=str(path), hint="call it NAME.npy, or use savez"
                    )
            raise zipfile.BadZipFile("it is no archive")
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy"): _member(path, archive, name) for name in archive.namelist()}


def open_npy(path: Path) -> ArraySource:
    """The array of a ``.npy`` file, mapped."""
    with reading(path):
        return InMemory(np.load(path, mmap_mode="r", allow_pickle=False))


def in_memory(arrays: Mapping[str, object]) -> dict[str, ArraySource]:
    """Arrays that are there already."""
    return {name: InMemory(np.asarray(array)) for name, array in arrays.items()}


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> Member:
    with archive.open(name) as stream:
        shape, fortran, dtype = _header(stream)
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds objects")
    return Member(path, name, shape, dtype, fortran and len(shape) > 1)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)
