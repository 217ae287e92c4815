"""Resize and Upsample: scales that are the same in every run, and resizing to the same size."""

from __future__ import annotations

import numpy as np
import onnx_ir

from optc.ir.matcher import attribute
from optc.ir.ops import operand
from optc.ir.rewriter import Rewriter
from optc.passes.rule import node_rule

#: Since when a Resize has the inputs x, roi, scales, sizes.
_FOUR_INPUTS_SINCE = 11
#: Sizes that are larger multiples of the dims are left as they are.
_MAX_FACTOR = 64
#: Modes of coordinates in which a region of interest, not the scale, says what is read.
_BY_REGION = "tf_crop_and_resize"


@node_rule("resize-identity", "Resize", "Upsample")
def resize_identity(rw: Rewriter, node: onnx_ir.Node):
    """Resizing by 1, or to the size that a tensor has, reads every element where it is."""
    facts, x = rw.facts, node.inputs[0]
    if x is None or attribute(node, "coordinate_transformation_mode", facts) == _BY_REGION:
        return None
    if node.op_type == "Upsample" or rw.opset() < _FOUR_INPUTS_SINCE:
        given = attribute(node, "scales", facts) if rw.opset() < 9 else facts.floats(operand(node, 1))
    else:
        given = facts.floats(operand(node, 2)) if _sizes(node) is None else None
    if given:
        return x if set(given) == {1.0} and len(given) == facts.rank(x) else None
    shape = facts.shape(x)
    return x if _sizes(node) is not None and shape is not None and _plain(rw, node, shape) == shape else None


@node_rule("resize-scales", "Resize")
def resize_scales(rw: Rewriter, node: onnx_ir.Node):
    """Sizes that are whole multiples of the input's dims are scales that do not hang on the dims."""
    facts = rw.facts
    shape, sizes = facts.shape(node.inputs[0]), _sizes(node)
    if sizes is None or shape is None or facts.is_const(sizes):
        return None
    if attribute(node, "coordinate_transformation_mode", facts) == _BY_REGION:
        return None
    wanted = _plain(rw, node, shape)
    if wanted is None:
        return "the sizes must be known, one for every axis"
    factors = [
        next((k for k in range(1, _MAX_FACTOR + 1) if dim * k == size), None)
        for dim, size in zip(shape, wanted, strict=True)
    ]
    if None in factors:
        return "the sizes must be whole multiples of the dims"
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    scales = rw.constant(np.array(factors, np.float32), "scales")
    return rw.op("Resize", node.inputs[0], None, scales, **attributes)


def _sizes(node: onnx_ir.Node) -> onnx_ir.Value | None:
    return operand(node, 3) if node.op_type == "Resize" else None


def _plain(rw: Rewriter, node: onnx_ir.Node, shape: tuple) -> tuple | None:
    """The size of every axis, where the node stretches all of them."""
    sizes = rw.facts.elements(_sizes(node))
    stretched = attribute(node, "keep_aspect_ratio_policy", rw.facts) in (None, "stretch")
    if sizes is None or len(sizes) != len(shape) or node.attributes.get("axes") is not None or not stretched:
        return None
    return sizes


RULES = (resize_identity, resize_scales)
