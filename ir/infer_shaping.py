"""Inference for operators that make or change shapes: Shape, Range, Expand, Reshape, Squeeze, Transpose, ..."""

from __future__ import annotations

import numpy as np

from optc.ir.dims import (
    Dim,
    ceildiv,
    divide_exact,
    maximum,
    product,
    provably_ge,
    provably_ne,
    provably_positive,
)
from optc.ir.infer_base import (
    INT_RANGES,
    MAX_ELEMENTS,
    Context,
    DType,
    Fact,
    Shape,
    Table,
    broadcast_shapes,
    element_count,
    integers_only,
    normalize_axes,
    rearranged,
    table,
)
from optc.ir.infer_elementwise import spread


def _axes(ctx: Context, index: int) -> tuple[int, ...] | None:
    """Axes from the attribute (older opsets) or from input ``index``; None if they are not known or not given."""
    return ctx.attr_ints("axes") or ctx.ints(index)


# making shapes ----------------------------------------------------------------------------------------------------


def _shape(ctx: Context) -> Fact:
    shape = ctx.shape(0)
    if shape is None:
        return Fact(DType.INT64, (ctx.fresh(),))
    start, end = ctx.attr("start", 0), ctx.attr("end", len(shape))
    kept = shape[slice(*slice(start, end).indices(len(shape)))]
    return Fact(DType.INT64, (len(kept),), kept)


def _size(ctx: Context) -> Fact:
    shape = ctx.shape(0)
    return Fact(DType.INT64, (), None if shape is None else (product(shape),))


def _range(ctx: Context) -> Fact:
    dtype = ctx.dtype(0) or ctx.dtype(1) or ctx.dtype(2)
    if dtype not in INT_RANGES:
        return Fact(dtype, (ctx.fresh(),))
    ends = [ctx.integers(index) for index in range(3)]
    if any(end is None or len(end) != 1 for end in ends):
        return Fact(dtype, (ctx.fresh(),))
    ((start,), (limit,), (delta,)) = ends  # type: ignore[misc]
    if not isinstance(delta, int) or delta == 0:
        return Fact(dtype, (ctx.fresh(),))
    count = maximum(ceildiv(limit - start, delta) if delta > 0 else ceildiv(start - limit, -delta), 0)
    if not isinstance(count, int) or count > MAX_ELEMENTS:
        return Fact(dtype, (count,))
    return Fact(dtype, (count,), tuple(start + i * delta for i in range(count)))


def _constant_of_shape(ctx: Context) -> Fact:
    value = ctx.attribute("value")
    dtype = DType.FLOAT if value is None else value.value.dtype
    shape = _shape_from(ctx, 0)
    count = element_count(shape)
    elements = None
    if dtype in INT_RANGES and count is not None and count <= MAX_ELEMENTS:
        elements = (int(value.value.numpy().reshape(-1)[0]),) * count  # type: ignore[union-attr]
    return Fact(dtype, shape, elements)


def _shape_from(ctx: Context, index: int) -> Shape | None:
    """The shape that input ``index`` holds: its contents are dims, so not negative in a run that succeeds."""
    dims = ctx.integers(index)
    return None if dims is None else tuple(dim if provably_ge(dim, 0) else maximum(dim, 0) for dim in dims)


