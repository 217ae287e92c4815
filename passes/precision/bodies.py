"""The bodies of fused ops in a narrower type: what their kernels compute, as a graph."""

from __future__ import annotations

import onnx_ir

from optc.ir.functions import FUSED_DOMAIN
from optc.ir.rewriter import Rewriter
from optc.passes.precision.kinds import ATTENTIONS, is_product
from optc.passes.precision.narrow import Narrow
from optc.passes.precision.slots import Slots

_FLOAT = onnx_ir.DataType.FLOAT


def narrowed_body(rewriter: Rewriter, call: onnx_ir.Node, slots: Slots, narrow: Narrow) -> str:
    """Add the function that a call becomes in the narrow type.

    Its inputs are widened, the body computes as it did, and its outputs are narrowed: kernels of fused ops read and
    write the narrow type and keep what lies between in single precision. Products alone are computed in the narrow
    type, except those inside of attention, whose scores are never written.

    Args:
        rewriter: Of the model.
        call: The call of a fused op.
        slots: Its places that change.
        narrow: The type.

    Returns:
        The function's overload.
    """
    old = rewriter.model.functions[call.op_identifier()]
    overload = f"{old.overload}_{narrow.name}"
    mapping: dict[onnx_ir.Value, onnx_ir.Value] = {}
    narrowed: dict[onnx_ir.Value, onnx_ir.Value] = {}  # what a value of the new body is in the narrow type
    formals, nodes = [], []
    for index, formal in enumerate(old.inputs):
        outer = onnx_ir.Value(name=formal.name)
        formals.append(outer)
        if index in slots.inputs:
            nodes.append(_cast(outer, _FLOAT, f"{formal.name}_fp32"))
            mapping[formal] = nodes[-1].outputs[0]
            narrowed[mapping[formal]] = outer
        else:
            mapping[formal] = outer
    for node in old:
        inputs = [None if value is None else mapping[value] for value in node.inputs]
        product = is_product(node) and call.op_type not in ATTENTIONS
        for place, value in enumerate(inputs) if product else ():
            if value is not None and value not in narrowed:
                nodes.append(_cast(value, narrow.dtype, f"{value.name}_{narrow.name}"))
                narrowed[value] = nodes[-1].outputs[0]
            inputs[place] = None if value is None else narrowed[value]
        copy = onnx_ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            overload=node.overload,
            num_outputs=len(node.outputs),
        )
        nodes.append(copy)
        for before, after in zip(node.outputs, copy.outputs, strict=True):
            after.name = before.name
            mapping[before] = after
            if product:
                nodes.append(_cast(after, _FLOAT, f"{before.name}_fp32"))
                mapping[before] = nodes[-1].outputs[0]
                narrowed[mapping[before]] = after
    results = []
    for index, value in enumerate(old.outputs):
        result = mapping[value]
        if index in slots.outputs and result in narrowed:
            result = narrowed[result]
        elif index in slots.outputs:
            nodes.append(_cast(result, narrow.dtype, f"{value.name}_{narrow.name}"))
            result = nodes[-1].outputs[0]
        results.append(result)
    imports = dict(old.opset_imports)
    imports.setdefault("", rewriter.opset())
    graph = onnx_ir.Graph(formals, results, nodes=nodes, opset_imports=imports)
    function = onnx_ir.Function(
        domain=FUSED_DOMAIN, name=old.name, overload=overload, graph=graph, attributes=list(old.attributes.values())
    )
    rewriter.model.functions.setdefault(function.identifier(), function)
    return overload


def _cast(value: onnx_ir.Value, dtype: onnx_ir.DataType, name: str) -> onnx_ir.Node:
    node = onnx_ir.node("Cast", [value], {"to": int(dtype)})
    node.outputs[0].name = name
    return node
