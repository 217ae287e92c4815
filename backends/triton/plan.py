"""The plan: which kernels run on which memory, as data. All that a runtime needs besides the cubins and the weights.

Every size is an expression over the symbolic dims of the model's inputs, in the syntax of :func:`optc.ir.dims.parse`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from optc.backends.base import ValueSpec
from optc.ir.dims import bounds_within, evaluate, parse, symbol, symbols
from optc.ir.errors import DataError
from optc.ir.records import record

try:
    import onnx_ir
except ImportError:  # what was compiled ahead of time runs without it
    onnx_ir = None  # type: ignore[assignment]

Role = Literal["input", "output", "weight", "temporary"]
#: Bytes of an element of a memory type.
ITEM_SIZE: Mapping[str, int] = {
    "fp64": 8, "i64": 8, "u64": 8, "fp32": 4, "i32": 4, "u32": 4,
    "fp16": 2, "bf16": 2, "i16": 2, "u16": 2, "i8": 1, "u8": 1, "fp8e4nv": 1,
}  # fmt: skip
#: How elements of the model's inputs and outputs lie in memory, by the name of their ONNX type.
DECLARED: Mapping[str, str] = {
    "FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64",
    "INT64": "i64", "INT32": "i32", "INT16": "i16", "INT8": "i8",
    "UINT64": "u64", "UINT32": "u32", "UINT16": "u16", "UINT8": "u8", "BOOL": "i8",
}  # fmt: skip
#: Kernels count elements in 32 bits.
_MOST_ELEMENTS = 2**31 - 1


@dataclass(frozen=True)
class Tensor:
    """An input or output of the model.

    Attributes:
        name: Its name.
        dtype: Its ONNX element type, as in "FLOAT16".
        shape: Sizes of its dims.
        buffer: Where its elements are, in row-major order.
    """

    name: str
    dtype: str
    shape: tuple[str, ...]
    buffer: int


@dataclass(frozen=True)
class Buffer:
    """A piece of memory.

    Attributes:
        role: What it is for; temporaries lie in the arena.
        elements: How many elements it has.
        type: Their type.
        weight: For a weight, its key in the weights file.
    """

    role: Role
    elements: str
    type: str
    weight: str | None = None


@dataclass(frozen=True)
class Argument:
    """A member of a kernel's ``args``: a buffer's address, or a number."""

    buffer: int | None = None
    value: str | None = None


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        kernel: The kernel's name in the plan.
        args: The members of ``args``.
        sizes: The values of all sizes of the kernel.
        reads: Buffers that it reads.
        writes: Buffers that it writes.
        nodes: The nodes of the model that it stands for.
    """

    kernel: str
    args: tuple[Argument, ...]
    sizes: Mapping[str, str]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """A kernel as compiled for one architecture.

    Attributes:
        constants: Tile sizes and other compile-time values.
        num_warps: Warps per block.
        num_stages: Depth of the software pipeline.
        cubin: File in the artifact.
        symbol: The function in it.
        shared: Bytes of dynamic shared memory.
        parameters: Bytes of each parameter.
        cuda: Toolkit version that a driver must know.
        registers: Per thread.
        spills: Instructions that move registers to or from memory.
        mma: Tensor-core instructions.
        reason: Why this tile.
    """

    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int
    cubin: str
    symbol: str
    shared: int
    parameters: tuple[int, ...]
    cuda: str
    registers: int
    spills: int
    mma: int
    reason: str


@dataclass(frozen=True)
class KernelEntry:
    """A kernel with its hooks.

    Attributes:
        kernel: The hand-written kernel.
        source: File with the generated hooks, in the artifact.
        hooks: Hook parameter -> function in the source.
        types: Types of ``args``.
        sizes: Literal sizes; None for those that a launch passes.
        passed: Those in the order of the function's parameters.
        grid: Number of programs, over sizes and constants.
        variants: Per architecture ("sm_80") what was compiled.
    """

    kernel: str
    source: str
    hooks: Mapping[str, str]
    types: tuple[str, ...]
    sizes: Mapping[str, int | None]
    passed: tuple[str, ...]
    grid: tuple[str, ...]
    variants: Mapping[str, Variant]


