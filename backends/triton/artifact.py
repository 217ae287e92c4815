"""The artifact: a folder ``model.optc`` that holds a compiled model. docs/artifact.md describes the format.

Everything in it is named in the manifest with its size and digest; what is damaged, incomplete or of a newer format is
refused with the reason. The same model compiled twice gives the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from optc.backends.triton.plan import DECLARED, Plan, Tensor
from optc.ir.errors import BackendError
from optc.ir.records import record
from optc.ir.writing import replacing_folder

#: Version of the format. A reader refuses what is newer.
FORMAT = 3
#: Version of the format of artifacts in parts.
PARTS_FORMAT = 4
MANIFEST, PLAN, WEIGHTS = "manifest.json", "plan.json", "weights.safetensors"
#: Element types by their names in safetensors and in plans.
_SAFETENSORS: Mapping[str, tuple[str, Any]] = {
    "fp64": ("F64", np.float64),
    "fp32": ("F32", np.float32),
    "fp16": ("F16", np.float16),
    "bf16": ("BF16", ml_dtypes.bfloat16),
    "i64": ("I64", np.int64),
    "i32": ("I32", np.int32),
    "i16": ("I16", np.int16),
    "i8": ("I8", np.int8),
    "u64": ("U64", np.uint64),
    "u32": ("U32", np.uint32),
    "u16": ("U16", np.uint16),
    "u8": ("U8", np.uint8),
}
NUMPY: Mapping[str, Any] = {name: kind for name, (_, kind) in _SAFETENSORS.items()}


def declared(tensor: Tensor) -> np.dtype[Any]:
    """The elements of an input or output as the model has them; booleans lie in memory as ``int8``."""
    return np.dtype(np.bool_ if tensor.dtype == "BOOL" else NUMPY[DECLARED[tensor.dtype]])


@dataclass(frozen=True)
class Artifact:
    """An opened artifact, checked.

    Attributes:
        path: The folder.
        manifest: What is said about it.
        plan: The plan.
    """

    path: Path
    manifest: Mapping[str, Any]
    plan: Plan

    def read(self, name: str) -> bytes:
        """The contents of a file.

        Raises:
            BackendError: It is missing, or not what was written.
        """
        entry = self.manifest["files"].get(name)
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise damaged(self.path, f"{name} is missing") from error
        if entry is None or hashlib.sha256(data).hexdigest() != entry.get("sha256"):
            raise damaged(self.path, f"{name} is not what was written (its digest differs)")
        return data

    def weights(self) -> dict[str, np.ndarray]:
        """All weights by name; they are mapped, not read.

        Raises:
            BackendError: The file is damaged.
        """
        path = self.path / WEIGHTS
        try:
            size = path.stat().st_size
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if not 2 <= length <= size - 8:
                    raise ValueError(f"its header has {length} bytes")
                header = json.loads(stream.read(length).decode())
            if not isinstance(header, dict):
                raise ValueError("its header is no object")
            tensors = {name: record(_Entry, entry) for name, entry in header.items() if name != "__metadata__"}
            data = np.memmap(path, np.uint8, "r")[8 + length :]
            return {name: entry.view(data) for name, entry in tensors.items()}
        except (OSError, ValueError, RecursionError) as error:
            raise damaged(self.path, f"{WEIGHTS} cannot be read: {error}") from error


@dataclass(frozen=True)
class _Entry:
    """What the header of the weights says of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    def view(self, data: np.ndarray) -> np.ndarray:
        """The tensor in the bytes behind the header; raises ValueError where it is not there."""
        start, stop = self.data_offsets
        kind = next((np.dtype(kind) for name, kind in _SAFETENSORS.values() if name == self.dtype), None)
        if kind is None:
            raise ValueError(f"elements of type {self.dtype!r}")
        if min(self.shape, default=0) < 0 or stop - start != math.prod(self.shape) * kind.itemsize:
            raise ValueError(f"shape {list(self.shape)} in {stop - start} bytes")
        if not 0 <= start <= stop <= data.size:
            raise ValueError(f"it ends at {data.size}, a tensor at {stop}")
        return data[start:stop].view(kind).reshape(self.shape)


