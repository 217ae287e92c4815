"""Dense layers on matrices of rows, done on the tensors that the rows come from.

Exporters write a dense layer as ``Reshape(x, [B * S, H])``, Gemm, ``Reshape(..., [B, S, N])`` where a library's layer
multiplies matrices only (PyTorch's ``addmm``, GPT-2's Conv1D). A MatMul takes leading axes as they are, and so do the
operators that work on single elements or along the last axis. So whatever stands between such Reshapes is *lifted*:
done with the leading axes kept, and the Reshapes go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_ir

from optc.ir.dims import Dim
from optc.ir.facts import Facts
from optc.ir.ops import (
    REDUCTIONS,
    axes_of,
    axis_of,
    cuts_of,
    int_attr,
    nonzero_dims,
    operand,
    reduction,
    reshape,
    reshape_target,
    slice_,
    transpose,
    view,
)
from optc.ir.rewriter import Rewriter, copy_attributes
from optc.passes.base import Numerics
from optc.passes.clean.rules_transposes import ELEMENTWISE
from optc.passes.clean.rules_views import copies_no_dim
from optc.passes.fusion.common import FLOATS, node_attribute
from optc.passes.fusion.conv import ACTIVATIONS
from optc.passes.rule import node_rule

#: Regions of more nodes than this are left alone.
_MAX_NODES = 2048
_ALL = -1

_Operands: TypeAlias = "Sequence[onnx_ir.Value | None]"


@dataclass(frozen=True)
class _Lift:
    """How an operator on matrices is done with more leading axes.

    Attributes:
        rows: Inputs that may hold rows; ``(_ALL,)`` for all.
        broadcasts: Whether such an input may also be one row (or a scalar) that is the same for all.
        allowed: Whether the node works on every row alone.
        build: Makes the new values of the new operands, in which rows have so many axes; None copies the node.
    """

    rows: tuple[int, ...] = (0,)
    broadcasts: bool = False
    allowed: Callable[[Facts, onnx_ir.Node], bool] = lambda facts, node: True
    build: Callable[[Rewriter, onnx_ir.Node, _Operands, int], Sequence[onnx_ir.Value]] | None = None


def _on_last_axis(default: int) -> Callable[[Facts, onnx_ir.Node], bool]:
    return lambda facts, node: axis_of(node, facts, default) == 1 and not _used(node.outputs[1:])


def _splits_columns(facts: Facts, node: onnx_ir.Node) -> bool:
    return axis_of(node, facts, 0 if node.op_type == "Split" else 1) == 1


def _cuts_columns(facts: Facts, node: onnx_ir.Node) -> bool:
    cuts = cuts_of(node, facts)
    return cuts is not None and all(cut.axis == 1 for cut in cuts)


def _reduces_rows(facts: Facts, node: onnx_ir.Node) -> bool:
    return axes_of(node, facts) == (1,) and bool(int_attr(node, "keepdims", 1))


def _multiplies_rows(facts: Facts, node: onnx_ir.Node) -> bool:
    return facts.rank(node.inputs[1]) == 2


def _is_dense(facts: Facts, node: onnx_ir.Node) -> bool:
    if facts.dtype(node.inputs[0]) not in FLOATS or node_attribute(node, "transA", 0):
        return False
    beta = node_attribute(node, "beta", 1.0) if operand(node, 2) is not None else 1.0
    return node_attribute(node, "alpha", 1.0) == 1.0 and beta == 1.0


def _dense(rw: Rewriter, node: onnx_ir.Node, operands: _Operands, rank: int) -> list[onnx_ir.Value]:
    x, weight, bias = operands[0], operands[1], operands[2] if len(operands) > 2 else None
    assert weight is not None
    if node_attribute(node, "transB", 0):
        weight = transpose(rw, weight, (1, 0))
    product = rw.op("MatMul", x, weight)
    return [product if bias is None else rw.op("Add", product, bias)]


def _cut(rw: Rewriter, node: onnx_ir.Node, operands: _Operands, rank: int) -> list[onnx_ir.Value]:
    (x, *_), cuts = operands, cuts_of(node, rw.facts)
    assert x is not None and cuts is not None
    return [slice_(rw, x, [cut._replace(axis=rank - 1) for cut in cuts])]


def _reduce(rw: Rewriter, node: onnx_ir.Node, operands: _Operands, rank: int) -> list[onnx_ir.Value]:
    (x, *_) = operands
    assert x is not None
    return [reduction(rw, node.op_type, x, [rank - 1], keepdims=True)]


_LIFTS: dict[tuple[str, str], _Lift] = {
    **{("", op): _Lift((_ALL,), broadcasts=True) for op in ELEMENTWISE},
    **{("com.microsoft", op): _Lift((_ALL,), True) for op in ("Gelu", "FastGelu", "BiasGelu", "QuickGelu")},
    **{("", op): _Lift(allowed=_reduces_rows, build=_reduce) for op in REDUCTIONS},
    ("", "MatMul"): _Lift(allowed=_multiplies_rows),
    ("", "Gemm"): _Lift((0, 2), broadcasts=True, allowed=_is_dense, build=_dense),
    ("", "Softmax"): _Lift(allowed=_on_last_axis(-1)),
    ("", "LogSoftmax"): _Lift(allowed=_on_last_axis(-1)),
    ("", "LayerNormalization"): _Lift(allowed=_on_last_axis(-1)),
    ("", "RMSNormalization"): _Lift(allowed=_on_last_axis(-1)),
    ("", "LpNormalization"): _Lift(allowed=_on_last_axis(-1)),
    ("", "Split"): _Lift(allowed=_splits_columns),
    ("", "Concat"): _Lift((_ALL,), allowed=_splits_columns),
    ("", "Slice"): _Lift(allowed=_cuts_columns, build=_cut),
}


@dataclass
class _Region:
    """What can be lifted together.

    Attributes:
        facts: What is known of values.
        graph: The graph that it lies in.
        lead: The leading dims that the rows come from.
        rows: The number of rows, their product.
        entries: Matrices that are Reshapes, with the tensor that each is a view of; it may have yet another shape.
        nodes: The nodes that are lifted.
    """

    facts: Facts
    graph: onnx_ir.Graph
    lead: tuple[Dim, ...]
    rows: Dim
    entries: dict[onnx_ir.Value, onnx_ir.Value] = field(default_factory=dict)
    nodes: dict[onnx_ir.Node, None] = field(default_factory=dict)

    def grow(self, start: onnx_ir.Value) -> bool:
        """Find all nodes that work on the rows of ``start`` and of what is connected with it; False if too many."""
        pending, seen = [start], {start}
        while pending:
            value = pending.pop()
            near = [use.node for use in value.uses()]
            producer = value.producer()
            if (source := self.source(value)) is not None:
                self.entries[value] = source
            elif producer is not None:
                near.append(producer)
            for node in near:
                if node in self.nodes or not self._may_lift(node):
                    continue
                self.nodes[node] = None
                if len(self.nodes) > _MAX_NODES:
                    return False
                around = [*node.outputs, *(node.inputs[i] for i in row_inputs(node))]
                for other in around:
                    if other is not None and other not in seen and self._is_matrix(other):
                        seen.add(other)
                        pending.append(other)
        self._drop_unfit()
        return bool(self.nodes)

    def source(self, value: onnx_ir.Value) -> onnx_ir.Value | None:
        """The tensor of which a matrix is a Reshape, if one with all leading dims can be made of it as well."""
        node = value.producer()
        if node is None or node.op_type != "Reshape" or node.domain or not self._is_matrix(value):
            return None
        x, shape = node.inputs[0], self.facts.shape(node.inputs[0])
        if x is None or shape is None or len(shape) < 3:
            return None
        wanted = self.lifted_shape(value)
        known = shape == wanted or reshape_target(shape, wanted, nonzero_dims(node, self.facts)) is not None
        return x if known else None

    def lifted_shape(self, value: onnx_ir.Value) -> tuple[Dim, ...]:
        """The shape that a matrix will have."""
        return (*self.lead, *(self.facts.shape(value) or ())[1:])

    def holds(self, value: onnx_ir.Value | None) -> bool:
        """Whether a matrix of rows will be there with its leading dims."""
        return value is not None and (value in self.entries or value.producer() in self.nodes)

    def back(self, node: onnx_ir.Node, value: onnx_ir.Value) -> bool:
        """Whether a node that reads ``value`` gives it its leading dims back."""
        if node.op_type != "Reshape" or node.domain or node.inputs[0] is not value:
            return False
        return self.facts.shape(node.outputs[0]) == self.lifted_shape(value)

    def outside(self, value: onnx_ir.Value) -> Iterator[onnx_ir.Node]:
        """The nodes that read a matrix of the region and are not lifted over it."""
        for use in value.uses():
            if use.node not in self.nodes or use.idx not in row_inputs(use.node):
                yield use.node

    def made(self) -> Iterator[onnx_ir.Value]:
        return (value for node in self.nodes for value in node.outputs if _used([value]))

    def ordered(self) -> list[onnx_ir.Node]:
        """The nodes, producers first."""
        waiting = {
            node: len({v.producer() for v in node.inputs if v is not None} & self.nodes.keys()) for node in self.nodes
        }
        ready = [node for node, count in waiting.items() if count == 0]
        for node in ready:
            for reader in dict.fromkeys(use.node for value in node.outputs for use in value.uses()):
                if reader in waiting:
                    waiting[reader] -= 1
                    if waiting[reader] == 0:
                        ready.append(reader)
        return ready

    def _is_matrix(self, value: onnx_ir.Value) -> bool:
        shape = self.facts.shape(value)
        return shape is not None and len(shape) == 2 and shape[0] == self.rows and not self.facts.is_const(value)

    def _may_lift(self, node: onnx_ir.Node) -> bool:
        lift = _LIFTS.get((node.domain, node.op_type))
        if (
            lift is None
            or node.graph is not self.graph
            or not all(map(self._is_matrix, filter(_is_used, node.outputs)))
        ):
            return False
        return lift.allowed(self.facts, node)

    def _drop_unfit(self) -> None:
        """Leave only nodes whose operands are all there."""
        pending = list(self.nodes)
        while pending:
            node = pending.pop()
            if node in self.nodes and not self._fits(node):
                del self.nodes[node]
                pending.extend(use.node for value in node.outputs for use in value.uses())

    def _fits(self, node: onnx_ir.Node) -> bool:
        lift = _LIFTS[node.domain, node.op_type]
        operands = [node.inputs[index] for index in row_inputs(node)]
        there = [self.holds(value) for value in operands]
        if not any(there) or (lift.rows != (_ALL,) and not there[0]):
            return False
        rest = [value for value, held in zip(operands, there, strict=True) if not held and value is not None]
        return not rest or (lift.broadcasts and all(map(self._is_row, rest)))

    def _is_row(self, value: onnx_ir.Value) -> bool:
        shape = self.facts.shape(value)
        return shape is not None and (len(shape) < 2 or (len(shape) == 2 and shape[0] == 1))


def row_inputs(node: onnx_ir.Node) -> tuple[int, ...]:
    """The inputs of a node that can be lifted which may hold rows."""
    rows = _LIFTS[node.domain, node.op_type].rows
    return tuple(range(len(node.inputs))) if rows == (_ALL,) else tuple(i for i in rows if i < len(node.inputs))


def _is_used(value: onnx_ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _used(values: Sequence[onnx_ir.Value]) -> bool:
    return any(map(_is_used, values))


# what it gains ----------------------------------------------------------------------------------------------------


def _gain(region: _Region, rw: Rewriter) -> int | str:
    """How many nodes fewer there will be."""
    gain = 0
    for matrix, source in region.entries.items():
        gain -= rw.facts.shape(source) != region.lifted_shape(matrix)
        gain += not matrix.is_graph_output() and not any(region.outside(matrix))
    for value in region.made():
        back, stays = [], value.is_graph_output()
        for node in dict.fromkeys(region.outside(value)):
            if region.back(node, value):
                back.append(node)
            else:
                stays |= not _is_plain(node, value, rw.facts)
        gain += len(back) - stays
        if stays and not _is_count((region.facts.shape(value) or (0,))[-1]):
            return "the rows must have an integer dim"
    return gain - sum(_added(region, node) for node in region.nodes if node.op_type == "Gemm")


def _is_count(dim: Dim) -> bool:
    return isinstance(dim, int) and dim > 0


def _added(region: _Region, gemm: onnx_ir.Node) -> int:
    """How many nodes take the place of a Gemm in the end, but one: sums and heads of attention take biases over."""
    if operand(gemm, 2) is None:
        return 0
    value = gemm.outputs[0]
    readers = [use.node for use in value.uses()]
    backs = [node for node in readers if region.back(node, value)]
    if len(readers) == 1 and backs:
        readers = [use.node for use in backs[0].outputs[0].uses()]
    if len(readers) == 1 and readers[0].op_type in ("Add", "Sum"):
        return 0
    heads = (region.facts.shape(reader.outputs[0]) for reader in readers if reader.op_type == "Reshape")
    if any(shape is not None and len(shape) == len(region.lead) + 2 for shape in heads):
        return 0
    return 2 if len(readers) == 1 and readers[0].op_type in ACTIVATIONS else 1


# the rule ---------------------------------------------------------------------------------------------------------


@node_rule("lift-rows", "Reshape", numerics=Numerics.ROUNDING)
def lift_rows(rw: Rewriter, node: onnx_ir.Node):
    """Dense layers and what works on single rows between Reshapes to matrices and back: without the Reshapes."""
    facts, graph = rw.facts, node.graph
    before, after = facts.shape(node.inputs[0]), facts.shape(node.outputs[0])
    if graph is None or before is None or after is None or (len(before) == 2) == (len(after) == 2):
        return None
    matrix, tensor = (node.outputs[0], before) if len(after) == 2 else (node.inputs[0], after)
    rows, columns = facts.shape(matrix) or (0, 0)
    if matrix is None or len(tensor) < 3 or tensor[-1] != columns or not _is_count(columns):
        return None
    region = _Region(facts, graph, tensor[:-1], rows)
    if not region.grow(matrix) or not region.holds(matrix):
        return None
    gain = _gain(region, rw)
    if isinstance(gain, str):
        return gain
    if gain < 1:
        return "no node would go" if any(n.op_type in ("Gemm", "MatMul") for n in region.nodes) else None
    _lift(rw, region)
    return True


def _lift(rw: Rewriter, region: _Region) -> None:
    order = region.ordered()
    lifted = {matrix: _entry(rw, region, matrix) for matrix in region.entries}
    for node in order:
        rows = row_inputs(node)
        operands = [
            lifted.get(value, value) if index in rows and value is not None else value
            for index, value in enumerate(node.inputs)
        ]
        with rw.at(node, "lift-rows"):
            build = _LIFTS[node.domain, node.op_type].build or _copy
            lifted.update(zip(node.outputs, build(rw, node, operands, len(region.lead) + 1), strict=False))
    for node in order:
        for value in filter(_is_used, node.outputs):
            _leave(rw, region, node, value, lifted[value])
    for node in reversed(order):
        rw.erase(node)


def _entry(rw: Rewriter, region: _Region, matrix: onnx_ir.Value) -> onnx_ir.Value:
    node, source = matrix.producer(), region.entries[matrix]
    assert node is not None
    with rw.at(node, "lift-rows"):
        return view(rw, source, region.lifted_shape(matrix), nonzero_dims(node, rw.facts)) or source


def _leave(rw: Rewriter, region: _Region, node: onnx_ir.Node, value: onnx_ir.Value, new: onnx_ir.Value) -> None:
    """Let what reads a matrix of the region from outside read the lifted tensor, or a Reshape of it."""
    for reader in dict.fromkeys(region.outside(value)):
        with rw.at(reader, "lift-rows", [node]):
            if region.back(reader, value):
                rw.replace(reader.outputs[0], new)
            elif _is_plain(reader, value, rw.facts):
                attributes = {name: attr.value for name, attr in copy_attributes(reader).items()}
                rw.replace(reader.outputs[0], rw.op("Reshape", new, *reader.inputs[1:], **attributes))
            else:
                continue
            rw.erase(reader)
    outside = list(region.outside(value))
    if value.is_graph_output() or outside:
        with rw.at(node, "lift-rows"):
            columns = (rw.facts.shape(value) or (0,))[-1]
            matrix = reshape(rw, new, [-1, int(columns)])  # type: ignore[arg-type]
            for reader in dict.fromkeys(outside):
                for index, read in enumerate(reader.inputs):
                    if read is value and (reader not in region.nodes or index not in row_inputs(reader)):
                        rw.set_input(reader, index, matrix)
            if value.is_graph_output():
                rw.replace(value, matrix)


def _is_plain(node: onnx_ir.Node, value: onnx_ir.Value, facts: Facts) -> bool:
    """Whether a node is a Reshape of ``value`` that gives the same whatever its shape is."""
    return node.op_type == "Reshape" and not node.domain and node.inputs[0] is value and copies_no_dim(node, facts)


def _copy(rw: Rewriter, node: onnx_ir.Node, operands: _Operands, rank: int) -> Sequence[onnx_ir.Value]:
    attributes = {name: attr.value for name, attr in copy_attributes(node).items()}
    softmax = node.op_type in ("Softmax", "LogSoftmax")
    if ("axis" in attributes and attributes["axis"] >= 0) or (softmax and "axis" not in attributes):
        attributes["axis"] = rank - 1
    made = rw.op(node.op_type, *operands, domain=node.domain, outputs=len(node.outputs), **attributes)
    return [made] if len(node.outputs) == 1 else made


RULES = (lift_rows,)
