"""AWQ's scales in a graph: channels of an input are made smaller by what produces it, columns of weights larger."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir

from optc.ir.rewriter import Rewriter
from optc.passes.compress.layers import Layer
from optc.passes.compress.smooth import fold_scale, why_not_folded
from optc.passes.compress.weights.awq import awq_scale
from optc.passes.compress.weights.codes import Grid
from optc.passes.compress.weights.inputs import Inputs, KnownInputs


def scale_inputs(
    rewriter: Rewriter,
    layers: Sequence[Layer],
    known: KnownInputs,
    grid: Grid,
    keep: Callable[[onnx_ir.TensorProtocol], onnx_ir.TensorProtocol],
) -> dict[str, str]:
    """Scale the inputs of products where their producers can do it at no cost; ``known`` is told of it.

    Args:
        rewriter: Of the model.
        layers: The layers that will be quantized.
        known: What is known of their inputs.
        grid: What the weights will be rounded to.
        keep: Where the scaled weights go.

    Returns:
        Inputs that were left alone, by name, with the reason.
    """
    groups: dict[onnx_ir.Value, list[Layer]] = {}
    for layer in layers:
        if layer.kind == "matmul":
            groups.setdefault(layer.x, []).append(layer)
    left = {}
    for x, readers in groups.items():
        inputs = known.of(readers[0])
        reason = why_not_folded(x, readers, rewriter.facts)
        if reason is None and not isinstance(inputs, Inputs):
            reason = inputs or "nothing is known of it"
        if reason is not None:
            left[x.name or ""] = reason
        elif isinstance(inputs, Inputs):
            _scale(rewriter, x, readers, inputs, known, grid)
            for layer in readers:
                if layer.weight.const_value is not None:
                    layer.weight.const_value = keep(layer.weight.const_value)
    return left


def _scale(
    rewriter: Rewriter, x: onnx_ir.Value, readers: Sequence[Layer], inputs: Inputs, known: KnownInputs, grid: Grid
) -> None:
    weights = [layer.by_output(rewriter.facts) for layer in readers]
    scale = awq_scale(weights, inputs.single, np.sqrt(inputs.energy), grid)
    if (scale != scale[0]).any():
        fold_scale(rewriter, x, scale, readers)
        known.scaled(x.name or "", scale)
