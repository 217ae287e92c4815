"""Writing quantized weights into a graph, in place of the layer that had them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter
from optc.passes.compress.layers import Layer
from optc.passes.compress.weights.codes import Codes, Grid
from optc.passes.compress.weights.forms import Form


def form_for(layer: Layer, grid: Grid, forms: Sequence[Form], facts: Facts) -> Form | str:
    """The first form in which a layer with weights on a grid can be written, or why there is none.

    Args:
        layer: The layer.
        grid: What its weights are to be rounded to.
        forms: Those that the target has, the preferred first.
        facts: What is known of its graph.
    """
    doing = [form for form in forms if (form.lookup if layer.kind == "lookup" else form.product) is not None]
    if not doing:
        return f"the target's runtime has no {layer.node.op_type} with weights of {grid.bits} bits in blocks"
    problem = _not_pixelwise(layer, facts) if layer.kind == "conv" else None
    if problem is not None:
        return problem
    problems = [form.why_not(grid, layer.rows) for form in doing]
    return next((form for form, problem in zip(doing, problems, strict=True) if problem is None), problems[0] or "")


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
        layer: One that :func:`form_for` has a form for.
        codes: Its weight, (N, K).
        form: How to write it; it can store ``codes``.
        rule: What the new nodes are stamped with.
        keep: Where large constants go: gets each, and returns what stands for it.
    """
    node, weight = layer.node, layer.weight
    before = set(rewriter.model.graph.initializers)
    with rewriter.at(node, rule):
        name = weight.name or layer.name
        if layer.kind == "lookup":
            assert form.lookup is not None
            y = form.lookup(rewriter, layer.x, codes, name)
        else:
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            y = product(rewriter, layer.x, codes, form, name, bias, pixels=layer.kind == "conv")
        rewriter.facts.assume(y, like=node.outputs[0])
        rewriter.keep_name(node.outputs[0], rewriter.replace(node.outputs[0], y))
    rewriter.erase(node)
    rewriter.erase_initializer(weight)
    for name, value in rewriter.model.graph.initializers.items():
        if name not in before and value.const_value is not None:
            value.const_value = keep(value.const_value)


def product(
    rewriter: Rewriter,
    x: onnx_ir.Value,
    codes: Codes,
    form: Form,
    name: str,
    bias: onnx_ir.Value | None = None,
    pixels: bool = False,
) -> onnx_ir.Value:
    """Write ``x @ W.T + bias`` for x (..., K), or for the pixels of x (B, K, ...), and return it.

    Args:
        rewriter: Knows where.
        x: The activations.
        codes: W, (N, K).
        form: How to write it.
        name: What constants are called after.
        bias: (N,), or what broadcasts to the result.
        pixels: Whether the channels are the second axis.
    """
    assert form.product is not None
    rank = rewriter.facts.rank(x) or 0
    if pixels:
        x = rewriter.op("Transpose", x, perm=[0, *range(2, rank), 1])
    y = form.product(rewriter, x, codes, name)
    if bias is not None:
        y = rewriter.op("Add", y, bias)
    return rewriter.op("Transpose", y, perm=[0, rank - 1, *range(1, rank - 1)]) if pixels else y


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
