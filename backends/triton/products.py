"""Matrix products and convolutions, all as one kernel: what differs is how its operands are addressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir

from optc.backends.triton.expressions import Address, Expr
from optc.backends.triton.groups import Coordinates, Group, Value
from optc.backends.triton.layout import Index, variable
from optc.backends.triton.lower import Lowering, Rule, Unsupported
from optc.backends.triton.splitting import in_parts, splits
from optc.ir.dims import Dim, equal, product
from optc.ir.ops import int_attr, ints_attr

_T = onnx_ir.DataType
_PRODUCTS = frozenset({_T.FLOAT, _T.FLOAT16, _T.BFLOAT16})
#: Reads an element of an operand: coordinates (z, row, column) as indices.
Read = Callable[[Index, Index, Index], Expr]


def matmul(lowering: Lowering, node: onnx_ir.Node) -> None:
    """MatMul: products of the last two axes; what is a matrix for the whole batch is one tall product."""
    a, b, output = lowering.needed(node, 0), lowering.needed(node, 1), node.outputs[0]
    shape = lowering.shape(output)
    if len(a.shape) == 1 or len(b.shape) == 1:
        raise Unsupported("products with vectors are not supported")
    whole = [*shape[:-2], a.shape[-2], b.shape[-1]]
    contracted = a.shape[-1]
    if not equal(contracted, b.shape[-2]):
        raise Unsupported(f"whether {contracted} is {b.shape[-2]} depends on the run")
    if all(equal(dim, 1) for dim in b.shape[:-2]):
        batch, rows = [], [*shape[:-2], a.shape[-2]]
    else:
        batch, rows = list(shape[:-2]), [a.shape[-2]]

    def read_a(z: Index, m: Index, k: Index) -> Expr:
        lead = (*z.split(batch), *m.split(rows))
        return _operand(lowering, a, (*_own(lowering, a, lead[:-1], whole[:-2]), lead[-1], k))

    def read_b(z: Index, k: Index, n: Index) -> Expr:
        lead = z.split(batch) if batch else tuple(Index() for _ in whole[:-2])
        return _operand(lowering, b, (*_own(lowering, b, lead, whole[:-2]), k, n))

    _in_memory(lowering, a)
    _in_memory(lowering, b)
    made = multiplied(lowering, node, (a, b), product(batch), product(rows), shape[-1], contracted, read_a, read_b)
    made.define(lowering, output, (*made.z.split(batch), *made.m.split(rows), made.n))


def gemm(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Gemm: alpha * A' B' + beta * C."""
    a, b, output = lowering.needed(node, 0), lowering.needed(node, 1), node.outputs[0]
    c = lowering.operand(node, 2)
    shape = lowering.shape(output)
    across_a, across_b = int_attr(node, "transA", 0), int_attr(node, "transB", 0)
    contracted = a.shape[0 if across_a else 1]

    def read_a(z: Index, m: Index, k: Index) -> Expr:
        return _operand(lowering, a, (k, m) if across_a else (m, k))

    def read_b(z: Index, k: Index, n: Index) -> Expr:
        return _operand(lowering, b, (n, k) if across_b else (k, n))

    _in_memory(lowering, a)
    _in_memory(lowering, b)
    made = multiplied(lowering, node, (a, b), 1, shape[0], shape[1], contracted, read_a, read_b)
    alpha, beta = (node.attributes[name].as_float() if name in node.attributes else 1.0 for name in ("alpha", "beta"))
    made.expr = _scaled(lowering, made.expr, alpha)
    if c is not None and beta != 0:
        bias = lowering.element(c, lowering.broadcast(c, (made.m, made.n), shape))
        made.expr = lowering.pool.make("({0} + {1})", (made.expr, _scaled(lowering, bias, beta)), "fp32")
    made.define(lowering, output, (made.m, made.n))


def _scaled(lowering: Lowering, x: Expr, factor: float) -> Expr:
    if factor == 1.0:
        return x
    return lowering.pool.make("({0} * {1})", (x, lowering.pool.number(factor, "fp32")), "fp32")


