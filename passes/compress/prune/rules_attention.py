"""How operators of attention and mixtures of experts tie axes: heads go with all that belongs to them.

A head of queries goes with the keys and values that it reads; where several share them (grouped queries), they go
together. Inputs are those of com.microsoft's operators (ONNX Runtime, docs/ContribOperators.md) and of ONNX 23.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optc.ir.ops import int_attr, ints_attr, operand
from optc.passes.compress.prune.atoms import Axes, Ids
from optc.passes.compress.prune.scope import View, ids_of

_LOST = "what is not of a known form stays"
_WHOLE = "heads are removed whole"


def multi_head(view: View) -> Sequence[Axes | None]:
    """com.microsoft MultiHeadAttention: query, key, value, bias, mask, attention bias, past key, past value."""
    heads = int_attr(view.node, "num_heads", 0)
    query, key, value, bias = (view.axes(index) for index in range(4))
    packed = query is not None and len(query) == 5
    if query is None or not heads or packed or (key is not None and len(key) == 5) or len(view.ins) > 8:
        return _unknown(view)
    made = ids_of(query, 2) if value is None else ids_of(value, 2 if len(value) == 3 else 3)
    first = ids_of(query, 2)
    if first is None or made is None or key is None or value is None:
        return _unknown(view)
    unit = view.rows(first, heads)
    view.atoms.mark(unit, "heads")
    results = [view.out(index) for index in range(len(view.node.outputs))]
    channels = _side(view, key, unit), _side(view, value, unit)
    if bias is not None and bias[0] is not None:
        sizes = [len(first), len(channels[0]), len(channels[1])]
        if sum(sizes) != len(bias[0]):
            return _unknown(view)
        for part, mine in zip(np.split(bias[0], np.cumsum(sizes)[:-1]), (first, *channels), strict=True):
            view.tie(part, mine)
    view.freeze(view.axes(4), "a mask")
    _scores(view, 5, unit)
    for index in (6, 7):
        _cache(view, view.axes(index), unit)
    for axes in results[1:]:
        _cache(view, axes, unit)
    return [(query[0], query[1], channels[1]), *results[1:]]


def _side(view: View, axes: Axes, unit: Ids) -> Ids:
    """Tie keys or values to heads; their channels, those of a head side by side."""
    if len(axes) == 3 and axes[2] is not None:
        view.tie(view.rows(axes[2], len(unit)), unit)
        return axes[2]
    view.tie(axes[1], unit)
    view.freeze(axes[3], _WHOLE)
    inner = 1 if axes[3] is None else len(axes[3])
    return np.repeat(unit, inner)


def _cache(view: View, axes: Axes | None, unit: Ids) -> None:
    """Tie a cache (batch, heads, length, size) to heads."""
    if axes is not None and len(axes) == 4:
        view.tie(axes[1], unit)
        view.freeze(axes[3], _WHOLE)
    else:
        view.freeze(axes, _LOST)


def _scores(view: View, index: int, unit: Ids) -> None:
    """What is added to scores (..., heads or 1, queries, keys): an input of the node, if it is there."""
    if operand(view.node, index) is None:
        return
    axes = view.axes(index)
    heads = ids_of(axes, -3)
    if heads is not None and len(heads) == len(unit) > 1:
        view.tie(heads, unit)
    elif axes is None or (len(axes) > 2 and heads is None):
        view.freeze(unit, "a bias of scores may have one part per head")


def grouped_query(view: View) -> Sequence[Axes | None]:
    """com.microsoft GroupQueryAttention; the parts of a packed query are queries, keys, values."""
    heads, groups = int_attr(view.node, "num_heads", 0), int_attr(view.node, "kv_num_heads", 0)
    query, key, value = (view.axes(index) for index in range(3))
    first = ids_of(query, 2)
    odd = any(view.axes(index) is not None for index in range(10, len(view.ins)))
    if query is None or first is None or not heads or not groups or odd:
        return _unknown(view)
    keys: Ids | None
    values: Ids | None
    if key is None:
        size = len(first) // (heads + 2 * groups)
        first, keys, values = np.split(first, [heads * size, (heads + groups) * size])
    else:
        keys, values = ids_of(key, 2), ids_of(value, 2)
    unit = _grouped(view, first, heads, groups)
    for ids in (keys, values):
        if ids is None:
            return _unknown(view)
        view.tie(view.rows(ids, groups), unit)
    results = [view.out(index) for index in range(len(view.node.outputs))]
    for axes in (view.axes(3), view.axes(4), *results[1:]):
        _cache(view, axes, unit)
    view.freeze_inputs("a parameter of the operator", 0, 1, 2, 3, 4)
    return [(query[0], query[1], first), *results[1:]]


def _grouped(view: View, ids: Ids, heads: int, groups: int) -> Ids:
    """Queries (their channels) in groups that share keys and values; one atom per group."""
    unit = view.rows(ids, groups)
    view.atoms.mark(unit, "heads")
    return unit


def attention(view: View) -> Sequence[Axes | None]:
    """ONNX's Attention: Q, K, V of rank 4 (batch, heads, length, size) or of rank 3 with numbers of heads."""
    query, key, value = (view.axes(index) for index in range(3))
    if query is None or key is None or value is None or len(view.node.outputs) > 3:
        return _unknown(view)
    results = [view.out(index) for index in range(len(view.node.outputs))]
    if len(query) == 4:
        if query[1] is None or key[1] is None or value[1] is None:
            return _unknown(view)
        groups = len(key[1])
        unit = view.rows(query[1], groups)
        for axes in (key, value):
            view.tie(axes[1], unit)
        for axes in (query, key):
            view.freeze(axes[3], _WHOLE)
        result: Axes = (*query[:3], value[3])
        per_head = query[1]
    else:
        heads, groups = int_attr(view.node, "q_num_heads", 0), int_attr(view.node, "kv_num_heads", 0)
        if not heads or not groups or any(axes[2] is None for axes in (query, key, value)):
            return _unknown(view)
        unit = view.rows(query[2], groups)
        for axes in (key, value):
            view.tie(view.rows(axes[2], groups), unit)
        size = len(value[2]) // groups
        per_head = view.rows(query[2], groups).repeat(heads // groups)
        result = (query[0], query[1], np.repeat(per_head, size))
    view.atoms.mark(unit, "heads")
    _scores(view, 3, per_head)
    for cache in (view.axes(4), view.axes(5), *results[1:]):
        _cache(view, cache, unit)
    for index in range(6, len(view.ins)):
        view.freeze(view.axes(index), "a parameter of the operator")
    return [result, *results[1:]]


def packed_attention(view: View) -> Sequence[Axes | None]:
    """com.microsoft Attention, whose weight makes queries, keys and values side by side."""
    x, weight, bias = (view.axes(index) for index in range(3))
    heads, sizes = int_attr(view.node, "num_heads", 0), ints_attr(view.node, "qkv_hidden_sizes")
    out = ids_of(weight, 1)
    others = any(operand(view.node, index) is not None for index in (4, 6))
    if x is None or weight is None or out is None or not heads or others or len(view.node.outputs) > 1:
        return _unknown(view)
    view.tie(x[2], weight[0])
    view.reads(1, 0, weight[0])
    view.writes(1, 1, out)
    if bias is not None:
        view.tie(bias[0], out)
    given = sizes or (len(out) // 3,) * 3
    parts = np.split(out, np.cumsum(given)[:-1])
    unit = view.rows(parts[0], heads)
    view.atoms.mark(unit, "heads")
    for part in parts[1:]:
        view.tie(view.rows(part, heads), unit)
    view.freeze(view.axes(3), "a mask")
    _scores(view, 5, unit)
    return [(x[0], x[1], parts[2])]


def rotary(view: View) -> Sequence[Axes | None]:
    """RotaryEmbedding, ONNX's and that of ONNX Runtime; what is rotated keeps all of its numbers."""
    x = view.axes(0)
    cache = view.shape(2 if view.node.domain else 1)
    view.freeze_inputs("angles", 0)
    if x is None or cache is None:
        return _unknown(view)
    if len(x) == 4:
        view.freeze(x[3], "it is rotated as a whole")
        return [x]
    heads = int_attr(view.node, "num_heads", 0)
    if not heads and x[2] is not None and isinstance(cache[-1], int):
        heads = len(x[2]) // (2 * cache[-1])
    if not heads or x[2] is None:
        return _unknown(view)
    _ = view.rows(x[2], heads)
    return [x]


def experts(view: View) -> Sequence[Axes | None]:
    """com.microsoft MoE: neurons of all experts together, and whole experts with their part of the router.

    Inputs: x, router (rows, experts), fc1 (experts, inner, hidden), its bias (experts, inner), fc2 (experts, hidden,
    inner), its bias, fc3 as fc1, its bias. Gated units that are interleaved in fc1 are left alone. The kernel makes
    probabilities of all that the router gives and takes the ``k`` largest, so a model without an expert is one whose
    router never names it, as long as ``k`` are left.
    """
    x, router, first, second = view.axes(0), view.axes(1), view.axes(2), view.axes(4)
    fused = int_attr(view.node, "swiglu_fusion", 0)
    shape, other = view.shape(2), view.shape(4)
    if x is None or first is None or second is None or fused or shape is None or other is None or shape[1] != other[2]:
        return _unknown(view)
    _whole_experts(view, ids_of(router, -1), [ids_of(view.axes(index), 0) for index in range(2, 8)])
    inner = first[1]
    view.tie(inner, second[2])
    for index in (3, 6, 7):
        mine = ids_of(view.axes(index), 1)
        if mine is not None:
            view.tie(mine, inner)
    for ids in (first[2], second[1], ids_of(view.axes(5), 1), ids_of(view.axes(6), 2)):
        view.freeze(ids, "hidden states of experts")
    view.freeze(x[-1], "hidden states of experts")
    view.writes(2, 1, inner)
    view.reads(4, 2, second[2])
    return [x]


def _whole_experts(view: View, routed: Ids | None, others: Sequence[Ids | None]) -> None:
    """Tie experts to what the router gives for them, or say why they stay."""
    taken, there = int_attr(view.node, "k", 1), [ids for ids in others if ids is not None]
    reason = None
    if routed is None or any(len(ids) != len(routed) for ids in there):
        reason = "what the router gives has no number of experts that is known"
    elif int_attr(view.node, "use_sparse_mixer", 0) or any(map(view.axes, range(8, len(view.ins)))):
        reason = "the router does more than to name experts"
    elif taken >= len(routed):
        reason = f"each row takes {taken} of {len(routed)} experts"
    if reason is not None or routed is None:
        for ids in (routed, *there):
            view.freeze(ids, reason or _LOST)
        return
    for ids in there:
        view.tie(ids, routed)
    view.atoms.mark(routed, "experts")
    view.at_least(routed, taken)
    view.writes(2, 0, routed)
    view.reads(4, 0, routed, x=1)


def _unknown(view: View) -> Sequence[Axes | None]:
    view.freeze_inputs(_LOST)
    return [view.out(index, _LOST) for index in range(len(view.node.outputs))]
