"""Inference for operators that join, cut, pick and pad: Concat, Slice, Split, Gather, Pad, Resize, ..."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from optc.ir.dims import (
    Dim,
    bounds,
    ceildiv,
    maximum,
    minimum,
    provably_ge,
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
    element_count,
    integers_only,
    like,
    normalize_axes,
    normalize_axis,
    rearranged,
    static,
    table,
)

_FAR = 2**31 - 1
"""Slice bounds from here on, of either sign, are past every axis."""

_OPEN_ENDS = frozenset({2**31 - 1, 2**63 - 1})
"""Ends that ONNX Runtime takes for the open end of a slice in either direction; backwards, others take them at their
word, so that nothing is known."""


# joining and cutting ----------------------------------------------------------------------------------------------


def concatenated(shapes: list[Shape | None], axis: int, fresh: Callable[[], Dim]) -> Shape | None:
    """The shape of tensors joined along ``axis``.

    The other dims have to agree, but ONNX Runtime does not hold empty tensors to that. So where they are not known to
    agree, only those of a tensor that can not be empty count.
    """
    known = [shape for shape in shapes if shape is not None]
    if not known or any(len(shape) != len(known[0]) for shape in known):
        return None
    place = normalize_axis(axis, len(known[0]))
    if place is None:
        return None
    sure = next((shape for shape in known if all(map(provably_positive, shape))), None)
    result: list[Dim] = []
    for i, dims in enumerate(zip(*known, strict=True)):
        complete = len(known) == len(shapes)
        if i == place:
            result.append(sum(dims[1:], dims[0]) if complete else fresh())
        elif complete and dims.count(dims[0]) == len(dims):
            result.append(dims[0])
        else:
            result.append(fresh() if sure is None else sure[i])
    return tuple(result)


def _concat(ctx: Context) -> Fact:
    count = len(ctx.inputs)
    facts = [ctx.fact(index) for index in range(count)]
    dtype = next((fact.dtype for fact in facts if fact.dtype is not None), None)
    axis = ctx.attr("axis", 1)
    shape = concatenated([fact.shape for fact in facts], axis, ctx.fresh)
    if dtype not in INT_RANGES or (element_count(shape) or MAX_ELEMENTS + 1) > MAX_ELEMENTS:
        return Fact(dtype, shape)
    if len(shape or ()) != 1 and any(ctx.elements(index) is None for index in range(count)):
        return Fact(dtype, shape)
    parts = [ctx.integers(index) for index in range(count)]
    if any(part is None for part in parts):
        return Fact(dtype, shape)
    flat = tuple(element for part in parts for element in part)  # type: ignore[union-attr]
    places, start = [], 0
    for part, fact in zip(parts, facts, strict=True):
        stop = start + len(part or ())
        places.append(np.arange(start, stop).reshape(static(fact.shape or ())))
        start = stop
    return Fact(dtype, shape, tuple(flat[place] for place in np.concatenate(places, axis).ravel()))


def _counted(index: Dim, dim: Dim) -> Dim | None:
    """A Slice bound counted from the front. None if its sign is not known."""
    if not provably_ge(index, 0):
        if bounds(index)[1] >= 0:
            return None
        return index + dim
    return dim if isinstance(index, int) and index >= _FAR else index  # "to the end", as exporters write it


def sliced_dim(ctx: Context, dim: Dim, start: Dim, end: Dim, step: Dim) -> Dim:
    """How many elements Slice keeps of an axis of size ``dim``."""
    if not isinstance(step, int) or step == 0 or (step < 0 and end in _OPEN_ENDS):
        return ctx.fresh()
    first = _counted(start, dim)
    last = -1 if isinstance(end, int) and step < 0 and end <= -_FAR else _counted(end, dim)
    if first is None or last is None:
        return ctx.fresh()
    if step < 0:  # an empty axis has no last element to start from, hence the upper limit comes last
        begin = dim - 1 if provably_ge(first, dim - 1) else minimum(maximum(first, 0), dim - 1)
        span = begin - minimum(maximum(last, -1), dim - 1)
    elif last == dim and isinstance(start, int):
        # d - min(k, d) = max(d - k, 0), and the last k of d are min(k, d)
        span = maximum(dim - start, 0) if start >= 0 else minimum(dim, -start)
    else:
        span = maximum(minimum(last, dim), 0) - maximum(minimum(first, dim), 0)
    return maximum(ceildiv(span, abs(step)), 0)


def _cut(
    elements: tuple[Dim, ...] | None, shape: Shape, axes: tuple[int, ...], *parameters: tuple[Dim, ...]
) -> tuple[Dim, ...] | None:
    """The contents that Slice keeps, if its starts, ends and steps are plain integers."""
    plain = [numbers for numbers in map(integers_only, parameters) if numbers is not None]
    if elements is None or len(plain) < len(parameters):
        return None
    cuts, sizes = [slice(None)] * len(shape), static(shape)
    for axis, start, end, step in zip(axes, *plain, strict=True):
        if step < 0 and end in _OPEN_ENDS:
            return None
        # NumPy clamps as ONNX does, but for a backward slice that starts before the beginning
        cuts[axis] = slice(max(start, -sizes[axis]) if step < 0 else start, end, step)
    return rearranged(elements, shape, lambda array: array[tuple(cuts)])


def _slice(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    if shape is None:
        return Fact(dtype)
    rank = len(shape)
    starts: tuple[Dim, ...] | None
    ends: tuple[Dim, ...] | None
    steps: tuple[Dim, ...] | None
    if ctx.version < 10:
        starts, ends, axes, steps = ctx.attr_ints("starts"), ctx.attr_ints("ends"), ctx.attr_ints("axes"), None
    else:
        starts, ends, axes, steps = ctx.integers(1), ctx.integers(2), ctx.ints(3), ctx.integers(4)
        if (ctx.has(3) and axes is None) or (ctx.has(4) and steps is None):
            return Fact(dtype, ctx.fresh_shape(rank))
    if starts is None or ends is None:
        return Fact(dtype, ctx.fresh_shape(rank))
    normal = normalize_axes(axes if axes is not None else range(len(starts)), rank)
    steps = steps if steps is not None else (1,) * len(starts)
    if normal is None or not len(starts) == len(ends) == len(normal) == len(steps):
        return Fact(dtype)
    result = list(shape)
    for axis, start, end, step in zip(normal, starts, ends, steps, strict=True):
        result[axis] = sliced_dim(ctx, shape[axis], start, end, step)
    elements = _cut(ctx.elements(0), shape, normal, starts, ends, steps)
    return Fact(dtype, tuple(result), elements)


def _split(ctx: Context) -> list[Fact]:
    dtype, shape, *_ = ctx.fact(0)
    count = len(ctx.node.outputs)
    if shape is None:
        return [Fact(dtype)] * count
    axis = normalize_axis(ctx.attr("axis", 0), len(shape))
    if axis is None:
        return [Fact(dtype)] * count
    sizes = ctx.attr_ints("split") or (ctx.integers(1) if ctx.has(1) else None)
    dim = shape[axis]
    if sizes is None and ctx.has(1):
        sizes = ctx.fresh_shape(count)
    elif sizes is None:
        parts = ctx.attr("num_outputs", count)
        chunk = ceildiv(dim, parts) if ctx.version >= 18 else dim // parts  # before 18 the dim must be divisible
        sizes = (*(chunk,) * (parts - 1), dim - chunk * (parts - 1) if ctx.version >= 18 else chunk)
    if len(sizes) != count:
        return [Fact(dtype)] * count
    facts, elements, start = [], ctx.elements(0), 0
    for size in sizes:
        part = None
        if elements is not None and len(shape) == 1 and isinstance(size, int):
            part = elements[start : start + size]
            start += size
        else:
            elements = None
        facts.append(Fact(dtype, (*shape[:axis], size, *shape[axis + 1 :]), part))
    return facts


# picking ----------------------------------------------------------------------------------------------------------


def _gather(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    picked = ctx.shape(1)
    if shape is None or picked is None:
        return Fact(dtype)
    axis = normalize_axis(ctx.attr("axis", 0), len(shape))
    if axis is None:
        return Fact(dtype)
    result = (*shape[:axis], *picked, *shape[axis + 1 :])
    places, elements = ctx.ints(1), ctx.elements(0)
    if elements is None or places is None:
        return Fact(dtype, result)
    size = shape[axis]
    if not isinstance(size, int) or any(not -size <= place < size for place in places):
        return Fact(dtype, result)
    index = np.array(places, np.int64).reshape(static(picked))
    return Fact(dtype, result, rearranged(elements, shape, lambda array: np.take(array, index % size, axis)))


def _gather_elements(ctx: Context) -> Fact:
    return Fact(ctx.dtype(0), ctx.shape(1))


def _gather_nd(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    picked = ctx.shape(1)
    batch = ctx.attr("batch_dims", 0)
    if shape is None or not picked or not isinstance(picked[-1], int) or batch + picked[-1] > len(shape):
        return Fact(dtype)
    return Fact(dtype, (*picked[:-1], *shape[batch + picked[-1] :]))


def _compress(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    axis = ctx.attr("axis", None)
    if axis is None:
        return Fact(dtype, (ctx.fresh(),))
    if shape is None or (place := normalize_axis(axis, len(shape))) is None:
        return Fact(dtype)
    return Fact(dtype, (*shape[:place], ctx.fresh(), *shape[place + 1 :]))


def _top_k(ctx: Context) -> tuple[Fact, Fact]:
    dtype, shape, *_ = ctx.fact(0)
    if shape is None or (axis := normalize_axis(ctx.attr("axis", -1), len(shape))) is None:
        return Fact(dtype), Fact(DType.INT64)
    amount = (ctx.attr("k", 1),) if ctx.version < 10 else ctx.integers(1)
    result = (*shape[:axis], amount[0] if amount else ctx.fresh(), *shape[axis + 1 :])
    return Fact(dtype, result), Fact(DType.INT64, result)


def _one_hot(ctx: Context) -> Fact:
    shape = ctx.shape(0)
    dtype = ctx.dtype(2)
    if shape is None or (axis := normalize_axis(ctx.attr("axis", -1), len(shape) + 1)) is None:
        return Fact(dtype)
    depth = ctx.integers(1)
    return Fact(dtype, (*shape[:axis], depth[0] if depth else ctx.fresh(), *shape[axis:]))


def _non_zero(ctx: Context) -> Fact:
    shape = ctx.shape(0)
    if shape is None:
        return Fact(DType.INT64, ctx.fresh_shape(2))
    # a scalar counts as a vector of one element in ONNX Runtime, and as rank 0 elsewhere
    return Fact(DType.INT64, (len(shape) if shape else ctx.fresh(), ctx.fresh()))


def _non_max_suppression(ctx: Context) -> Fact:
    return Fact(DType.INT64, (ctx.fresh(), 3))


# growing ----------------------------------------------------------------------------------------------------------


def _pad(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    if shape is None:
        return Fact(dtype)
    rank = len(shape)
    pads = ctx.attr_ints("pads") or ctx.attr_ints("paddings") if ctx.version < 11 else ctx.integers(1)
    axes = ctx.ints(3)
    if pads is None or (ctx.has(3) and axes is None):
        return Fact(dtype, ctx.fresh_shape(rank))
    normal = normalize_axes(axes, rank) if axes is not None else tuple(range(rank))
    if normal is None or len(pads) != 2 * len(normal):
        return Fact(dtype)
    result = list(shape)
    for place, axis in enumerate(normal):
        result[axis] = pads[place] + (shape[axis] + pads[place + len(normal)])
    return Fact(dtype, tuple(result))


def _scaled(ctx: Context, dim: Dim, scale: float) -> Dim:
    """``floor(dim * scale)``, if the precision in which it is computed makes no difference."""
    if scale == 1:
        return dim
    if isinstance(dim, int):
        single, double = math.floor(np.float32(dim) * np.float32(scale)), math.floor(dim * scale)
        return double if single == double else ctx.fresh()
    return dim * int(scale) if scale == int(scale) else ctx.fresh()


def _resize(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    if shape is None:
        return Fact(dtype)
    rank = len(shape)
    unknown = Fact(dtype, ctx.fresh_shape(rank))
    if ctx.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        return unknown
    if ctx.attr("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return unknown
    scales_at, sizes_at = (1, 3) if ctx.version < 11 or ctx.node.op_type == "Upsample" else (2, 3)
    axes = normalize_axes(ctx.attr_ints("axes") or range(rank), rank)
    if axes is None:
        return Fact(dtype)
    result = list(shape)
    sizes = ctx.integers(sizes_at) if ctx.has(sizes_at) else None
    if sizes:
        wanted = list(sizes)
    else:
        scales = ctx.attr("scales", None) if ctx.node.op_type == "Upsample" and ctx.version < 9 else None
        values = scales if scales is not None else ctx.floats(scales_at)
        if values is None or len(values) != len(axes):
            return unknown
        wanted = [_scaled(ctx, shape[axis], float(scale)) for axis, scale in zip(axes, values, strict=True)]
    if len(wanted) != len(axes):
        return unknown
    for axis, dim in zip(axes, wanted, strict=True):
        result[axis] = dim
    return Fact(dtype, tuple(result))


MOVEMENT: Table = {
    **table("", "Concat", _concat),
    **table("", "Slice", _slice),
    **table("", "Split", _split),
    **table("", "Gather", _gather),
    **table("", "GatherElements", _gather_elements),
    **table("", "GatherND", _gather_nd),
    **table("", "Compress", _compress),
    **table("", "TopK", _top_k),
    **table("", "OneHot", _one_hot),
    **table("", "NonZero", _non_zero),
    **table("", "NonMaxSuppression", _non_max_suppression),
    **table("", "Pad", _pad),
    **table("", "Resize Upsample", _resize),
    **table("", "Scatter ScatterElements ScatterND TensorScatter Trilu ReverseSequence CumSum CumProd", like()),
}
