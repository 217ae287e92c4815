"""What the inference functions share: :class:`Fact`, what they are given, and shape helpers.

An inference function takes a :class:`Context` and returns one :class:`Fact` (the first output), or a sequence of facts
(one per output). Whatever it does not know it leaves None. A fact must hold in every run that succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import onnx_ir

from optc.ir.dims import BroadcastError, Dim, SymDim, broadcast

MAX_ELEMENTS = 64
"""Contents are tracked for integer tensors of at most this many elements."""

DType = onnx_ir.DataType
Shape: TypeAlias = "tuple[Dim, ...]"

INT_RANGES: dict[onnx_ir.DataType, tuple[int, int]] = {
    DType.BOOL: (0, 1),
    DType.INT8: (-(2**7), 2**7 - 1),
    DType.INT16: (-(2**15), 2**15 - 1),
    DType.INT32: (-(2**31), 2**31 - 1),
    DType.INT64: (-(2**63), 2**63 - 1),
    DType.UINT8: (0, 2**8 - 1),
    DType.UINT16: (0, 2**16 - 1),
    DType.UINT32: (0, 2**32 - 1),
    DType.UINT64: (0, 2**64 - 1),
}
"""The integer types whose contents are tracked. Symbolic contents only in the types that hold dims."""

SYMBOLIC_TYPES = frozenset({DType.INT64, DType.INT32, DType.BOOL})


class Fact(NamedTuple):
    """What is known about one value.

    ``elements`` are the contents in row-major order of an integer or bool tensor whose shape is all integers (False
    and True are 0 and 1). ``items`` are the facts of the members of a sequence of known length; a sequence has no
    dtype and no shape.
    """

    dtype: onnx_ir.DataType | None = None
    shape: Shape | None = None
    elements: tuple[Dim, ...] | None = None
    items: tuple[Fact, ...] | None = None


UNKNOWN = Fact()
Result: TypeAlias = "Fact | Sequence[Fact] | None"


class Knowledge(Protocol):
    """What an inference function may ask about values; :class:`optc.ir.facts.Facts` is one."""

    def fact(self, value: onnx_ir.Value) -> Fact: ...
    def elements(self, value: onnx_ir.Value) -> tuple[Dim, ...] | None: ...
    def integers(self, value: onnx_ir.Value) -> tuple[Dim, ...] | None: ...
    def floats(self, value: onnx_ir.Value) -> tuple[float, ...] | None: ...
    def tensor(self, value: onnx_ir.Value) -> onnx_ir.TensorProtocol | None: ...
    def fresh(self) -> SymDim: ...
    def fresh_integer(self) -> SymDim: ...
    def infer_graph(self, graph: onnx_ir.Graph, inputs: Sequence[Fact]) -> list[Fact]: ...


class Context:
    """One node and what is known about its inputs."""

    __slots__ = ("inputs", "knowledge", "node", "references", "version")

    def __init__(
        self,
        knowledge: Knowledge,
        node: onnx_ir.Node,
        version: int,
        references: dict[str, onnx_ir.Attr] | None = None,
    ) -> None:
        self.knowledge = knowledge
        self.node = node
        self.inputs = node.inputs
        self.version = version
        self.references = references

    # inputs

    def has(self, index: int) -> bool:
        """Whether the optional input ``index`` is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def fact(self, index: int) -> Fact:
        """What is known about input ``index``; nothing if it is absent."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return UNKNOWN if value is None else self.knowledge.fact(value)

    def shape(self, index: int) -> Shape | None:
        return self.fact(index).shape

    def dtype(self, index: int) -> onnx_ir.DataType | None:
        return self.fact(index).dtype

    def elements(self, index: int) -> tuple[Dim, ...] | None:
        """The contents of input ``index``, if it is a small integer tensor whose contents are known."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return None if value is None else self.knowledge.elements(value)

    def ints(self, index: int) -> tuple[int, ...] | None:
        """Like :meth:`elements`, where all of them are plain integers."""
        elements = self.elements(index)
        return integers_only(elements)

    def integers(self, index: int) -> tuple[Dim, ...] | None:
        """Like :meth:`elements`; where only their number is known, symbols stand for them."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return None if value is None else self.knowledge.integers(value)

    def floats(self, index: int) -> tuple[float, ...] | None:
        """The contents of input ``index``, if it is a small constant float tensor."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return None if value is None else self.knowledge.floats(value)

    # attributes

    def attribute(self, name: str) -> onnx_ir.Attr | None:
        """The attribute, with references to the attributes of an enclosing function resolved."""
        found = self.node.attributes.data.get(name)
        if found is not None and found.is_ref():
            return (self.references or {}).get(found.ref_attr_name or "")
        return found

    def attr(self, name: str, default):
        """The value of an attribute (int, float, list of ints, ...), or ``default``."""
        found = self.attribute(name)
        return default if found is None else found.value

    def attr_ints(self, name: str) -> tuple[int, ...] | None:
        found = self.attribute(name)
        return None if found is None else tuple(found.value)

    def attr_dtype(self, name: str, default: onnx_ir.DataType | None) -> onnx_ir.DataType | None:
        """An attribute that holds the number of a data type; 0 and absence mean ``default``."""
        number = self.attr(name, 0)
        return DType(number) if number else default

    # unknowns

    def fresh(self) -> SymDim:
        return self.knowledge.fresh()

    def fresh_shape(self, rank: int) -> Shape:
        return tuple(self.knowledge.fresh() for _ in range(rank))


