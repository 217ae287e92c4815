"""Per-channel scales and shifts folded into the weights of the layer behind.

``layer(scale * x + shift)`` with constants per input channel is the layer with other weights: a normalization of the
input image, a BatchNormalization in front of a convolution. A convolution pads with zeros *behind* the shift, so what
is shifted must not be padded. Weights are computed in double precision and rounded once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.matcher import attribute
from optc.ir.ops import made_by, only_use, operand
from optc.ir.rewriter import Rewriter
from optc.passes.base import Numerics
from optc.passes.fusion.affine import COPIED_BYTES, batchnorm_scale, is_inference
from optc.passes.fusion.common import FLOATS, node_attribute
from optc.passes.rule import node_rule

#: What is added in front may be this large: as much as centering the bytes of an image takes. A larger number may be
#: there to be taken away again, ``(x + c) - c``; the sums behind the weights would cancel with all their rounding.
_LARGEST_SHIFT = 256.0


class _Affine(NamedTuple):
    """``scale * source + shift``, both one number per channel in double precision.

    Attributes:
        source: What is scaled and shifted.
        scale: The factors.
        shift: The summands; None if there are none, so that zeros stay zeros.
    """

    source: onnx_ir.Value
    scale: np.ndarray
    shift: np.ndarray | None


def _affine(rw: Rewriter, value: onnx_ir.Value, axis: int, channels: int) -> _Affine | str | None:
    """The scale or shift that makes the layer's input, why it is none per channel, or None if there is none at all."""
    node, facts = value.producer(), rw.facts
    if node is None or node.domain:
        return None
    if node.op_type == "BatchNormalization":
        if not is_inference(rw, node) or axis != 1:
            return "the BatchNormalization is in training mode"
        found = batchnorm_scale(facts, node, channels)
        return found if isinstance(found, str) else _Affine(node.inputs[0], *found)
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    pairs = [tuple(node.inputs), tuple(reversed(node.inputs))]
    for source, constant in pairs[: 2 if node.op_type in ("Add", "Mul") else 1]:
        if facts.is_const(constant) and not facts.is_const(source):
            vector = _along(facts, constant, source, axis, channels)
            if vector is None or source is None:
                return "the constant must be one number per input channel"
            if node.op_type == "Div" and not vector.all():
                return "it divides by zero"
            one = np.ones(channels)
            scale = {"Mul": vector, "Div": 1 / np.where(vector == 0, 1, vector)}.get(node.op_type, one)
            return _Affine(source, scale, {"Add": vector, "Sub": -vector}.get(node.op_type))
    return None


def _along(
    facts: Facts, constant: onnx_ir.Value, source: onnx_ir.Value | None, axis: int, channels: int
) -> np.ndarray | None:
    """A constant as one number per entry of an axis of ``source``, if it broadcasts that way and makes it no larger."""
    tensor, shape = facts.tensor(constant), facts.shape(source)
    if tensor is None or shape is None or tensor.size not in (1, channels):
        return None
    dims, place = tensor.shape.numpy(), axis % len(shape)
    if len(dims) > len(shape) or shape[place] != channels:
        return None
    place -= len(shape) - len(dims)
    if tensor.size > 1 and (place < 0 or dims[place] != channels):
        return None
    return np.broadcast_to(facts.const(constant).reshape(-1).astype(np.float64), (channels,))  # type: ignore[union-attr]


def _pads(rw: Rewriter, node: onnx_ir.Node) -> bool:
    """Whether a Conv may pad."""
    if attribute(node, "auto_pad", rw.facts) not in ("NOTSET", "VALID", None):
        return True
    return any(attribute(node, "pads", rw.facts) or ())


