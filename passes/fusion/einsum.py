"""Einsum as the operators that it stands for.

An Einsum of one operand is a ReduceSum and a Transpose; one of two is a (batched) MatMul, or a Mul where nothing is
summed, with Transposes and Reshapes around. Those are what kernels and other rules know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import onnx_ir

from optc.ir.dims import Dim, product
from optc.ir.ops import reduction, squeeze, transpose, unsqueeze, view, viewable
from optc.ir.rewriter import Rewriter
from optc.passes.base import Numerics
from optc.passes.fusion.common import FLOATS, node_attribute
from optc.passes.rule import node_rule

DType = onnx_ir.DataType
_TYPES = FLOATS | {DType.INT32, DType.INT64}


class _Terms(NamedTuple):
    """An equation, every axis of an ellipsis with a letter of its own."""

    operands: tuple[str, ...]
    result: str


def parse_equation(text: str, ranks: Sequence[int]) -> _Terms | str:
    """Read an equation as the specification of Einsum has it.

    Args:
        text: The equation.
        ranks: The ranks of the operands.

    Returns:
        Its terms, or why it cannot be read.
    """
    left, arrow, right = text.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return "the equation has another number of terms than there are operands"
    free = [chr(code) for code in range(0x100, 0x100 + max(ranks, default=0))]
    spread = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    if any(count < 0 or (count and "..." not in term) for count, term in zip(spread, terms, strict=True)):
        return "a term does not have the rank of its operand"
    most = max((count for count, term in zip(spread, terms, strict=True) if "..." in term), default=0)
    letters = free[:most]
    operands = tuple(
        term.replace("...", "".join(letters[most - count :])) for term, count in zip(terms, spread, strict=True)
    )
    if arrow:
        return _Terms(operands, right.replace("...", "".join(letters)))
    seen = "".join(operands)
    once = sorted(letter for letter in set(seen) - set(letters) if seen.count(letter) == 1)
    return _Terms(operands, "".join((*letters, *once)))


@node_rule("einsum", "Einsum", numerics=Numerics.ROUNDING)
def einsum(rw: Rewriter, node: onnx_ir.Node):
    """An Einsum of one or two operands."""
    facts = rw.facts
    values = [value for value in node.inputs if value is not None]
    shapes = [facts.shape(value) for value in values]
    if any(shape is None for shape in shapes) or facts.dtype(node.outputs[0]) not in _TYPES:
        return "the operands must be tensors of floats or integers, of known rank"
    known = [shape for shape in shapes if shape is not None]
    terms = parse_equation(node_attribute(node, "equation", ""), [len(shape) for shape in known])
    if isinstance(terms, str):
        return terms
    if len(values) > 2:
        return "there are more than two operands"
    if any(len(set(term)) < len(term) for term in (*terms.operands, terms.result)):
        return "a diagonal is taken"
    if not set(terms.result) <= set("".join(terms.operands)):
        return "the result has an axis that no operand has"
    dims: dict[str, Dim] = {}
    for term, shape in zip(terms.operands, known, strict=True):
        for letter, dim in zip(term, shape, strict=True):
            if dims.setdefault(letter, dim) != dim:
                return f"the dims of one axis must provably agree ({dims[letter]} and {dim})"
    if len(values) == 1:
        x, left = _summed(rw, values[0], terms.operands[0], set(terms.result))
        return _ordered(rw, x, left, terms.result)
    return _product(rw, values, terms, dims)


def _summed(rw: Rewriter, x: onnx_ir.Value, term: str, kept: set[str]) -> tuple[onnx_ir.Value, str]:
    """A value summed over the axes that nothing else has."""
    gone = [axis for axis, letter in enumerate(term) if letter not in kept]
    if not gone:
        return x, term
    return reduction(rw, "ReduceSum", x, gone, keepdims=False), "".join(c for c in term if c in kept)


def _ordered(rw: Rewriter, x: onnx_ir.Value, term: str, wanted: str) -> onnx_ir.Value:
    return x if term == wanted else transpose(rw, x, [term.index(letter) for letter in wanted])


def _product(
    rw: Rewriter, values: Sequence[onnx_ir.Value], terms: _Terms, dims: Mapping[str, Dim]
) -> onnx_ir.Value | str:
    first, second = terms.operands
    if not (set(first) & set(second)) - set(terms.result):
        reduced = [_summed(rw, x, term, set(terms.result)) for x, term in zip(values, terms.operands, strict=True)]
        return rw.op("Mul", *(_spread(rw, x, term, terms.result) for x, term in reduced))
    plans = [_Plan.of(terms, swapped) for swapped in (False, True)]
    for plan in sorted(plans, key=lambda plan: plan.moves()):
        if plan.possible(dims):
            return plan.build(rw, values, dims)
    return "axes would have to be joined to a dim that no constant can say"


def _spread(rw: Rewriter, x: onnx_ir.Value, term: str, result: str) -> onnx_ir.Value:
    """A factor with its axes where the result has them, and 1 where it has others."""
    own = "".join(letter for letter in result if letter in term)
    x = _ordered(rw, x, term, own)
    lead = len(result) - len(result.lstrip("".join(set(result) - set(own)))) if own else len(result)
    new = [axis for axis, letter in enumerate(result) if letter not in own and axis >= lead]
    return unsqueeze(rw, x, [axis - lead for axis in new]) if new else x


class _Plan(NamedTuple):
    """A contraction as a MatMul of (batch, left, inner) and (batch, inner, right).

    Attributes:
        terms: The axes of both operands; the left one first.
        result: The axes of the result.
        swapped: Whether the left operand is the second one of the Einsum.
        batch: Axes of both operands and the result.
        left: Axes of the left operand and the result.
        inner: Axes of both operands that are summed.
        right: Axes of the right operand and the result.
    """

    terms: tuple[str, str]
    result: str
    swapped: bool
    batch: str
    left: str
    inner: str
    right: str

    @classmethod
    def of(cls, terms: _Terms, swapped: bool) -> _Plan:
        a, b = reversed(terms.operands) if swapped else terms.operands
        groups = ("".join(c for c in terms.result if (c in a, c in b) == where) for where in _WHERE)
        batch, left, right = groups
        inner = "".join(c for c in a if c in b and c not in terms.result)
        return cls((a, b), terms.result, swapped, batch, left, inner, right)

    def orders(self) -> tuple[str, str, str]:
        """The axes of both factors and of the product, in the order in which MatMul has them."""
        return (
            self.batch + self.left + self.inner,
            self.batch + self.inner + self.right,
            (self.batch + self.left + self.right),
        )

    def moves(self) -> int:
        """How many Transposes and Reshapes there are."""
        a, b, result = self.orders()
        own = ("".join(c for c in term if c in order) for term, order in zip(self.terms, (a, b), strict=True))
        turned = sum(x != y for x, y in zip((*own, self.result), (a, b, result), strict=True))
        return turned + sum(len(group) > 1 for group in (self.left, self.inner, self.right))

    def groups(self) -> tuple[list[str], list[str], list[str]]:
        """The axes that are one axis in both factors and in the product."""
        batch = list(self.batch)
        return [*batch, self.left, self.inner], [*batch, self.inner, self.right], [*batch, self.left, self.right]

    def possible(self, dims: Mapping[str, Dim]) -> bool:
        """Whether the axes can be joined, and the product's split again, with constants."""
        a, b, result = self.groups()
        pairs = [
            (_shape(order, dims), _shape(groups, dims)) for order, groups in zip(self.orders(), (a, b), strict=False)
        ]
        pairs.append((_shape([group for group in result if group], dims), _shape(self.orders()[2], dims)))
        return all(viewable(shape, wanted) for shape, wanted in pairs)

    def build(self, rw: Rewriter, values: Sequence[onnx_ir.Value], dims: Mapping[str, Dim]) -> onnx_ir.Value:
        factors = []
        a, b, _ = self.groups()
        for x, term, order, groups in zip(
            reversed(values) if self.swapped else values, self.terms, self.orders(), (a, b), strict=False
        ):
            x, own = _summed(rw, x, term, set(order))
            factors.append(view(rw, _ordered(rw, x, own, order), _shape(groups, dims)))
        result = rw.op("MatMul", *factors)
        order = self.orders()[2]
        if not self.left or not self.right:
            rank = len(self.batch)
            result = squeeze(rw, result, [rank + place for place, g in enumerate((self.left, self.right)) if not g])
        result = view(rw, result, _shape(order, dims)) or result
        return _ordered(rw, result, order, self.result)


def _shape(groups: Sequence[str], dims: Mapping[str, Dim]) -> tuple[Dim, ...]:
    """The dims of groups of axes; 1 for an empty one."""
    return tuple(product(dims[letter] for letter in group) for group in groups)


_WHERE = ((True, True), (True, False), (False, True))


RULES = (einsum,)
