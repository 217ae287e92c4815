"""A graph in single precision that rounds as a plan would: what a runtime without kernels for the type is judged by."""

from __future__ import annotations

import numpy as np
import onnx_ir

from optc.ir.ops import cast
from optc.ir.rewriter import Rewriter
from optc.passes.precision.plan import Plan

_RULE = "rounded"


def emulate(rewriter: Rewriter, plan: Plan) -> None:
    """Round everything that a plan's nodes read and hand on to its type and back.

    What the graph itself returns is left as it is: no node reads it.
    """
    rounded: dict[onnx_ir.Value, onnx_ir.Value] = {}
    for node in list(rewriter.model.graph):
        for place, value in enumerate(node.inputs):
            if value is None or not (plan.reads(node, place) or plan.makes(value)):
                continue
            if value not in rounded:
                with rewriter.at(node, _RULE):
                    rounded[value] = _rounded(rewriter, value, plan)
            rewriter.set_input(node, place, rounded[value])


def _rounded(rewriter: Rewriter, value: onnx_ir.Value, plan: Plan) -> onnx_ir.Value:
    array = rewriter.facts.const(value)
    if array is not None:
        return rewriter.constant(plan.narrow.rounded(array).astype(np.float32), f"{value.name}_{plan.narrow.name}")
    return cast(rewriter, cast(rewriter, value, plan.narrow.dtype), onnx_ir.DataType.FLOAT)
