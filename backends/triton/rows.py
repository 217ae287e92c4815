"""Operators on whole rows: normalizations, softmax, reductions. They take the pointwise work around them along."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from optc.backends.triton.groups import Group, Value
from optc.backends.triton.layout import Index, variable
from optc.backends.triton.lower import Lowering, Rule, Unsupported
from optc.ir.dims import product
from optc.ir.ops import axes_of, axis_of, int_attr, operand

#: Rows up to this many elements are held in registers.
MAX_ROW = 16384
_REDUCTIONS = {
    "ReduceSum": "sum",
    "ReduceMean": "mean",
    "ReduceMax": "max",
    "ReduceMin": "min",
    "ReduceProd": "prod",
    "ReduceSumSquare": "sumsquare",
    "ReduceL1": "l1",
    "ReduceL2": "l2",
    "ReduceLogSumExp": "logsumexp",
    "GlobalAveragePool": "mean",
    "GlobalMaxPool": "max",
}


#: Reductions that integers do not have.
_INEXACT = frozenset({"mean", "l2", "logsumexp"})


#: Kernels that take rows of any length.
_ANY_LENGTH = frozenset({"rows_reduce", "rows_arg", "rows_scan"})
#: What they add up or compare.
_NUMBERS = ("fp32", "i32", "i64")


class Rows:
    """A group that visits a tensor row by row.

    Args:
        lowering: The lowering.
        node: The node.
        x: The tensor.
        axes: The axes that make up a row.
        kernel: The kernel for rows that fit into registers; that for longer ones is called ``kernel_loop``.
        hook: The kernel's hook that reads; it reads once, so that it may write as well, but in loops and scans.
    """

    def __init__(
        self, lowering: Lowering, node: onnx_ir.Node, x: Value, axes: Sequence[int], kernel: str, hook: str = "LOAD"
    ) -> None:
        others = [axis for axis in range(len(x.shape)) if axis not in axes]
        rows, columns = product(x.shape[axis] for axis in others), product(x.shape[axis] for axis in axes)
        fits = kernel in _ANY_LENGTH or (isinstance(columns, int) and columns <= MAX_ROW)
        group = Group(
            kernel if fits else f"{kernel}_loop",
            {"row": rows, "j": columns},
            {"ROWS": rows, "COLUMNS": columns},
            early_hook=hook if fits and kernel != "rows_scan" else None,
            nodes=[node.name or node.outputs[0].name or ""],
        )
        row = variable("row", rows).split([x.shape[axis] for axis in others])
        column = variable("j", columns).split([x.shape[axis] for axis in axes])
        place = dict(zip((*others, *axes), (*row, *column), strict=True))
        self.group, self.lowering = group, lowering
        self.coordinates = tuple(place[axis] for axis in range(len(x.shape)))
        self.kept = tuple(place[axis] for axis in others)
        lowering.builder.add(group)
        lowering.absorb(x, group, self.coordinates)
        if x.group is group:
            assert x.expr is not None
            read = x.expr
        else:
            read = lowering.element(x, self.coordinates)
        self.kind = read.kind if kernel in _ANY_LENGTH and not read.kind.startswith("fp") else "fp32"
        group.results[hook] = lowering.pool.cast(read, self.kind)


def layer_norm(lowering: Lowering, node: onnx_ir.Node) -> None:
    """LayerNormalization over the last axes; scale and bias are the epilogue's."""
    _normalized(lowering, node, center=True)


def rms_norm(lowering: Lowering, node: onnx_ir.Node) -> None:
    """RMSNormalization over the last axes."""
    _normalized(lowering, node, center=False)


def _normalized(lowering: Lowering, node: onnx_ir.Node, center: bool) -> None:
    if any(value.name and (value.uses() or value.is_graph_output()) for value in node.outputs[1:]):
        raise Unsupported("its mean and deviation are read")
    x, output = lowering.needed(node, 0), node.outputs[0]
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    axis = axis_of(node, lowering.facts, -1)
    if axis is None:
        raise Unsupported("its axis is not known")
    rows = Rows(lowering, node, x, range(axis, len(shape)), "rows_norm")
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    rows.group.constants = {"EPSILON": epsilon, "CENTER": center}
    expr = lowering.pool.make("anchor", (), "fp32", id(rows.group))
    for place, code in ((1, "({0} * {1})"), (2, "({0} + {1})")):
        parameter = lowering.operand(node, place)
        if parameter is not None:
            element = lowering.element(parameter, lowering.broadcast(parameter, rows.coordinates, shape))
            expr = lowering.pool.make(code, (expr, element), "fp32")
    made = Value(shape, dtype, group=rows.group, expr=expr, coordinates=rows.coordinates)
    lowering.define(output, made)


