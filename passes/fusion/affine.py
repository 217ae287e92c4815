"""Per-channel scales and shifts folded into the weights of the layer before.

``y = scale * layer(x) + shift`` with constants per output channel is the layer with other weights. That holds for a
BatchNormalization in inference, and for the products and sums with constants that exporters leave behind. Weights are
computed in double precision and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import made_by, only_use, operand
from optc.ir.rewriter import Rewriter
from optc.passes.base import Numerics
from optc.passes.fusion.common import FLOATS, node_attribute
from optc.passes.rule import node_rule

#: Weights that other layers read too are copied for the sake of a fold up to this many bytes.
COPIED_BYTES = 1 << 20
#: Elements that are computed in double precision at a time.
_BLOCK = 1 << 20
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Layer:
    """A layer with constant weights.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        axis: The channel axis of its output, counted from the back.
        channels: Output channels.
    """

    node: onnx_ir.Node
    axis: int
    channels: int


def layer_of(facts: Facts, reader: onnx_ir.Node, value: onnx_ir.Value | None) -> Layer | str | None:
    """The layer that makes a value, why it cannot take a fold, or None if there is no such layer."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain or node.op_type not in _LAYERS:
        return None
    if node.graph is not reader.graph:
        return "the layer lies in an outer graph"
    weight, bias = operand(node, 1), operand(node, 2)
    if not facts.is_const(weight) or (bias is not None and not facts.is_const(bias)):
        return "the weights must be constant"
    if facts.dtype(weight) not in FLOATS or facts.dtype(weight) != facts.dtype(value):
        return "the weights must be floats of the type of the result"
    if len(value.uses()) != 1 or value.is_graph_output():
        return "the layer's result is also used elsewhere"
    tensor = facts.tensor(weight)
    if len(weight.uses()) > 1 and tensor.nbytes > COPIED_BYTES:
        return f"other nodes read the weights too, and a copy would cost {tensor.nbytes} bytes"
    dims = tensor.shape.numpy()
    if node.op_type == "Conv":
        return Layer(node, 1 - len(dims), dims[0])
    if node.op_type == "ConvTranspose":
        return Layer(node, 1 - len(dims), dims[1] * node_attribute(node, "group", 1))
    if len(dims) != 2:
        return "the weights must be a matrix"
    if node.op_type == "Gemm":
        if bias is not None and node_attribute(node, "beta", 1.0) == 0:
            return "beta is 0"
        return Layer(node, -1, dims[0 if node_attribute(node, "transB", 0) else 1])
    return Layer(node, -1, dims[1])


def per_channel(facts: Facts, constant: onnx_ir.Value | None, layer: Layer, rank: int | None) -> np.ndarray | None:
    """A constant as one number per channel, in double precision, if it broadcasts that way."""
    tensor = facts.tensor(constant)
    if tensor is None or tensor.size not in (1, layer.channels):
        return None
    dims = tensor.shape.numpy()
    if len(dims) and (rank is None or len(dims) > rank):
        return None
    if tensor.size > 1 and (len(dims) < -layer.axis or dims[layer.axis] != tensor.size):
        return None
    values = facts.const(constant).reshape(-1).astype(np.float64)
    return np.broadcast_to(values, (layer.channels,))


def folded(rw: Rewriter, layer: Layer, scale: np.ndarray | None, shift: np.ndarray | None) -> onnx_ir.Value | str:
    """The layer with its weights scaled and its bias scaled and shifted."""
    node, facts = layer.node, rw.facts
    x, weight, bias = node.inputs[0], node.inputs[1], operand(node, 2)
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    op, vector = node.op_type, None
    if bias is not None or shift is not None:
        beta = node_attribute(node, "beta", 1.0) if op == "Gemm" else 1.0
        old = facts.const(bias).astype(np.float64) if bias is not None else np.zeros(layer.channels)
        if old.size != 1 and old.shape[-1] != layer.channels:
            return "the bias must be one number per channel"
        vector = old * (1.0 if scale is None else scale) + (0.0 if shift is None else shift / beta)
        if op == "MatMul":
            if facts.rank(x) != 2:
                return "a MatMul of more than 2 dims has no bias"
            op = "Gemm"
    dtype = facts.const(weight).dtype
    with np.errstate(over="ignore", invalid="ignore"):
        new = weight if scale is None else _scaled(facts.const(weight), _along_weight(layer, scale, facts))
        vector = None if vector is None else vector.astype(dtype)
    if not all(np.isfinite(array).all() for array in (new, vector) if isinstance(array, np.ndarray)):
        return f"the folded weights would overflow {dtype.name}"
    inputs = [x, new if new is weight else rw.constant(new, weight.name or "weight")]
    if vector is not None:
        inputs.append(rw.constant(vector, bias.name if bias is not None else f"{weight.name}_bias"))
    return rw.op(op, *inputs, **attributes)


