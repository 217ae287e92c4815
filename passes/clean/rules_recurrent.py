"""Recurrent layers: states that are what the operator takes by itself."""

from __future__ import annotations

import onnx_ir

from optc.ir.ops import operand
from optc.ir.rewriter import Rewriter
from optc.passes.clean.contents import uniform
from optc.passes.rule import node_rule

#: Operator -> the inputs that are its initial states.
_STATES = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}


@node_rule("zero-state", *_STATES)
def zero_state(rw: Rewriter, node: onnx_ir.Node):
    """An initial state of zeros is left out, and what computes its shape with it."""
    found = [index for index in _STATES[node.op_type] if uniform(rw.facts, operand(node, index)) == 0]
    if not found:
        return None
    inputs = [None if index in found else value for index, value in enumerate(node.inputs)]
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    made = rw.op(node.op_type, *inputs, outputs=len(node.outputs), **attributes)
    for old, new in zip(node.outputs, [made] if isinstance(made, onnx_ir.Value) else made, strict=True):
        if old.name:
            rw.replace(old, new)
        else:
            new.name = ""
    rw.erase(node)
    return True


RULES = (zero_state,)
