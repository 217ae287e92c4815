"""Padding that the next operator can do itself."""

from __future__ import annotations

from typing import Any

import onnx_ir

from optc.ir.matcher import attribute
from optc.ir.ops import made_by
from optc.ir.rewriter import Rewriter
from optc.passes.rule import node_rule


def _zero_padding(pad: onnx_ir.Node, rewriter: Rewriter) -> tuple[int, ...] | str:
    """The amounts of a Pad that fills with zeros, begins then ends of all axes; a reason if it does anything else."""
    facts = rewriter.facts
    if attribute(pad, "mode", facts) not in (None, "constant"):
        return "the padding must be constant"
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        return "the padding must name all axes"
    if rewriter.opset() < 11:
        amounts: Any = attribute(pad, "pads", facts)
        value: Any = attribute(pad, "value", facts) or 0.0
    else:
        amounts = facts.ints(pad.inputs[1])
        filler = pad.inputs[2] if len(pad.inputs) > 2 else None
        value = facts.scalar(filler) if filler is not None else 0.0
    if amounts is None or min(amounts, default=0) < 0:
        return "the amounts must be known and not negative"
    return tuple(amounts) if value == 0 else "the padding must be zeros"


@node_rule("pad-conv", "Conv")
def pad_conv(rw: Rewriter, node: onnx_ir.Node):
    """A Conv pads with zeros itself: Conv(Pad(x)) is one Conv with larger pads."""
    pad = made_by(node.inputs[0], "Pad")
    if pad is None:
        return None
    amounts = _zero_padding(pad, rw)
    if isinstance(amounts, str):
        return amounts
    rank = len(amounts) // 2
    if any(amounts[axis] or amounts[rank + axis] for axis in (0, 1)):
        return "only the axes of space may be padded"
    if attribute(node, "auto_pad", rw.facts) not in ("NOTSET", "VALID"):
        return "the Conv must say its padding itself"
    own = attribute(node, "pads", rw.facts) or (0,) * (2 * rank - 4)
    pads = [a + b for a, b in zip(own, (*amounts[2:rank], *amounts[rank + 2 :]), strict=True)]
    attributes = {name: attr for name, attr in node.attributes.items() if name not in ("pads", "auto_pad")}
    return rw.op("Conv", pad.inputs[0], *node.inputs[1:], **attributes, pads=pads)


RULES = (pad_conv,)
