"""How fused attention is written with the operators that ONNX Runtime has kernels for."""

from __future__ import annotations

import numpy as np
import onnx_ir

from optc.ir import ops
from optc.ir.facts import Facts
from optc.ir.rewriter import RULE_KEY, Rewriter
from optc.passes.emit import layouts, masks
from optc.passes.emit.projections import merge, merged, projection

_Results = tuple[onnx_ir.Value, ...]


def standard_problem(facts: Facts, call: onnx_ir.Node) -> str | None:
    """Why a call cannot be an ``Attention`` of opset 23."""
    if call.attributes["scale"].as_float() <= 0:
        return "the kernel wants a positive scale"
    if "softcap" in call.attributes:
        return "with capped scores the kernel runs at 0.3 to 0.7 of the speed of the parts from 64 queries on"
    if facts.dtype(call.inputs[0]) != onnx_ir.DataType.FLOAT:
        return "the kernel of float16 runs at 0.69 to 1.07 of the speed of the parts"
    return None


def standard(rw: Rewriter, call: onnx_ir.Node) -> _Results:
    """``Attention`` of opset 23: flat operands or heads, fewer heads of keys than of queries, a past.

    Its kernel broadcasts the mask over batch and heads, not over queries and keys, and makes a row zero that is hidden
    altogether, as a guard against NaN does.
    """
    query, key, value, mask, *past = (*call.inputs, *[None] * 6)[:6]
    count, shared = call.attributes["num_heads"].as_int(), call.attributes["kv_num_heads"].as_int()
    counts = (count, shared, shared)
    if mask is not None:
        mask = masks.spread(rw, masks.standard(rw, call, mask), query, key, past[0])
    before = [layouts.before_split(rw.facts, operand) for operand in (query, key, value)]
    left = sum(operand is None for operand in before)
    attributes = {"scale": call.attributes["scale"].as_float()}
    parted = rw.facts.rank(call.outputs[0]) == 4
    # Each change from flat to heads or back takes a Reshape and a Transpose.
    if left + parted < (len(before) - left) + (not parted):
        operands = [layouts.flat(rw, operand) for operand in (query, key, value)]
        attributes |= {"q_num_heads": count, "kv_num_heads": shared}  # type: ignore[dict-item]
    else:
        operands = [
            layouts.heads(rw, operand, heads) for operand, heads in zip((query, key, value), counts, strict=True)
        ]
    outputs = 3 if past[0] is not None else len(call.outputs)
    made = rw.op("Attention", *operands, mask, *past, outputs=outputs, **attributes)
    results = (made,) if outputs == 1 else made
    return (layouts.shaped(rw, results[0], call.outputs[0]), *results[1:])


def projected_problem(facts: Facts, call: onnx_ir.Node) -> str | None:
    """Why a call cannot be ONNX Runtime's ``Attention``, which holds the projections."""
    if (reason := multi_head_problem(facts, call)) is not None:
        return reason
    found = merged(facts, call)
    if isinstance(found, str):
        return found
    count, widths = call.attributes["num_heads"].as_int(), found[1]
    return "the heads of queries and keys must be as wide" if widths[0] != widths[1] or widths[2] % count else None


def projected(rw: Rewriter, call: onnx_ir.Node) -> _Results:
    """``com.microsoft::Attention``: the input, the merged matrix and bias of the projections, and a mask to add."""
    found = merged(rw.facts, call)
    assert not isinstance(found, str)  # `projected_problem` asked
    projections, widths = found
    weight, bias = merge(rw, projections, widths)
    source = projections[0].source
    mask, shown = _scores_mask(rw, call, source, source)
    taken = [node for one in projections for node in one.nodes]
    with rw.at(call, call.metadata_props.get(RULE_KEY, "emit"), taken):
        result = rw.op(
            "Attention",
            source,
            weight,
            bias,
            None,
            None,
            mask,
            domain="com.microsoft",
            num_heads=call.attributes["num_heads"].as_int(),
            scale=call.attributes["scale"].as_float(),
            qkv_hidden_sizes=list(widths) if len(set(widths)) > 1 else None,
        )
    return (layouts.shaped(rw, _guarded(rw, result, shown), call.outputs[0]),)


