"""Lowering: from a graph to groups, which are kernel launches to be.

Values are kept as expressions for as long as possible. Movement only changes coordinates; a pointwise operator joins
the kernel that computes its operand (an epilogue), or waits until somebody needs its result (a prologue, or a
generated kernel). Only what more than one kernel reads, or what a kernel must find in memory, is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from optc.backends.triton import pointwise
from optc.backends.triton.alike import joined
from optc.backends.triton.expressions import MEMORY, Expr, walk
from optc.backends.triton.groups import Builder, Coordinates, Group, Value, same_shape, substituted
from optc.backends.triton.hooks import Store
from optc.backends.triton.layout import Index, View, dense, flat, variable
from optc.backends.triton.tuning import Tuning
from optc.ir.dims import Dim, equal, product, symbol, symbols
from optc.ir.dims_core import sole_factor
from optc.ir.errors import BackendError
from optc.ir.facts import Facts
from optc.ir.names import join_op
from optc.ir.ops import operand


class Unsupported(Exception):
    """Why a node cannot be lowered."""


class CannotCompile(BackendError):
    """Some nodes cannot be lowered.

    Attributes:
        nodes: What is wrong, by the names of the nodes that are to blame, as far as they have any.
    """

    nodes: Mapping[str, str]


@dataclass(frozen=True)
class Weight:
    """A constant that kernels read.

    Attributes:
        buffer: Its buffer.
        tensor: Its contents.
        name: Its name in the graph.
    """

    buffer: int
    tensor: onnx_ir.TensorProtocol
    name: str


Rule = Callable[["Lowering", onnx_ir.Node], None]


class Lowering:
    """One graph being lowered.

    Args:
        model: The model; its main graph must hold standard operators only, or what ``rules`` know.
        facts: What is known about it.
        rules: Per operator ("Softmax", "optc::Attention") what it becomes.
        tuning: What to choose between kernels for.

    Attributes:
        builder: The groups so far.
        weights: Constants, by buffer.
        inputs: Buffers of the graph's inputs, by name.
        outputs: Buffers of the graph's outputs, by name.
        limits: The largest values of symbolic dims at which the model is valid.
    """

    def __init__(
        self, model: onnx_ir.Model, facts: Facts, rules: Mapping[str, Rule], tuning: Tuning | None = None
    ) -> None:
        self.model, self.facts, self.rules = model, facts, rules
        self.tuning = tuning or Tuning()
        self.builder = Builder()
        self.pool = self.builder.pool
        self.weights: dict[int, Weight] = {}
        self.inputs: dict[str, int] = {}
        self.outputs: dict[str, int] = {}
        self.limits: dict[str, int] = {}
        self._values: dict[onnx_ir.Value, Value] = {}
        self._anchored: list[Value] = []

    def run(self) -> None:
        """Lower the whole graph.

        Raises:
            BackendError: Some nodes cannot be lowered; all of them are named.
        """
        graph = self.model.graph
        problems: list[str] = []
        failed: dict[str, str] = {}
        for value, wrong in self._check_inputs():
            problems.append(f"{value.name} (input): {wrong}")
            failed |= {use.node.name or "": f"input {value.name}: {wrong}" for use in value.uses()}
        for value in graph.inputs:
            if value not in graph.initializers.values() and not problems:
                self._input(value)
        for node in graph:
            if problems and self._rule(node) is not None:
                continue
            try:
                self._lower(node)
            except Unsupported as reason:
                name = join_op(node.domain, node.op_type)
                problems.append(f"{node.name or node.outputs[0].name} ({name}): {reason}")
                failed[node.name or ""] = f"{name}: {reason}"
        for value in graph.outputs if not problems else ():
            try:
                self._output(value)
            except Unsupported as reason:
                problems.append(f"{value.name} (output): {reason}")
                maker = value.producer()
                failed[(maker.name if maker is not None else None) or ""] = f"output {value.name}: {reason}"
        if problems:
            shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
            error = CannotCompile(
                f"{len(problems)} node{'s' * (len(problems) != 1)} cannot be compiled:\n    " + "\n    ".join(shown),
                hint="--fallback=onnxruntime lets ONNX Runtime run them alone, --backend=onnxruntime the whole model; "
                "where a size is in the way, give the model's inputs fixed ones",
            )
            error.nodes = {name: why for name, why in failed.items() if name}
            raise error
        self._tidy()

    # values -------------------------------------------------------------------------------------------------------

    def value(self, value: onnx_ir.Value) -> Value:
        """The lowered form of a graph value.

        Raises:
            Unsupported: Its type or rank is not known, or it is of a type that kernels do not have.
        """
        found = self._values.get(value)
        if found is not None:
            return found
        made = self._known_integers(value) or self._constant(value)
        if made is None:
            raise Unsupported(f"needs {value.name!r}, which is not computed")
        self._values[value] = made
        return made

    def operand(self, node: onnx_ir.Node, place: int) -> Value | None:
        """An input of a node; None where it is left out."""
        value = operand(node, place)
        return None if value is None else self.value(value)

    def needed(self, node: onnx_ir.Node, place: int) -> Value:
        """An input of a node that must be there."""
        found = self.operand(node, place)
        if found is None:
            raise Unsupported(f"input {place} is left out")
        return found

    def shape(self, value: onnx_ir.Value) -> tuple[Dim, ...]:
        """The dims of a value, all over the dims of the inputs.

        Raises:
            Unsupported: They depend on contents, or the rank is not known.
        """
        shape = self.facts.shape(value)
        if shape is None:
            raise Unsupported("the rank of its result is not known")
        for dim in shape:
            if not symbols(dim) <= self._symbols:
                raise Unsupported(f"the shape of its result ({', '.join(map(str, shape))}) depends on what is computed")
        return tuple(shape)

    def dtype(self, value: onnx_ir.Value) -> onnx_ir.DataType:
        """The element type of a value.

        Raises:
            Unsupported: Kernels have no such type.
        """
        dtype = self.facts.dtype(value)
        if dtype is None or dtype not in MEMORY:
            raise Unsupported(f"{'an unknown type' if dtype is None else dtype.name.lower()} is not supported")
        return dtype

    def define(self, value: onnx_ir.Value, made: Value) -> None:
        """Say what a graph value becomes. What is computed more than once otherwise is computed once, here."""
        made.name = made.name or value.name or ""
        self._values[value] = made
        if made.group is not None:
            self._anchored.append(made)
        elif made.compute is not None and self._readers(value) > 1 and self._costs(made):
            self.settle(made)

    def anchor(self, value: onnx_ir.Value, group: Group, coordinates: Coordinates, kind: str = "fp32") -> None:
        """Say that a graph value is what a group's kernel hands to its last hook, at these coordinates."""
        expr = self.pool.make("anchor", (), kind, id(group))
        dtype = self.dtype(value)
        self.define(value, Value(self.shape(value), dtype, group=group, expr=expr, coordinates=coordinates))

    # forms of values ----------------------------------------------------------------------------------------------

    def settle(self, value: Value) -> None:
        """Give a lazy value a kernel of its own, which others may join."""
        assert value.compute is not None
        group, coordinates = self.builder.pointwise(value.shape, value.name)
        value.group, value.coordinates, value.expr = group, coordinates, value.compute(coordinates, None)
        value.compute = None
        self._anchored.append(value)

    def stored(self, value: Value) -> View:
        """Where a value is stored; it is stored now if it was not."""
        if value.view is None:
            if value.group is None:
                self.settle(value)
            order = self._natural_order(value)
            buffer = self.builder.buffer(product(value.shape), value.memory)
            view = dense(buffer, value.shape, order)
            self.builder.store(value, view)
            value.view = view
        return value.view

    def readable(self, value: Value) -> Value:
        """The value in a form that any later kernel can read: stored or lazy."""
        if value.view is None and value.compute is None:
            self.stored(value)
        return value

    def element(self, value: Value, coordinates: Coordinates, guard: Expr | None = None) -> Expr:
        """An element of a readable value."""
        return self.builder.element(self.readable(value), coordinates, guard)

    def broadcast(self, value: Value, coordinates: Coordinates, shape: Sequence[Dim]) -> Coordinates:
        """The coordinates in a value of the element that broadcasting pairs with ``coordinates`` of ``shape``.

        Raises:
            Unsupported: Whether a dim is broadcast depends on the run.
        """
        own = coordinates[len(coordinates) - len(value.shape) :] if value.shape else ()
        found = []
        for size, wanted, coordinate in zip(
            value.shape, shape[len(shape) - len(value.shape) :] if value.shape else (), own, strict=True
        ):
            if equal(size, 1):
                found.append(Index())
            elif equal(size, wanted) or self._is_cut(size, wanted):
                found.append(coordinate)
            else:
                raise Unsupported(f"whether {size} is broadcast to {wanted} depends on the run")
        return tuple(found)

    def _is_cut(self, size: Dim, wanted: Dim) -> bool:
        """Whether a dim is ``min(wanted, k)``: it then broadcasts to ``wanted`` only where that is at most ``k``."""
        factor = sole_factor(size)
        if factor is None or factor.op != "min" or wanted not in factor.args:
            return False
        others = [other for other in factor.args if other != wanted]
        name = next(iter(symbols(wanted)), "")
        if wanted != symbol(name) or not all(isinstance(other, int) and other > 1 for other in others):
            return False
        self.limits[name] = min([self.limits.get(name, others[0]), *others])
        return True

    # joining ------------------------------------------------------------------------------------------------------

    def pointwise(
        self,
        node: onnx_ir.Node,
        output: onnx_ir.Value,
        operands: Sequence[Value | None],
        build: Callable[[Sequence[Expr | None]], Expr] | None = None,
    ) -> None:
        """A pointwise operator: part of the kernel that computes an operand, or lazy.

        Args:
            node: The node.
            output: What is defined.
            operands: Its operands, which broadcast against each other.
            build: Makes an element of those of the operands; without it the table of operators does.
        """
        shape, dtype = self.shape(output), self.dtype(output)
        name = node.name or output.name or ""

        def apply(elements: Sequence[Expr | None]) -> Expr:
            return pointwise.build(self.pool, node, elements, dtype) if build is None else build(elements)

        group = self._latest([x for x in operands if x is not None])
        joined = None if group is None else self._join(group, operands, shape)
        if group is not None and joined is not None:
            coordinates, elements = joined
            group.nodes.append(name)
            made = Value(shape, dtype, group=group, expr=apply(elements), coordinates=coordinates, name=name)
            self.define(output, made)
            return
        readable = [None if x is None else self.readable(x) for x in operands]
        for x in readable:
            if x is not None:
                self.broadcast(x, tuple(Index() for _ in shape), shape)  # find out now whether it works

        def compute(coordinates: Coordinates, guard: Expr | None) -> Expr:
            return apply(
                [
                    None if x is None else self.builder.element(x, self.broadcast(x, coordinates, shape), guard)
                    for x in readable
                ]
            )

        self.define(output, Value(shape, dtype, compute=compute, name=name))

    def absorb(self, value: Value, group: Group, coordinates: Coordinates) -> None:
        """Move the generated kernel that computes a value into ``group`` as its prologue, if that is possible.

        Args:
            value: What ``group`` reads.
            group: A group that visits every element of the value's space once; it is the last one.
            coordinates: Those of the element that it visits.
        """
        source = value.group
        if source is None or source.kernel != "pointwise" or group.early_hook is None:
            return
        row = _visited(value, coordinates)
        if row is None:
            return
        place = self.builder.position(source)
        later = [other for other in self.builder.groups[place + 1 :] if other is not group]
        if any(source.writes() & other.reads() for other in later):
            return
        if not equal(source.space["i"], product(group.space.values())):
            return
        memo: dict[Expr, Expr] = {}
        replaced = {"i": row}
        for store in source.stores:
            expr = substituted(self.pool, store.value, replaced, memo)
            group.early.append(Store(store.buffer, store.memory, store.index.substitute("i", row), expr))
        for other in self._anchored:
            if other.group is source:
                assert other.expr is not None
                other.group, other.expr = group, substituted(self.pool, other.expr, replaced, memo)
                other.coordinates = tuple(index.substitute("i", row) for index in other.coordinates)
        group.nodes[:0] = source.nodes
        self.builder.groups.remove(source)

    def _latest(self, operands: Sequence[Value]) -> Group | None:
        groups = [x.group for x in operands if x.group is not None]
        return max(groups, key=self.builder.position, default=None)

    def _join(
        self, group: Group, operands: Sequence[Value | None], shape: Sequence[Dim]
    ) -> tuple[Coordinates, list[Expr | None]] | None:
        """Coordinates and operands of a pointwise operator in a group; None where it cannot be part of it."""
        coordinates: Coordinates | None = None
        for x in operands:
            if x is not None and x.group is group and _fills(x.shape, shape):
                missing = tuple(Index() for _ in range(len(shape) - len(x.shape)))
                coordinates = missing + x.coordinates
                break
        if coordinates is None or not {n for index in coordinates for n in index.variables()} <= set(group.space):
            return None
        elements: list[Expr | None] = []
        outside: list[Expr] = []
        for x in operands:
            if x is None:
                elements.append(None)
            elif x.group is group and x.coordinates == coordinates[len(shape) - len(x.shape) :]:
                elements.append(x.expr)
            elif x.group is group and x.view is None:
                return None
            else:
                try:
                    expr = self.element(x, self.broadcast(x, coordinates, shape))
                except Unsupported:
                    return None
                elements.append(expr)
                outside.append(expr)
        read = {node.data.buffer for node in walk(outside) if node.op == "load"}
        ready = max((self.builder.written_by(buffer) for buffer in read), default=-1)
        if ready >= self.builder.position(group) and not self._move(group, ready):
            return None
        return coordinates, elements

    def _move(self, group: Group, after: int) -> bool:
        """Run a group later, after the group at a place, if nobody before there needs what it writes."""
        groups = self.builder.groups
        place = self.builder.position(group)
        between = groups[place + 1 : after + 1]
        if groups[after] is group or any(group.writes() & (other.reads() | other.writes()) for other in between):
            return False
        groups.remove(group)
        groups.insert(after, group)
        return True

    # inside -------------------------------------------------------------------------------------------------------

    def _check_inputs(self) -> list[tuple[onnx_ir.Value, str]]:
        problems = []
        self._symbols: frozenset[str] = frozenset()
        for value in self.model.graph.inputs:
            shape = self.facts.shape(value)
            if shape is None:
                problems.append((value, "its rank is not declared"))
            else:
                self._symbols |= {name for dim in shape for name in symbols(dim)}
            if self.facts.dtype(value) not in MEMORY:
                problems.append((value, "its type is not supported"))
        return problems

    def _rule(self, node: onnx_ir.Node) -> Rule | None:
        key = join_op(node.domain, node.op_type)
        if key in self.rules:
            return self.rules[key]
        return _pointwise if pointwise.is_pointwise(node) else None

    def _lower(self, node: onnx_ir.Node) -> None:
        if all(self._is_settled(value) for value in node.outputs):
            return  # a constant, or integers that follow from the shapes
        rule = self._rule(node)
        if rule is None:
            raise Unsupported("there is no kernel for this operator")
        rule(self, node)

    def _is_settled(self, value: onnx_ir.Value) -> bool:
        return not value.name or self.facts.is_const(value) or self._integers(value) is not None

    def _integers(self, value: onnx_ir.Value) -> tuple[Dim, ...] | None:
        elements = self.facts.elements(value)
        if elements is None or not all(symbols(element) <= self._symbols for element in elements):
            return None
        return elements

    def _known_integers(self, value: onnx_ir.Value) -> Value | None:
        """Integers that follow from the shapes are computed where they are needed."""
        elements = self._integers(value)
        if elements is None or self.facts.shape(value) is None:
            return None
        shape, dtype = self.shape(value), self.dtype(value)

        def compute(coordinates: Coordinates, guard: Expr | None) -> Expr:
            kind = made.register
            numbers = [self.size(element, kind) for element in elements]
            if not numbers:
                return self.pool.number(0, kind)
            place = self.pool.index(flat(coordinates, shape))
            chosen = numbers[-1]
            for position, number in enumerate(numbers[:-1]):
                code = f"tl.where({{0}} == {position}, {{1}}, {{2}})"
                chosen = self.pool.make(code, (place, number, chosen), kind)
            return chosen

        made = Value(shape, dtype, compute=compute, name=value.name or "")
        return made

    def size(self, dim: Dim, kind: str) -> Expr:
        """A dim as a number to compute with."""
        if isinstance(dim, int):
            return self.pool.number(bool(dim) if kind == "i1" else dim, kind)
        return self.pool.cast(self.pool.make("dim", (), "i32", dim), kind)

    def _constant(self, value: onnx_ir.Value) -> Value | None:
        # An input with a default is that default, as for runtimes that are not told otherwise.
        tensor = value.const_value if value.is_initializer() else self.facts.tensor(value)
        if tensor is None:
            return None
        shape, dtype = self.shape(value), self.dtype(value)
        if tensor.size == 1:
            number = np.asarray(tensor.numpy()).reshape(-1)[0]
            kind = Value(shape, dtype).register
            literal = bool(number) if kind == "i1" else float(number) if kind.startswith("fp") else int(number)
            expr = self.pool.number(literal, kind)
            return Value(shape, dtype, compute=lambda coordinates, guard: expr, name=value.name or "")
        buffer = self.builder.buffer(tensor.size, MEMORY[dtype])
        self.weights[buffer] = Weight(buffer, tensor, value.name or f"constant_{buffer}")
        return Value(shape, dtype, view=dense(buffer, shape), name=value.name or "")

    def _input(self, value: onnx_ir.Value) -> None:
        shape, dtype = self.shape(value), self.dtype(value)
        buffer = self.builder.buffer(product(shape), MEMORY[dtype])
        self.inputs[value.name or ""] = buffer
        self._values[value] = Value(shape, dtype, view=dense(buffer, shape), name=value.name or "")

    def _output(self, value: onnx_ir.Value) -> None:
        made = self.value(value)
        if made.view is not None and self._may_be_output(made, made.view):
            self.outputs[value.name or ""] = made.view.buffer
            return
        view = dense(self.builder.buffer(product(made.shape), made.memory), made.shape)
        self.outputs[value.name or ""] = view.buffer
        self.builder.store(made, view)

    def _may_be_output(self, value: Value, view: View) -> bool:
        """Whether the buffer that a value is stored in can be an output: a temporary with nothing else in it."""
        taken = {*self.inputs.values(), *self.outputs.values(), *self.weights}
        elements, _ = self.builder.sizes[view.buffer]
        return (
            view.buffer not in taken
            and view == dense(view.buffer, value.shape, offset=0)
            and equal(elements, product(value.shape))
        )

    def _tidy(self) -> None:
        """Drop groups whose results nobody reads, because all who might have joined them; join those that are alike."""
        needed = set(self.outputs.values())
        kept = []
        for group in reversed(self.builder.groups):
            group.stores = [store for store in group.stores if store.buffer in needed]
            group.early = [store for store in group.early if store.buffer in needed]
            if group.stores or group.early:
                needed |= group.reads()
                kept.append(group)
        self.builder.groups = joined(kept[::-1])

    def _readers(self, value: onnx_ir.Value) -> int:
        return len(value.uses()) + value.is_graph_output()

    def _costs(self, value: Value) -> bool:
        """Whether computing a lazy value again costs more than a load would."""
        assert value.compute is not None
        coordinates = variable("i", product(value.shape)).split(list(value.shape))
        parts = list(walk([value.compute(coordinates, None)]))
        return any(part.op == "load" for part in parts) and len(parts) > 1

    def _natural_order(self, value: Value) -> list[int] | None:
        """The axes as the group's loops run over them, slowest first; None for row-major."""
        assert value.group is not None
        names = [*value.group.space, *value.group.reduced]
        keys: list[tuple[int, int]] = []
        for coordinate, size in zip(value.coordinates, value.shape, strict=True):
            if equal(size, 1):
                keys.append((-1, 0))
                continue
            if len(coordinate.terms) != 1 or not isinstance(coordinate.terms[0][1].base, str):
                return None
            atom = coordinate.terms[0][1]
            keys.append((names.index(str(atom.base)), _rank(atom.divisor)))
        return sorted(range(len(keys)), key=lambda axis: (keys[axis][0], -keys[axis][1], axis))


