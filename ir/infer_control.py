"""Inference for operators with sub-graphs, and for sequences of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir

from optc.ir.dims import Dim, maximum, provably_positive
from optc.ir.infer_base import (
    MAX_ELEMENTS,
    UNKNOWN,
    Context,
    DType,
    Fact,
    Table,
    normalize_axis,
    table,
)
from optc.ir.infer_movement import concatenated

# joining facts ----------------------------------------------------------------------------------------------------


def join(a: Fact, b: Fact, fresh: Callable[[], Dim]) -> Fact:
    """What holds of a value that is one of two: where they differ, it is unknown."""
    if a == b:
        return a
    dtype = a.dtype if a.dtype == b.dtype else None
    shape = None
    if a.shape is not None and b.shape is not None and len(a.shape) == len(b.shape):
        shape = tuple(x if x == y else fresh() for x, y in zip(a.shape, b.shape, strict=True))
    elements = a.elements if a.elements == b.elements else None
    items = None
    if a.items is not None and b.items is not None and len(a.items) == len(b.items):
        items = tuple(join(x, y, fresh) for x, y in zip(a.items, b.items, strict=True))
    return Fact(dtype, shape, elements, items)


def _if(ctx: Context) -> list[Fact]:
    branches = []
    for name in ("then_branch", "else_branch"):
        graph = ctx.attr(name, None)
        if graph is None:
            return []
        branches.append(ctx.knowledge.infer_graph(graph, []))
    taken = ctx.ints(0)
    if taken is not None and len(taken) == 1:
        return branches[0 if taken[0] else 1]
    return [join(a, b, ctx.fresh) for a, b in zip(*branches, strict=False)]


# loops ------------------------------------------------------------------------------------------------------------

_Claim = tuple[onnx_ir.DataType | None, tuple[Dim | None, ...] | None]
"""What is claimed of a state variable in every iteration; a dim that varies is None."""


def _instance(claim: _Claim, fresh: Callable[[], Dim]) -> Fact:
    dtype, shape = claim
    return Fact(dtype, None if shape is None else tuple(fresh() if dim is None else dim for dim in shape))


def _weaken(claim: _Claim, after: Fact) -> _Claim:
    """What is left of ``claim`` when an iteration makes ``after`` of it."""
    dtype, shape = claim
    dtype = dtype if dtype == after.dtype else None
    if shape is None or after.shape is None or len(shape) != len(after.shape):
        return dtype, None
    return dtype, tuple(old if old == new else None for old, new in zip(shape, after.shape, strict=True))


def _iterate(
    ctx: Context, state: Sequence[Fact], run: Callable[[list[Fact]], list[Fact]]
) -> tuple[list[Fact], list[Fact]]:
    """Facts of the state after any number of iterations, and of the body's outputs in any of them.

    By induction: the claims hold of the initial state, and an iteration that starts where they hold ends where they
    hold. Claims that fail this are dropped, dim by dim, and the body is inferred again. ``run`` takes the facts of the
    state to the facts of all outputs of the body, the state first.
    """
    claims: list[_Claim] = [(fact.dtype, fact.shape) for fact in state]
    while True:
        results = run([_instance(claim, ctx.fresh) for claim in claims])
        if len(results) < len(claims):
            return [UNKNOWN] * len(claims), results
        weaker = [_weaken(claim, after) for claim, after in zip(claims, results, strict=False)]
        if weaker == claims:
            return [_instance(claim, ctx.fresh) for claim in claims], results
        claims = weaker


def _stacked(ctx: Context, fact: Fact, count: Dim, axis: int) -> Fact:
    """The outputs of ``count`` iterations, stacked along a new axis. Symbols of the body mean nothing outside it."""
    if fact.shape is None or (place := normalize_axis(axis, len(fact.shape) + 1)) is None:
        return Fact(fact.dtype)
    known = provably_positive(count)  # after no iteration at all, the other dims are anybody's guess
    dims: list[Dim] = [dim if known and isinstance(dim, int) else ctx.fresh() for dim in fact.shape]
    return Fact(fact.dtype, (*dims[:place], count, *dims[place:]))


def _loop(ctx: Context) -> list[Fact]:
    body = ctx.attr("body", None)
    if body is None or len(body.inputs) != len(ctx.inputs):
        return []
    state = [ctx.fact(index) for index in range(2, len(ctx.inputs))]
    counter, condition = (
        Fact(DType.INT64, _scalar_shape(body.inputs[0])),
        Fact(DType.BOOL, _scalar_shape(body.inputs[1])),
    )
    last_condition: list[Fact] = []

    def run(before: list[Fact]) -> list[Fact]:
        results = ctx.knowledge.infer_graph(body, [counter, condition, *before])
        last_condition[:] = results[:1]
        return results[1:]

    final, results = _iterate(ctx, state, run)
    trips, start = ctx.elements(0), ctx.elements(1)
    endless = last_condition[0].elements == (1,) and (start == (1,) or not ctx.has(1))
    count = maximum(trips[0], 0) if trips is not None and endless else ctx.fresh()
    return [*final, *(_stacked(ctx, fact, count, 0) for fact in results[len(state) :])]


def _scalar_shape(value: onnx_ir.Value) -> tuple[int, ...]:
    """The shape of a loop's counter and condition: a scalar, or one element where the body declares that."""
    return (1,) if value.shape is not None and len(value.shape) == 1 else ()


