"""Which constant values to compute and store, decided before any of them is computed.

The *region* are the nodes whose results are the same in every run. Nodes of it *die* once the values that the rest of
the model reads from them are stored. A value that does not pay for its bytes is not stored: its producer stays, and the
values that the producer reads are looked at instead, until everything that would be stored fits the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir

from optc.ir.ops import perm_of
from optc.ir.verify import inner_nodes, outer_reads, subgraphs
from optc.passes.base import PassContext
from optc.passes.clean.purity import is_pure

#: Operators that stay: dequantizing weights undoes what quantizing was for, and branches are not folding's business.
_KEPT = {"Constant", "DequantizeLinear", "If"}
_DOMAINS = {"", "ai.onnx.ml", "com.microsoft"}
#: Operators that write much out of little; see :class:`optc.passes.clean.fold.Fold`.
_GENERATORS = {"ConstantOfShape", "Expand", "Tile", "EyeLike"}
#: Operators whose result's size depends on the data, but is bounded by the sizes of the inputs.
_DATA_DEPENDENT = {"NonZero", "Unique", "Compress", "NonMaxSuppression"}
#: Operators that only move their input around. Values of at least so many bytes are read through them when needed.
_MOVING = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
_VIEWED_BYTES = 1 << 20
#: Operators that have a form which reads a transposed operand.
_PRODUCTS = {"MatMul", "Gemm"}
#: Loops of more iterations, or with larger values inside, are not run at compile time.
_MAX_TRIPS, _MAX_INNER_BYTES = 1024, 1 << 20
#: Bytes to reckon with for one string.
_STRING_BYTES = 64

#: Reads a value's contents.
View = Callable[[], np.ndarray]


@dataclass
class Plan:
    """What folding will do.

    Attributes:
        values: The values to store, in topological order.
        known: Contents that need no computing.
        cost: By how many bytes the model is expected to grow; less than 0 never counts.
        too_large: Producers of values that do not fit the budget.
        region: The nodes whose results are the same in every run, each with its place in topological order.
        sizes: The bytes of their values, or a bound of them.
        views: Large values that are a constant in another order or shape, and how to read them.
    """

    values: list[onnx_ir.Value] = field(default_factory=list)
    known: dict[onnx_ir.Value, np.ndarray] = field(default_factory=dict)
    cost: int = 0
    too_large: list[onnx_ir.Node] = field(default_factory=list)
    region: dict[onnx_ir.Node, int] = field(default_factory=dict)
    sizes: dict[onnx_ir.Value, int] = field(default_factory=dict)
    views: dict[onnx_ir.Value, View] = field(default_factory=dict)

    def allowed(self, value: onnx_ir.Value) -> int:
        """How many bytes the value may have."""
        return self.sizes[value]

    def ancestors(self, values: Sequence[onnx_ir.Value]) -> list[onnx_ir.Node]:
        """The nodes to run for these values, in topological order; known values are not computed again."""
        found: set[onnx_ir.Node] = set()
        pending = [value for value in values if value not in self.known]
        while pending:
            node = pending.pop().producer()
            if node is None or node in found or node not in self.region:
                continue
            found.add(node)
            pending.extend(value for value in outer_reads(node) if value not in self.known)
        return sorted(found, key=self.region.__getitem__)

    def slice(self, value: onnx_ir.Value) -> list[onnx_ir.Node]:
        """The nodes that a stored value stands for, itself first."""
        node = value.producer()
        if node is None:
            return []
        return [node] if value in self.known else self.ancestors([value])


def make_plan(
    ctx: PassContext,
    *,
    budget: int,
    slack: int,
    limit: int,
    memory: int,
    evaluate: bool,
    moved: bool,
    excluded: Callable[[onnx_ir.Node], bool],
) -> Plan:
    """Decide what to store.

    Args:
        ctx: The context of the pass.
        budget: Bytes by which the model may grow.
        slack: Further bytes, not for what generators write.
        limit: No computed value may have more bytes than this.
        memory: Nor all computed values together more than this.
        evaluate: Whether there is an evaluator; without one only contents that the facts know are stored.
        moved: Whether large weights may be stored transposed for the matrix products that read them.
        excluded: Nodes that are known not to be computable.
    """
    region = _Region(ctx, limit, evaluate, moved, excluded)
    region.scan(ctx.model.graph)
    plan = Plan(known=region.known, region=region.nodes, sizes=region.sizes, views=region.views)
    dying = set(region.nodes)
    if not dying:
        return plan
    # Values are refused for good: what fits on its own beside the others that fit is found when a round refuses none.
    while True:
        accounts = sorted(
            (_Account.of(value, dying, region) for value in _frontier(region, dying)), key=lambda one: one.order
        )
        values, refused, growth, held = [], [], 0, 0
        for account in accounts:
            room = budget + (0 if account.generated else slack)
            held += 0 if account.value in region.views else region.sizes[account.value]
            if (account.cost <= 0 or growth + account.cost <= room) and held <= memory:
                values.append(account.value)
                growth += max(0, account.cost)
            else:
                refused.append(account.value)
        if not refused:
            break
        for value in refused:
            node = value.producer()
            if node in dying:
                dying.discard(node)
                plan.too_large.append(node)
    plan.cost = growth
    plan.values = sorted(values, key=lambda value: (region.nodes[value.producer()], value.index() or 0))  # type: ignore[index]
    return plan


class _Region:
    """The nodes whose results are the same in every run, in topological order."""

    def __init__(
        self, ctx: PassContext, limit: int, evaluate: bool, moved: bool, excluded: Callable[[onnx_ir.Node], bool]
    ) -> None:
        self.ctx = ctx
        self.nodes: dict[onnx_ir.Node, int] = {}
        self.known: dict[onnx_ir.Value, np.ndarray] = {}
        self.sizes: dict[onnx_ir.Value, int] = {}
        self.views: dict[onnx_ir.Value, View] = {}
        #: Nodes in the sub-graphs of region nodes: they come and go with these.
        self.owners: dict[onnx_ir.Node, onnx_ir.Node] = {}
        self._limit, self._evaluate, self._moved, self._excluded = limit, evaluate, moved, excluded

    def scan(self, graph: onnx_ir.Graph) -> None:
        for node in graph:
            used = [value for value in node.outputs if value.uses() or value.is_graph_output()]
            if used and (self._is_known(node, used) or self._is_computable(node, used)):
                self.nodes[node] = len(self.nodes)
                for inner in inner_nodes(node):
                    self.owners[inner] = node
            else:
                for inner_graph in subgraphs(node):
                    self.scan(inner_graph)

    def is_const(self, value: onnx_ir.Value) -> bool:
        return value.producer() in self.nodes or self.ctx.facts.is_const(value)

    def _is_known(self, node: onnx_ir.Node, used: Sequence[onnx_ir.Value]) -> bool:
        """Whether the facts know the contents of all outputs that are used."""
        if self._is_carrier(node):
            return False
        arrays = {}
        for value in used:
            ints, dtype, shape = self.ctx.facts.ints(value), self.ctx.facts.dtype(value), self._static_shape(value)
            if ints is None or dtype is None or shape is None:
                return False
            arrays[value] = np.array(ints, dtype.numpy()).reshape(shape)
        self.known.update(arrays)
        self.sizes.update({value: array.nbytes for value, array in arrays.items()})
        return True

    def _is_transposed_weight(self, node: onnx_ir.Node) -> bool:
        """Whether the node turns a large matrix for matrix products alone, which can read it as it is stored."""
        if node.op_type != "Transpose" or perm_of(node, self.ctx.facts) != (1, 0):
            return False
        tensor = self.ctx.facts.tensor(node.inputs[0])
        readers = [use.node for use in node.outputs[0].uses()]
        large = tensor is not None and tensor.nbytes >= _VIEWED_BYTES
        return large and bool(readers) and all(reader.op_type in _PRODUCTS for reader in readers)

    def _is_carrier(self, node: onnx_ir.Node) -> bool:
        """Whether the node only hands a stored constant on, to an output maybe: there is nothing to compute."""
        if node.op_type == "Constant":
            return True
        return node.op_type == "Identity" and self.ctx.facts.is_const(node.inputs[0])

    def _is_computable(self, node: onnx_ir.Node, used: Sequence[onnx_ir.Value]) -> bool:
        if not self._evaluate or node.op_type in _KEPT or node.domain not in _DOMAINS or self._is_carrier(node):
            return False
        inputs = list(outer_reads(node))
        if not all(self.is_const(value) for value in inputs) or self._excluded(node):
            return False
        if not is_pure(node, self.ctx) or node.op_identifier() in self.ctx.model.functions:
            return False
        if not self._moved and self._is_transposed_weight(node):
            return False
        sizes = {value: self._nbytes(value, node, inputs) for value in used}
        for value, size in sizes.items():
            if size is None:
                return False
            view = self._view(node) if size >= _VIEWED_BYTES else None
            if view is not None:
                self.views[value] = view
            elif size > self._limit:
                return False
        if any(True for _ in subgraphs(node)) and not self._ends_soon(node):
            return False
        self.sizes.update(sizes)  # type: ignore[arg-type]
        return True

    def _view(self, node: onnx_ir.Node) -> View | None:
        """How to read the output of a node that only moves a constant around."""
        if node.op_type not in _MOVING or node.domain != "":
            return None
        source, shape = node.inputs[0], self._static_shape(node.outputs[0])
        perm = perm_of(node, self.ctx.facts) if node.op_type == "Transpose" else None
        if source is None or shape is None or (node.op_type == "Transpose" and perm is None):
            return None
        tensor = self.ctx.facts.tensor(source)
        read = self.views.get(source) if tensor is None else tensor.numpy
        if read is None:
            return None
        return (lambda: read().transpose(perm)) if perm is not None else (lambda: read().reshape(shape))

    def _static_shape(self, value: onnx_ir.Value) -> tuple[int, ...] | None:
        shape = self.ctx.facts.shape(value)
        if shape is None or not all(isinstance(dim, int) for dim in shape):
            return None
        return shape  # type: ignore[return-value]

    def _nbytes(self, value: onnx_ir.Value, node: onnx_ir.Node, inputs: Sequence[onnx_ir.Value]) -> int | None:
        """The size of a value, or a bound of it; None where it could be anything."""
        dtype, shape = self.ctx.facts.dtype(value), self._static_shape(value)
        if dtype is None:
            return None
        if shape is not None:
            bits = _STRING_BYTES * 8 if dtype == onnx_ir.DataType.STRING else dtype.bitwidth
            return math.ceil(math.prod(shape) * bits / 8)
        if node.op_type not in _DATA_DEPENDENT:
            return None
        shapes = [self._static_shape(v) for v in inputs]
        if None in shapes:
            return None
        return sum(8 * max(1, len(s)) * math.prod(s) for s in shapes if s is not None)

    def _ends_soon(self, node: onnx_ir.Node) -> bool:
        """Whether a Loop or Scan is short and small enough to be run at compile time."""
        if node.op_type == "Loop":
            trips = self.ctx.facts.scalar(node.inputs[0])
            if trips is None or trips > _MAX_TRIPS:
                return False
        for inner in inner_nodes(node):
            if inner.op_type in ("Loop", "Scan") or inner.op_identifier() in self.ctx.model.functions:
                return False
            for value in inner.outputs:
                dtype, shape = self.ctx.facts.dtype(value), self._static_shape(value)
                if value.name and (dtype is None or shape is None or math.prod(shape) * 8 > _MAX_INNER_BYTES):
                    return False
        return True


@dataclass
class _Account:
    """What storing a value costs and saves, in bytes of the saved model."""

    value: onnx_ir.Value
    cost: int
    order: tuple[float, int]
    generated: bool

    @classmethod
    def of(cls, value: onnx_ir.Value, dying: set[onnx_ir.Node], region: _Region) -> _Account:
        gone = _exclusive(value, dying, region)
        cost = region.sizes[value] + _overhead(value)
        for node in gone:
            cost -= _node_bytes(node)
        for weight in _freed(gone, region):
            cost -= weight.const_value.nbytes + _overhead(weight)  # type: ignore[union-attr]
        generated = any(node.op_type in _GENERATORS for node in gone)
        first = value.producer()
        return cls(value, cost, (cost / len(gone), region.nodes[first]), generated)  # type: ignore[index]


def _frontier(region: _Region, dying: set[onnx_ir.Node]) -> Iterator[onnx_ir.Value]:
    """The values of dying nodes that something else reads."""
    for node in region.nodes:
        if node in dying:
            for value in node.outputs:
                if value.is_graph_output() or any(region.owners.get(u.node, u.node) not in dying for u in value.uses()):
                    yield value


def _exclusive(value: onnx_ir.Value, dying: set[onnx_ir.Node], region: _Region) -> dict[onnx_ir.Node, None]:
    """The nodes that are there for this value only: they go when it is stored."""
    first = value.producer()
    assert first is not None
    gone: dict[onnx_ir.Node, None] = {first: None}
    pending = [first]
    while pending:
        for read in outer_reads(pending.pop()):
            node = read.producer()
            if node is None or node in gone or node not in dying:
                continue
            outputs = node.outputs
            if any(v.is_graph_output() for v in outputs):
                continue
            if all(region.owners.get(use.node, use.node) in gone for v in outputs for use in v.uses()):
                gone[node] = None
                pending.append(node)
    return gone


def _freed(gone: dict[onnx_ir.Node, None], region: _Region) -> list[onnx_ir.Value]:
    """The initializers that only nodes in ``gone`` read."""
    read = {value: None for node in gone for value in outer_reads(node) if value.is_initializer()}
    return [
        value
        for value in read
        if value.const_value is not None
        and not (value.is_graph_input() or value.is_graph_output())
        and all(region.owners.get(use.node, use.node) in gone for use in value.uses())
    ]


# An estimate of protobuf's framing: names, dims and types of a tensor; names, op and attributes of a node.


def _overhead(value: onnx_ir.Value) -> int:
    rank = len(value.shape) if value.shape is not None else 1
    return 2 * len(value.name or "") + 24 + 6 * rank


def _node_bytes(node: onnx_ir.Node) -> int:
    names = [node.op_type, node.name or "", *(v.name or "" for v in (*node.inputs, *node.outputs) if v is not None)]
    return 4 + sum(len(name) + 2 for name in names) + 20 * len(node.attributes)