def _visited(value: Value, coordinates: Coordinates) -> Index | None:
    """When a generated kernel visits the element of its value at some coordinates: the value of its loop variable.

    None unless the value's own coordinates are the digits of that variable, each once.
    """
    row = Index()
    digits: list[tuple[Dim, Dim]] = []
    for own, wanted, size in zip(value.coordinates, coordinates, value.shape, strict=True):
        if equal(size, 1):
            continue
        if len(own.terms) != 1 or not equal(own.terms[0][0], 1) or not equal(own.constant, 0):
            return None
        atom = own.terms[0][1]
        if not isinstance(atom.base, str):
            return None
        digits.append((atom.divisor, size))
        row = row + wanted * atom.divisor
    below: Dim = 1
    while digits:
        lowest = next((digit for digit in digits if equal(digit[0], below)), None)
        if lowest is None:
            return None
        digits.remove(lowest)
        below = below * lowest[1]
    return row


def _rank(divisor: Dim) -> int:
    """Larger for what runs slower: divisors of one variable divide each other."""
    if isinstance(divisor, int):
        return divisor
    return 10**6 + max((abs(count) for _, count in divisor.terms), default=0)


def _fills(shape: Sequence[Dim], whole: Sequence[Dim]) -> bool:
    """Whether a tensor has all elements of the whole shape: it is broadcast along dims of 1 only."""
    padded = (1,) * (len(whole) - len(shape)) + tuple(shape)
    return same_shape(padded, whole)


def _pointwise(lowering: Lowering, node: onnx_ir.Node) -> None:
    operands = [None if value is None else lowering.value(value) for value in node.inputs]
    lowering.pointwise(node, node.outputs[0], operands)