def _scan(ctx: Context) -> list[Fact]:
    body, scanned = ctx.attr("body", None), ctx.attr("num_scan_inputs", 0)
    if body is None or ctx.version < 9 or len(body.inputs) != len(ctx.inputs):
        return []
    states = len(ctx.inputs) - scanned
    in_axes = ctx.attr_ints("scan_input_axes") or (0,) * scanned
    out_axes = ctx.attr_ints("scan_output_axes") or (0,) * (len(body.outputs) - states)
    count: Dim = ctx.fresh()
    slices = []
    for place, axis in enumerate(in_axes):
        dtype, shape, *_ = ctx.fact(states + place)
        where = None if shape is None else normalize_axis(axis, len(shape))
        if shape is None or where is None:
            slices.append(Fact(dtype))
            continue
        count = shape[where]
        slices.append(Fact(dtype, shape[:where] + shape[where + 1 :]))

    def run(before: list[Fact]) -> list[Fact]:
        return ctx.knowledge.infer_graph(body, [*before, *slices])

    final, results = _iterate(ctx, [ctx.fact(index) for index in range(states)], run)
    stacked = [_stacked(ctx, fact, count, axis) for fact, axis in zip(results[states:], out_axes, strict=False)]
    return [*final, *stacked]


# sequences --------------------------------------------------------------------------------------------------------


def _sequence_construct(ctx: Context) -> Fact:
    return Fact(items=tuple(ctx.fact(index) for index in range(len(ctx.inputs))))


def _split_to_sequence(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    if shape is None or (axis := normalize_axis(ctx.attr("axis", 0), len(shape))) is None:
        return UNKNOWN
    dim, sizes = shape[axis], ctx.elements(1)
    if ctx.has(1) and sizes is None:
        return UNKNOWN
    if sizes is None or ctx.shape(1) == ():
        size = 1 if sizes is None else sizes[0]
        if not isinstance(dim, int) or not isinstance(size, int) or size < 1 or dim > size * MAX_ELEMENTS:
            return UNKNOWN
        sizes = tuple(min(size, dim - start) for start in range(0, dim, size))
    squeezed = not ctx.has(1) and not ctx.attr("keepdims", 1)
    middles = [() if squeezed else (size,) for size in sizes]
    return Fact(items=tuple(Fact(dtype, (*shape[:axis], *middle, *shape[axis + 1 :])) for middle in middles))


def _place(ctx: Context, index: int, count: int, default: int) -> int | None:
    """A position in a sequence that has ``count`` places, counted from the front."""
    if not ctx.has(index):
        return default
    places = ctx.ints(index)
    return None if places is None or len(places) != 1 else normalize_axis(places[0], count)


def _sequence_at(ctx: Context) -> Fact:
    items = ctx.fact(0).items
    place = None if items is None else _place(ctx, 1, len(items), -1)
    return UNKNOWN if items is None or place is None else items[place]


def _sequence_insert(ctx: Context) -> Fact:
    items = ctx.fact(0).items
    place = None if items is None else _place(ctx, 2, len(items) + 1, len(items))
    if items is None or place is None:
        return UNKNOWN
    return Fact(items=(*items[:place], ctx.fact(1), *items[place:]))


def _sequence_erase(ctx: Context) -> Fact:
    items = ctx.fact(0).items
    place = None if items is None else _place(ctx, 1, len(items), len(items) - 1)
    if items is None or place is None:
        return UNKNOWN
    return Fact(items=(*items[:place], *items[place + 1 :]))


def _sequence_length(ctx: Context) -> Fact:
    items = ctx.fact(0).items
    return Fact(DType.INT64, (), None if items is None else (len(items),))


def _concat_from_sequence(ctx: Context) -> Fact:
    items, axis = ctx.fact(0).items, ctx.attr("axis", 0)
    if not items:
        return UNKNOWN
    dtype = items[0].dtype
    if not ctx.attr("new_axis", 0):
        return Fact(dtype, concatenated([item.shape for item in items], axis, ctx.fresh))
    shape = items[0].shape
    place = None if shape is None else normalize_axis(axis, len(shape) + 1)
    if shape is None or place is None:
        return Fact(dtype)
    return Fact(dtype, (*shape[:place], len(items), *shape[place:]))


CONTROL: Table = {
    **table("", "If", _if),
    **table("", "Loop", _loop),
    **table("", "Scan", _scan),
    **table("", "SequenceEmpty", lambda ctx: Fact(items=())),
    **table("", "SequenceConstruct", _sequence_construct),
    **table("", "SplitToSequence", _split_to_sequence),
    **table("", "SequenceAt", _sequence_at),
    **table("", "SequenceInsert", _sequence_insert),
    **table("", "SequenceErase", _sequence_erase),
    **table("", "SequenceLength", _sequence_length),
    **table("", "ConcatFromSequence", _concat_from_sequence),
}
