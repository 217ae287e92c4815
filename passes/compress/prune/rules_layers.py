"""How layers with weights and normalizations tie axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optc.ir.ops import int_attr, operand
from optc.passes.compress.prune.atoms import Axes, Ids
from optc.passes.compress.prune.scope import Rule, View, broadcast, ids_of

_LOST = "what is not of a known form stays"
_NORM = "normalizes over it"


def convolution(view: View) -> Sequence[Axes | None]:
    """Conv, and FusedConv, whose fourth input is added to the result."""
    x, weight, bias, summand = (view.axes(index) for index in range(4))
    made = view.out()
    if x is None or weight is None or made is None or x[1] is None or weight[0] is None or weight[1] is None:
        view.freeze_inputs(_LOST)
        return [view.out(reason=_LOST)]
    groups = int_attr(view.node, "group", 1)
    view.writes(1, 0, weight[0])
    if groups == 1:
        view.tie(x[1], weight[1])
        view.reads(1, 1, weight[1])
    else:
        _groups(view, x[1], weight[0], weight[1], groups)
    if bias is not None:
        view.tie(bias[0], weight[0])
    result: Axes = (x[0], weight[0], *made[2:])
    if summand is not None:
        shape = view.facts.shape(view.node.outputs[0]) or ()
        result = broadcast(view, [(result, shape), (summand, view.shape(3) or ())])
        _mark_residual(view, result)
    return [result]


def _groups(view: View, x: Ids, out: Ids, inner: Ids, groups: int) -> None:
    """A grouped convolution: whole groups with what they make, or the same channel of every group."""
    ins, outs = x.reshape(groups, -1), out.reshape(groups, -1)
    chosen = 0 if ins.shape[1] == 1 else view.choose([ins[:, 0], ins[0]])
    if chosen == 0:
        view.atoms.tie(ins[:, :1], ins)
        view.atoms.tie(ins[:, :1], outs)
        view.freeze(inner, "groups of a convolution are removed whole")
    elif chosen == 1:
        view.atoms.tie(ins, inner[None, :])
        view.atoms.tie(outs, outs[:1])


def transposed_convolution(view: View) -> Sequence[Axes | None]:
    """ConvTranspose, whose weight is (C, M / groups, ...)."""
    x, weight, bias = (view.axes(index) for index in range(3))
    made = view.out()
    if x is None or weight is None or made is None or x[1] is None or weight[0] is None or weight[1] is None:
        view.freeze_inputs(_LOST)
        return [view.out(reason=_LOST)]
    groups = int_attr(view.node, "group", 1)
    view.tie(x[1], weight[0])
    channels = weight[1]
    if groups == 1:
        view.reads(1, 0, weight[0])
        view.writes(1, 1, channels)
    else:
        ins = x[1].reshape(groups, -1)
        view.atoms.tie(ins[:, :1], ins)
        view.freeze(weight[1], "groups of a convolution are removed whole")
        channels = np.repeat(ins[:, 0], len(weight[1]))
    if bias is not None:
        view.tie(bias[0], channels)
    return [(x[0], channels, *made[2:])]


def gemm(view: View) -> Sequence[Axes | None]:
    a, b, c = (view.axes(index) for index in range(3))
    if a is None or b is None:
        view.freeze_inputs(_LOST)
        return [view.out(reason=_LOST)]
    left, right = int_attr(view.node, "transA", 0), int_attr(view.node, "transB", 0)
    view.tie(a[0 if left else 1], b[1 if right else 0])
    view.reads(1, 1 if right else 0, b[1 if right else 0])
    view.sums(b[1 if right else 0])
    view.writes(1, 0 if right else 1, b[0 if right else 1])
    result: Axes = (a[1 if left else 0], b[0 if right else 1])
    if c is not None:
        shape = view.facts.shape(view.node.outputs[0]) or ()
        result = broadcast(view, [(result, shape), (c, view.shape(2) or ())])
    return [result]


def matmul(view: View) -> Sequence[Axes | None]:
    """MatMul and FusedMatMul."""
    a, b = view.axes(0), view.axes(1)
    strange = any(int_attr(view.node, name, 0) for name in ("transBatchA", "transBatchB"))
    if a is None or b is None or strange:
        view.freeze_inputs(_LOST)
        return [view.out(reason=_LOST)]
    summed_a, summed_b = len(a) - 1, max(len(b) - 2, 0)
    if len(a) > 1 and int_attr(view.node, "transA", 0):
        summed_a -= 1
    if len(b) > 1 and int_attr(view.node, "transB", 0):
        summed_b += 1
    view.tie(a[summed_a], b[summed_b])
    view.reads(1, summed_b, b[summed_b], x=0)
    view.reads(0, summed_a, a[summed_a], x=1)
    view.sums(a[summed_a])
    shapes = view.shape(0) or (), view.shape(1) or ()
    batch = broadcast(view, [(a[:-2], shapes[0][:-2]), (b[:-2], shapes[1][:-2])])
    if not (view.is_const(0) or view.is_const(1)):
        for ids in batch:
            if ids is not None:
                view.atoms.mark(ids, "heads")
    row = () if len(a) < 2 else (a[2 * len(a) - 3 - summed_a],)
    column = () if len(b) < 2 else (b[2 * len(b) - 3 - summed_b],)
    if column:
        view.writes(1, 2 * len(b) - 3 - summed_b, column[0])
    if row:
        view.writes(0, 2 * len(a) - 3 - summed_a, row[0])
    return [(*batch, *row, *column)]


def per_channel(view: View) -> Sequence[Axes | None]:
    """BatchNormalization and InstanceNormalization: every parameter is one number per channel."""
    x = view.axes(0)
    if x is None or len(view.node.outputs) > 1:
        view.freeze_inputs(_LOST)
        return [view.out(index, _LOST) for index in range(len(view.node.outputs))]
    for index in range(1, len(view.ins)):
        parameter = view.axes(index)
        if parameter is not None:
            view.tie(x[1], parameter[0])
    return [x]


def group_norm(view: View) -> Sequence[Axes | None]:
    """GroupNormalization, ONNX's and that of ONNX Runtime: groups are removed whole."""
    x = view.axes(0)
    channels = -1 if view.node.domain and int_attr(view.node, "channels_last", 1) else 1
    groups = int_attr(view.node, "groups" if view.node.domain else "num_groups", 0)
    ids = ids_of(x, channels)
    if x is None or ids is None or not groups or len(view.node.outputs) > 1:
        view.freeze_inputs(_LOST)
        return [view.out(index, _LOST) for index in range(len(view.node.outputs))]
    heads = view.rows(ids, groups)
    for index in range(1, len(view.ins)):
        parameter = ids_of(view.axes(index), 0)
        if parameter is not None:
            view.tie(heads if len(parameter) == groups else ids, parameter)
    return [x]


