"""What every backend and every runner is: the interface that the driver, the verifier and the tools rely on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from optc.backends.options import BackendOption
from optc.ir.errors import DataError
from optc.ir.sizes import Size
from optc.ir.targets import Target

try:
    import onnx_ir
except ImportError:  # what was compiled ahead of time runs without it
    onnx_ir = None  # type: ignore[assignment]

Dim = int | str | None
Kind = Literal["tensor", "sparse", "sequence", "optional", "map"]


@dataclass(frozen=True)
class ValueSpec:
    """One input or output of a model.

    Attributes:
        name: Its name in the graph.
        dtype: The element type; for a sequence or optional that of its innermost tensor; None where there is none.
        shape: One entry per dim: an int, the name of a symbolic dim, or None for an anonymous one. None when the
            rank itself is unknown.
        kind: What the value is; only tensors are exchanged as arrays.
    """

    name: str
    dtype: onnx_ir.DataType | None
    shape: tuple[Dim, ...] | None = None
    kind: Kind = "tensor"

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        dtype = self.dtype.name.lower() if self.dtype else "?"
        text = f"{dtype}[{dims}]"
        return f"{self.name}: {text if self.kind == 'tensor' else f'{self.kind}({text})'}"

    @classmethod
    def of(cls, value: onnx_ir.Value) -> ValueSpec:
        """The spec of a graph value, as far as the graph declares it."""
        kind: Kind = "tensor"
        declared = value.type
        if isinstance(declared, onnx_ir.SequenceType):
            kind = "sequence"
        elif isinstance(declared, onnx_ir.OptionalType):
            kind = "optional"
        elif isinstance(declared, onnx_ir.SparseTensorType):
            kind = "sparse"
        shape = None
        if value.shape is not None:
            shape = tuple(dim if isinstance(dim, int) else (dim.value or None) for dim in value.shape)
        return cls(value.name or "", value.dtype, shape, kind)


@dataclass(frozen=True)
class Probe:
    """Whether a backend can be used here; when it cannot, why, and what to do about it."""

    ready: bool
    reason: str
    hint: str | None = None


@dataclass(frozen=True)
class Artifact:
    """What a backend wrote.

    Attributes:
        backend: The backend's name.
        path: The file to open.
        files: Every file that belongs to it, ``path`` first.
        notes: Remarks for the report.
    """

    backend: str
    path: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of all files together, in bytes."""
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True)
class OpSignature:
    """What a backend needs to know about a node to say whether it has a kernel for it.

    Attributes:
        domain: The operator's domain; "" is ai.onnx.
        op_type: The operator.
        version: The opset version imported for ``domain``.
        inputs: Element type per input position; None for an absent input or an unknown type.
        outputs: The same for outputs.
    """

    domain: str
    op_type: str
    version: int
    inputs: tuple[onnx_ir.DataType | None, ...] = ()
    outputs: tuple[onnx_ir.DataType | None, ...] = field(default=())

    @classmethod
    def of(cls, node: onnx_ir.Node) -> OpSignature:
        """The signature of a node in a graph; the version comes from the graph's opset imports."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        imports = node.graph.opset_imports if node.graph is not None else {}
        version = node.version if node.version is not None else imports.get(domain, imports.get(node.domain, 1))
        return cls(
            domain,
            node.op_type,
            version,
            tuple(None if value is None else value.dtype for value in node.inputs),
            tuple(value.dtype for value in node.outputs),
        )


@runtime_checkable
class Runner(Protocol):
    """An opened model."""

    @property
    def inputs(self) -> tuple[ValueSpec, ...]: ...

    @property
    def outputs(self) -> tuple[ValueSpec, ...]: ...

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Run once.

        Args:
            feeds: One array per input, by name.

        Returns:
            One array per output, by name and in order; sequences come as lists of arrays, absent optionals as None.

        Raises:
            DataError: ``feeds`` do not fit the model's inputs.
            BackendError: The run failed.
        """
        ...


@runtime_checkable
class Backend(Protocol):
    """Turns a graph into something that runs."""

    @property
    def name(self) -> str: ...

    def probe(self) -> Probe:
        """Whether this backend can emit and open here. Never raises."""
        ...

    def claims(self, op: OpSignature | onnx_ir.Node, target: Target | None = None) -> bool:
        """Whether this backend runs the op on ``target`` as it stands, without decomposing it."""
        ...

    def emit(self, model: onnx_ir.Model, target: Target, out: Path) -> Artifact:
        """Write ``model`` for ``target`` to ``out``, whole or not at all."""
        ...

    def open(self, path: Path, **options: Any) -> Runner:
        """Open an artifact that :meth:`emit` wrote."""
        ...


