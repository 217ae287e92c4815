"""Groups: kernels under construction, and the values that flow between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir

from optc.backends.triton.expressions import MEMORY, REGISTER, Address, Expr, Pool, loads
from optc.backends.triton.hooks import Store, depends_on_anchor
from optc.backends.triton.layout import Index, View, flat, variable
from optc.ir.dims import Dim, equal, product

Coordinates = tuple[Index, ...]
#: Computes an element: coordinates, and a condition under which alone anything may be read.
Compute = Callable[[Coordinates, Expr | None], Expr]


@dataclass(eq=False)
class Group:
    """One launch to be.

    Attributes:
        kernel: Name of the kernel.
        space: Its loop variables with their extents.
        sizes: Values of the kernel's sizes.
        constants: Values of constants that lowering decides.
        results: For each hook that returns something, what.
        reduced: Loop variables that are gone in what the kernel hands over, with their extents.
        early: Writes that need nothing of the anchor, made by the hook ``early_hook``.
        stores: All other writes, made by the hook "STORE" or "BODY".
        early_hook: The hook that makes early writes.
        nodes: Names of the nodes that it stands for.
    """

    kernel: str
    space: dict[str, Dim]
    sizes: dict[str, Dim]
    constants: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Expr] = field(default_factory=dict)
    reduced: dict[str, Dim] = field(default_factory=dict)
    early: list[Store] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    early_hook: str | None = None
    nodes: list[str] = field(default_factory=list)

    def expressions(self) -> list[Expr]:
        """Everything that it computes."""
        return [*self.results.values(), *(store.value for store in (*self.early, *self.stores))]

    def reads(self) -> set[int]:
        """The buffers that it reads."""
        return {address.buffer for address in loads(self.expressions())}

    def writes(self) -> set[int]:
        """The buffers that it writes."""
        return {store.buffer for store in (*self.early, *self.stores)}


@dataclass(eq=False)
class Value:
    """A tensor while the graph is lowered.

    Exactly one of three: *stored* (``view``); *anchored* (``group`` and ``expr``: an element is in a register of a
    group at ``coordinates``); or *lazy* (``compute``: an element can be computed anywhere from what is stored).

    Attributes:
        shape: Its dims.
        dtype: Its element type.
        view: Where it is stored.
        group: The group that computes it.
        expr: Its value there.
        coordinates: Which element that is, in the group's loop variables.
        compute: Computes an element.
        sources: What a lazy value is computed from.
        name: The name of the graph's value.
    """

    shape: tuple[Dim, ...]
    dtype: onnx_ir.DataType
    view: View | None = None
    group: Group | None = None
    expr: Expr | None = None
    coordinates: Coordinates = ()
    compute: Compute | None = None
    name: str = ""

    @property
    def memory(self) -> str:
        """The type of its elements in memory."""
        return MEMORY[self.dtype]

    @property
    def register(self) -> str:
        """The type that they are computed in."""
        return REGISTER[self.dtype]


class Builder:
    """The groups of a model, in the order in which they will run.

    Attributes:
        pool: Makes expressions.
        groups: The groups.
        sizes: Elements and memory type of every buffer, by number.
    """

    def __init__(self) -> None:
        self.pool = Pool()
        self.groups: list[Group] = []
        self.sizes: list[tuple[Dim, str]] = []

    def buffer(self, elements: Dim, memory: str) -> int:
        """A new buffer."""
        self.sizes.append((elements, memory))
        return len(self.sizes) - 1

    def add(self, group: Group) -> Group:
        """Run a group after all others."""
        self.groups.append(group)
        return group

    def position(self, group: Group) -> int:
        """Where in the order a group stands."""
        return next(place for place, other in enumerate(self.groups) if other is group)

    def written_by(self, buffer: int) -> int:
        """The place of the last group that writes a buffer; -1 for what is there from the start."""
        return max((place for place, group in enumerate(self.groups) if buffer in group.writes()), default=-1)

    # elements -----------------------------------------------------------------------------------------------------

    def element(self, value: Value, coordinates: Coordinates, guard: Expr | None = None) -> Expr:
        """The element of a stored or lazy value."""
        if value.view is not None:
            return self.load(value.view, value.memory, value.register, coordinates, guard)
        assert value.compute is not None
        return value.compute(coordinates, guard)

    def load(self, view: View, memory: str, register: str, coordinates: Coordinates, guard: Expr | None = None) -> Expr:
        """A load of one element of a view."""
        address = Address(view.buffer, memory, view.address(coordinates), (), guard is not None)
        return self.pool.make("load", () if guard is None else (guard,), register, address)

    def read(self, buffer: int, memory: str, index: Index) -> Expr:
        """A load from a position in a buffer, as it lies there."""
        return self.pool.make("load", (), memory, Address(buffer, memory, index))

    def both(self, a: Expr | None, b: Expr | None) -> Expr | None:
        """Both conditions."""
        if a is None or b is None:
            return a if b is None else b
        return self.pool.make("({0} & {1})", (a, b), "i1")

    # storing ------------------------------------------------------------------------------------------------------

    def pointwise(self, shape: Sequence[Dim], name: str) -> tuple[Group, Coordinates]:
        """A new group that visits every element of a shape, and the coordinates that it visits."""
        count = product(shape)
        group = Group("pointwise", {"i": count}, {"COUNT": count}, nodes=[name])
        return self.add(group), variable("i", count).split(list(shape))

    def store(self, value: Value, view: View) -> None:
        """Write a value where a view says: in the group that computes it, or in one of its own."""
        if value.group is not None:
            assert value.expr is not None
            group, coordinates, expr = value.group, value.coordinates, value.expr
        else:
            group, coordinates = self.pointwise(value.shape, value.name)
            expr = self.element(value, coordinates)
        made = Store(view.buffer, value.memory, view.address(coordinates), expr)
        inside = {name for index in coordinates for name in index.variables()} <= set(group.space)
        early = not inside or (group.early_hook is not None and not depends_on_anchor(expr))
        (group.early if early else group.stores).append(made)

    def coordinates_of(self, index: Index, shape: Sequence[Dim]) -> Coordinates:
        """The coordinates of the element at a row-major position."""
        return index.split(list(shape))


def flattened(coordinates: Coordinates, shape: Sequence[Dim]) -> Index:
    """The row-major position of coordinates."""
    return flat(coordinates, shape)


def same_shape(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether two shapes are provably equal."""
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def substituted(pool: Pool, root: Expr, replacements: Mapping[str, Index], memo: dict[Expr, Expr]) -> Expr:
    """An expression in the loop variables of another kernel."""
    if root in memo:
        return memo[root]
    args = tuple(substituted(pool, argument, replacements, memo) for argument in root.args)
    data = root.data
    index = data.index if root.op == "load" else data if root.op == "index" else None
    if index is not None:
        for name, new in replacements.items():
            index = index.substitute(name, new)
        data = Address(data.buffer, data.memory, index, data.strides, data.guarded) if root.op == "load" else index
    memo[root] = made = pool.make(root.op, args, root.kind, data)
    return made
