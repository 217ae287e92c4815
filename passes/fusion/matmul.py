"""Matrix products that take over transposes and scalars before and behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir

from optc.ir.dims import provably_positive
from optc.ir.facts import Facts
from optc.ir.matcher import Match
from optc.ir.names import split_op
from optc.ir.ops import perm_of
from optc.ir.rewriter import Rewriter
from optc.passes.fusion.common import FLOATS, node_attribute
from optc.passes.rule import fusion, node_rule

_PRODUCTS = ("MatMul", "com.microsoft::FusedMatMul")
_PRODUCT_KEYS = frozenset(split_op(op) for op in _PRODUCTS)
#: (trans, transBatch) of FusedMatMul's operands, in the order of preference. ``transBatch`` says that the first axis
#: is a matrix's, and that the axes of the batch come after it.
_FLAGS = ((0, 0), (1, 0), (0, 1), (1, 1))


def _permutation(rank: int, trans: int, batch: int) -> tuple[int, ...]:
    """How FusedMatMul permutes the axes of an operand before it multiplies."""
    row, column = (0, rank - 1) if batch else (rank - 2, rank - 1)
    rest = [axis for axis in range(rank) if axis not in (row, column)]
    return (*rest, column, row) if trans else (*rest, row, column)


def _operand_flags(found: Match, side: str, product: onnx_ir.Node) -> tuple[int, int] | str:
    """(trans, transBatch) of an operand, with the Transpose in front of it taken over."""
    rank = found.facts.rank(found[side])
    if rank is None or rank < 2:
        return f"operand {side} must be known to have at least 2 dims"
    own = tuple(node_attribute(product, f"{name}{side.upper()}", 0) for name in ("trans", "transBatch"))
    taken = found.get(f"{side}_transposed")
    if taken is None:
        return own
    before = perm_of(taken.producer(), found.facts)
    total = None if before is None else tuple(before[axis] for axis in _permutation(rank, *own))
    for flags in _FLAGS:
        if total == _permutation(rank, *flags):
            return flags
    return f"the transpose of operand {side} must leave the order of the batch's axes and keep them together"


def _is_filled(facts: Facts, value: onnx_ir.Value) -> bool:
    """Whether a value provably has elements."""
    shape = facts.shape(value)
    return shape is not None and all(map(provably_positive, shape))


def _writes_no_zeros(found: Match, flags: Mapping[str, int]) -> bool:
    """Whether a product over an empty inner axis may not be zeros any more, as it is without transposes.

    The CPU kernel clears one matrix only, and a batch is one matrix only where the second operand has none.
    """
    facts, product = found.facts, found["product"].producer()
    own = any(node_attribute(product, name, 0) for name in flags)
    ranks = facts.rank(found.a), facts.rank(found.b)
    if own or not any(flags.values()) or ranks == (2, 2) or (ranks[1] == 2 and not flags["transA"]):
        return False
    left, result = facts.shape(product.inputs[0]), facts.shape(product.outputs[0])
    return left is None or result is None or not (provably_positive(left[-1]) or left[-1] in result)


def _product_attributes(found: Match) -> dict[str, Any] | str:
    facts, product = found.facts, found["product"].producer()
    if facts.dtype(found.output) not in FLOATS:
        return "the operands must be floats"
    alpha = float(node_attribute(product, "alpha", 1.0))
    attributes: dict[str, Any] = {}
    for side in "ab":
        flags = _operand_flags(found, side, product)
        if isinstance(flags, str):
            return flags
        attributes[f"trans{side.upper()}"] = flags[0]
        if flags[1]:
            attributes[f"transBatch{side.upper()}"] = 1
    if len(attributes) > 2 and facts.rank(found.a) != facts.rank(found.b):
        return "with the batch's axes behind, both operands must have the same rank"
    if len(attributes) > 2 and not (_is_filled(facts, found.a) and _is_filled(facts, found.b)):
        return "with the batch's axes behind, no operand may be empty: the kernel would divide by zero"
    if _writes_no_zeros(found, attributes):
        return "the inner axis may be empty, for which the kernel writes nothing but the first matrix of a batch"
    taken = [name for name in ("a_transposed", "b_transposed", *_SCALES, *_DIVISORS) if name in found.bindings]
    for name in _SCALES:
        if name in found.bindings:
            alpha *= float(found.scalar(name))
    for name in _DIVISORS:
        if name in found.bindings:
            if found.scalar(name) == 0:
                return "it divides by zero"
            alpha /= float(found.scalar(name))
    if not taken or (product.op_type == "MatMul" and alpha == 1.0 and not any(attributes.values())):
        return "there is nothing to fuse"
    return {"alpha": alpha, **attributes}


_SCALES = ("a_scale", "b_scale", "scale")
_DIVISORS = ("a_divisor", "b_divisor", "divisor")


def _operand(p, side: str, x):
    plain = p.one_of(p.bind(f"{side}_transposed", p.Transpose(x)), x)
    scaled = _scaled(p, f"{side}_", plain)
    return p.one_of(*scaled, p.bind(f"{side}_transposed", p.Transpose(p.one_of(*_scaled(p, f"{side}_", x)))), plain)


def _scaled(p, prefix: str, x):
    return p.scalar(f"{prefix}scale") * x, p.Div(x, p.scalar(f"{prefix}divisor"))


def _product(p, a, b):
    return p.bind("product", p.op(_PRODUCTS, _operand(p, "a", a), _operand(p, "b", b)))


@fusion("scaled-matmul", "FusedMatMul", inputs=("a", "b"), same_shape_as=None, attributes=_product_attributes)
def scaled_matmul(p, a, b):
    """A matrix product times a scalar."""
    return p.one_of(*_scaled(p, "", _product(p, a, b)))


@fusion("transposed-matmul", "FusedMatMul", inputs=("a", "b"), attributes=_product_attributes)
def transposed_matmul(p, a, b):
    """A matrix product of transposed or scaled operands."""
    return _product(p, a, b)


@node_rule("own-operands", "Mul", "Div", "Transpose")
def own_operands(rw: Rewriter, node: onnx_ir.Node):
    """What several products read scaled or transposed is made for each of them, so that each can take it over.

    The products then read the same tensor as it was before. Copies that no product takes over are merged again by cse.
    """
    value, facts = node.outputs[0], rw.facts
    uses = list(value.uses())
    if len(uses) < 2 or value.is_graph_output() or facts.dtype(value) not in FLOATS:
        return None
    if any(
        (use.node.domain, use.node.op_type) not in _PRODUCT_KEYS or use.node.graph is not node.graph for use in uses
    ):
        return None
    rank = facts.rank(value)
    if rank is None or rank < 2:
        return "the operand must be known to have at least 2 dims"
    if node.op_type == "Transpose":
        readable = [_permutation(rank, *flags) for flags in _FLAGS]
        if perm_of(node, facts) not in readable:
            return "no product reads an operand in this order"
    elif not any(facts.const_size(factor) == 1 for factor in node.inputs[-1 if node.op_type == "Div" else 0 :]):
        return None
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    for use in uses[1:]:
        with rw.at(use.node, "own-operands", [node]):
            rw.set_input(use.node, use.idx, rw.op(node.op_type, *node.inputs, **attributes))
    return True
