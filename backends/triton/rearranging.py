"""Operators that put elements in another order, repeat or pick them: like :mod:`.movement`, they change coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from optc.backends.triton import movement
from optc.backends.triton.expressions import REGISTER, Address, Expr
from optc.backends.triton.groups import Coordinates, Value
from optc.backends.triton.layout import Index, View, flat
from optc.backends.triton.lower import Lowering, Rule, Unsupported
from optc.backends.triton.movement import moved
from optc.ir.dims import Dim, equal
from optc.ir.ops import int_attr, operand


def tiled(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Tile: places count anew in every repetition."""
    x = lowering.needed(node, 0)
    repeats = lowering.facts.elements(operand(node, 1))
    if repeats is None:
        raise Unsupported("how often it repeats is computed")
    counts: Sequence[Dim] = repeats

    def backward(coordinates: Coordinates) -> Coordinates:
        digits = (
            index if equal(count, 1) else index.split([count, size])[1]
            for index, count, size in zip(coordinates, counts, x.shape, strict=True)
        )
        return tuple(digits)

    moved(lowering, node.outputs[0], x, lambda view: None, backward, None)


def spaced(lowering: Lowering, node: onnx_ir.Node) -> None:
    """DepthToSpace and SpaceToDepth: channels are places of a block of pixels."""
    x, output = lowering.needed(node, 0), node.outputs[0]
    shape, block = lowering.shape(output), node.attributes["blocksize"].as_int()
    if len(x.shape) != 4:
        raise Unsupported("only images are supported")
    batch, channels, height, width = shape if node.op_type == "SpaceToDepth" else x.shape
    channels = channels // (block * block)
    mode = node.attributes.get("mode")
    deep: tuple[Dim, ...]
    order: tuple[int, ...]
    if mode is not None and mode.as_string() == "CRD":
        deep, order = (batch, channels, block, block, height, width), (0, 1, 4, 2, 5, 3)
    else:
        deep, order = (batch, block, block, channels, height, width), (0, 3, 4, 1, 5, 2)
    wide = tuple(deep[axis] for axis in order)
    back = tuple(order.index(axis) for axis in range(len(order)))
    start, end, perm = (wide, deep, back) if node.op_type == "SpaceToDepth" else (deep, wide, order)
    inverse = tuple(perm.index(axis) for axis in range(len(perm)))

    def view(source: View) -> View | None:
        apart = source.reshaped(start)
        return None if apart is None else apart.transposed(perm).reshaped(shape)

    def backward(coordinates: Coordinates) -> Coordinates:
        apart = flat(coordinates, shape).split(end)
        return flat([apart[axis] for axis in inverse], start).split(list(x.shape))

    def forward(coordinates: Coordinates) -> Coordinates:
        apart = flat(coordinates, x.shape).split(start)
        return flat([apart[axis] for axis in perm], end).split(list(shape))

    moved(lowering, output, x, view, backward, forward)


def triangle(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Trilu: what is above or below a diagonal; 0 elsewhere."""
    x, output = lowering.readable(lowering.needed(node, 0)), node.outputs[0]
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    offset, upper = lowering.operand(node, 1), bool(int_attr(node, "upper", 1))
    pool, kind = lowering.pool, REGISTER[dtype]
    shift = pool.number(0, "i32")
    if offset is not None:
        shift = pool.cast(lowering.element(offset, tuple(Index() for _ in offset.shape)), "i32")
    nothing = pool.number(False if kind == "i1" else 0.0 if kind.startswith("fp") else 0, kind)

    def compute(coordinates: Coordinates, guard: Expr | None) -> Expr:
        row, column = (pool.index(index) for index in coordinates[-2:])
        code = "({0} - {1} >= {2})" if upper else "({0} - {1} <= {2})"
        kept = pool.make(code, (column, row, shift), "i1")
        return pool.make(
            "tl.where({0}, {1}, {2})", (kept, lowering.builder.element(x, coordinates, guard), nothing), kind
        )

    lowering.define(output, Value(shape, dtype, compute=compute, name=node.name or ""))


def gathered_at(lowering: Lowering, node: onnx_ir.Node) -> None:
    """GatherND: the last axis of the indices says where on the first axes; negative ones count from the end."""
    x, indices, output = lowering.needed(node, 0), lowering.needed(node, 1), node.outputs[0]
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    batch, depth = int_attr(node, "batch_dims", 0), indices.shape[-1]
    if not isinstance(depth, int):
        raise Unsupported("how many axes its indices are for is not known")
    table, indices = lowering.stored(x), lowering.readable(indices)
    axes = range(batch, batch + depth)
    if any(len(table.dims[axis]) > 1 for axis in axes):
        raise Unsupported("an axis that is gathered from is not contiguous")
    strides = tuple(table.dims[axis][0].stride if table.dims[axis] else 0 for axis in axes)
    lead = len(indices.shape) - 1

    def compute(coordinates: Coordinates, guard: Expr | None) -> Expr:
        operands = []
        for place, axis in enumerate(axes):
            index = lowering.builder.element(indices, (*coordinates[:lead], Index((), place)), guard)
            size = lowering.size(x.shape[axis], index.kind)
            operands.append(lowering.pool.make("tl.where({0} < 0, {0} + {1}, {0})", (index, size), index.kind))
        own = (*coordinates[:batch], *(Index() for _ in axes), *coordinates[lead:])
        address = Address(table.buffer, x.memory, table.address(own), strides, guard is not None)
        return lowering.pool.make("load", (*operands, *(() if guard is None else (guard,))), REGISTER[dtype], address)

    lowering.define(output, Value(shape, dtype, compute=compute, name=node.name or ""))


#: Where a place outside of an axis of {1} elements lies inside.
_INSIDE = {
    "edge": "tl.minimum(tl.maximum({0}, 0), {1} - 1)",
    "reflect": "({1} - 1 - tl.abs({1} - 1 - tl.abs({0})))",
    "wrap": "(({0} % {1} + {1}) % {1})",
}


def padded(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Pad with a constant, or with what lies inside."""
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    if mode == "constant":
        movement.padded(lowering, node)
        return
    x, output = lowering.needed(node, 0), node.outputs[0]
    shape, dtype, table = lowering.shape(output), lowering.dtype(output), lowering.stored(x)
    before = movement.pads(lowering, node, len(shape))
    axes = [axis for axis in sorted(before) if not equal(x.shape[axis], shape[axis])]
    if mode not in _INSIDE or any(len(table.dims[axis]) > 1 for axis in axes):
        raise Unsupported(f"mode {mode} of this operand is not supported")
    strides = tuple(table.dims[axis][0].stride if table.dims[axis] else 0 for axis in axes)

    def compute(coordinates: Coordinates, guard: Expr | None) -> Expr:
        operands = []
        for axis in axes:
            place = lowering.pool.index(coordinates[axis] + before[axis] * -1)
            operands.append(lowering.pool.make(_INSIDE[mode], (place, lowering.size(x.shape[axis], "i32")), "i32"))
        own = tuple(Index() if axis in axes else index for axis, index in enumerate(coordinates))
        address = Address(table.buffer, x.memory, table.address(own), strides, guard is not None)
        return lowering.pool.make("load", (*operands, *(() if guard is None else (guard,))), REGISTER[dtype], address)

    lowering.define(output, Value(shape, dtype, compute=compute, name=node.name or ""))


RULES: dict[str, Rule] = {
    "Pad": padded,
    "Tile": tiled,
    "DepthToSpace": spaced,
    "SpaceToDepth": spaced,
    "Trilu": triangle,
    "GatherND": gathered_at,
}
