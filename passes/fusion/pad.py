"""Padding that the next operator can do itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_ir

from optc.ir.dims import provably_ge
from optc.ir.facts import Facts
from optc.ir.matcher import attribute
from optc.ir.ops import int_attr, made_by, operand
from optc.ir.rewriter import Rewriter
from optc.passes.rule import node_rule

#: The opset since when a Pad takes amounts and value as inputs, and since when it may name its axes.
_INPUTS_SINCE = 11
#: Operators whose results are never negative.
_NOT_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Abs", "Softmax", "Exp", "Softplus")


class _Padding(NamedTuple):
    """What a Pad does: amounts in front and behind by axis, and what it fills them with."""

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    value: float

    @property
    def spatial(self) -> list[int]:
        """The amounts of the axes of space, begins then ends."""
        return [*self.begins[2:], *self.ends[2:]]


def _padding(rw: Rewriter, pad: onnx_ir.Node, node: onnx_ir.Node) -> _Padding | str:
    """What the Pad in front of a node does; the reason where the node cannot do it."""
    facts, rank = rw.facts, rw.facts.rank(pad.inputs[0])
    if attribute(pad, "mode", facts) not in (None, "constant"):
        return "the padding must be constant"
    if rw.opset() < _INPUTS_SINCE:
        amounts: Any = attribute(pad, "pads", facts)
        value: Any = attribute(pad, "value", facts) or 0.0
    else:
        amounts, filler = facts.ints(operand(pad, 1)), operand(pad, 2)
        value = facts.scalar(filler) if filler is not None else 0.0
    axes = facts.ints(operand(pad, 3)) if operand(pad, 3) is not None else range(rank or 0)
    if amounts is None or axes is None or rank is None or min(amounts, default=0) < 0:
        return "the amounts must be known and not negative"
    if value is None or len(amounts) != 2 * len(axes):
        return "what it fills with must be known"
    begins, ends = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        begins[axis], ends[axis] = amounts[place], amounts[place + len(axes)]
    if rank < 3 or any(begins[:2]) or any(ends[:2]):
        return "only the axes of space may be padded"
    if attribute(node, "auto_pad", facts) not in ("NOTSET", "VALID"):
        return f"the {node.op_type} must say its padding itself"
    return _Padding(tuple(begins), tuple(ends), float(value))


def _with_pads(rw: Rewriter, node: onnx_ir.Node, x: onnx_ir.Value, padding: _Padding, **changed: int) -> onnx_ir.Value:
    """The node on the input before the Pad, with what the Pad does added to what it does itself."""
    more = padding.spatial
    own = attribute(node, "pads", rw.facts) or (0,) * len(more)
    pads = [a + b for a, b in zip(own, more, strict=True)]
    attributes = {name: attr.value for name, attr in node.attributes.items() if name not in ("pads", "auto_pad")}
    return rw.op(node.op_type, x, *node.inputs[1:], **{**attributes, **changed}, pads=pads)


@node_rule("pad-conv", "Conv")
def pad_conv(rw: Rewriter, node: onnx_ir.Node):
    """A Conv pads with zeros itself: Conv(Pad(x)) is one Conv with larger pads."""
    pad = made_by(node.inputs[0], "Pad")
    if pad is None:
        return None
    padding = _padding(rw, pad, node)
    if isinstance(padding, str):
        return padding
    if padding.value != 0:
        return "the padding must be zeros"
    with rw.at(node, "pad-conv", [pad]):
        return _with_pads(rw, node, pad.inputs[0], padding)


@node_rule("pad-pool", "MaxPool", "AveragePool")
def pad_pool(rw: Rewriter, node: onnx_ir.Node):
    """A MaxPool pads with what is never the largest, an AveragePool with zeros that count."""
    pad = made_by(node.inputs[0], "Pad")
    if pad is None:
        return None
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return "the places of the largest elements are counted in the padded input"
    padding = _padding(rw, pad, node)
    if isinstance(padding, str):
        return padding
    facts, x = rw.facts, pad.inputs[0]
    kernel, own = attribute(node, "kernel_shape", facts), attribute(node, "pads", facts)
    if int_attr(node, "ceil_mode", 0) or any(step != 1 for step in attribute(node, "dilations", facts) or ()):
        return "windows that are rounded up or dilated may lie in the padding alone"
    total = np.array(padding.spatial) + (own or 0)
    if not all(amount < size for amount, size in zip(total, (*kernel, *kernel), strict=True)):
        return "a window would lie in the padding alone"
    if node.op_type == "MaxPool":
        if padding.value != -np.inf and not (padding.value <= 0 and _not_negative(facts, x)):
            return "the padding might be the largest of a window"
        with rw.at(node, "pad-pool", [pad]):
            return _with_pads(rw, node, x, padding)
    if padding.value != 0:
        return "the padding must be zeros"
    if any(own or ()) and not int_attr(node, "count_include_pad", 0):
        return "the pool's own padding does not count"
    padded = facts.shape(pad.outputs[0])
    if padded is None or not all(provably_ge(dim, size) for dim, size in zip(padded[2:], kernel, strict=True)):
        return "a window might be larger than what it averages"
    with rw.at(node, "pad-pool", [pad]):
        return _with_pads(rw, node, x, padding, count_include_pad=1)


def _not_negative(facts: Facts, x: onnx_ir.Value | None) -> bool:
    """Whether no element is below 0 (NaN is, here as there, what the kernel makes of it)."""
    if made_by(x, *_NOT_NEGATIVE) is not None:
        return True
    clip = made_by(x, "Clip")
    if clip is None:
        return False
    low = attribute(clip, "min", facts) if operand(clip, 1) is None else facts.scalar(operand(clip, 1))
    return low is not None and low >= 0


RULES = (pad_conv, pad_pool)