@dataclass(frozen=True)
class Plan:
    """A compiled model without its code and weights.

    Attributes:
        inputs: What to feed.
        outputs: What comes back.
        buffers: All memory, by number.
        kernels: All kernels, by name.
        launches: What runs, in order.
        ranges: Symbolic dims with the smallest and the largest value that they may have; None is any.
        arena: How temporaries are placed: for the "exact" sizes of a run, or once for the "largest" in all ranges.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    buffers: tuple[Buffer, ...]
    kernels: Mapping[str, KernelEntry]
    launches: tuple[Launch, ...]
    ranges: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    arena: Literal["exact", "largest"] = "exact"

    def to_json(self) -> str:
        """The plan as JSON text; equal plans give equal text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: It is no plan.
        """
        plan = record(cls, json.loads(text))
        problem = next(_problems(plan), None)
        if problem is not None:
            raise ValueError(f"not a plan: {problem}")
        return plan

    def specs(self) -> tuple[ValueSpec, ...]:
        """The inputs to feed."""
        return tuple(map(spec_of, self.inputs))

    @cached_property
    def dims(self) -> tuple[str, ...]:
        """The symbolic dims of the inputs."""
        named = (dim_name(dim) for tensor in self.inputs for dim in tensor.shape)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def bind(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """The values of the symbolic dims for inputs of these shapes.

        Raises:
            DataError: A shape does not fit its input, two inputs disagree on a dim, or a dim is out of its range.
        """
        bindings: dict[str, int] = {}
        places: dict[str, str] = {}
        for tensor in self.inputs:
            shape = tuple(shapes[tensor.name])
            if len(shape) != len(tensor.shape):
                raise DataError(f"input {tensor.name!r} has {len(tensor.shape)} dims, not {len(shape)}")
            for axis, (size, text) in enumerate(zip(shape, tensor.shape, strict=True)):
                dim = dim_name(text)
                if dim is None:
                    if text.isdecimal() and int(text) != size:
                        raise DataError(f"dim {axis} of input {tensor.name!r} is {text}, not {size}")
                    continue
                if bindings.setdefault(dim, size) != size:
                    where = f"{bindings[dim]} in {places[dim]!r}"
                    raise DataError(f"dim {dim!r} is {where} and {size} in {tensor.name!r}")
                places.setdefault(dim, tensor.name)
                low, high = self.ranges.get(dim, (0, None))
                if size < low or (high is not None and size > high):
                    allowed = f"{low}..{high}" if high is not None else f"{low} or more"
                    raise DataError(
                        f"dim {dim!r} of input {tensor.name!r} is {size}; the artifact was built for {allowed}",
                        hint="compile again with a --shape that allows it",
                    )
        for tensor in self.inputs:
            for text, size in zip(tensor.shape, shapes[tensor.name], strict=True):
                if number(text, bindings) != size:
                    raise DataError(f"{text} of input {tensor.name!r} is {number(text, bindings)}, not {size}")
        return bindings


def spec_of(tensor: Tensor) -> ValueSpec:
    """An input or output as runners describe it. The only thing here that needs onnx-ir, which running does not."""
    shape = tuple(int(dim) if dim.isdecimal() else dim_name(dim) or dim for dim in tensor.shape)
    return ValueSpec(tensor.name, onnx_ir.DataType[tensor.dtype], shape)


def dim_name(text: str) -> str | None:
    """The name of a symbolic dim, which is quoted in expressions if it is no identifier; None if it is none."""
    if text.isdecimal():
        return None
    parsed = parse(text)
    names = symbols(parsed)
    return next(iter(names)) if len(names) == 1 and parsed == symbol(*names) else None


def number(expression: str, bindings: Mapping[str, int]) -> int:
    """The value of a size.

    Raises:
        DataError: It has none.
    """
    try:
        return int(expression) if expression.isdecimal() else evaluate(parse(expression), bindings)
    except (ArithmeticError, KeyError, ValueError) as error:
        raise DataError(f"the size {expression!r} cannot be computed") from error


def nbytes(buffer: Buffer, bindings: Mapping[str, int]) -> int:
    """The bytes of a buffer.

    Raises:
        DataError: It has more elements than kernels can count.
    """
    return _bytes_of(number(buffer.elements, bindings), buffer)


def most_bytes(buffer: Buffer, ranges: Mapping[str, tuple[int, int | None]]) -> int | None:
    """A number of bytes that a buffer never exceeds while dims are within ranges; None if there is none.

    Raises:
        DataError: It would have more elements than kernels can count.
    """
    spans = {dim: (low, math.inf if high is None else high) for dim, (low, high) in ranges.items()}
    _, high = bounds_within(parse(buffer.elements), spans)
    return None if math.isinf(high) else _bytes_of(max(int(high), 0), buffer)


def _bytes_of(count: int, buffer: Buffer) -> int:
    if count > _MOST_ELEMENTS:
        raise DataError(f"a tensor would have {count} elements, more than the {_MOST_ELEMENTS} that kernels can count")
    return count * ITEM_SIZE[buffer.type]


def _problems(plan: Plan) -> Iterator[str]:
    """What does not fit together: types, sizes and buffers that there are not."""
    known = set(plan.dims)
    for tensor in (*plan.inputs, *plan.outputs):
        if tensor.dtype not in DECLARED or not 0 <= tensor.buffer < len(plan.buffers):
            yield f"{tensor.name} is of an unknown type, or in no buffer"
    for buffer in plan.buffers:
        if buffer.type not in ITEM_SIZE:
            yield f"memory of type {buffer.type!r}"
    sizes = [buffer.elements for buffer in plan.buffers]
    sizes += [dim for tensor in plan.outputs for dim in tensor.shape]
    sizes += [size for launch in plan.launches for size in launch.sizes.values()]
    for size in sizes:
        if not size.isdecimal() and not symbols(parse(size)) <= known:
            yield f"the size {size!r} is of dims that no input has"
    for name, kernel in plan.kernels.items():
        if sorted(kernel.passed) != sorted(size for size, literal in kernel.sizes.items() if literal is None):
            yield f"kernel {name!r} is passed other sizes than it takes"
    for launch in plan.launches:
        places = [*launch.reads, *launch.writes, *(a.buffer for a in launch.args if a.buffer is not None)]
        if launch.kernel not in plan.kernels or not all(0 <= place < len(plan.buffers) for place in places):
            yield f"a launch of {launch.kernel!r} has no kernel, or uses buffers that there are not"
