"""Writing a layer as smaller ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir

from optc.ir.ops import operand
from optc.ir.rewriter import Rewriter
from optc.passes.compress.layers import Layer
from optc.passes.compress.lowrank.cuts import Stage

#: Attributes that say what a convolution sees; all others say what is done to its result.
_GEOMETRY = ("kernel_shape", "strides", "pads", "dilations", "auto_pad", "group")


def write(rewriter: Rewriter, layer: Layer, stages: Sequence[Stage], rule: str) -> list[Layer]:
    """Replace a layer by smaller ones that compute the same up to their error; the last one takes over its bias.

    Args:
        rewriter: Of the layer's model.
        layer: The layer.
        stages: What it becomes.
        rule: What the new nodes are stamped with.

    Returns:
        The smaller layers, first to last.
    """
    node, weight = layer.node, layer.weight
    with rewriter.at(node, rule):
        y, layers = emit(rewriter, layer, layer.x, stages, weight.name or layer.name)
        rewriter.facts.assume(y, like=node.outputs[0])
        rewriter.keep_name(node.outputs[0], rewriter.replace(node.outputs[0], y))
    rewriter.erase(node)
    rewriter.erase_initializer(weight)
    return layers


def write_shared(rewriter: Rewriter, layers: Sequence[Layer], down: np.ndarray, ups: Sequence[np.ndarray]) -> None:
    """Replace products that read one value by one product with fewer outputs, which they read in its place.

    Args:
        rewriter: Of the layers' model.
        layers: Products, in the order of the graph.
        down: (rank, K).
        ups: (N_i, rank) of each layer.
    """
    with rewriter.at(layers[0].node, "low-rank-shared", [layer.node for layer in layers]):
        stage = rewriter.op("MatMul", layers[0].x, rewriter.constant(_turned(down), f"{layers[0].x.name}_down"))
    for layer, up in zip(layers, ups, strict=True):
        node, weight = layer.node, layer.weight
        with rewriter.at(node, "low-rank-shared"):
            y, _ = emit(rewriter, layer, stage, [Stage(up)], weight.name or layer.name)
            rewriter.facts.assume(y, like=node.outputs[0])
            rewriter.keep_name(node.outputs[0], rewriter.replace(node.outputs[0], y))
        rewriter.erase(node)
        rewriter.erase_initializer(weight)


def emit(
    rewriter: Rewriter, layer: Layer, x: onnx_ir.Value, stages: Sequence[Stage], name: str, bare: bool = False
) -> tuple[onnx_ir.Value, list[Layer]]:
    """Insert the stages of a layer behind ``x``; the result, and the new layers.

    Args:
        rewriter: Knows where.
        layer: What they stand for.
        x: What the first one reads.
        stages: First to last.
        name: What constants are called after.
        bare: Whether the layer's bias, and what is done to its result, are left out.
    """
    layers = []
    for number, stage in enumerate(stages):
        last = number == len(stages) - 1 and not bare
        emitted = _convolution if layer.kind == "conv" else _product
        x = emitted(rewriter, layer.node, x, stage, f"{name}_part", last)
        node = x.producer()
        assert node is not None
        columns = len(stage.weight)
        rows, groups = stage.weight.size // columns, stage.attributes.get("group", 1)
        layers.append(Layer(node, layer.kind, False, rows, columns, groups))
    return x, layers


def _product(
    rewriter: Rewriter, node: onnx_ir.Node, x: onnx_ir.Value, stage: Stage, name: str, last: bool
) -> onnx_ir.Value:
    weight = rewriter.constant(_turned(stage.weight), name)
    bias = operand(node, 2)
    if last and bias is not None:
        return rewriter.op("Gemm", x, weight, bias)
    return rewriter.op("MatMul", x, weight)


def _convolution(
    rewriter: Rewriter, node: onnx_ir.Node, x: onnx_ir.Value, stage: Stage, name: str, last: bool
) -> onnx_ir.Value:
    weight = rewriter.constant(stage.weight, name)
    if not last:
        return rewriter.op("Conv", x, weight, **stage.attributes)
    own = {key: attr.value for key, attr in node.attributes.items() if key not in _GEOMETRY}
    return rewriter.op(node.op_type, x, weight, *node.inputs[2:], domain=node.domain, **stage.attributes, **own)


def _turned(weight: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(weight.T)
