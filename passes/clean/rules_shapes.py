"""Rules on single nodes that look at symbolic shapes: what does nothing goes, Reshape targets become constants."""

from __future__ import annotations

import numpy as np
import onnx_ir

from optc.ir.dims import BroadcastError, Dim, broadcast, provably_ge
from optc.ir.facts import Facts
from optc.ir.ops import cuts_of, is_op, nonzero_dims, operand, reshape, reshape_target
from optc.ir.rewriter import Rewriter, users
from optc.passes.clean.common import same_type, uniform
from optc.passes.rule import node_rule

_OPS = """
    Add Sub Mul Div And Or Xor Equal Less Greater LessOrEqual GreaterOrEqual Where Max Min Sum Mean BitwiseAnd BitwiseOr
    BitwiseXor"""
#: Operators that broadcast all their inputs to one shape, whatever these hold. (Pow is not among them: its kernels
#: round differently for a scalar exponent.)
_BROADCASTING = frozenset(_OPS.split())


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


@node_rule("absorbed-expand", "Expand", "ConstantOfShape")
def absorbed_expand(rw: Rewriter, node: onnx_ir.Node):
    """An Expand (or a ConstantOfShape) whose readers broadcast anyway, to the same shapes without it."""
    out = node.outputs[0]
    readers = users(out)
    if out.is_graph_output() or not readers:
        return None
    shape: tuple[Dim, ...] | None = () if node.op_type == "ConstantOfShape" else rw.facts.shape(node.inputs[0])
    if shape is None or not all(_broadcasts_without(rw, reader, out, shape) for reader in readers):
        return None
    if node.op_type == "Expand":
        return node.inputs[0] and _bypass(rw, node, node.inputs[0])
    value = node.attributes.get("value")
    tensor = np.zeros(1, np.float32) if value is None else value.as_tensor()
    if isinstance(tensor, np.ndarray):
        return _bypass(rw, node, rw.constant(tensor.reshape(()), "fill"))
    return _bypass(rw, node, rw.constant(onnx_ir.Tensor(tensor.numpy().reshape(()), dtype=tensor.dtype), "fill"))


def _bypass(rw: Rewriter, node: onnx_ir.Node, x: onnx_ir.Value) -> bool:
    for use in list(node.outputs[0].uses()):
        _rewire(rw, use.node, use.idx, x)
    rw.erase(node)
    return True


def _rewire(rw: Rewriter, reader: onnx_ir.Node, index: int, x: onnx_ir.Value) -> None:
    """Let a node that broadcasts read ``x``: a new node, as the input's rank may differ."""
    operands = [x if place == index else value for place, value in enumerate(reader.inputs)]
    with rw.at(reader, "absorbed-expand"):
        attributes = {name: attr.value for name, attr in reader.attributes.items()}
        new = rw.op(reader.op_type, *operands, **attributes)
        rw.replace(reader.outputs[0], new)
        rw.erase(reader)


def _broadcasts_without(rw: Rewriter, reader: onnx_ir.Node, expanded: onnx_ir.Value, shape: tuple[Dim, ...]) -> bool:
    """Whether a node that reads ``expanded`` would give the same shape if that had only ``shape``."""
    if not is_op(reader, *_BROADCASTING) or rw.opset() < 8 or len(set(reader.inputs)) != len(reader.inputs):
        return False
    wanted = rw.facts.shape(reader.outputs[0])
    shapes = [shape if value is expanded else rw.facts.shape(value) for value in reader.inputs]
    return wanted is not None and _broadcast(shapes) == wanted


def _broadcast(shapes: list[tuple[Dim, ...] | None]) -> tuple[Dim, ...] | None:
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    rank = max(map(len, known))
    padded = [(*(1,) * (rank - len(shape)), *shape) for shape in known]
    try:
        return tuple(broadcast(*dims) for dims in zip(*padded, strict=True))
    except BroadcastError:
        return None


RULES = (
    constant_target,
    no_op_view,
    no_op_slice,
    full_axes_of_slice,
    no_op_pad,
    no_op_resize,
    absorbed_expand,
)