def _expand(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    target = ctx.integers(1)
    if shape is None or target is None:
        return Fact(dtype)
    wanted = tuple(dim if provably_ge(dim, 0) else ctx.fresh() for dim in target)
    result = broadcast_shapes((shape, wanted))
    elements, count = ctx.elements(0), element_count(result)
    if elements is None or result is None or count is None or count > MAX_ELEMENTS:
        return Fact(dtype, result)
    return Fact(dtype, result, spread(elements, shape, result))


def _tile(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    repeats = ctx.integers(1)
    if ctx.version < 6 or shape is None:
        return Fact(dtype, None if shape is None else ctx.fresh_shape(len(shape)))
    if repeats is None or len(repeats) != len(shape):
        return Fact(dtype, ctx.fresh_shape(len(shape)))
    result = tuple(dim * repeat for dim, repeat in zip(shape, repeats, strict=True))
    elements = None
    if element_count(result) is not None and (times := integers_only(repeats)) is not None:
        elements = rearranged(ctx.elements(0), shape, lambda array: np.tile(array, times))
    return Fact(dtype, result, elements)


# changing the shape -----------------------------------------------------------------------------------------------


def _reshape(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    target = ctx.attr_ints("shape") if ctx.version < 5 else ctx.integers(1)
    if target is None:
        return Fact(dtype)
    result = reshaped(ctx, shape, target, bool(ctx.attr("allowzero", 0)))
    return Fact(dtype, result, _kept(ctx, result))


def _kept(ctx: Context, shape: Shape | None) -> tuple[Dim, ...] | None:
    """The contents of input 0, which the node only gives another shape."""
    elements = ctx.elements(0)
    return elements if elements is not None and element_count(shape) == len(elements) else None


def reshaped(ctx: Context, shape: Shape | None, target: tuple[Dim, ...], allow_zero: bool = False) -> Shape:
    """What Reshape makes of ``shape``.

    A symbolic element of the target may be 0 in some run, which then means "copy the dim of the input". It is taken at
    its own value where that must be right: where it can not be 0, or the dim that would be copied is then 0 as well, or
    the input is then empty. (In the last case copying fails the run, unless a second, unrelated dim of the tensor is 0
    in the same run, or inferred to be 0: an empty tensor of disputed shape, which is disregarded.)
    """
    total = None if shape is None else product(shape)
    result: list[Dim | None] = []
    inferred = None
    for place, wanted in enumerate(target):
        source = shape[place] if shape is not None and place < len(shape) else None
        if wanted == -1:
            inferred = place
            result.append(None)
        elif wanted == 0 and not allow_zero:
            result.append(source)
        elif not provably_ge(wanted, 0):
            result.append(None)
        elif (
            allow_zero
            or provably_positive(wanted)
            or (shape is not None and place >= len(shape))
            or (source is not None and divide_exact(source, wanted) is not None)
            or (total is not None and divide_exact(total, wanted) is not None)
        ):
            result.append(wanted)
        else:
            result.append(None)
    missing = [place for place, dim in enumerate(result) if dim is None]
    if total is not None and len(missing) == 1:
        (place,) = missing
        rest = product(dim for dim in result if dim is not None)
        if rest != 0:
            solved = divide_exact(total, rest)
            if solved is None and place == inferred:
                solved = total // rest
            # equal totals only determine the dim where the rest is not 0; a target with -1 fails where it is
            if solved is not None and (place == inferred or provably_positive(rest)):
                result[place] = solved
    return tuple(ctx.fresh() if dim is None else dim for dim in result)


def _flatten(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    axis = ctx.attr("axis", 1)
    if shape is None:
        return Fact(dtype, ctx.fresh_shape(2))
    if not -len(shape) <= axis <= len(shape):
        return Fact(dtype)
    if axis < 0:
        axis += len(shape)
    result = (product(shape[:axis]), product(shape[axis:]))
    return Fact(dtype, result, _kept(ctx, result))


def _squeeze(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    if shape is None:
        return Fact(dtype)
    axes = _axes(ctx, 1)
    if axes is None:
        if ctx.has(1) or any(dim != 1 and not provably_ne(dim, 1) for dim in shape):
            return Fact(dtype)
        axes = tuple(axis for axis, dim in enumerate(shape) if dim == 1)
    normal = normalize_axes(axes, len(shape))
    if normal is None:
        return Fact(dtype)
    result = tuple(dim for axis, dim in enumerate(shape) if axis not in normal)
    return Fact(dtype, result, _kept(ctx, result))


def _unsqueeze(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    axes = _axes(ctx, 1)
    if shape is None or axes is None:
        return Fact(dtype)
    rank = len(shape) + len(axes)
    normal = normalize_axes(axes, rank)
    if normal is None:
        return Fact(dtype)
    rest = iter(shape)
    result = tuple(1 if axis in normal else next(rest) for axis in range(rank))
    return Fact(dtype, result, ctx.elements(0))


def _transpose(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    if shape is None:
        return Fact(dtype)
    order = ctx.attr_ints("perm") or tuple(reversed(range(len(shape))))
    if sorted(order) != list(range(len(shape))):
        return Fact(dtype)
    elements = rearranged(ctx.elements(0), shape, lambda array: array.transpose(order))
    return Fact(dtype, tuple(shape[axis] for axis in order), elements)


def _depth_to_space(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    block = ctx.attr("blocksize", 0)
    if shape is None or len(shape) != 4 or block < 1:
        return Fact(dtype)
    batch, channels, height, width = shape
    if ctx.node.op_type == "DepthToSpace":
        return Fact(dtype, (batch, channels // (block * block), height * block, width * block))
    return Fact(dtype, (batch, channels * block * block, height // block, width // block))


SHAPING: Table = {
    **table("", "Shape", _shape),
    **table("", "Size", _size),
    **table("", "Range", _range),
    **table("", "ConstantOfShape", _constant_of_shape),
    **table("", "Expand", _expand),
    **table("", "Tile", _tile),
    **table("", "Reshape", _reshape),
    **table("", "Flatten", _flatten),
    **table("", "Squeeze", _squeeze),
    **table("", "Unsqueeze", _unsqueeze),
    **table("", "Transpose", _transpose),
    **table("", "DepthToSpace SpaceToDepth", _depth_to_space),
}
