"""Scores of attention as older exporters and models write them, in the form that the pattern of attention reads.

Heads that are joined with the batch into one axis, as batched products of three dims need it, stand apart again;
several masks of the same scores become one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir

from optc.ir import ops
from optc.ir.dims import Dim
from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter, users
from optc.passes.base import Numerics
from optc.passes.rule import node_rule

HIDES = -1e30
"""Constants up to this one hide a score entirely: adding them is the same as replacing the score by them."""

_UNARY = frozenset({"Cast", "Erf", "Exp", "Identity", "IsNaN", "Neg", "Sigmoid", "Softmax", "Tanh"})
_ELEMENTWISE = frozenset({"Add", "Div", "Mul", "Sub", "Where"})
_DEPTH = 14
"""How many operators may stand between the axes' joining and their parting, and between two masks and the product."""


# heads that are joined with the batch ---------------------------------------------------------------------------------


@node_rule("joined-batch", "Reshape")
def joined_batch(rw: Rewriter, node: onnx_ir.Node):
    """What is computed of matrices whose leading axes were joined into one and part again, without joining them."""
    facts, value = rw.facts, node.inputs[0]
    joined, apart = facts.shape(value), facts.shape(node.outputs[0])
    if joined is None or apart is None or len(joined) != 3 or len(apart) < 4 or joined[1:] != apart[-2:]:
        return None
    lifting = _Lifting(rw, node, joined, apart[:-2])
    if ops.made_by(value, "Reshape") is not None or not lifting.possible(value, _DEPTH):
        return None
    return lifting.build(value)


class _Lifting:
    """The same computation on (*lead, M, N) instead of (product of lead, M, N); none but a transpose is done twice."""

    def __init__(self, rw: Rewriter, root: onnx_ir.Node, joined: tuple[Dim, ...], lead: tuple[Dim, ...]) -> None:
        self.rw, self.root, self.joined, self.lead = rw, root, joined, lead

    def possible(self, value: onnx_ir.Value | None, depth: int) -> bool:
        if value is None or depth == 0:
            return False
        node = value.producer()
        if self._apart(value) is not None:
            return True
        if node is None or node.domain or node.graph is not self.root.graph:
            return False
        if node.op_type == "Transpose":
            return ops.perm_of(node, self.rw.facts) == (0, 2, 1) and self.possible(node.inputs[0], depth - 1)
        if not ops.only_use(value):
            return False
        if node.op_type == "MatMul":
            return all(self._rank(x) == 3 and self.possible(x, depth - 1) for x in node.inputs)
        if node.op_type in _UNARY:
            return self._along_last(node) and self.possible(node.inputs[0], depth - 1)
        if node.op_type in _ELEMENTWISE:
            able = [self.possible(x, depth - 1) for x in node.inputs if not self._broadcast(x)]
            return any(able) and all(able or self._whole(x) for x, able in zip(self._joined(node), able, strict=True))
        return False

    def build(self, value: onnx_ir.Value) -> onnx_ir.Value:
        source, node = self._apart(value), value.producer()
        if source is not None:
            return source
        if self._broadcast(value):
            return value
        if node is None or not self.possible(value, _DEPTH):
            allowzero = ops.int_attr(self.root, "allowzero", 0) or None
            return self.rw.op("Reshape", value, self.root.inputs[1], allowzero=allowzero)
        inputs = [None if x is None else self.build(x) for x in node.inputs]
        attributes = {name: attr.value for name, attr in node.attributes.items()}
        if node.op_type == "Transpose":
            rank = len(self.lead)
            attributes["perm"] = [*range(rank), rank + 1, rank]
        elif node.op_type == "Softmax":
            attributes["axis"] = -1
        return self.rw.op(node.op_type, *inputs, **attributes)

    def _apart(self, value: onnx_ir.Value) -> onnx_ir.Value | None:
        """What a value is a view of, if only its leading axes were joined."""
        node, shape = ops.made_by(value, "Reshape"), self.rw.facts.shape(value)
        if node is None or shape is None or len(shape) != 3:
            return None
        return node.inputs[0] if self.rw.facts.shape(node.inputs[0]) == (*self.lead, *shape[1:]) else None

    def _joined(self, node: onnx_ir.Node) -> Iterator[onnx_ir.Value | None]:
        return (x for x in node.inputs if not self._broadcast(x))

    def _broadcast(self, value: onnx_ir.Value | None) -> bool:
        """Whether a value is the same for all matrices, so that it needs no change."""
        shape = self.rw.facts.shape(value)
        return shape is not None and (len(shape) < 3 or (len(shape) == 3 and shape[0] == 1 != self.joined[0]))

    def _whole(self, value: onnx_ir.Value | None) -> bool:
        """Whether a value can part as the result does."""
        return self.rw.opset() >= 5 and self.rw.facts.shape(value) == self.joined

    def _along_last(self, node: onnx_ir.Node) -> bool:
        if node.op_type != "Softmax":
            return True
        return self.rw.opset() >= 13 and ops.axis_of(node, self.rw.facts, -1) == 2

    def _rank(self, value: onnx_ir.Value | None) -> int | None:
        return self.rw.facts.rank(value)


# several masks --------------------------------------------------------------------------------------------------------


