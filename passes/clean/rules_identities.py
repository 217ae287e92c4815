"""Nodes that give back one of their inputs, and pairs of nodes that undo or repeat each other.

All rules are exact under ``==``: the one bit that may change is the sign of a zero (``x + 0`` makes ``-0.0`` positive).
NaN and infinities pass as before; so ``x * 0`` is left alone, and so is Clip without bounds, which caps infinities.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from optc.ir.ops import axes_of, axis_of, int_attr, made_by, operand, squeeze
from optc.ir.rewriter import Rewriter
from optc.passes.clean.common import INTEGERS, inner, is_free, keeps_shape, same_shape
from optc.passes.clean.contents import uniform
from optc.passes.rule import node_rule

#: op -> (neutral constant, whether it may also be the first operand)
_NEUTRAL = {
    "Add": (0, True),
    "Sub": (0, False),
    "Mul": (1, True),
    "Div": (1, False),
    "Pow": (1, False),
    "Or": (False, True),
    "And": (True, True),
    "Xor": (False, True),
    "BitwiseOr": (0, True),
    "BitwiseXor": (0, True),
    "BitShift": (0, False),
}
#: op -> constant that makes the result this constant whatever the other operand is
_ABSORBING = {"And": False, "Or": True}
#: A constant of more bytes is not copied to be an output.
_COPIED_BYTES = 1 << 16
_INVOLUTIONS = ("Neg", "Not", "BitwiseNot")
_ROUNDINGS = ("Ceil", "Floor", "Round")
#: outer op -> ops whose results it leaves as they are
_IDEMPOTENT = {
    "Abs": ("Abs", "Relu"),
    "Relu": ("Relu", "Abs"),
    "Sign": ("Sign",),
    **dict.fromkeys(_ROUNDINGS, _ROUNDINGS),
}


@node_rule("identity", "Identity")
def identity(rw: Rewriter, node: onnx_ir.Node):
    """Identity(x) is x, and a small constant that is an output is a Constant; an input that is one stays."""
    x = node.inputs[0]
    if x is None or is_free(node.outputs[0], x):
        return x
    tensor = rw.facts.tensor(x)
    return None if tensor is None or tensor.nbytes > _COPIED_BYTES else rw.op("Constant", value=tensor)


@node_rule("dropout", "Dropout")
def dropout(rw: Rewriter, node: onnx_ir.Node):
    """Dropout does nothing in inference. Its mask must be unused."""
    if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
        return None
    opset, training = rw.opset(), operand(node, 2)
    if opset < 7 and not int_attr(node, "is_test", 0):
        return None
    if opset >= 12 and training is not None and rw.facts.ints(training) != (0,):
        return None
    return node.inputs[0]


@node_rule("neutral-operand", *_NEUTRAL)
def neutral_operand(rw: Rewriter, node: onnx_ir.Node):
    """x + 0, x - 0, x * 1, x / 1, x ** 1, x or false, ... are x, where the constant does not broadcast it."""
    neutral, commutes = _NEUTRAL[node.op_type]
    x, other = node.inputs
    for kept, constant in ((x, other), (other, x))[: 2 if commutes else 1]:
        if kept is None or constant is None or uniform(rw.facts, constant) != neutral:
            continue
        if keeps_shape(rw.facts, kept, constant, node.outputs[0]):
            return kept
    return None


@node_rule("absorbing-operand", *_ABSORBING)
def absorbing_operand(rw: Rewriter, node: onnx_ir.Node):
    """x and false is false, x or true is true, where the constant already has the shape of the result."""
    for constant in node.inputs:
        found = uniform(rw.facts, constant)
        absorbs = found is not None and found == _ABSORBING[node.op_type]
        if absorbs and same_shape(rw.facts, constant, node.outputs[0]):
            return constant
    return None


@node_rule("same-operands", "And", "Or", "Max", "Min", "Where")
def same_operands(rw: Rewriter, node: onnx_ir.Node):
    """x and x, max(x, x), where(c, x, x) are x."""
    values = node.inputs[1:] if node.op_type == "Where" else node.inputs
    if len(set(values)) != 1 or values[0] is None:
        return None
    if node.op_type == "Where" and not same_shape(rw.facts, values[0], node.outputs[0]):
        return None
    return values[0]


@node_rule("single-operand", "Sum", "Mean", "Max", "Min")
def single_operand(rw: Rewriter, node: onnx_ir.Node):
    """The sum, mean, maximum or minimum of one tensor is that tensor."""
    return node.inputs[0] if len(node.inputs) == 1 else None


@node_rule("involution", *_INVOLUTIONS)
def involution(rw: Rewriter, node: onnx_ir.Node):
    """not not x and -(-x) are x."""
    before = made_by(node.inputs[0], node.op_type)
    return before.inputs[0] if before is not None else None


@node_rule("idempotent", *_IDEMPOTENT)
def idempotent(rw: Rewriter, node: onnx_ir.Node):
    """|(|x|)| is |x|, relu(relu(x)) is relu(x), ceil(floor(x)) is floor(x)."""
    return node.inputs[0] if made_by(node.inputs[0], *_IDEMPOTENT[node.op_type]) is not None else None


@node_rule("negated-operand", "Add", "Sub", "Mul", "Div")
def negated_operand(rw: Rewriter, node: onnx_ir.Node):
    """a + (-b) is a - b, a - (-b) is a + b, (-a) * (-b) is a * b: rounding is symmetric, so to the last bit."""
    a, b = node.inputs
    if node.op_type in ("Mul", "Div"):
        minus_a, minus_b = made_by(a, "Neg"), made_by(b, "Neg")
        if minus_a is None or minus_b is None or (node.op_type == "Div" and rw.facts.dtype(a) in INTEGERS):
            return None
        return rw.op(node.op_type, minus_a.inputs[0], minus_b.inputs[0])
    if (negated := inner(b, "Neg")) is not None:
        return rw.op("Sub" if node.op_type == "Add" else "Add", a, negated.inputs[0])
    if node.op_type == "Add" and (negated := inner(a, "Neg")) is not None:
        return rw.op("Sub", b, negated.inputs[0])
    return None


@node_rule("boolean-comparison", "Equal")
def boolean_comparison(rw: Rewriter, node: onnx_ir.Node):
    """x == true is x, x == false is not x."""
    for x, constant in (tuple(node.inputs), tuple(reversed(node.inputs))):
        found = uniform(rw.facts, constant)
        if isinstance(found, bool) and keeps_shape(rw.facts, x, constant, node.outputs[0]):
            return x if found else rw.op("Not", x)
    return None


@node_rule("flipped-xor", "Xor")
def flipped_xor(rw: Rewriter, node: onnx_ir.Node):
    """x xor true is not x."""
    for x, constant in (tuple(node.inputs), tuple(reversed(node.inputs))):
        if uniform(rw.facts, constant) == True and keeps_shape(rw.facts, x, constant, node.outputs[0]):  # noqa: E712
            return rw.op("Not", x)
    return None


@node_rule("negated-comparison", "Not")
def negated_comparison(rw: Rewriter, node: onnx_ir.Node):
    """not (a < b) is a >= b, for integers: NaN compares false either way."""
    opposite = {"Less": "GreaterOrEqual", "Greater": "LessOrEqual", "GreaterOrEqual": "Less", "LessOrEqual": "Greater"}
    compare = inner(node.inputs[0], *opposite)
    if compare is None or rw.opset() < 12 or rw.facts.dtype(compare.inputs[0]) not in INTEGERS:
        return None
    return rw.op(opposite[compare.op_type], *compare.inputs)


@node_rule("where-constant", "Where")
def where_constant(rw: Rewriter, node: onnx_ir.Node):
    """where(true, a, b) is a, where it has the shape of the result already."""
    found = uniform(rw.facts, node.inputs[0])
    if found is None:
        return None
    chosen = node.inputs[1 if found else 2]
    return chosen if same_shape(rw.facts, chosen, node.outputs[0]) else None


@node_rule("where-not", "Where")
def where_not(rw: Rewriter, node: onnx_ir.Node):
    """where(not c, a, b) is where(c, b, a)."""
    negation = made_by(node.inputs[0], "Not")
    return None if negation is None else rw.op("Where", negation.inputs[0], node.inputs[2], node.inputs[1])


@node_rule("trivial-reduction", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
def trivial_reduction(rw: Rewriter, node: onnx_ir.Node):
    """Reducing over no axes, or over dims that are 1, changes nothing (but the rank, unless it is kept)."""
    x = node.inputs[0]
    axes, shape = axes_of(node, rw.facts), rw.facts.shape(x)
    if axes is None or (axes and (shape is None or any(shape[axis] != 1 for axis in axes))):
        return None
    return x if not axes or int_attr(node, "keepdims", 1) else squeeze(rw, x, axes)


# bounds -----------------------------------------------------------------------------------------------------------


@node_rule("clip-integers", "Clip")
def clip_integers(rw: Rewriter, node: onnx_ir.Node):
    """Clip of integers to the whole range of their type, or without bounds, does nothing."""
    dtype = rw.facts.dtype(node.inputs[0])
    if dtype not in INTEGERS:
        return None
    limits = np.iinfo(dtype.numpy())
    low, high = (operand(node, index) for index in (1, 2))
    if low is not None and rw.facts.scalar(low) != limits.min:
        return None
    return node.inputs[0] if high is None or rw.facts.scalar(high) == limits.max else None


@node_rule("clip-chain", "Clip", "Relu")
def clip_chain(rw: Rewriter, node: onnx_ir.Node):
    """Clip of Clip, Clip of Relu and Relu of Clip are one Clip."""
    before = inner(node.inputs[0], "Clip", "Relu")
    if before is None or (node.op_type == "Relu" and before.op_type == "Relu") or rw.opset() < 11:
        return None
    x, dtype = before.inputs[0], rw.facts.dtype(node.inputs[0])
    if dtype is None:
        return None
    inside, outside = _bounds(rw, before), _bounds(rw, node)
    if inside is None or outside is None:
        return None
    low, high = (None if bound is None else _clipped(bound, outside) for bound in inside)
    low = outside[0] if low is None else low
    high = outside[1] if high is None else high
    operands = [None if b is None else rw.constant(np.array(b), "bound", dtype=dtype.numpy()) for b in (low, high)]
    return rw.op("Clip", x, *(operands if operands[1] is not None else operands[:1]))


def _bounds(rw: Rewriter, node: onnx_ir.Node) -> tuple[float | None, float | None] | None:
    """The constant bounds of a Clip or Relu, each None where it is left out; None if they are not known or crossed."""
    if node.op_type == "Relu":
        return 0, None
    found: list[float | None] = []
    for index in (1, 2):
        bound = operand(node, index)
        scalar = None if bound is None else rw.facts.scalar(bound)
        if bound is not None and (scalar is None or scalar != scalar):
            return None
        found.append(scalar)
    low, high = found
    return None if low is not None and high is not None and low > high else (low, high)


def _clipped(bound: float, within: tuple[float | None, float | None]) -> float:
    low, high = within
    bound = bound if low is None else max(bound, low)
    return bound if high is None else min(bound, high)


# joining and cutting ----------------------------------------------------------------------------------------------


@node_rule("concat-parts", "Concat")
def concat_parts(rw: Rewriter, node: onnx_ir.Node):
    """Concat of one input is that input; empty inputs go, and a Concat along the same axis inside is merged."""
    axis = axis_of(node, rw.facts, 1)
    if axis is None:
        return node.inputs[0] if len(node.inputs) == 1 else None
    parts: list[onnx_ir.Value] = []
    for part in node.inputs:
        if part is None:
            return None
        nested = inner(part, "Concat")
        merged = nested is not None and axis_of(nested, rw.facts, 1) == axis
        parts.extend(value for value in nested.inputs if value is not None) if merged and nested else parts.append(part)
    shapes = [rw.facts.shape(part) for part in parts]
    full = [part for part, shape in zip(parts, shapes, strict=True) if shape is None or shape[axis] != 0]
    parts = full or parts[:1]
    if parts == list(node.inputs) and len(parts) > 1:
        return None
    return parts[0] if len(parts) == 1 else rw.op("Concat", *parts, axis=axis)


@node_rule("split-in-one", "Split")
def split_in_one(rw: Rewriter, node: onnx_ir.Node):
    """Split into one piece gives back its input."""
    return node.inputs[0] if len(node.outputs) == 1 and same_shape(rw.facts, node.inputs[0], node.outputs[0]) else None


RULES = (
    identity,
    dropout,
    neutral_operand,
    absorbing_operand,
    same_operands,
    single_operand,
    involution,
    idempotent,
    negated_operand,
    boolean_comparison,
    flipped_xor,
    negated_comparison,
    where_constant,
    where_not,
    trivial_reduction,
    clip_integers,
    clip_chain,
    concat_parts,
    split_in_one,
)