def multi_head_problem(facts: Facts, call: onnx_ir.Node) -> str | None:
    """Why a call cannot be a ``MultiHeadAttention``."""
    if any(value is not None for value in call.inputs[4:]) or len(call.outputs) > 1:
        return "the kernel is not used with a past"
    if "softcap" in call.attributes:
        return "the kernel caps no scores"
    if facts.rank(call.outputs[0]) == 4:
        return "the kernel joins the heads"
    if call.attributes["num_heads"].as_int() != call.attributes["kv_num_heads"].as_int():
        return "the kernel wants as many heads of keys as of queries"
    return "the kernel takes a scale of 0 for its default" if call.attributes["scale"].as_float() == 0 else None


def multi_head(rw: Rewriter, call: onnx_ir.Node) -> _Results:
    """``com.microsoft::MultiHeadAttention``: flat queries, a mask to add, and the heads joined to 3 dims."""
    query, key, value = call.inputs[:3]
    query = layouts.flat(rw, query)  # type: ignore[arg-type]
    (query, key, value), bias = _without_biases(rw, (query, key, value))  # type: ignore[arg-type]
    mask, shown = _scores_mask(rw, call, query, key)
    result = rw.op(
        "MultiHeadAttention",
        query,
        key,
        value,
        bias,
        None,
        mask,
        domain="com.microsoft",
        num_heads=call.attributes["num_heads"].as_int(),
        scale=call.attributes["scale"].as_float(),
    )
    return (layouts.shaped(rw, _guarded(rw, result, shown), call.outputs[0]),)


def _scores_mask(
    rw: Rewriter, call: onnx_ir.Node, query: onnx_ir.Value, key: onnx_ir.Value
) -> tuple[onnx_ir.Value | None, onnx_ir.Value | None]:
    """The mask that the older kernels add to the scores, and which rows are not hidden, if the call guards those.

    ``query`` and ``key`` are values as long as the call's that stay in the graph.
    """
    mask, shown = ops.operand(call, 3), None
    if mask is None:
        return None, None
    mask = masks.additive(rw, call, mask)
    if "guarded" in call.attributes:
        mask, shown = masks.without_infinities(rw, mask)
    return masks.spread(rw, mask, query, key, dims=4), shown


def _guarded(rw: Rewriter, result: onnx_ir.Value, shown: onnx_ir.Value | None) -> onnx_ir.Value:
    if shown is None:
        return result
    return rw.op("Where", shown, result, rw.constant(np.array(0, rw.facts.dtype(result).numpy()), "zero"))  # type: ignore[union-attr]


def _without_biases(
    rw: Rewriter, flats: tuple[onnx_ir.Value, ...]
) -> tuple[tuple[onnx_ir.Value, ...], onnx_ir.Value | None]:
    """Flat queries, keys and values before their biases are added, and the biases as the one that the kernel adds."""
    if any(rw.facts.rank(value) != 3 for value in flats):
        return flats, None
    found = [projection(rw.facts, value) for value in flats]
    if all(one is None or one.bias is None for one in found):
        return flats, None
    plain, biases = [], []
    for value, one in zip(flats, found, strict=True):
        add = ops.made_by(value, "Add")
        if one is None or one.bias is None or add is None:
            plain.append(value)
            biases.append(np.zeros(rw.facts.shape(value)[2], rw.facts.dtype(value).numpy()))  # type: ignore[index, union-attr]
        else:
            plain.append(add.inputs[1] if add.inputs[0] is one.bias else add.inputs[0])
            biases.append(rw.facts.const(one.bias))
    return tuple(plain), rw.constant(np.concatenate(biases), "qkv_bias")