def normalization(axis: int, inputs: int = 1) -> Rule:
    """An operator that normalizes from an axis on; its first ``inputs`` inputs are added before, if there are several.

    Args:
        axis: The default of the attribute.
        inputs: How many of the inputs have the shape of the result.
    """

    def rule(view: View) -> Sequence[Axes | None]:
        x = view.axes(0)
        if x is None:
            view.freeze_inputs(_LOST)
            return [view.out(index, _LOST) for index in range(len(view.node.outputs))]
        view.freeze(x[int_attr(view.node, "axis", axis) :], f"{view.node.op_type} {_NORM}")
        view.freeze_inputs(f"{view.node.op_type} {_NORM}", *range(inputs))
        added = [index for index in range(inputs) if view.axes(index) is not None]
        result = broadcast(view, [(view.axes(index) or (), view.shape(index) or ()) for index in added])
        # A sum that is handed on has the shape of the result; statistics have one number per row.
        return [
            result if view.facts.shape(out) == view.facts.shape(view.node.outputs[0]) else view.out(index, _LOST)
            for index, out in enumerate(view.node.outputs)
        ]

    return rule


def mixing(default: int, since: int = 1, before: int | None = None) -> Rule:
    """An operator every output of which depends on all positions of an axis (Softmax, CumSum, ...).

    Args:
        default: The attribute's default.
        since: The opset from which it is one axis; before that all axes from there on, with this default: ``before``.
    """

    def rule(view: View) -> Sequence[Axes | None]:
        x = view.axes(0)
        if x is None:
            view.freeze_inputs(_LOST)
            return [view.out(index, _LOST) for index in range(len(view.node.outputs))]
        old = bool(before is not None and view.facts.opset() < since)
        axis = int_attr(view.node, "axis", before if old and before is not None else default)
        for ids in x[axis:] if old else (ids_of(x, axis),):
            view.freeze(ids, f"{view.node.op_type} mixes all of it")
        view.freeze_inputs(f"{view.node.op_type} mixes all of it", 0)
        return [x]

    return rule


def elementwise(view: View) -> Sequence[Axes | None]:
    """What computes every element of elements at the same place, shapes broadcast."""
    given = [index for index in range(len(view.ins)) if operand(view.node, index) is not None]
    if any(view.axes(index) is None for index in given):
        view.freeze_inputs(_LOST)
        return [view.out(index, _LOST) for index in range(len(view.node.outputs))]
    result = broadcast(view, [(view.axes(index) or (), view.shape(index) or ()) for index in given])
    whole = [index for index in given if not view.is_const(index) and len(view.axes(index) or ()) == len(result) > 1]
    if view.node.op_type in ("Add", "Sum") and len(whole) > 1:
        _mark_residual(view, result)
    return [result] * len(view.node.outputs)


def _mark_residual(view: View, axes: Axes) -> None:
    for ids in axes:
        if ids is not None:
            view.atoms.mark(ids, "residual")


def first_alone(view: View) -> Sequence[Axes | None]:
    """Element by element on the first input; the others are no tensors of its shape."""
    view.freeze_inputs("a parameter of the operator", 0)
    return [view.axes(0), *(view.out(index, _LOST) for index in range(1, len(view.node.outputs)))]


def quantized(view: View) -> Sequence[Axes | None]:
    """QuantizeLinear and DequantizeLinear: one scale for all, or one per position of an axis."""
    x, scale = view.axes(0), view.axes(1)
    if x is None or scale is None:
        view.freeze_inputs(_LOST)
        return [view.out(reason=_LOST)]
    axis = int_attr(view.node, "axis", 1)
    for index in (1, 2):
        parameter = view.axes(index)
        if parameter is None:
            continue
        if len(parameter) == 1 and not int_attr(view.node, "block_size", 0) and parameter[0] is not None:
            if len(parameter[0]) > 1:
                view.tie(ids_of(x, axis), parameter[0])
        elif len(parameter):
            view.freeze(ids_of(x, axis), "scales are shared by blocks of it")
            view.freeze(parameter, "scales are shared by blocks")
    return [x]


def pooling(view: View) -> Sequence[Axes | None]:
    """Windows over what lies behind the channels."""
    x, made = view.axes(0), view.out()
    if x is None or made is None:
        view.freeze_inputs(_LOST)
        return [view.out(index, _LOST) for index in range(len(view.node.outputs))]
    for ids in x[2:]:
        view.freeze(ids, f"{view.node.op_type} mixes it")
    result: Axes = (*x[:2], *made[2:])
    return [result, *(view.out(index, _LOST) for index in range(1, len(view.node.outputs)))]