def _along_weight(layer: Layer, scale: np.ndarray, facts: Facts) -> np.ndarray:
    """The scale in a shape that broadcasts over the weights of the layer."""
    node = layer.node
    rank = facts.rank(node.inputs[1])
    if node.op_type == "Conv":
        return scale.reshape(-1, *[1] * (rank - 1))
    if node.op_type == "ConvTranspose":
        # Weights are (inputs, outputs / group, ...), inputs ordered by group.
        group, dims = node_attribute(node, "group", 1), facts.tensor(node.inputs[1]).shape.numpy()
        return np.repeat(scale.reshape(group, -1), dims[0] // group, axis=0).reshape(*dims[:2], *[1] * (rank - 2))
    return scale.reshape(-1, 1) if node_attribute(node, "transB", 0) else scale


def _scaled(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``weight * scale`` in double precision, rounded once, a block at a time."""
    out = np.empty(weight.shape, weight.dtype)
    scale = np.broadcast_to(scale, (weight.shape[0], *np.broadcast_shapes(scale.shape, (1,) * weight.ndim)[1:]))
    step = max(1, _BLOCK * weight.shape[0] // max(1, weight.size))
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        out[rows] = (weight[rows].astype(np.float64) * scale[rows]).astype(weight.dtype)
    return out


def _finish(rw: Rewriter, node: onnx_ir.Node, layer: Layer, result: onnx_ir.Value | str) -> str | bool:
    if isinstance(result, str):
        return result
    dropped = [value for value in (*layer.node.inputs[1:], *node.inputs) if value is not None]
    rw.keep_name(node.outputs[0], rw.replace(node.outputs[0], result))
    rw.erase(node)
    for value in dropped:
        if value.is_initializer():
            rw.erase_initializer(value)
    return True


def is_inference(rw: Rewriter, node: onnx_ir.Node) -> bool:
    """Whether a BatchNormalization uses the statistics that it is given, and shows no others."""
    trains = node_attribute(node, "training_mode", 0) or not node_attribute(node, "is_test", int(rw.opset() >= 7))
    return not trains and not any(v.uses() or v.is_graph_output() for v in node.outputs[1:])


def batchnorm_scale(facts: Facts, node: onnx_ir.Node, channels: int) -> tuple[np.ndarray, np.ndarray] | str:
    """Scale and shift of a BatchNormalization in inference, in double precision; why there are none otherwise."""
    if node_attribute(node, "spatial", 1) == 0:
        return "its statistics are not per channel"
    parameters = [facts.const(value) for value in node.inputs[1:5]]
    if any(array is None or array.shape != (channels,) for array in parameters):
        return "its parameters must be constant, one per channel"
    gamma, beta, mean, variance = (array.astype(np.float64) for array in parameters)  # type: ignore[union-attr]
    scale = gamma / np.sqrt(variance + node_attribute(node, "epsilon", 1e-5))
    return (scale, beta - mean * scale) if np.isfinite(scale).all() else "its variance is not positive"


@node_rule("batchnorm-into-layer", "BatchNormalization", numerics=Numerics.ROUNDING)
def batchnorm_into_layer(rw: Rewriter, node: onnx_ir.Node):
    """A BatchNormalization behind a convolution or a dense layer becomes part of its weights."""
    layer = layer_of(rw.facts, node, node.inputs[0])
    if not isinstance(layer, Layer):
        return layer
    if not is_inference(rw, node):
        return "it is in training mode"
    if layer.axis == -1 and rw.facts.rank(node.inputs[0]) != 2:
        return "the channels are not on the last axis"
    found = batchnorm_scale(rw.facts, node, layer.channels)
    if isinstance(found, str):
        return found
    scale, shift = found
    with rw.at(node, "batchnorm-into-layer", [layer.node]):
        return _finish(rw, node, layer, folded(rw, layer, scale, shift))


@node_rule("scale-into-layer", "Mul", "Div", numerics=Numerics.ROUNDING)
def scale_into_layer(rw: Rewriter, node: onnx_ir.Node):
    """A product with constants per channel behind a convolution or a dense layer becomes part of its weights.

    A bias that is added in between is scaled too (the layer scale of ConvNeXt, CaiT and DINOv2).
    """
    behind = _through_bias(rw, node)
    return behind if behind is True else _arithmetic(rw, node, "scale-into-layer") or behind


@node_rule("shift-into-layer", "Add", "Sub", numerics=Numerics.ROUNDING)
def shift_into_layer(rw: Rewriter, node: onnx_ir.Node):
    """A sum with constants per channel behind a convolution or a dense layer becomes its bias."""
    return _arithmetic(rw, node, "shift-into-layer")


#: What an operator with a constant does, as (scale, shift).
_FACTORS: dict[str, Callable[[np.ndarray], tuple[np.ndarray | None, np.ndarray | None]]] = {
    "Mul": lambda c: (c, None),
    "Div": lambda c: (1 / c, None),
    "Add": lambda c: (None, c),
    "Sub": lambda c: (None, -c),
}


def _arithmetic(rw: Rewriter, node: onnx_ir.Node, rule: str) -> str | bool | None:
    reason: str | None = None
    for value, constant in _operands(node):
        layer = layer_of(rw.facts, node, value)
        if layer is None or not rw.facts.is_const(constant):
            continue
        if isinstance(layer, Layer) and layer.node.op_type == "MatMul" and rule == "shift-into-layer":
            continue  # it has no bias; the rule that makes it a Gemm also takes weights that are not constant
        if isinstance(layer, str):
            reason = layer
            continue
        vector = per_channel(rw.facts, constant, layer, rw.facts.rank(value))
        if vector is None:
            reason = "the constant must be one number per channel"
            continue
        if node.op_type == "Div" and not vector.all():
            return "it divides by zero"
        scale, shift = _FACTORS[node.op_type](vector)
        with rw.at(node, rule, [layer.node]):
            return _finish(rw, node, layer, folded(rw, layer, scale, shift))
    return reason


def _through_bias(rw: Rewriter, node: onnx_ir.Node) -> str | bool | None:
    """Scale a MatMul and the constant that is added to it, which are no single layer."""
    reason: str | bool | None = None
    facts = rw.facts
    for value, constant in _operands(node):
        add = made_by(value, "Add")
        if add is None or value is None or not only_use(value) or not facts.is_const(constant):
            continue
        for product, bias in _operands(add):
            layer = layer_of(facts, add, product)
            if not isinstance(layer, Layer) or layer.node.op_type != "MatMul":
                continue
            rank = facts.rank(product)
            factors, added = (per_channel(facts, one, layer, rank) for one in (constant, bias))
            if factors is None or added is None or rank != facts.rank(value):
                reason = "the bias and the factor must be constant, one number per channel"
            elif node.op_type == "Div" and not factors.all():
                reason = "it divides by zero"
            else:
                scale = 1 / factors if node.op_type == "Div" else factors
                with rw.at(node, "scale-into-layer", [layer.node, add]):
                    return _scale_both(rw, node, layer, scale, bias, added)
    return reason


def _scale_both(
    rw: Rewriter, node: onnx_ir.Node, layer: Layer, scale: np.ndarray, bias: onnx_ir.Value, added: np.ndarray
) -> str | bool:
    dtype = rw.facts.const(bias).dtype
    with np.errstate(over="ignore"):
        vector = (added * scale).astype(dtype)
    if not np.isfinite(vector).all():
        return f"the folded bias would overflow {dtype.name}"
    scaled = folded(rw, layer, scale, None)
    if isinstance(scaled, str):
        return scaled
    return _finish(rw, node, layer, rw.op("Add", scaled, rw.constant(vector, bias.name or "bias")))


def _operands(node: onnx_ir.Node) -> Iterator[tuple[onnx_ir.Value | None, onnx_ir.Value | None]]:
    """The (value, constant) pairs that a node's operands may be."""
    left, right = node.inputs
    yield left, right
    if node.op_type in ("Add", "Mul"):
        yield right, left


RULES = (batchnorm_into_layer, scale_into_layer, shift_into_layer)