Inference: TypeAlias = Callable[[Context], Result]
Table: TypeAlias = "dict[tuple[str, str], Inference]"


def integers_only(elements: tuple[Dim, ...] | None) -> tuple[int, ...] | None:
    """The elements, if all of them are plain integers."""
    if elements is None:
        return None
    plain = tuple(element for element in elements if isinstance(element, int))
    return plain if len(plain) == len(elements) else None


def element_count(shape: Shape | None) -> int | None:
    """The number of elements of a shape that is all integers."""
    if shape is None:
        return None
    count = 1
    for dim in shape:
        if not isinstance(dim, int):
            return None
        count *= dim
    return count


def rearranged(
    elements: tuple[Dim, ...] | None, shape: Shape | None, move: Callable[[np.ndarray], np.ndarray]
) -> tuple[Dim, ...] | None:
    """The contents after ``move``, a function that rearranges or repeats the elements of an array of ``shape``."""
    if elements is None or shape is None:
        return None
    places = move(np.arange(len(elements)).reshape(static(shape)))
    return tuple(elements[place] for place in places.ravel()) if places.size <= MAX_ELEMENTS else None


def static(shape: Shape) -> tuple[int, ...]:
    """A shape that is known to be all integers, as such."""
    return tuple(dim for dim in shape if isinstance(dim, int))


def broadcast_shapes(shapes: Iterable[Shape | None]) -> Shape | None:
    """Multidirectional broadcasting; None when a rank is unknown, or the shapes do not fit."""
    known: list[Shape] = []
    for shape in shapes:
        if shape is None:
            return None
        known.append(shape)
    first = known[0]
    if all(shape == first for shape in known):
        return first
    rank = max(map(len, known))
    try:
        return tuple(broadcast(*[shape[i - rank] for shape in known if i - rank >= -len(shape)]) for i in range(rank))
    except BroadcastError:
        return None


def normalize_axis(axis: int, rank: int) -> int | None:
    """``axis`` counted from the front, or None if it is out of range."""
    return axis % rank if -rank <= axis < rank else None


def normalize_axes(axes: Iterable[int], rank: int) -> tuple[int, ...] | None:
    """Distinct axes counted from the front, or None if one is out of range or double."""
    normal = [normalize_axis(axis, rank) for axis in axes]
    kept = tuple(axis for axis in normal if axis is not None)
    return kept if len(kept) == len(normal) == len(set(kept)) else None


def like(index: int = 0) -> Inference:
    """The first output has the dtype and shape of input ``index``."""

    def infer(ctx: Context) -> Fact:
        dtype, shape, *_ = ctx.fact(index)
        return Fact(dtype, shape)

    return infer


def table(domain: str, names: str, inference: Inference) -> Table:
    """Table rows that give all ops in ``names`` (separated by blanks) one inference function."""
    return {(domain, name): inference for name in names.split()}
