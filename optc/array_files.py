"""Arrays in ``.npy`` and ``.npz`` files, read piece by piece: the header first, then as much as is wanted.

A stack of a thousand images never lies in memory: files and members of archives are read (and unpacked) as streams.
They are not mapped, because pages of a mapped file that were read count as the process's memory.
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
    """An array in memory."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def whole(self) -> np.ndarray:
        return np.asarray(self.array)

    def slices(self, size: int) -> Iterator[np.ndarray]:
        return (np.asarray(self.array[start : start + size]) for start in range(0, len(self.array), size))


@dataclass(frozen=True)
class Stored:
    """An array in a file.

    Attributes:
        path: The ``.npy`` or ``.npz`` file.
        member: The array's name in an archive.
        shape, dtype, fortran: What its header says.
    """

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @classmethod
    def of(cls, path: Path, member: str | None = None) -> Stored:
        """Read the header."""
        with _opened(path, member) as stream:
            shape, fortran, dtype = _header(stream)
        if dtype.hasobject:
            raise ValueError(f"{member or 'the array'} holds objects")
        return cls(path, member, shape, dtype, fortran and len(shape) > 1)

    def whole(self) -> np.ndarray:
        with reading(self.path), _opened(self.path, self.member) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)

    def slices(self, size: int) -> Iterator[np.ndarray]:
        if self.fortran:  # its first axis is the last in the file
            yield from InMemory(self.whole()).slices(size)
            return
        with _opened(self.path, self.member) as stream:
            with reading(self.path):
                _header(stream)
            for start in range(0, self.shape[0], size):
                shape = (min(size, self.shape[0] - start), *self.shape[1:])
                wanted = math.prod(shape) * self.dtype.itemsize
                with reading(self.path):
                    data = stream.read(wanted)
                    if len(data) != wanted:
                        raise EOFError("the data is cut off")
                yield np.frombuffer(data, self.dtype).reshape(shape)


@contextmanager
def _opened(path: Path, member: str | None) -> Iterator[IO[bytes]]:
    if member is None:
        with open(path, "rb") as file:
            yield file
    else:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            yield stream


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
            names = archive.namelist()
        return {name.removesuffix(".npy"): Stored.of(path, name) for name in names}


def open_npy(path: Path) -> ArraySource:
    """The array of a ``.npy`` file; only its header is read."""
    with reading(path):
        return Stored.of(path)


def in_memory(arrays: Mapping[str, object]) -> dict[str, ArraySource]:
    """Arrays that are there already."""
    return {name: InMemory(np.asarray(array)) for name, array in arrays.items()}


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)