def convolution(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Conv as a product without an image of columns: the kernel computes where it reads (implicit GEMM).

    Rows are the places of the result, columns its channels; the contracted axis runs over the window, and innermost
    over the channels of the group. Groups are the batch.
    """
    x, weight, output = lowering.needed(node, 0), lowering.needed(node, 1), node.outputs[0]
    bias = lowering.operand(node, 2)
    shape, spatial = lowering.shape(output), len(x.shape) - 2
    groups = int_attr(node, "group", 1)
    window = [fixed(size, "its window") for size in weight.shape[2:]]
    strides = ints_attr(node, "strides") or (1,) * spatial
    dilations = ints_attr(node, "dilations") or (1,) * spatial
    before = padding(node, x.shape[2:], shape[2:], window, strides, dilations)
    per_group = fixed(weight.shape[1], "its channels")
    filters = fixed(weight.shape[0], "its filters") // groups
    source = lowering.stored(x)
    kernel = lowering.stored(weight)
    places = [shape[0], *shape[2:]]
    if groups > 1 and per_group == 1 and spatial == 2:
        _check_types(x, weight)
        group = _depthwise(lowering, node, x, weight, before)
        n, o, oh, ow = (variable(name, dim) for name, dim in group.space.items())
        sums = Product(group, Index(), Index(), o, lowering.pool.make("anchor", (), "fp32", id(group)))
        convolved(lowering, output, sums, bias, (n, o, oh, ow))
        return

    def read_x(z: Index, m: Index, k: Index) -> Expr:
        image, *at = m.split(places)
        *offset, channel = k.split([*window, per_group])
        guard: Expr | None = None
        coordinates = []
        for axis in range(spatial):
            index = at[axis] * strides[axis] + offset[axis] * dilations[axis] + -before[axis]
            coordinates.append(index)
            reach = (window[axis] - 1) * dilations[axis] + 1
            if before[axis] or not _fits(x.shape[2 + axis], shape[2 + axis], strides[axis], reach):
                size = lowering.size(x.shape[2 + axis], "i32")
                within = lowering.pool.make("(({0} >= 0) & ({0} < {1}))", (lowering.pool.index(index), size), "i1")
                guard = lowering.builder.both(guard, within)
        address = source.address((image, z * per_group + channel, *coordinates))
        where = Address(source.buffer, x.memory, address, (), guard is not None)
        return lowering.pool.make("load", () if guard is None else (guard,), x.memory, where)

    def read_w(z: Index, k: Index, n: Index) -> Expr:
        *offset, channel = k.split([*window, per_group])
        where = Address(kernel.buffer, weight.memory, kernel.address((z * filters + n, channel, *offset)))
        return lowering.pool.make("load", (), weight.memory, where)

    contracted = per_group * product(window)
    made = multiplied(lowering, node, (x, weight), groups, product(places), filters, contracted, read_x, read_w)
    channel = made.z * filters + made.n
    image, *at = made.m.split(places)
    convolved(lowering, output, made, bias, (image, channel, *at))


def convolved(
    lowering: Lowering, output: onnx_ir.Value, made: Product, bias: Value | None, coordinates: Coordinates
) -> None:
    """Define the result of a convolution: sums at these coordinates, and the bias of their channels."""
    if bias is not None:
        element = lowering.element(bias, (coordinates[1],))
        made.expr = lowering.pool.make("({0} + {1})", (made.expr, element), "fp32")
    made.define(lowering, output, coordinates)


def _depthwise(lowering: Lowering, node: onnx_ir.Node, x: Value, weight: Value, before: Sequence[int]) -> Group:
    """A convolution of single channels: a sum over a window is too little for a matrix product."""
    shape, window = lowering.shape(node.outputs[0]), weight.shape[2:]
    space = {"n": shape[0], "o": shape[1], "oh": shape[2], "ow": shape[3]}
    reduced = {"c": x.shape[1], "h": x.shape[2], "w": x.shape[3], "kh": window[0], "kw": window[1]}
    strides, dilations = (ints_attr(node, name) or (1, 1) for name in ("strides", "dilations"))
    n, c, h, w, o, kh, kw = (
        variable(name, {**space, **reduced}[name]) for name in ("n", "c", "h", "w", "o", "kh", "kw")
    )
    group = Group(
        "depthwise",
        space,
        {
            "BATCH": shape[0],
            "CHANNELS": shape[1],
            "H": x.shape[2],
            "W": x.shape[3],
            "OUT_H": shape[2],
            "OUT_W": shape[3],
        },
        {
            "KH": window[0],
            "KW": window[1],
            "STRIDE_H": strides[0],
            "STRIDE_W": strides[1],
            "PAD_TOP": before[0],
            "PAD_LEFT": before[1],
            "DILATION_H": dilations[0],
            "DILATION_W": dilations[1],
            "OUT_PER_GROUP": fixed(weight.shape[0], "its filters") // fixed(x.shape[1], "its channels"),
        },
        nodes=[node.name or node.outputs[0].name or ""],
    )
    pool, guard = lowering.pool, None
    for index, padded in zip((h, w), before, strict=True):
        if padded:  # the kernel masks what pads, but hooks may ask for the extents of single indices instead
            guard = lowering.builder.both(guard, pool.make("({0} >= 0)", (pool.index(index),), "i1"))
    read = lowering.builder.load(lowering.stored(x), x.memory, x.memory, (n, c, h, w), guard)
    factor = lowering.builder.load(lowering.stored(weight), weight.memory, weight.memory, (o, Index(), kh, kw))
    group.results = {"LOAD_X": read, "LOAD_W": factor}
    group.reduced = reduced
    return lowering.builder.add(group)


def _check_types(a: Value, b: Value) -> None:
    if a.dtype != b.dtype or a.dtype not in _PRODUCTS:
        raise Unsupported(f"products of {a.dtype.name.lower()} and {b.dtype.name.lower()} are not supported")


def padding(
    node: onnx_ir.Node,
    sizes: Sequence[Dim],
    results: Sequence[Dim],
    window: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """How many elements are added in front of each axis."""
    attribute = node.attributes.get("auto_pad")
    mode = "NOTSET" if attribute is None else attribute.as_string()
    if mode in ("NOTSET", "VALID"):
        pads = ints_attr(node, "pads") if mode == "NOTSET" else None
        return list(pads[: len(window)]) if pads else [0] * len(window)
    found = []
    for size, result, reach, stride, dilation in zip(sizes, results, window, strides, dilations, strict=True):
        if not isinstance(size, int) or not isinstance(result, int):
            raise Unsupported("how much it pads depends on the run")
        total = max((result - 1) * stride + (reach - 1) * dilation + 1 - size, 0)
        found.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
    return found


def _fits(size: Dim, result: Dim, stride: int, reach: int) -> bool:
    """Whether the last window lies inside without padding."""
    return isinstance(size, int) and isinstance(result, int) and (result - 1) * stride + reach <= size


def fixed(dim: Dim, what: str) -> int:
    """A dim as a number.

    Raises:
        Unsupported: It is not known; ``what`` is what it is.
    """
    if not isinstance(dim, int):
        raise Unsupported(f"{what} ({dim}) is not known")
    return dim


def _in_memory(lowering: Lowering, x: Value) -> None:
    """What a product reads many times is in memory, unless reading it is a mere load from somewhere else."""
    if x.view is None and x.compute is not None:
        probe = x.compute(tuple(variable(f"probe{place}", dim) for place, dim in enumerate(x.shape)), None)
        if probe.op == "load" and not probe.data.strides:
            return
    lowering.stored(x)


def _operand(lowering: Lowering, x: Value, coordinates: Coordinates) -> Expr:
    """An element as it lies in memory: tensor cores take 16-bit operands."""
    if x.view is not None:
        return lowering.builder.load(x.view, x.memory, x.memory, coordinates)
    expr = lowering.element(x, coordinates)
    return lowering.pool.make("load", expr.args, x.memory, expr.data)


def _own(lowering: Lowering, x: Value, lead: Coordinates, shape: Sequence[Dim]) -> Coordinates:
    """The leading coordinates of a matrix among those of the whole batch."""
    leading = Value(x.shape[:-2], x.dtype)
    return lowering.broadcast(leading, lead, shape)


@dataclass
class Product:
    """The sums of a product, in a register of a group.

    Attributes:
        group: The group.
        z: Which of the batch it is, in the group's loop variables.
        m: The row.
        n: The column.
        expr: The sum.
    """

    group: Group
    z: Index
    m: Index
    n: Index
    expr: Expr

    def define(self, lowering: Lowering, output: onnx_ir.Value, coordinates: Coordinates) -> None:
        """Say that a value of the graph is the sum at these coordinates."""
        shape, dtype = lowering.shape(output), lowering.dtype(output)
        lowering.define(output, Value(shape, dtype, group=self.group, expr=self.expr, coordinates=coordinates))


def multiplied(
    lowering: Lowering,
    node: onnx_ir.Node,
    operands: tuple[Value, Value],
    batch: Dim,
    rows: Dim,
    columns: Dim,
    contracted: Dim,
    read_a: Read,
    read_b: Read,
) -> Product:
    """``batch`` products of (rows, contracted) and (contracted, columns), by a new group or by two."""
    _check_types(*operands)
    space = {"z": batch, "m": rows, "n": columns}
    name = node.name or node.outputs[0].name or ""
    group = Group(
        # One row leaves tensor cores, which take 16 at a time, nothing to gain; from two rows on their pipeline wins.
        "gemv" if equal(rows, 1) else "matmul",
        space,
        {"M": rows, "N": columns, "K": contracted, "BATCH": batch},
        nodes=[name],
    )
    z, m, n = (variable(name, extent) for name, extent in space.items())
    k = variable("k", contracted)
    group.results = {"LOAD_A": read_a(z, m, k), "LOAD_B": read_b(z, k, n)}
    group.reduced = {"k": contracted}
    lowering.builder.add(group)
    parts = splits(lowering, group, operands[0].memory, node.outputs[0])
    if parts > 1:
        return Product(*in_parts(lowering, group, parts, name))
    return Product(group, z, m, n, lowering.pool.make("anchor", (), "fp32", id(group)))


RULES: dict[str, Rule] = {"MatMul": matmul, "Gemm": gemm, "Conv": convolution}
