"""Attention with heads of keys that several heads of queries share, and with keys kept from earlier steps.

Grouped-query attention (Ainslie et al., 2023) is exported with the heads of keys and values repeated, a cache of keys
and values as a Concat of the past and what is new. Both stand before the fused op, and become part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir

from optc.ir import ops
from optc.ir.dims import Dim
from optc.ir.facts import Facts
from optc.ir.matcher import Match
from optc.ir.pattern import Var
from optc.ir.rewriter import Rewriter
from optc.passes.rule import fusion, node_rule

_HEADS = 1
"""The axis of the heads in (B, N, S, H)."""
_COPIES = ("Expand", "Tile", "Concat")


@node_rule("repeat-heads", "Reshape")
def repeat_heads(rw: Rewriter, node: onnx_ir.Node):
    """Heads of which each stands several times in a row, made by way of a new axis, as a Gather of them."""
    facts, copies = rw.facts, node.inputs[0]
    new = ops.made_by(_source(ops.made_by(copies, *_COPIES)), "Unsqueeze")
    if new is None or ops.axes_of(new, facts) != (_HEADS + 1,):
        return None
    few, wide, many = (facts.shape(value) for value in (new.inputs[0], copies, node.outputs[0]))
    if few is None or wide is None or many is None or not len(few) == len(wide) - 1 == len(many) == 4:
        return None
    heads, times = wide[_HEADS : _HEADS + 2]
    if not isinstance(heads, int) or not isinstance(times, int) or heads < 1 or times < 2:
        return None
    if (*wide[:2], *wide[3:]) != few or many != (wide[0], heads * times, *wide[3:]):
        return f"only the number of heads may differ ({_text(few)} and {_text(many)})"
    return ops.gather(rw, new.inputs[0], [head // times for head in range(heads * times)], _HEADS)


@node_rule("share-heads", "optc::Attention")
def share_heads(rw: Rewriter, node: onnx_ir.Node):
    """One head of keys or values that is copied for all heads of queries, as a Gather."""
    heads, changed = node.attributes["kv_num_heads"].as_int(), False
    for index in (1, 2):
        source = _source(ops.made_by(node.inputs[index], *_COPIES))
        few, many = rw.facts.shape(source), rw.facts.shape(node.inputs[index])
        if few is None or many is None or len(many) != 4:  # of rank 3 they are positions and all heads side by side
            continue
        if heads > 1 and few == (*many[:1], 1, *many[2:]):
            rw.set_input(node, index, ops.gather(rw, source, [0] * heads, _HEADS))
            changed = True
    return changed


def _source(node: onnx_ir.Node | None) -> onnx_ir.Value | None:
    """What a node's result may be copies of: its input, or its inputs if they are all the same."""
    if node is None or (node.op_type == "Concat" and len(set(node.inputs)) > 1):
        return None
    return node.inputs[0]


def _attention(p, q, k, v, mask):
    return p.one_of(p.op("optc::Attention", q, k, v, mask), p.op("optc::Attention", q, k, v))


def _grouped_attributes(found: Match) -> dict[str, Any] | str:
    facts, given = found.facts, _given(found)
    heads = given["kv_num_heads"]
    if any(facts.rank(found[name]) != 4 for name in ("k", "v")):
        return "keys and values must be heads"
    counts = {(facts.shape(found[name]) or (None, None))[_HEADS] for name in ("k", "v")}
    if len(counts) != 1 or not isinstance(few := counts.pop(), int) or few < 1 or heads % few:
        return "keys and values must have equally many heads, which divide those of the queries"
    wanted = tuple(head // (heads // few) for head in range(heads))
    if any(facts.ints(found[name]) != wanted for name in ("k_groups", "v_groups")):
        return "each head of keys must stand several times in a row, and as often as the others"
    return {**given, "kv_num_heads": few}


@fusion("attention-grouped", "Attention", inputs=("q", "k", "v", "mask"), attributes=_grouped_attributes)
def attention_grouped(p, q, k, v, mask):
    """Attention over keys and values whose heads are repeated: the heads as they are."""
    keys, values = p.Gather(k, p.const("k_groups"), axis=_HEADS), p.Gather(v, p.const("v_groups"), axis=_HEADS)
    return _attention(p, q, keys, values, mask)


def _past_attributes(found: Match) -> dict[str, Any] | str:
    facts = found.facts
    if any(axis not in (2, -2) for axis in (found.k_axis, found.v_axis)):
        return "the past must stand before what is new along the axis of the keys"
    for name in ("past_key", "past_value", "new_key", "new_value"):
        if facts.rank(found[name]) != 4:
            return "past and new keys and values must be heads"
    for past, new in (("past_key", "new_key"), ("past_value", "new_value")):
        before, after = facts.shape(found[past]), facts.shape(found[new])
        if before is None or after is None or (*before[:2], before[3]) != (*after[:2], after[3]):
            return "past and new keys must provably agree in batch, heads and size"
    # With the new ones the pasts agree as well, as there are as many values as keys in every run that does not fail.
    if all(_length(facts, found[f"{what}_key"]) != _length(facts, found[f"{what}_value"]) for what in ("past", "new")):
        return "there must provably be as many new keys as new values"
    return _given(found)


@fusion(
    "attention-past",
    "Attention",
    inputs=("q", "new_key", "new_value", "mask", "past_key", "past_value"),
    exports=("present_key", "present_value"),
    attributes=_past_attributes,
)
def attention_past(p, q, new_key, new_value, mask, past_key, past_value):
    """Attention over a cache of keys and values with new ones behind them, which it can put together itself."""
    keys = p.export("present_key", p.Concat(past_key, new_key, axis=Var("k_axis")))
    values = p.export("present_value", p.Concat(past_value, new_value, axis=Var("v_axis")))
    return _attention(p, q, keys, values, mask)


def _length(facts: Facts, heads: onnx_ir.Value) -> Dim | None:
    return (facts.shape(heads) or (None,) * 4)[2]


def _given(found: Match) -> dict[str, Any]:
    """The attributes of the fused op that becomes part of a larger one."""
    return {name: attr.value for name, attr in found.root.attributes.items()}


def _text(shape: Sequence[Dim]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


RULES = (share_heads, attention_grouped, attention_past)
