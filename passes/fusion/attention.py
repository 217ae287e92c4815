"""Scaled dot-product attention (Vaswani et al., 2017) in the forms that exporters write.

``softmax(scale * Q @ K^T + mask) @ V`` over heads, from the projections to where the heads are joined again. Scales may
stand on either operand, be split between both or follow the product; the mask is added or selected by a condition; a
guard may replace NaN by zero where a row is hidden altogether.

The fused op ``optc::Attention`` has the inputs of ONNX's ``Attention`` (opset 23), in its order; one in the middle that
a match does not have is absent, at the end it is left out. B: batch, N: heads of queries, M: heads of keys and values
(N is a multiple of M; head i of the queries reads head i // (N / M)), S: queries, T: keys, P: keys in the past.

===========  =====================================================================================================
q            queries, flat (B, S, N * H) or split into heads (B, N, S, H)
k, v         keys and values, flat (B, T, M * H), (B, T, M * V) or heads (B, M, T, H), (B, M, T, V); both alike
mask         added to the scaled scores, or boolean (then ``fill`` and ``hidden`` are set); up to 4 dims, broadcast to
             (B, N, S, P + T) and no further
past_key     (B, M, P, H), what stands before the keys; with it
past_value   (B, M, P, V), what stands before the values
===========  =====================================================================================================

============  ====================================================================================================
num_heads     N
kv_num_heads  M
scale         factor of the scores
fill          only with a boolean mask: the number that replaces a score that it hides
hidden        only with a boolean mask: 1 if true hides, 0 if false does
softcap       a number c > 0 if the scaled scores x become c * tanh(x / c), before the mask; absent otherwise
guarded       1 if a row that minus infinity hides altogether gives 0 (and not NaN); absent otherwise
============  ====================================================================================================

It returns the joined heads, (B, S, N * V) or the matrix (B * S, N * V), or the heads (B, N, S, V) as they are, and
where they are read elsewhere the present keys (B, M, P + T, H) and the present values (B, M, P + T, V). All floats are
of one type.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir

from optc.ir.dims import Dim
from optc.ir.facts import Facts
from optc.ir.matcher import Match, attribute
from optc.ir.ops import made_by
from optc.ir.pattern import Var
from optc.passes.fusion.attention_scores import HIDES
from optc.passes.fusion.common import FLOATS
from optc.passes.rule import fusion

_SPLIT, _SPLIT_ACROSS, _SWAP = [0, 2, 1, 3], [0, 2, 3, 1], [0, 1, 3, 2]


def _scaled(p, name: str, x):
    return p.one_of(p.scalar(f"{name}_scale") * x, p.Div(x, p.scalar(f"{name}_divisor")), x)


def _split(p, name: str, x, perm: list[int]):
    """(B, S, N * H) as (B, N, S, H), or as (B, N, H, S)."""
    return p.Transpose(p.bind(f"{name}_split", p.Reshape(x, p.const())), perm=perm)


def _heads(p, name: str, x):
    """The heads, taken out of the projection or as somebody else made them."""
    return p.one_of(_split(p, name, x, _SPLIT), x)


def _scores(p, q, k):
    # Factors of queries and keys are factors of the scores; those of values are not.
    q, k = _scaled(p, "q_flat", q), _scaled(p, "k_flat", k)
    rows = _scaled(p, "q", p.bind("q_heads", _heads(p, "q", q)))
    flipped = p.Transpose(_scaled(p, "k_inner", _heads(p, "k", k)), perm=_SWAP)
    columns = _scaled(p, "k", p.bind("k_across", p.one_of(_split(p, "k", k, _SPLIT_ACROSS), flipped)))
    return _scaled(p, "score", p.bind("product", rows @ columns))


def _capped(p, scores):
    """Scores that a tanh keeps between two bounds (Gemma Team, 2024)."""
    return p.one_of(p.scalar("softcap") * p.Tanh(_scaled(p, "capped", scores)), scores)


def _masked(p, scores, mask):
    selected = p.Where(mask, p.scalar("fill_where"), scores), p.Where(mask, scores, p.scalar("fill_unless"))
    return p.one_of(scores + mask, *selected, scores)


def _weights(p, scores):
    softmax = p.through("Cast", p.bind("softmax", p.Softmax(p.through("Cast", scores))))
    guarded = p.Where(p.bind("guard", p.IsNaN(Var("weights"))), 0.0, p.bind("weights", softmax))
    return p.one_of(guarded, softmax)


def _attention_attributes(found: Match) -> dict[str, Any] | str:
    facts = found.facts
    for check in (_types, _operands, _joined, _softmax, _divisors):
        if (reason := check(found)) is not None:
            return reason
    batch, heads, queries, _ = _dims(facts, found.q_heads)
    _, shared, _, keys = _dims(facts, found.k_across)
    attributes = {"num_heads": heads, "kv_num_heads": shared, "scale": _scale(found)}
    if "softcap" in found.bindings:
        cap = float(found.scalar("softcap"))
        if not cap > 0:
            return f"scores must be capped at a positive number (it is {cap:g})"
        attributes |= {"softcap": cap, "scale": attributes["scale"] * cap}
    if "mask" not in found.bindings:
        return attributes
    values = _dims(facts, found.v_heads)[2]
    reason = _mask_shape(facts, found.mask, (batch, heads, queries, keys), values) or _mask_meaning(found)
    if reason is not None:
        return reason
    attributes |= _fill(found)
    if "guard" not in found.bindings or not _may_hide_all(found):
        return attributes
    if (facts.shape(found.mask) or ())[-3:-2] not in ((), (1,)):
        return "the guard against NaN matters, as the mask may be minus infinity, and heads have masks of their own"
    return {**attributes, "guarded": 1}


def _types(found: Match) -> str | None:
    facts = found.facts
    kinds = {facts.dtype(value) for value in (found.q, found.k, found.v, found.output)}
    if len(kinds) != 1 or not kinds <= FLOATS:
        return "queries, keys, values and the result must be floats of one type"
    if any(n.op_type == "Cast" and facts.dtype(n.outputs[0]) not in FLOATS for n in found.nodes):
        return "a cast to another type than a float is in the way"
    return None


def _operands(found: Match) -> str | None:
    """Why queries, keys and values are not (B, N, S, H), (B, N, T, H) and (B, N, T, V), flat or as heads."""
    facts = found.facts
    q, k, v = (facts.shape(found[name]) for name in ("q_heads", "k_across", "v_heads"))
    if q is None or k is None or v is None or not len(q) == len(k) == len(v) == 4:
        return "queries, keys and values must have 4 dims once they are split into heads"
    # The products contract the head size and the keys, so that those agree in every run that does not fail.
    if not q[0] == k[0] == v[0] or k[1] != v[1] or k[1] not in (1, q[1]):
        return f"batch and heads must provably agree ({_text(q)}, {_text(k)}, {_text(v)})"
    if not all(isinstance(dim, int) and dim > 0 for dim in (q[1], k[1], q[3], v[3])):
        return "the number of heads and their sizes must be known"
    for name, flat in (("q", (q[0], q[2], q[1] * q[3])), ("k", (k[0], k[3], k[1] * k[2])), ("v", _flat(v))):
        if f"{name}_split" in found.bindings:
            split, heads = facts.shape(found[f"{name}_split"]), q[1] if name == "q" else k[1]
            if facts.shape(found[name]) != flat or split != (flat[0], flat[1], heads, flat[2] // heads):
                return f"the last axis of {name} must be what is split into heads"
    if ("k_split" in found.bindings) != ("v_split" in found.bindings):
        return "keys and values must both be flat, or both be heads"
    return None


def _flat(heads: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return heads[0], heads[2], heads[1] * heads[3]


def _joined(found: Match) -> str | None:
    if found.root.op_type == "MatMul":
        return None  # the heads stay apart
    batch, heads, queries, _ = _dims(found.facts, found.q_heads)
    width, result = heads * _dims(found.facts, found.v_heads)[3], found.facts.shape(found.output)
    if result == (batch, queries, width) or (result is not None and len(result) == 2 and result[1] == width):
        return None
    return "the heads must be joined into the last axis again"


def _softmax(found: Match) -> str | None:
    axis = attribute(found.softmax.producer(), "axis", found.facts)
    return None if axis in (-1, 3) else f"the softmax must be over the last axis (it is over {axis})"


def _divisors(found: Match) -> str | None:
    zero = any(name.endswith("_divisor") and found.scalar(name) == 0 for name in found.bindings)
    return "it divides by zero" if zero else None


def _scale(found: Match) -> float:
    scale = 1.0
    for name in found.bindings:
        if name.endswith("_scale"):
            scale *= float(found.scalar(name))
        elif name.endswith("_divisor"):
            scale /= float(found.scalar(name))
    return scale


def _mask_shape(facts: Facts, mask: onnx_ir.Value, scores: tuple[Dim, ...], values: Dim) -> str | None:
    """Why a mask does not fit the scores: its dims must provably be theirs or 1, or it could raise theirs.

    The last one may be unknown where there are provably as many values as keys: it cannot raise their number then.
    """
    shape = facts.shape(mask)
    if shape is None or len(shape) > 4:
        return "the mask must have at most 4 dims"
    padded = (*[1] * (4 - len(shape)), *shape)
    known = 3 if values == scores[3] else 4
    if any(dim not in (1, wanted) for dim, wanted in zip(padded[:known], scores, strict=False)):
        return f"the mask must provably have the dims of the scores or 1 ({_text(padded)} against {_text(scores)})"
    return None


def _mask_meaning(found: Match) -> str | None:
    facts = found.facts
    fill = _fill(found).get("fill")
    if fill is None and facts.dtype(found.mask) != facts.dtype(found.product):
        return "the mask must have the type of the scores"
    if fill is not None and fill > HIDES:
        return f"a hidden score is replaced by {fill:g}, which is not small enough to hide it"
    if fill is not None and facts.dtype(found.product) != onnx_ir.DataType.FLOAT and not math.isinf(fill):
        return "in this type the lowest number added to a score depends on the score"
    return None


def _may_hide_all(found: Match) -> bool:
    """Whether a row that is hidden altogether is NaN without a guard; with a finite mask it is a mean."""
    fill = _fill(found).get("fill")
    return math.isinf(fill) if fill is not None else not _finite(found.facts, found.mask)


def _fill(found: Match) -> dict[str, Any]:
    for name, hidden in (("fill_where", 1), ("fill_unless", 0)):
        if name in found.bindings:
            return {"fill": float(found.scalar(name)), "hidden": hidden}
    return {}


def _finite(facts: Facts, mask: onnx_ir.Value | None) -> bool:
    """Whether a mask is provably finite: a constant, a choice between two, or a movement of such."""
    while (node := made_by(mask, "Expand", "Unsqueeze", "Reshape", "Slice", "Identity", "Transpose")) is not None:
        mask = node.inputs[0]
    if (node := made_by(mask, "Where")) is not None:
        return all(_finite(facts, value) for value in node.inputs[1:])
    array = facts.const(mask)
    return array is not None and bool(np.isfinite(array).all())


def _dims(facts: Facts, value: onnx_ir.Value) -> tuple[Any, ...]:
    """The dims of a value that is known to have 4."""
    shape = facts.shape(value)
    assert shape is not None
    return shape


def _text(shape: tuple[Dim, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _context(p, q, k, v, mask):
    weights = _weights(p, _masked(p, _capped(p, _scores(p, q, k)), mask))
    return weights @ p.bind("v_heads", _heads(p, "v", v))


def _attention(name: str):
    return fusion(name, "Attention", inputs=("q", "k", "v", "mask"), attributes=_attention_attributes)


@_attention("attention")
def attention(p, q, k, v, mask):
    """Attention over heads, with queries, keys and values that are flat or split into heads already."""
    return p.Reshape(p.Transpose(_context(p, q, k, v, mask), perm=_SPLIT), p.const())


@_attention("attention-heads")
def attention_heads(p, q, k, v, mask):
    """Attention over heads that nobody joins again, or in another way."""
    return _context(p, q, k, v, mask)