def instance_norm(lowering: Lowering, node: onnx_ir.Node) -> None:
    """InstanceNormalization: every channel of every image by itself, with a scale and a shift for each channel."""
    x, output = lowering.needed(node, 0), node.outputs[0]
    rows = Rows(lowering, node, x, range(2, len(x.shape)), "rows_norm")
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    rows.group.constants = {"EPSILON": epsilon, "CENTER": True}
    expr = lowering.pool.make("anchor", (), "fp32", id(rows.group))
    for place, code in ((1, "({0} * {1})"), (2, "({0} + {1})")):
        element = lowering.element(lowering.needed(node, place), (rows.coordinates[1],))
        expr = lowering.pool.make(code, (expr, element), "fp32")
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    lowering.define(output, Value(shape, dtype, group=rows.group, expr=expr, coordinates=rows.coordinates))


def softmax(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Softmax and LogSoftmax over one axis (over all axes from one on, before opset 13)."""
    x, output = lowering.needed(node, 0), node.outputs[0]
    old = lowering.facts.opset() < 13
    axis = axis_of(node, lowering.facts, 1 if old else -1)
    if axis is None:
        raise Unsupported("its axis is not known")
    axes = range(axis, len(x.shape)) if old else (axis,)
    rows = Rows(lowering, node, x, axes, "rows_softmax")
    rows.group.constants = {"LOG": node.op_type == "LogSoftmax"}
    lowering.anchor(output, rows.group, rows.coordinates)


def reduced(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Reductions over any axes."""
    x, output = lowering.needed(node, 0), node.outputs[0]
    if node.op_type.startswith("Global"):
        axes: tuple[int, ...] | None = tuple(range(2, len(x.shape)))
        keep = True
    else:
        axes, keep = axes_of(node, lowering.facts), bool(int_attr(node, "keepdims", 1))
    if axes is None:
        raise Unsupported("its axes are computed")
    if x.register not in _NUMBERS or (x.register != "fp32" and _REDUCTIONS[node.op_type] in _INEXACT):
        raise Unsupported(f"reductions of {x.dtype.name.lower()} are not supported")
    if not axes:
        lowering.define(output, x)
        return
    rows = Rows(lowering, node, x, axes, "rows_reduce")
    rows.group.constants = {"KIND": _REDUCTIONS[node.op_type]}
    kept = iter(rows.kept)
    if keep:
        coordinates = tuple(Index() if axis in axes else next(kept) for axis in range(len(x.shape)))
    else:
        coordinates = tuple(kept)
    rows.group.space = {"row": rows.group.space["row"]}
    rows.group.reduced = {"j": rows.group.sizes["COLUMNS"]}
    lowering.anchor(output, rows.group, coordinates, rows.kind)


def largest(lowering: Lowering, node: onnx_ir.Node) -> None:
    """ArgMax and ArgMin: where on an axis the first, or last, of the largest or smallest elements is."""
    x, output = lowering.needed(node, 0), node.outputs[0]
    axis = axis_of(node, lowering.facts, 0)
    if axis is None or x.register not in _NUMBERS:
        raise Unsupported(f"places of {x.dtype.name.lower()} are not supported")
    rows = Rows(lowering, node, x, (axis,), "rows_arg")
    rows.group.constants = {"KIND": node.op_type.lower(), "SELECT_LAST": bool(int_attr(node, "select_last_index", 0))}
    kept = list(rows.kept)
    if int_attr(node, "keepdims", 1):
        kept.insert(axis, Index())
    rows.group.space = {"row": rows.group.space["row"]}
    rows.group.reduced = {"j": rows.group.sizes["COLUMNS"]}
    lowering.anchor(output, rows.group, tuple(kept), "i32")


def running_sum(lowering: Lowering, node: onnx_ir.Node) -> None:
    """CumSum along one axis."""
    x, output = lowering.needed(node, 0), node.outputs[0]
    axis = lowering.facts.scalar(operand(node, 1))
    if axis is None or x.register not in _NUMBERS:
        raise Unsupported(
            "its axis is computed" if axis is None else f"sums of {x.dtype.name.lower()} are not supported"
        )
    rows = Rows(lowering, node, x, (int(axis) % len(x.shape),), "rows_scan")
    rows.group.constants = {name.upper(): bool(int_attr(node, name, 0)) for name in ("exclusive", "reverse")}
    lowering.anchor(output, rows.group, rows.coordinates, rows.kind)


RULES: dict[str, Rule] = {
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "SimplifiedLayerNormalization": rms_norm,
    "optc::LayerNormalization": layer_norm,
    "optc::SimplifiedLayerNormalization": rms_norm,
    "InstanceNormalization": instance_norm,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    **dict.fromkeys(_REDUCTIONS, reduced),
    "ArgMax": largest,
    "ArgMin": largest,
    "CumSum": running_sum,
}