@node_rule("one-mask", "Softmax", numerics=Numerics.ROUNDING)
def one_mask(rw: Rewriter, node: onnx_ir.Node):
    """Scores that are masked several times, by sums and by conditions: one mask, which layers may share."""
    facts = rw.facts
    cast = ops.made_by(node.inputs[0], "Cast")
    top = node.inputs[0] if cast is None else cast.inputs[0]
    scores, masks = top, []
    while (step := _masked(facts, scores)) is not None and ops.only_use(scores):
        scores, mask = step
        masks.append(mask)
    if len(masks) < 2 or top is None or scores is None:
        return None
    dtype = facts.dtype(scores)
    if any(facts.dtype(mask) != dtype for mask in masks if isinstance(mask, onnx_ir.Value)):
        return "the masks must have the type of the scores"
    for mask in masks:
        if (
            isinstance(mask, _Choice)
            and (mask.fill > HIDES or dtype != onnx_ir.DataType.FLOAT)
            and not (math.isinf(mask.fill) and mask.fill < 0)
        ):
            return f"a hidden score is replaced by {mask.fill:g}, which is not the same as adding it"
    total = None
    for mask in reversed(masks):
        if isinstance(mask, _Choice):
            kept = total if total is not None else rw.constant(np.array(0, dtype.numpy()), "shown")
            options = (mask.number, kept) if mask.hidden else (kept, mask.number)
            total = rw.op("Where", mask.condition, *options)
        else:
            total = mask if total is None else rw.op("Add", total, mask)
    return _with_input(rw, node, top, rw.op("Add", scores, total))


class _Choice:
    """A mask by a condition: which truth value hides, and the number that stands for what is hidden."""

    def __init__(self, condition: onnx_ir.Value, number: onnx_ir.Value, fill: float, hidden: bool) -> None:
        self.condition, self.number, self.fill, self.hidden = condition, number, fill, hidden


def _masked(facts: Facts, value: onnx_ir.Value | None) -> tuple[onnx_ir.Value, onnx_ir.Value | _Choice] | None:
    """Scores and the mask that the last operator puts on them; None if it does something else."""
    node = ops.made_by(value, "Add", "Where")
    if node is None or value is None:
        return None
    shape = facts.shape(value)
    if node.op_type == "Add":
        for scores, mask in (node.inputs, reversed(node.inputs)):
            if facts.shape(scores) == shape and _is_product(facts, scores, _DEPTH):
                return scores, mask
        return None
    condition, *options = node.inputs
    for hidden, (number, scores) in ((True, options), (False, reversed(options))):
        fill = facts.scalar(number)
        if fill is not None and facts.shape(scores) == shape and _is_product(facts, scores, _DEPTH):
            return scores, _Choice(condition, number, float(fill), hidden)
    return None


def _is_product(facts: Facts, value: onnx_ir.Value | None, depth: int) -> bool:
    """Whether a value is a product of matrices, scaled, capped or masked."""
    node = value.producer() if value is not None and depth else None
    if not ops.is_op(node, "MatMul", "Mul", "Div", "Tanh", "Cast", "Add", "Where") or node is None:
        return False
    if node.op_type == "MatMul":
        return True
    if node.op_type in ("Add", "Where"):
        return _masked(facts, value) is not None
    factors = [x for x in node.inputs if facts.scalar(x) is None]
    return len(factors) == 1 and _is_product(facts, factors[0], depth - 1)


def _with_input(rw: Rewriter, softmax: onnx_ir.Node, old: onnx_ir.Value, new: onnx_ir.Value) -> bool:
    """Let the Softmax, or the Cast before it, read other scores; the old ones go."""
    reader = softmax if softmax.inputs[0] is old else softmax.inputs[0].producer()
    gone = old.producer()
    rw.set_input(reader, 0, new)
    rw.erase(gone)
    return True


# heads in other places ------------------------------------------------------------------------------------------------


@node_rule("keys-across", "MatMul")
def keys_across(rw: Rewriter, node: onnx_ir.Node):
    """Keys that one Transpose takes from (B, T, N, H) across the scores, by way of the heads (B, N, T, H)."""
    across = ops.made_by(node.inputs[1], "Transpose")
    if across is None or ops.perm_of(across, rw.facts) != (0, 2, 3, 1) or not _weighs(node.outputs[0], _DEPTH):
        return None
    if ops.made_by(across.inputs[0], "Reshape") is not None:
        return None  # split off a projection, which the pattern knows
    heads = ops.transpose(rw, across.inputs[0], (0, 2, 1, 3))
    rw.set_input(node, 1, ops.transpose(rw, heads, (0, 1, 3, 2)))
    rw.erase(across)
    return True


#: What may stand between the product of queries and keys and the joining of the heads, besides the Softmax.
_ON_THE_WAY = ("Add", "Cast", "Div", "Identity", "MatMul", "Mul", "Softmax", "Tanh", "Transpose", "Where")


def _weighs(value: onnx_ir.Value, depth: int, seen: tuple[str, ...] = ()) -> bool:
    """Whether a value goes through a Softmax, a product and a Transpose to where the heads are joined."""
    readers = [node for node in users(value) if node.op_type != "IsNaN"]
    if len(readers) != 1 or depth == 0:
        return False
    node = readers[0]
    if ops.is_op(node, "Reshape"):
        return [op for op in seen if op in ("Softmax", "MatMul", "Transpose")] == ["Softmax", "MatMul", "Transpose"]
    return ops.is_op(node, *_ON_THE_WAY) and _weighs(node.outputs[0], depth - 1, (*seen, node.op_type))


RULES = (joined_batch, one_mask, keys_across)