class Writer:
    """Writes an artifact beside its place, and puts it there when it is whole.

    Args:
        out: The folder to write.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._digests: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Writer:
        self._stack = contextlib.ExitStack()
        self.folder = self._stack.enter_context(replacing_folder(self.out, is_artifact))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, name: str, data: bytes | str) -> Path:
        """Write a file; where it lies for now."""
        raw = data.encode() if isinstance(data, str) else data
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        self._digests[name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        return path

    def add_weights(self, tensors: Mapping[str, tuple[str, np.ndarray]], metadata: Mapping[str, str]) -> None:
        """Write the weights.

        Args:
            tensors: By name, the type in the plan's words and the contents.
            metadata: What else a reader may want to know.
        """
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        position = 0
        for name, (kind, array) in tensors.items():
            end = position + array.nbytes
            header[name] = {
                "dtype": _SAFETENSORS[kind][0],
                "shape": list(array.shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % 256)
        digest, path = hashlib.sha256(), self.folder / WEIGHTS
        with path.open("wb") as stream:
            for chunk in (struct.pack("<Q", len(text)), text, *_chunks(tensors)):
                stream.write(chunk)
                digest.update(chunk)
        self._digests[WEIGHTS] = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}

    def adopt(self, path: Path) -> None:
        """Take in a file that was written into :attr:`folder` by somebody else."""
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        name = path.relative_to(self.folder).as_posix()
        self._digests[name] = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}

    def finish(self, manifest: Mapping[str, Any], version: int = FORMAT) -> list[Path]:
        """Write the manifest, after which the artifact is whole; the files that it will consist of."""
        data = {"format": version, **manifest, "files": dict(sorted(self._digests.items()))}
        (self.folder / MANIFEST).write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", "utf-8")
        return [self.out / MANIFEST, *(self.out / name for name in sorted(self._digests))]


def _chunks(tensors: Mapping[str, tuple[str, np.ndarray]]) -> Iterator[bytes]:
    for _, array in tensors.values():
        yield np.ascontiguousarray(array).tobytes()


def is_artifact(path: Path) -> bool:
    """Whether a folder looks like an artifact, whole or not."""
    return path.is_dir() and ((path / MANIFEST).is_file() or path.suffix == ".optc")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an artifact whose files are all there; they are compared by size.

    Raises:
        BackendError: It is damaged, or of a newer format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    except OSError as error:
        raise damaged(path, f"{MANIFEST} is missing") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"{MANIFEST} is no JSON") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise damaged(path, f"{MANIFEST} does not say which format this is")
    if manifest["format"] > PARTS_FORMAT:
        raise BackendError(
            f"its format is {manifest['format']}, this optc reads up to {PARTS_FORMAT}",
            where=str(path),
            hint="run it with the optc that made it, or a newer one",
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise damaged(path, f"{MANIFEST} does not say which files there are")
    for name, entry in files.items():
        size = _size(path / name)
        if size is None or Path(name).is_absolute() or ".." in Path(name).parts:
            raise damaged(path, f"{name} is missing")
        if size != entry.get("bytes"):
            raise damaged(path, f"{name} has {size} bytes instead of {entry.get('bytes')}")
    return manifest


def open_artifact(path: Path) -> Artifact:
    """Open an artifact and check that it is whole. Weights are compared by size; cubins when they are loaded.

    Raises:
        BackendError: It is damaged, of a newer format, or in parts.
    """
    manifest = read_manifest(path)
    if "parts" in manifest:
        raise BackendError("it is in parts, of which only some are compiled", where=str(path))
    unchecked = Artifact(path, manifest, Plan((), (), (), {}, ()))
    try:
        plan = Plan.from_json(unchecked.read(PLAN).decode())
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"{PLAN} cannot be read: {error}") from error
    return Artifact(path, manifest, plan)


def _size(file: Path) -> int | None:
    """The bytes of a file; None if there is none of that name."""
    try:
        return file.stat().st_size if file.is_file() else None
    except (OSError, ValueError):
        return None


def damaged(path: Path, what: str) -> BackendError:
    """What to raise for an artifact that is not what was written."""
    return BackendError(f"the artifact is damaged: {what}", where=str(path), hint="compile the model again")
