"""Constants of sums and products brought together, also into tables, and reductions of reductions made one.

All of it changes where results are rounded, and nothing else: constants are combined in double precision, and only
where neither overflow nor underflow nor cancellation can show.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import axes_of, axis_of, int_attr, made_by, only_use, reduction
from optc.ir.rewriter import Rewriter, copy_attributes
from optc.passes.base import Numerics
from optc.passes.clean.common import inner
from optc.passes.fusion.common import FLOATS
from optc.passes.rule import node_rule

#: Constants of more elements than this are not combined.
_MAX_ELEMENTS = 1 << 20
#: Sums of constants up to this size may cancel: what is lost in the original is lost at this scale.
_SMALL = 1e3
#: Tables up to this many bytes take a constant in; if others read them too, they are copied up to the second size.
_TABLE_BYTES, _COPIED_BYTES = 1 << 26, 1 << 20
_MAX_TERMS = 8


def _constant(facts: Facts, value: onnx_ir.Value | None) -> np.ndarray | None:
    """A constant of floats in double precision."""
    size = facts.const_size(value)
    if size is None or not 0 < size <= _MAX_ELEMENTS or facts.dtype(value) not in FLOATS:
        return None
    return facts.const(value).astype(np.float64)  # type: ignore[union-attr]


def _with_constant(facts: Facts, node: onnx_ir.Node) -> tuple[onnx_ir.Value, np.ndarray] | None:
    """The (x, c) of which a node is ``x + c`` or ``x * c``; a difference adds -c, a quotient multiplies 1 / c."""
    a, b = node.inputs
    if a is None or b is None:
        return None
    constant = _constant(facts, b)
    if constant is not None and not facts.is_const(a):
        if node.op_type == "Div" and not constant.all():
            return None
        return a, {"Sub": np.negative, "Div": np.reciprocal}.get(node.op_type, np.asarray)(constant)
    constant = _constant(facts, a) if node.op_type in ("Add", "Mul") else None
    return (b, constant) if constant is not None and not facts.is_const(b) else None


@node_rule("constant-sums", "Add", "Sub", numerics=Numerics.ROUNDING)
def constant_sums(rw: Rewriter, node: onnx_ir.Node):
    """(x + a) + b is x + (a + b)."""
    return _merged(rw, node, "Add", "Sub")


@node_rule("constant-products", "Mul", "Div", numerics=Numerics.ROUNDING)
def constant_products(rw: Rewriter, node: onnx_ir.Node):
    """(x * a) * b is x * (a * b)."""
    return _merged(rw, node, "Mul", "Div")


def _merged(rw: Rewriter, node: onnx_ir.Node, op: str, opposite: str) -> onnx_ir.Value | str | None:
    outer = _with_constant(rw.facts, node)
    before = None if outer is None else made_by(outer[0], op, opposite)
    first = None if before is None else _with_constant(rw.facts, before)
    if outer is None or first is None or before is None or before.graph is not node.graph:
        return None
    if not only_use(before.outputs[0]):
        return "the inner result is also used elsewhere"
    (_, b), (x, a) = outer, first
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        exact = a + b if op == "Add" else a * b
        constant = exact.astype(rw.facts.dtype(node.outputs[0]).numpy())  # type: ignore[union-attr]
    if constant.size > max(a.size, b.size):
        return "the constants together would be larger"
    if not (np.isfinite(constant).all() and np.isfinite(a).all() and np.isfinite(b).all()):
        return "the constants together would overflow"
    if op == "Add" and not _keeps_digits(a, b, exact):
        return "the constants cancel each other"
    if op == "Mul" and not _keeps_range(a, b, exact, constant.dtype):
        return "the products could overflow or underflow in one order only"
    return rw.op(op, x, rw.constant(constant, "constant"))


def _keeps_digits(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> bool:
    largest = np.maximum(abs(a), abs(b))
    return bool(np.all((largest <= _SMALL) | (abs(total) >= largest / 2)))


def _keeps_range(a: np.ndarray, b: np.ndarray, exact: np.ndarray, dtype: np.dtype) -> bool:
    """Whether factors are moderate, so that a product is in range in one order if it is in the other."""
    bound = 2.0**6 if dtype.itemsize == 2 else 2.0**32
    return all(bool(np.all((abs(c) <= bound) & ((abs(c) >= 1 / bound) | (c == 0)))) for c in (a, b, exact))


# tables -----------------------------------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """Rows of a constant table.

    Attributes:
        table: The table.
        nodes: What takes the rows out and moves them into place, the reader of the table first.
    """

    table: onnx_ir.Value
    nodes: tuple[onnx_ir.Node, ...]


@node_rule("constant-into-table", "Add", numerics=Numerics.ROUNDING)
def constant_into_table(rw: Rewriter, node: onnx_ir.Node):
    """A constant row that is added to rows of a table (and maybe other things): add it to the table instead."""
    facts = rw.facts
    if any(use.node.op_type == "Add" and only_use(node.outputs[0]) for use in node.outputs[0].uses()):
        return None  # the whole sum is looked at from its end
    terms = list(_terms(node))
    rows = [term for term in terms if facts.is_const(term)]
    tables = [(term, found) for term in terms if (found := _rows(facts, term)) is not None]
    if not rows or not tables or len(terms) > _MAX_TERMS or facts.dtype(node.outputs[0]) not in FLOATS:
        return None
    term, found = min(tables, key=lambda item: facts.const_size(item[1].table) or 0)
    row, tensor = rows[0], facts.tensor(found.table)
    shape, wide = facts.tensor(row).shape.numpy(), tensor.shape.numpy()  # type: ignore[union-attr]
    if not shape or shape[-1] != wide[-1] or any(dim != 1 for dim in shape[:-1]) or len(shape) > len(wide):
        return "the constant must be one row of the table"
    limit = _TABLE_BYTES if only_use(found.table) else _COPIED_BYTES
    if tensor.nbytes > limit:  # type: ignore[union-attr]
        return f"the table has more than {limit} bytes"
    dtype = facts.const(found.table).dtype  # type: ignore[union-attr]
    with np.errstate(over="ignore", invalid="ignore"):
        new = (facts.const(found.table).astype(np.float64) + facts.const(row).astype(np.float64)).astype(dtype)  # type: ignore[union-attr]
    if not np.isfinite(new).all():
        return "the sums would overflow"
    value = rw.constant(new.reshape(wide), found.table.name or "table")
    for link in found.nodes:
        attributes = {name: attr.value for name, attr in copy_attributes(link).items()}
        value = rw.op(link.op_type, value, *link.inputs[1:], **attributes)
    rest = [value if other is term else other for other in terms if other is not row]
    total = rest[0]
    for other in rest[1:]:
        total = rw.op("Add", total, other)
    if facts.shape(total) != facts.shape(node.outputs[0]):
        facts.assume(total, node.outputs[0])
    return total


def _terms(node: onnx_ir.Node) -> Iterator[onnx_ir.Value]:
    """The terms of a sum."""
    for value in node.inputs:
        nested = inner(value, "Add")
        if nested is not None and nested.graph is node.graph:
            yield from _terms(nested)
        elif value is not None:
            yield value


def _rows(facts: Facts, value: onnx_ir.Value) -> _Rows | None:
    """The constant table that a value is rows of, each row whole."""
    nodes: list[onnx_ir.Node] = []
    while (node := inner(value, "Unsqueeze", "Gather", "Slice")) is not None and node.inputs[0] is not None:
        rank = facts.rank(node.inputs[0])
        if rank is None or rank < 2:
            return None
        if node.op_type == "Unsqueeze":
            new = axes_of(node, facts)
            if not new or new[-1] == rank + len(new) - 1:
                return None
        if node.op_type == "Gather" and axis_of(node, facts, 0) == rank - 1:
            return None
        if node.op_type == "Slice" and (facts.shape(node.outputs[0]) or (None,))[-1] != facts.shape(node.inputs[0])[-1]:  # type: ignore[index]
            return None
        nodes.insert(0, node)
        value = node.inputs[0]
    return _Rows(value, tuple(nodes)) if nodes and facts.is_const(value) else None


# reductions -------------------------------------------------------------------------------------------------------


@node_rule(
    "reduction-chain", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", numerics=Numerics.ROUNDING
)
def reduction_chain(rw: Rewriter, node: onnx_ir.Node):
    """A reduction of a reduction of the same kind is one over the axes of both."""
    before = inner(node.inputs[0], node.op_type)
    if before is None:
        return None
    first, second, rank = axes_of(before, rw.facts), axes_of(node, rw.facts), rw.facts.rank(before.inputs[0])
    keeps = [bool(int_attr(one, "keepdims", 1)) for one in (before, node)]
    if not first or not second or rank is None:
        return None
    if node.op_type == "ReduceMean" and rw.facts.dtype(node.outputs[0]) not in FLOATS:
        return "means of integers are rounded down"
    if keeps[0]:
        places = list(second)
    else:
        left = [axis for axis in range(rank) if axis not in first]
        places = [left[axis] for axis in second]
    axes = sorted({*first, *places})
    if keeps[0] == keeps[1]:
        return reduction(rw, node.op_type, before.inputs[0], axes, keeps[0])
    return "one of both keeps the axes, the other does not"


RULES = (constant_sums, constant_products, constant_into_table, reduction_chain)
