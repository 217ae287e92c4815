"""How to compute a vector of dims with few nodes: plans, made from where each dim can be read.

A plan is a small expression over values of the graph. Equal plans are one node when they are built, so the cost of
several plans is the number of different expressions in them.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import onnx_ir

from optc.ir.dims import Dim, SymDim, provably_ge, provably_positive, symbol
from optc.ir.ops import cast, squeeze, unsqueeze
from optc.ir.rewriter import Rewriter

DType = onnx_ir.DataType
#: Sums and products that need more nodes than this are read off a tensor instead, if one has the dim.
_CHEAP = 1


class Plan(NamedTuple):
    """A node to be: an operator, its operands and its attributes. Integers and tuples of them are constants."""

    op: str
    operands: tuple[Operand, ...]
    attributes: tuple[tuple[str, int], ...] = ()


Operand: TypeAlias = "Plan | onnx_ir.Value | int | tuple[int, ...]"


class Place(NamedTuple):
    """Where a dim can be read: an axis of a tensor, or an item of a tensor of integers."""

    value: onnx_ir.Value
    index: int  # type: ignore[assignment]  # tuple.index is not missed
    item: bool


@dataclass(eq=False)
class Sources:
    """Where dims can be read, in one scope: graph inputs are asked first, then what comes first in the graph.

    Attributes:
        outer: The scope around this one.
        inputs: Where inputs of the model have dims.
        inner: Where other values have dims.
        built: The plans that are built already, where nodes of this scope can see them.
    """

    outer: Sources | None = None
    inputs: dict[Dim, Place] = field(default_factory=dict)
    inner: dict[Dim, Place] = field(default_factory=dict)
    built: ChainMap[Plan, onnx_ir.Value] = field(init=False)

    def __post_init__(self) -> None:
        self.built = ChainMap() if self.outer is None else self.outer.built.new_child()

    def add(self, value: onnx_ir.Value, dims: Iterable[Dim], item: bool, is_input: bool) -> None:
        """Make the dims of a tensor (or, with ``item``, the contents of one) known."""
        for index, dim in enumerate(dims):
            if isinstance(dim, SymDim):
                (self.inputs if is_input else self.inner).setdefault(dim, Place(value, index, item))

    def of_input(self, dim: Dim) -> Place | None:
        return self.inputs.get(dim) or (self.outer.of_input(dim) if self.outer else None)

    def of_any(self, dim: Dim) -> Place | None:
        if self.outer is not None and (found := self.outer.of_any(dim)) is not None:
            return found
        return self.inputs.get(dim) or self.inner.get(dim)


class Planner:
    """Makes plans for vectors of dims (int64).

    Args:
        rw: The rewriter of the model.
        sources: Where dims can be read at the place where the vector is needed.
    """

    def __init__(self, rw: Rewriter, sources: Sources) -> None:
        self._facts, self._opset, self._sources = rw.facts, rw.opset(), sources

    def plan(self, elements: tuple[Dim, ...], rank: int, dtype: onnx_ir.DataType | None) -> Plan | onnx_ir.Value | None:
        """A plan for a tensor of rank 0 or 1 with these contents; None if it is not known how to compute them."""
        if rank > 1 or not elements or dtype not in (DType.INT64, DType.INT32):
            return None
        made = self._vector(elements) if rank == 1 else self._scalar(elements[0])
        if not isinstance(made, Plan | onnx_ir.Value):
            return None
        return made if dtype == DType.INT64 else Plan("Cast", (made,), (("to", int(DType.INT32)),))

    def _scalar(self, dim: Dim) -> Operand | None:
        place = self._place(dim)
        if place is not None and place.item and self._facts.rank(place.value) == 0:
            return place.value
        if place is not None and (place.item or self._opset < 15):
            whole = place.value if place.item else Plan("Shape", (place.value,))
            return Plan("Gather", (whole, place.index), (("axis", 0),))
        made = self._single(dim)
        return Plan("Squeeze", (made,)) if isinstance(made, Plan | onnx_ir.Value) else None

    def _vector(self, elements: tuple[Dim, ...]) -> Operand | None:
        parts: list[Operand] = []
        start = 0
        while start < len(elements):
            end = start + 1
            if isinstance(elements[start], int):
                while end < len(elements) and isinstance(elements[end], int):
                    end += 1
                parts.append(tuple(int(e) for e in elements[start:end]))  # type: ignore[arg-type]
            elif (place := self._place(elements[start])) is not None:
                end = start + self._run(place, elements[start:])
                parts.append(self._read(place, end - start))
            else:
                single = self._single(elements[start])
                if single is None:
                    return None
                parts.append(single)
            start = end
        return parts[0] if len(parts) == 1 else Plan("Concat", tuple(parts), (("axis", 0),))

    def _place(self, dim: Dim) -> Place | None:
        """Where to read a dim: off an input, else off any tensor unless it is cheaply computed from inputs."""
        found = self._sources.of_input(dim)
        if found is None and (found := self._sources.of_any(dim)) is not None:
            computed = self._computed(dim)
            if computed is not None and 0 < _arithmetic(computed) <= _CHEAP:
                return None
        return found

    def _run(self, place: Place, wanted: tuple[Dim, ...]) -> int:
        """How many of the wanted dims follow each other at a place."""
        facts = self._facts
        have = facts.elements(place.value) if place.item else facts.shape(place.value)
        count = 0
        for dim, there in zip(wanted, (have or ())[place.index :], strict=False):
            if dim != there:
                break
            count += 1
        while count > 1 and isinstance(wanted[count - 1], int):
            count -= 1  # integers are constants, whoever has them too
        if count < len(wanted) and place.index == 0 and have == wanted:
            count = len(wanted)
        return max(count, 1)

    def _read(self, place: Place, count: int) -> Operand:
        value, first, _ = place
        if place.item:
            if self._facts.rank(value) == 0:
                return Plan("Unsqueeze", (value,))
            whole: Operand = value
            size = len(self._facts.elements(value) or ())
        else:
            size = self._facts.rank(value) or 0
            if self._opset >= 15 and count < size:
                return Plan("Shape", (value,), (("start", first), ("end", first + count)))
            whole = Plan("Shape", (value,))
        if count == size:
            return whole
        return Plan("Gather", (whole, tuple(range(first, first + count))), (("axis", 0),))

    def _single(self, dim: Dim) -> Operand | None:
        """A vector of one dim."""
        if isinstance(dim, int):
            return (dim,)
        place = self._place(dim)
        return self._read(place, 1) if place is not None else self._computed(dim)

    # arithmetic

    def _computed(self, dim: Dim) -> Operand | None:
        """A vector of one dim, computed from the dims in it."""
        if isinstance(dim, int):
            return (dim,)
        terms = sorted(dim.terms, key=lambda term: term[1] < 0)  # what is added comes before what is taken away
        total: Operand | None = None
        for monomial, count in terms:
            factors = [self._factor(factor) for factor in monomial]
            if any(factor is None for factor in factors) or (total is None and count < 0):
                return None
            term: Operand | None = None if abs(count) == 1 and factors else (abs(count),)
            for factor in factors:
                term = factor if term is None else Plan("Mul", (factor, term))  # type: ignore[arg-type]
            joined = Plan("Sub" if count < 0 else "Add", (total, term))  # type: ignore[arg-type]
            total = term if total is None else joined
        return total

    def _factor(self, factor) -> Operand | None:
        if factor.op == "symbol":
            dim: Dim = symbol(factor.args[0])
            place = self._sources.of_input(dim) or self._sources.of_any(dim)
            return None if place is None else self._read(place, 1)
        alone = SymDim((((factor,), 1),))
        place = self._sources.of_input(alone)
        if place is not None:
            return self._read(place, 1)
        args = [self._computed(arg) for arg in factor.args]
        if any(arg is None for arg in args):
            return None
        if factor.op in ("floordiv", "mod"):
            if not (provably_ge(factor.args[0], 0) and provably_positive(factor.args[1])):
                return None  # integer division truncates, so the two agree only where nothing is negative
            if factor.op == "mod" and self._opset < 10:
                return None
            return Plan("Div" if factor.op == "floordiv" else "Mod", tuple(args))  # type: ignore[arg-type]
        if factor.op in ("max", "min") and self._opset >= 12:
            return Plan(factor.op.capitalize(), tuple(args))  # type: ignore[arg-type]
        if factor.op == "mul" and len(args) == 2:
            return Plan("Mul", tuple(args))  # type: ignore[arg-type]
        return None


def nodes_of(plan: Operand) -> Iterator[Plan]:
    """All nodes of a plan, operands first; one that is used twice comes twice."""
    if isinstance(plan, Plan):
        for operand in plan.operands:
            yield from nodes_of(operand)
        yield plan


def _arithmetic(plan: Operand) -> int:
    return sum(node.op not in ("Shape", "Gather") for node in set(nodes_of(plan)))


def build(rw: Rewriter, plan: Operand, built: MutableMapping[Plan, onnx_ir.Value]) -> onnx_ir.Value:
    """Insert the nodes of a plan before the rewriter's anchor, those in ``built`` excepted, to which they are added."""
    if isinstance(plan, onnx_ir.Value):
        return plan
    if not isinstance(plan, Plan):
        return rw.constant(np.array(plan, np.int64), "dims")
    if plan not in built:
        operands = [build(rw, operand, built) for operand in plan.operands]
        if plan.op in ("Squeeze", "Unsqueeze"):
            built[plan] = {"Squeeze": squeeze, "Unsqueeze": unsqueeze}[plan.op](rw, operands[0], [0])
        elif plan.op == "Cast":
            built[plan] = cast(rw, operands[0], DType(dict(plan.attributes)["to"]))
        else:
            built[plan] = rw.op(plan.op, *operands, **dict(plan.attributes))
    return built[plan]