class Kernels(Protocol):
    """The operators that a runtime has."""

    def supports(
        self,
        domain: str,
        op: str,
        opset_version: int,
        dtypes: Mapping[str, Any] | Any | None = None,
        provider: str = ...,
    ) -> bool:
        """Whether there is a kernel for the element type of the first input, or of each type variable."""
        ...

    def float_precisions(self) -> tuple[str, ...]:
        """Narrower types in which the runtime can compute a graph's floats by itself, the best first."""
        ...


@runtime_checkable
class HostBackend(Backend, Protocol):
    """A backend whose runtime takes graphs of operators, and can run them on this machine while they are being made.

    Passes write for its kernels, and measure with its runner.
    """

    @property
    def kernels(self) -> Kernels: ...

    def on(self, target: Target) -> Target:
        """The target with the runtime's own name as its ``provider``; BackendError where it cannot serve it."""
        ...

    def here(self, target: Target) -> bool:
        """Whether this machine has what the target runs on."""
        ...

    def problem(self, model: onnx_ir.Model) -> str | None:
        """Why the runtime cannot run a model as it stands; None where nothing is known to be in the way."""
        ...

    def runner(self, model: onnx_ir.Model, *, plain: bool = False, few_runs: bool = False) -> Runner:
        """A model in memory, opened as in production.

        Args:
            model: The model.
            plain: Compute what is written in it and no more, if the runtime can be told so.
            few_runs: Spend no time on opening that only many runs bring in again.
        """
        ...


@runtime_checkable
class CompilingBackend(Backend, Protocol):
    """A backend that generates code: it takes fused ops as they are, and may build for several devices at once."""

    def check(self, targets: Sequence[Target]) -> None:
        """Raise BackendError where it cannot build for these devices."""
        ...

    def compile(
        self, model: onnx_ir.Model, targets: Sequence[Target], out: Path, shapes: Mapping[str, Size]
    ) -> Artifact:
        """Write ``model`` for ``targets`` to ``out``, whole or not at all.

        ``shapes`` are usual sizes of its dims, and ranges that they never leave.
        """
        ...


@dataclass(frozen=True)
class Build:
    """What a compile knows beside the graph, for artifacts that are made of more than that.

    Attributes:
        shapes: Sizes or ranges of symbolic dims, as the user gave them.
        usual: The sizes that its symbolic dims mostly have.
        data: What activations were measured on, in words.
    """

    shapes: Mapping[str, Size] = field(default_factory=dict)
    usual: Mapping[str, int] = field(default_factory=dict)
    data: str = ""


@runtime_checkable
class BuildingBackend(Backend, Protocol):
    """A backend whose artifacts depend on more than the graph."""

    def check_output(self, out: Path) -> None:
        """Raise OptcError now, before the work, where this artifact cannot be written on this machine."""
        ...

    def build(self, model: onnx_ir.Model, target: Target, out: Path, build: Build) -> Artifact:
        """Write ``model`` for ``target`` to ``out``, whole or not at all."""
        ...


@runtime_checkable
class ConfigurableBackend(Backend, Protocol):
    """A backend that has options of its own."""

    #: Its options, for messages and documents.
    options: Sequence[BackendOption]

    def configured(self, given: Mapping[str, Any]) -> Backend:
        """The same backend with options; UsageError for those that it has not, or that make no sense."""
        ...


def check_names(feeds: Mapping[str, Any], inputs: Sequence[ValueSpec], where: str | None) -> None:
    """Refuse feeds that leave out an input, or bring one that there is not.

    Raises:
        DataError: They do; the message names them.
    """
    wanted = [spec.name for spec in inputs]
    missing = [name for name in wanted if name not in feeds]
    unknown = [name for name in feeds if name not in wanted]
    if missing or unknown:
        parts = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"unknown: {', '.join(unknown)}"] * bool(unknown)
        raise DataError(
            f"the inputs do not fit the model ({'; '.join(parts)})",
            where=where,
            hint=f"the model takes {', '.join(map(str, inputs)) or 'no inputs'}",
        )
