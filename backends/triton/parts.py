"""Artifacts in parts: what cannot be compiled is run by ONNX Runtime, in between what can.

Such an artifact is a folder, too: its manifest says in which order the parts run and what they hand to each other, and
every part is an artifact of its own or an ONNX file. What crosses from one part to the next goes through the host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir

from optc.backends.base import Dim, Runner, ValueSpec, check_names
from optc.backends.ort import Session
from optc.backends.triton.artifact import damaged, read_manifest
from optc.backends.triton.runtime import TritonRunner
from optc.ir.errors import BackendError
from optc.ir.records import record


@dataclass(frozen=True)
class Entry:
    """One part, as the manifest names it.

    Attributes:
        runs: What runs it.
        path: Its folder or file inside of the artifact.
        inputs: Names of the values that it reads.
        outputs: Names of the values that it makes.
        why: Why it is not compiled; empty if it is.
    """

    runs: Literal["triton", "onnxruntime"]
    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    why: str = ""


@dataclass(frozen=True)
class Port:
    """An input or output of the whole.

    Attributes:
        name: Its name.
        dtype: Its ONNX element type, as in "FLOAT16".
        shape: Its dims.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def spec(self) -> ValueSpec:
        """The same as runners describe it."""
        return ValueSpec(self.name, onnx_ir.DataType[self.dtype], self.shape)


@dataclass(frozen=True)
class Parts:
    """What a manifest says of an artifact in parts.

    Attributes:
        parts: In the order in which they run.
        inputs: What the whole takes.
        outputs: What the whole gives.
    """

    parts: tuple[Entry, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def specs(self) -> tuple[ValueSpec, ...]:
        """The inputs as runners describe them."""
        return tuple(port.spec for port in self.inputs)


def in_parts(path: Path) -> bool:
    """Whether an artifact is in parts.

    Raises:
        BackendError: It is damaged, or of a newer format.
    """
    return "parts" in read_manifest(path)


def read_parts(path: Path) -> Parts:
    """What an artifact consists of.

    Raises:
        BackendError: It is damaged, or of a newer format.
    """
    manifest = read_manifest(path)
    try:
        found = record(Parts, {name: manifest.get(name) for name in ("parts", "inputs", "outputs")})
        made = {port.name for port in found.inputs}
        for entry in found.parts:
            if Path(entry.path).is_absolute() or ".." in Path(entry.path).parts:
                raise ValueError(f"a part lies at {entry.path!r}")
            lacking = [name for name in entry.inputs if name not in made]
            if lacking:
                raise ValueError(f"nothing before {entry.path!r} makes {lacking[0]!r}")
            made.update(entry.outputs)
        lacking = [port.name for port in found.outputs if port.name not in made]
        if lacking:
            raise ValueError(f"no part makes {lacking[0]!r}")
        for port in (*found.inputs, *found.outputs):
            _ = onnx_ir.DataType[port.dtype]
    except (ValueError, KeyError) as error:
        raise damaged(path, f"its manifest cannot be read: {error}") from error
    return found


class PartsRunner:
    """An opened artifact in parts; a :class:`~optc.backends.base.Runner`.

    Args:
        path: The artifact's folder.
        device: What runs the compiled parts, "cuda" or "interpreter".

    Raises:
        BackendError: It is damaged or of a newer format, or the device cannot run it.
    """

    def __init__(self, path: Path, device: str) -> None:
        self._path, found = path, read_parts(path)
        self._inputs = found.specs
        self._outputs = tuple(port.spec for port in found.outputs)
        self._parts: list[tuple[Entry, Runner]] = []
        for entry in found.parts:
            place = path / entry.path
            runner: Runner = TritonRunner(place, device) if entry.runs == "triton" else Session(place)
            for what, wanted, there in (
                ("inputs", entry.inputs, runner.inputs),
                ("outputs", entry.outputs, runner.outputs),
            ):
                if set(wanted) != {spec.name for spec in there}:
                    raise damaged(path, f"{entry.path} has other {what} than the manifest says")
            self._parts.append((entry, runner))

    @property
    def inputs(self) -> tuple[ValueSpec, ...]:
        """The inputs to feed."""
        return self._inputs

    @property
    def outputs(self) -> tuple[ValueSpec, ...]:
        """The outputs, in order."""
        return self._outputs

    def close(self) -> None:
        """Give back what the compiled parts have on the GPU; it cannot be run afterwards."""
        for _, runner in self._parts:
            if isinstance(runner, TritonRunner):
                runner.close()

    def __enter__(self) -> PartsRunner:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Run once; see :meth:`optc.backends.base.Runner.run`."""
        check_names(feeds, self._inputs, str(self._path))
        values: dict[str, Any] = dict(feeds)
        waiting = Counter(name for entry, _ in self._parts for name in entry.inputs)
        waiting.update(spec.name for spec in self._outputs)
        for entry, runner in self._parts:
            try:
                values |= runner.run({name: values[name] for name in entry.inputs})
            except BackendError as error:
                error.where = f"{self._path}, {entry.path}"
                raise
            for name in entry.inputs:
                waiting[name] -= 1
                if not waiting[name]:
                    del values[name]  # nothing needs it any more
        return {spec.name: values[spec.name] for spec in self._outputs}
