"""Writing quantized weights into a graph, in place of the layer that had them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter
from optc.passes.compress.layers import Layer
from optc.passes.compress.weights.codes import Codes
from optc.passes.compress.weights.forms import Form


def why_not(layer: Layer, form: Form, facts: Facts) -> str | None:
    """Why a layer cannot be written in a form, whatever its codes are; None if it can."""
    if (form.lookup if layer.kind == "lookup" else form.product) is None:
        return f"{form.name} does not do what {layer.node.op_type} does"
    return _not_pixelwise(layer, facts) if layer.kind == "conv" else None


def write(
    rewriter: Rewriter,
    layer: Layer,
    codes: Codes,
    form: Form,
    rule: str,
    keep: Callable[[onnx_ir.TensorProtocol], onnx_ir.TensorProtocol] = lambda tensor: tensor,
) -> None:
    """Replace a layer by the same with quantized weights.

    Args:
        rewriter: Of the layer's model.
        layer: One that :func:`why_not` has nothing against.
        codes: Its weight, (N, K).
        form: How to write it; it can store ``codes``.
        rule: What the new nodes are stamped with.
        keep: Where large constants go: gets each, and returns what stands for it.
    """
    node, weight = layer.node, layer.weight
    before = set(rewriter.model.graph.initializers)
    with rewriter.at(node, rule):
        y = _written(rewriter, layer, codes, form, weight.name or layer.name)
        rewriter.facts.assume(y, like=node.outputs[0])
        rewriter.keep_name(node.outputs[0], rewriter.replace(node.outputs[0], y))
    rewriter.erase(node)
    rewriter.erase_initializer(weight)
    for name, value in rewriter.model.graph.initializers.items():
        if name not in before and value.const_value is not None:
            value.const_value = keep(value.const_value)


def _written(rewriter: Rewriter, layer: Layer, codes: Codes, form: Form, name: str) -> onnx_ir.Value:
    if layer.kind == "lookup":
        assert form.lookup is not None
        return form.lookup(rewriter, layer.x, codes, name)
    assert form.product is not None
    bias = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None
    if layer.kind == "matmul":
        y = form.product(rewriter, layer.x, codes, name)
        return y if bias is None else rewriter.op("Add", y, bias)
    rank = rewriter.facts.rank(layer.x)
    assert rank is not None, "a convolution's weight tells its rank"
    pixels = rewriter.op("Transpose", layer.x, perm=[0, *range(2, rank), 1])
    y = form.product(rewriter, pixels, codes, name)
    if bias is not None:
        y = rewriter.op("Add", y, bias)
    return rewriter.op("Transpose", y, perm=[0, rank - 1, *range(1, rank - 1)])


def _not_pixelwise(layer: Layer, facts: Facts) -> str | None:
    """Why a convolution is not a product of each pixel with a matrix; None if it is.

    No runtime fuses block-wise weights into a convolution, and a matrix of patches would cost more than it saves.
    """
    node, shape = layer.node, facts.shape(layer.weight) or ()
    if node.domain != "" or layer.groups != 1:
        return "only plain convolutions without groups are products of pixels"
    if any(size != 1 for size in shape[2:]):
        return "no runtime has convolutions with block-wise weights, but for 1x1 kernels, which are products"
    for name, neutral in (("strides", 1), ("pads", 0)):
        attribute = node.attributes.get(name)
        if attribute is not None and any(value != neutral for value in attribute.as_ints()):
            return f"a 1x1 convolution with {name} is no product of all pixels"
    padding = node.attributes.get("auto_pad")
    if padding is not None and padding.as_string() not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        return "its padding is not known"
    return None if facts.rank(layer.x) == len(shape) else "the rank of its input is not known"


def bytes_of(codes: Codes) -> int:
    """Bytes that the codes take in a file."""
    bits = codes.codes.size * codes.bits
    zeros = 0 if codes.zeros is None else codes.zeros.size * (codes.bits if codes.zeros.dtype == np.uint8 else 32)
    return (bits + zeros) // 8 + codes.scales.nbytes
