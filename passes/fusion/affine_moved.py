"""A BatchNormalization folded into a dense layer across what moves the channels in between.

A linear layer puts its channels last, a BatchNormalization wants them second, so there is a Transpose or a Reshape
between the two (PointNet, TDNNs, heads of speech models). Scale and shift per channel do not care where they happen.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from optc.ir.dims import product
from optc.ir.facts import Facts
from optc.ir.ops import is_op, made_by, only_use, perm_of
from optc.ir.rewriter import Rewriter
from optc.passes.base import Numerics
from optc.passes.fusion.affine import Layer, batchnorm_scale, folded, is_inference, layer_of, per_channel
from optc.passes.rule import node_rule

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@node_rule("batchnorm-across-move", "BatchNormalization", numerics=Numerics.ROUNDING)
def batchnorm_across_move(rw: Rewriter, node: onnx_ir.Node):
    """A BatchNormalization behind a dense layer whose channels are moved in between becomes part of its weights."""
    facts, value, axis = rw.facts, node.inputs[0], 1
    moves: list[onnx_ir.Node] = []
    while value is not None and (move := made_by(value, "Transpose", *_VIEWS)) is not None:
        if not only_use(value) or move.graph is not node.graph:
            return "what is moved is also used elsewhere"
        before = _axis_before(facts, move, axis)
        if before is None:
            return "the channels are torn apart on the way"
        moves, value, axis = [*moves, move], move.inputs[0], before
    if not moves or value is None:
        return None
    found = _dense(facts, moves[-1], value)
    if not isinstance(found, tuple):
        return found
    layer, bias, added = found
    if axis != (facts.rank(value) or 0) - 1:
        return "the channels of the layer are not those of the BatchNormalization"
    if not is_inference(rw, node):
        return "it is in training mode"
    affine = batchnorm_scale(facts, node, layer.channels)
    if isinstance(affine, str):
        return affine
    scale, shift = affine[0], affine[1] + affine[0] * added
    with rw.at(node, "batchnorm-across-move", [layer.node, *moves]):
        flat = layer.node.op_type == "Gemm" or facts.rank(value) == 2
        result = folded(rw, layer, scale, shift if flat else None)
        if isinstance(result, str):
            return result
        if not flat:
            dtype = facts.const(layer.node.inputs[1]).dtype
            with np.errstate(over="ignore"):
                vector = shift.astype(dtype)
            if not np.isfinite(vector).all():
                return f"the folded bias would overflow {dtype.name}"
            result = rw.op("Add", result, rw.constant(vector, bias.name if bias is not None else "bias"))
        for move in reversed(moves):
            attributes = {name: attr.value for name, attr in move.attributes.items()}
            result = rw.op(move.op_type, result, *move.inputs[1:], **attributes)
        parameters = [v for v in (*layer.node.inputs[1:], bias, *node.inputs[1:]) if v is not None]
        rw.keep_name(node.outputs[0], rw.replace(node.outputs[0], result))
        rw.erase(node)
        for parameter in parameters:
            if parameter.is_initializer():
                rw.erase_initializer(parameter)
    return True


def _dense(
    facts: Facts, reader: onnx_ir.Node, value: onnx_ir.Value
) -> tuple[Layer, onnx_ir.Value | None, np.ndarray] | str | None:
    """The dense layer that makes a value, and the bias that is added to it by a node of its own."""
    add = made_by(value, "Add")
    if add is None:
        layer = layer_of(facts, reader, value)
        if isinstance(layer, Layer) and layer.node.op_type not in ("Gemm", "MatMul"):
            return "the channels of a convolution are where they are wanted"
        return (layer, None, np.zeros(layer.channels)) if isinstance(layer, Layer) else layer
    if not only_use(value) or add.graph is not reader.graph:
        return "the layer's result is also used elsewhere"
    left, right = add.inputs
    for result, bias in ((left, right), (right, left)):
        layer = layer_of(facts, add, result)
        if isinstance(layer, Layer) and layer.node.op_type in ("Gemm", "MatMul") and bias is not None:
            rank = facts.rank(result)
            added = per_channel(facts, bias, layer, rank)
            if added is None or rank != facts.rank(value):
                return "the bias must be constant, one number per channel"
            return layer, bias, added
    return None


def _axis_before(facts: Facts, move: onnx_ir.Node, axis: int) -> int | None:
    """The axis of a move's input that becomes an axis of its output as it is; None if there is none."""
    if is_op(move, "Transpose"):
        perm = perm_of(move, facts)
        return perm[axis] if perm is not None else None
    before, after = facts.shape(move.inputs[0]), facts.shape(move.outputs[0])
    if before is None or after is None:
        return None
    same = (
        place
        for place, dim in enumerate(before)
        if dim == after[axis] and product(before[:place]) == product(after[:axis])
    )
    return next(same, None)