def _per_weight(node: onnx_ir.Node, vector: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A number per input channel in a shape that broadcasts over the weights."""
    if node.op_type == "Conv":
        group = node_attribute(node, "group", 1)
        rows = np.repeat(vector.reshape(group, -1), weight.shape[0] // group, axis=0)
        return rows.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    return vector if node.op_type == "Gemm" and node_attribute(node, "transB", 0) else vector.reshape(-1, 1)


@node_rule("affine-into-next-conv", "Conv", numerics=Numerics.ROUNDING)
def affine_into_next_conv(rw: Rewriter, node: onnx_ir.Node):
    """A scale or shift per channel in front of a convolution becomes part of its weights."""
    return _fold(rw, node, "affine-into-next-conv")


@node_rule("affine-into-next-dense", "Gemm", "MatMul", numerics=Numerics.ROUNDING)
def affine_into_next_dense(rw: Rewriter, node: onnx_ir.Node):
    """A scale or shift per column in front of a dense layer becomes part of its weights."""
    return _fold(rw, node, "affine-into-next-dense")


def _fold(rw: Rewriter, node: onnx_ir.Node, rule: str) -> onnx_ir.Value | str | None:
    """The layer with other weights, on what is scaled and shifted in front of it; None where nothing is."""
    facts, (x, w) = rw.facts, node.inputs[:2]
    weight, bias = facts.tensor(w), operand(node, 2)
    if x is None or weight is None or facts.dtype(w) not in FLOATS or len(weight.shape) < 2:
        return None
    before = made_by(x, "BatchNormalization", "Add", "Sub", "Mul", "Div")
    if before is None or before.graph is not node.graph:
        return None
    dims = weight.shape.numpy()
    if node.op_type == "Conv":
        axis, channels = 1, dims[1] * node_attribute(node, "group", 1)
    elif len(dims) != 2 or node_attribute(node, "transA", 0):
        return "the weights must be a matrix, and the input not transposed"
    else:
        axis, channels = -1, dims[1 if node_attribute(node, "transB", 0) else 0]
    found = _affine(rw, x, axis, channels)
    if not isinstance(found, _Affine):
        return found
    normalized = made_by(found.source, "Reshape")
    if made_by(found.source if normalized is None else normalized.inputs[0], "InstanceNormalization") is not None:
        return "it belongs to a normalization"
    if not only_use(x):
        return "what is scaled is also used elsewhere"
    if len(w.uses()) > 1 and weight.nbytes > COPIED_BYTES:
        return f"other nodes read the weights too, and a copy would cost {weight.nbytes} bytes"
    shift = found.shift
    if shift is not None:
        if np.abs(shift).max(initial=0) > _LARGEST_SHIFT:
            return f"a shift of more than {_LARGEST_SHIFT:g} would take digits from the result"
        if node.op_type == "MatMul":
            return "a MatMul has no bias"
        if node.op_type == "Conv" and _pads(rw, node):
            return "the convolution pads with zeros, which are not shifted"
        if bias is not None and (not facts.is_const(bias) or facts.const_size(bias) == 1):
            return "the bias must be constant, one number per channel"
        if any(node_attribute(node, name, 1.0) != 1.0 for name in ("alpha", "beta")):
            return "alpha and beta must be 1"
    array = facts.const(w)
    exact = array.astype(np.float64)  # type: ignore[union-attr]
    with np.errstate(over="ignore", invalid="ignore"):
        new = (exact * _per_weight(node, found.scale, exact)).astype(array.dtype)  # type: ignore[union-attr]
        added = None
        if shift is not None:
            added = _summed(node, exact * _per_weight(node, shift, exact))
            added = (added + (0 if bias is None else facts.const(bias).astype(np.float64))).astype(new.dtype)  # type: ignore[union-attr]
    if not np.isfinite(new).all() or (added is not None and not np.isfinite(added).all()):
        return f"the folded weights would overflow {new.dtype.name}"
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    with rw.at(node, rule, [before]):
        addend = bias if added is None else rw.constant(added, (bias and bias.name) or f"{w.name}_bias")
        return rw.op(node.op_type, found.source, rw.constant(new, w.name or "weight"), addend, **attributes)


def _summed(node: onnx_ir.Node, products: np.ndarray) -> np.ndarray:
    """What the shifts add to each output channel."""
    if node.op_type == "Conv":
        return products.reshape(len(products), -1).sum(axis=1)
    return products.sum(axis=1 if node_attribute(node, "transB", 0) else 0)
