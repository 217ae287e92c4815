"""Rules on single nodes that look at symbolic shapes: what does nothing goes, Reshape targets become constants."""

from __future__ import annotations

import numpy as np
import onnx_ir

from optc.ir.dims import provably_ge
from optc.ir.facts import Facts
from optc.ir.ops import cuts_of, nonzero_dims, operand, reshape, reshape_target
from optc.ir.rewriter import Rewriter
from optc.passes.clean.common import same_type
from optc.passes.clean.contents import uniform
from optc.passes.rule import node_rule


@node_rule("reshape-target", "Reshape")
def constant_target(rw: Rewriter, node: onnx_ir.Node):
    """A computed target becomes a constant where copied dims, integers and one inferred dim can say it."""
    x, target = node.inputs[0], operand(node, 1)
    if x is None or target is None or rw.facts.is_const(target):
        return None
    source, wanted = rw.facts.shape(x), rw.facts.shape(node.outputs[0])
    if source is None or wanted is None:
        return None
    constant = reshape_target(source, wanted, nonzero_dims(node, rw.facts))
    return None if constant is None else reshape(rw, x, constant)


@node_rule("no-op-view", "Reshape", "Expand", "Flatten", "Squeeze", "Unsqueeze", "Tile")
def no_op_view(rw: Rewriter, node: onnx_ir.Node):
    """Reshape, Expand, Tile and the like to the shape that the tensor has already."""
    x = node.inputs[0]
    return x if x is not None and same_type(rw.facts, x, node.outputs[0]) else None


@node_rule("no-op-slice", "Slice")
def no_op_slice(rw: Rewriter, node: onnx_ir.Node):
    """A Slice that keeps every entry: as many come out as went in, and their order is not reversed."""
    x = node.inputs[0]
    if x is None or not same_type(rw.facts, x, node.outputs[0]):
        return None
    steps = operand(node, 4)
    if steps is not None and not all(provably_ge(step, 1) for step in rw.facts.elements(steps) or (-1,)):
        return None
    return x


@node_rule("full-axes-of-slice", "Slice")
def full_axes_of_slice(rw: Rewriter, node: onnx_ir.Node):
    """An axis that a Slice keeps whole need not be named."""
    x, out = node.inputs[0], node.outputs[0]
    before, after = rw.facts.shape(x), rw.facts.shape(out)
    cuts = cuts_of(node, rw.facts)
    if before is None or after is None or cuts is None or rw.opset() < 10:
        return None
    kept = [place for place, cut in enumerate(cuts) if cut.step < 1 or before[cut.axis] != after[cut.axis]]
    if not 0 < len(kept) < len(cuts):
        return None
    columns = [[cuts[place][field] for place in kept] for field in (1, 2, 0, 3)]  # starts, ends, axes, steps
    return rw.op("Slice", x, *(rw.constant(np.array(column, np.int64), "slice") for column in columns))


@node_rule("no-op-pad", "Pad")
def no_op_pad(rw: Rewriter, node: onnx_ir.Node):
    """A Pad by nothing."""
    if rw.opset() < 11:
        attr = node.attributes.get("pads") or node.attributes.get("paddings")
        amounts = None if attr is None else tuple(attr.as_ints())
    else:
        amounts = rw.facts.ints(operand(node, 1))
    return node.inputs[0] if amounts is not None and not any(amounts) else None


@node_rule("no-op-resize", "Resize", "Upsample")
def no_op_resize(rw: Rewriter, node: onnx_ir.Node):
    """A Resize to the size that the tensor has already, by scales of exactly 1 or by sizes; nothing is cropped."""
    mode = node.attributes.get("coordinate_transformation_mode")
    if mode is not None and mode.as_string() in ("tf_crop_and_resize", "tf_half_pixel_for_nn"):
        return None
    x, out = node.inputs[0], node.outputs[0]
    if node.op_type == "Upsample" or rw.opset() < 11:
        scales = node.attributes.get("scales")
        if scales is not None:
            return x if all(scale == 1 for scale in scales.as_floats()) else None
        return x if _all_one(rw.facts, operand(node, 1)) else None
    if _all_one(rw.facts, operand(node, 2)):
        return x
    sized = operand(node, 3) is not None and rw.facts.elements(operand(node, 3)) is not None
    return x if sized and x is not None and same_type(rw.facts, x, out) else None


def _all_one(facts: Facts, scales: onnx_ir.Value | None) -> bool:
    return scales is not None and bool(facts.const_size(scales)) and uniform(facts, scales) == 1


RULES = (
    constant_target,
    no_op_view,
    no_op_slice,
    full_axes_of_slice,
    no_op_pad,
    no_op_resize,
)
