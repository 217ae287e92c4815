"""Windows that slide: pooling. Short ones are pointwise work on as many loads as the window has elements."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx_ir

from optc.backends.triton.expressions import Expr
from optc.backends.triton.groups import Coordinates, Value
from optc.backends.triton.layout import variable
from optc.backends.triton.lower import Lowering, Rule, Unsupported
from optc.backends.triton.products import padding
from optc.backends.triton.resizing import images, pixel
from optc.ir.dims import Dim
from optc.ir.ops import int_attr, ints_attr

#: Windows of more elements than this would be long kernels.
_MOST = 64


def pooled(lowering: Lowering, node: onnx_ir.Node) -> None:
    """MaxPool and AveragePool."""
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise Unsupported("the indices of MaxPool are read")
    x, output = lowering.readable(lowering.needed(node, 0)), node.outputs[0]
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    spatial = len(x.shape) - 2
    window = ints_attr(node, "kernel_shape") or ()
    strides = ints_attr(node, "strides") or (1,) * spatial
    dilations = ints_attr(node, "dilations") or (1,) * spatial
    before = padding(node, x.shape[2:], shape[2:], window, strides, dilations)
    places = list(itertools.product(*map(range, window)))
    largest = node.op_type == "MaxPool"
    counts_all = bool(int_attr(node, "count_include_pad", 0))
    partly = counts_all and int_attr(node, "ceil_mode", 0)
    if (len(places) > _MOST or partly) and spatial <= 2 and x.register == "fp32":
        _by_kernel(lowering, node, x, window, before)
        return
    if len(places) > _MOST or partly:
        raise Unsupported(f"a window of {len(places)} elements with these options is not supported")
    pool, kind = lowering.pool, x.register
    lowest = pool.number(float("-inf"), kind) if kind.startswith("fp") else None
    if largest and lowest is None:
        raise Unsupported(f"MaxPool of {x.dtype.name.lower()} is not supported")

    def compute(coordinates: Coordinates, guard: Expr | None) -> Expr:
        total: Expr | None = None
        count: Expr | None = None
        for offset in places:
            at, inside = [], guard
            for axis in range(spatial):
                index = coordinates[2 + axis] * strides[axis] + offset[axis] * dilations[axis] + -before[axis]
                at.append(index)
                if _may_leave(
                    x.shape[2 + axis], shape[2 + axis], strides[axis], offset[axis] * dilations[axis] - before[axis]
                ):
                    size = lowering.size(x.shape[2 + axis], "i32")
                    within = pool.make("(({0} >= 0) & ({0} < {1}))", (pool.index(index), size), "i1")
                    inside = lowering.builder.both(inside, within)
            element = lowering.builder.element(x, (*coordinates[:2], *at), inside)
            one = pool.number(1.0, kind)
            if inside is not guard and inside is not None:
                if largest:
                    assert lowest is not None
                    element = pool.make("tl.where({0}, {1}, {2})", (inside, element, lowest), kind)
                one = pool.cast(inside, kind)
            join = "functions.maximum({0}, {1})" if largest else "({0} + {1})"
            total = element if total is None else pool.make(join, (total, element), kind)
            count = one if count is None else pool.make("({0} + {1})", (count, one), kind)
        assert total is not None and count is not None
        if largest:
            return total
        divisor = pool.number(float(len(places)), kind) if counts_all else count
        return pool.make("({0} / {1})", (total, divisor), kind)

    lowering.define(output, Value(shape, dtype, compute=compute, name=node.name or ""))


def _by_kernel(lowering: Lowering, node: onnx_ir.Node, x: Value, window: Sequence[int], before: Sequence[int]) -> None:
    """Pooling by the kernel that is made for it: for long windows, and for averages that its edges complicate."""
    output, spatial = node.outputs[0], len(window)
    shape = lowering.shape(output)
    pads = ints_attr(node, "pads")
    after = pads[spatial:] if pads else before
    group = images(lowering, node, "pool", x, shape)
    group.constants = {
        "KIND": "max" if node.op_type == "MaxPool" else "average",
        "COUNT_INCLUDE_PAD": bool(int_attr(node, "count_include_pad", 0)),
    }
    for name, values, default in (
        ("K{}", window, 1),
        ("STRIDE_{}", ints_attr(node, "strides"), 1),
        ("DILATION_{}", ints_attr(node, "dilations"), 1),
    ):
        tall, wide = (default, default, *(values or (default,) * spatial))[-2:]
        group.constants |= {name.format("H"): tall, name.format("W"): wide}
    for names, amounts in ((("PAD_TOP", "PAD_LEFT"), before), (("PAD_BOTTOM", "PAD_RIGHT"), after)):
        group.constants |= dict(zip(names, (0, 0, *amounts)[-2:], strict=True))
    lowering.anchor(output, group, pixel(shape, *(variable(name, size) for name, size in group.space.items())))


def _may_leave(size: Dim, results: Dim, stride: int, offset: int) -> bool:
    """Whether some window has this element outside of the tensor."""
    if not isinstance(size, int) or not isinstance(results, int):
        return True
    return offset < 0 or (results - 1) * stride + offset >= size


RULES: dict[str, Rule] = {"MaxPool": pooled, "AveragePool": pooled}
