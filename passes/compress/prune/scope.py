"""What a rule of an operator sees and may say: the axes of one node's inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir

from optc.ir.dims import Dim
from optc.ir.facts import Facts
from optc.ir.ops import operand
from optc.passes.compress.prune.atoms import Atoms, Axes, Ids

#: Constants with more elements than this are one for all that read them; smaller ones may become several.
_SHARED_ELEMENTS = 1 << 14

#: A value, or the use of a small constant as an input of a node.
Key = onnx_ir.Value | tuple[onnx_ir.Node, int]


@dataclass(frozen=True, eq=False)
class Weight:
    """An axis of a constant along which a layer's channels lie.

    Attributes:
        node: The layer.
        index: Which input of it is the constant.
        axis: The axis of the constant.
        ids: The axis's atoms.
        x: Which input is multiplied with it, for the axis that is summed over.
    """

    node: onnx_ir.Node
    index: int
    axis: int
    ids: Ids
    x: int = 0

    @property
    def value(self) -> onnx_ir.Value:
        """The constant."""
        return self.node.inputs[self.index]


@dataclass(frozen=True, eq=False)
class Product:
    """An axis over which a node sums the products of two inputs, neither of which is constant.

    Attributes:
        node: The node, whose first two inputs are multiplied.
        ids: The axis's atoms.
    """

    node: onnx_ir.Node
    ids: Ids


@dataclass
class State:
    """All that is gathered on a walk over a graph.

    Attributes:
        facts: What is known of values.
        atoms: Positions, and their ties.
        axes: The atoms of every value's axes.
        writers, readers: Where layers make channels, and where they sum over them.
        products: Where channels are summed over without weights.
        choices: Of every place where an axis is made of several others, which one of them is shortened; None on the
            first walk, which finds out what can be.
        factors: The atoms of the axes that could be chosen there, as the first walk has found them.
        least: Axes with how many positions have to be left of them.
    """

    facts: Facts
    atoms: Atoms = field(default_factory=Atoms)
    axes: dict[Key, Axes | None] = field(default_factory=dict)
    writers: list[Weight] = field(default_factory=list)
    readers: list[Weight] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    choices: dict[tuple[onnx_ir.Node, int], int] | None = None
    factors: dict[tuple[onnx_ir.Node, int], list[Ids]] = field(default_factory=dict)
    least: list[tuple[Ids, int]] = field(default_factory=list)

    def of(self, value: onnx_ir.Value) -> Axes | None:
        """Axes of a computed value, an input or a large constant."""
        if value not in self.axes:
            self.axes[value] = self.new(self.facts.shape(value))
        return self.axes[value]

    def use(self, node: onnx_ir.Node, index: int) -> Axes | None:
        """Axes of an input of a node."""
        value = operand(node, index)
        if value is None:
            return None
        size = self.facts.const_size(value)
        if size is None or size > _SHARED_ELEMENTS:
            return self.of(value)
        key = (node, index)
        if key not in self.axes:
            self.axes[key] = self.new(self.facts.shape(value))
        return self.axes[key]

    def new(self, shape: Sequence[Dim] | None, reason: str | None = None) -> Axes | None:
        """Fresh axes of a shape, frozen if there is a reason."""
        if shape is None:
            return None
        axes = tuple(self.atoms.fresh(dim) if isinstance(dim, int) else None for dim in shape)
        for ids in axes:
            if ids is not None and reason is not None:
                self.atoms.freeze(ids, reason)
        return axes


class View:
    """One node on a walk.

    Attributes:
        node: The node.
        facts: What is known of values.
        ins: The axes of its inputs; None for those that are left out or whose rank is not known.
    """

    def __init__(self, state: State, node: onnx_ir.Node) -> None:
        self.state, self.node, self.facts, self.atoms = state, node, state.facts, state.atoms
        self.ins = [state.use(node, index) for index in range(len(node.inputs))]
        self._segments = 0

    def axes(self, index: int) -> Axes | None:
        """The axes of an input, None where it is left out."""
        return self.ins[index] if index < len(self.ins) else None

    def shape(self, index: int) -> Sequence[Dim] | None:
        return self.facts.shape(operand(self.node, index))

    def is_const(self, index: int) -> bool:
        return self.facts.is_const(operand(self.node, index))

    def tie(self, first: Ids | None, second: Ids | None) -> None:
        """Position by position, two axes of the same size go together; one of unknown size freezes the other."""
        if first is not None and second is not None and len(first) == len(second):
            self.atoms.tie(first, second)
        else:
            self.freeze(first, f"{self.node.op_type} meets it with an axis of another or an unknown size")
            self.freeze(second, f"{self.node.op_type} meets it with an axis of another or an unknown size")

    def freeze(self, ids: Ids | Axes | None, reason: str) -> None:
        """Atoms of an axis or of all axes of a value stay."""
        for one in ids if isinstance(ids, tuple) else (ids,):
            if one is not None:
                self.atoms.freeze(one, f"{reason} ({self.node.name or self.node.op_type})")

    def freeze_inputs(self, reason: str, *but: int) -> None:
        """All inputs stay as they are, but some."""
        for index, axes in enumerate(self.ins):
            if index not in but:
                self.freeze(axes, reason)

    def out(self, index: int = 0, reason: str | None = None) -> Axes | None:
        """Fresh axes for an output, frozen if there is a reason."""
        return self.state.new(self.facts.shape(self.node.outputs[index]), reason)

    def fixed(self, axis: int, index: int = 0) -> Ids | None:
        """A fresh axis of an output that nothing can shorten."""
        shape = self.facts.shape(self.node.outputs[index])
        if shape is None or not isinstance(shape[axis], int):
            return None
        ids = self.atoms.fresh(shape[axis])
        self.freeze(ids, f"{self.node.op_type} makes it anew")
        return ids

    def writes(self, index: int, axis: int, ids: Ids | None) -> None:
        """An axis of a constant input along which the node makes channels."""
        if ids is not None and self.is_const(index):
            self.state.writers.append(Weight(self.node, index, axis, ids))

    def reads(self, index: int, axis: int, ids: Ids | None, x: int = 0) -> None:
        """An axis of a constant input that the node sums over, with that of the input ``x``."""
        if ids is not None and self.is_const(index) and not self.is_const(x):
            self.state.readers.append(Weight(self.node, index, axis, ids, x))

    def sums(self, ids: Ids | None) -> None:
        """An axis over which the node sums the products of its first two inputs, where neither is constant."""
        if ids is not None and not (self.is_const(0) or self.is_const(1)):
            self.state.products.append(Product(self.node, ids))

    def at_least(self, ids: Ids, count: int) -> None:
        """So many positions of an axis have to be left."""
        self.state.least.append((ids, count))

    def choose(self, factors: list[Ids]) -> int | None:
        """Which of several axes that are one axis elsewhere is to be shortened; None if that is not known yet."""
        place = (self.node, self._segments)
        self._segments += 1
        if self.state.choices is None:
            self.state.factors[place] = factors
            return None
        return self.state.choices.get(place, 0)

    def rows(self, ids: Ids, count: int) -> Ids:
        """An axis as ``count`` equal parts that are removed whole; one atom of each."""
        parts = ids.reshape(count, -1)
        self.atoms.tie(parts[:, :1], parts)
        return parts[:, 0]


#: Ties the axes of a node's inputs and returns those of its outputs.
Rule = Callable[[View], "Sequence[Axes | None]"]


def broadcast(view: View, given: Sequence[tuple[Axes, Sequence[Dim]]]) -> tuple[Ids | None, ...]:
    """Axes of what comes of several shapes that are broadcast together; equal positions are tied."""
    rank = max((len(axes) for axes, _ in given), default=0)
    result: list[Ids | None] = []
    for axis in range(-rank, 0):
        meeting = [(axes[axis], shape[axis]) for axes, shape in given if len(axes) >= -axis]
        wide = [ids for ids, dim in meeting if ids is not None and dim != 1]
        if any(ids is None for ids, _ in meeting) and len(meeting) > 1 and wide:
            for ids in wide:
                view.freeze(ids, f"{view.node.op_type} broadcasts it with a dim that is no number")
        for ids in wide[1:]:
            view.tie(wide[0], ids)
        known = wide or [ids for ids, _ in meeting if ids is not None and len(meeting) == 1]
        if not known and all(ids is not None for ids, _ in meeting):
            known = [ids for ids, _ in meeting if ids is not None]
        result.append(known[0] if known else None)
    return tuple(result)


def ids_of(axes: Axes | None, axis: int) -> Ids | None:
    """One axis, None where it is not there."""
    return axes[axis] if axes is not None and -len(axes) <= axis < len(axes) else None


def cumulative(keep: np.ndarray) -> np.ndarray:
    """How many positions before each are kept; one number more than there are positions."""
    return np.concatenate([[0], np.cumsum(keep)])
