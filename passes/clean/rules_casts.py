"""Casts that change nothing, and chains of casts."""

from __future__ import annotations

import onnx_ir

from optc.ir.ops import cast, int_attr, made_by
from optc.ir.rewriter import Rewriter
from optc.passes.clean.common import DType
from optc.passes.rule import node_rule

#: (bits of the significand, largest exponent) of float types: what fits in both fits without rounding.
_FLOATS = {DType.FLOAT16: (11, 15), DType.BFLOAT16: (8, 127), DType.FLOAT: (24, 127), DType.DOUBLE: (53, 1023)}
#: (signed, bits without the sign)
_INTEGERS = {
    DType.BOOL: (False, 1),
    DType.UINT8: (False, 8),
    DType.UINT16: (False, 16),
    DType.UINT32: (False, 32),
    DType.UINT64: (False, 64),
    DType.INT8: (True, 7),
    DType.INT16: (True, 15),
    DType.INT32: (True, 31),
    DType.INT64: (True, 63),
}


def lossless(source: onnx_ir.DataType | None, to: onnx_ir.DataType | None) -> bool:
    """Whether every value of a type is exactly one of another type (and no type that saturates is involved)."""
    if source in _INTEGERS and to in _INTEGERS:
        (signed, bits), (to_signed, to_bits) = _INTEGERS[source], _INTEGERS[to]
        return bits <= to_bits and to_signed >= signed
    if source in _INTEGERS and to in _FLOATS:
        # -2**bits, the lowest of a signed type, is a power of two
        return _INTEGERS[source][1] <= _FLOATS[to][0] and _INTEGERS[source][1] <= _FLOATS[to][1]
    if source in _FLOATS and to in _FLOATS:
        # subnormal numbers fit too: of these types a wider exponent is wider by far more than the significand
        return all(ours <= theirs for ours, theirs in zip(_FLOATS[source], _FLOATS[to], strict=True))
    return False


@node_rule("cast-to-same", "Cast")
def cast_to_same(rw: Rewriter, node: onnx_ir.Node):
    """Cast to the type that the value has already."""
    dtype = rw.facts.dtype(node.inputs[0])
    return node.inputs[0] if dtype is not None and dtype == int_attr(node, "to", 0) else None


@node_rule("cast-like", "CastLike")
def cast_like(rw: Rewriter, node: onnx_ir.Node):
    """CastLike to a type that is known is a Cast (and lets go of the value it was to be like)."""
    x, like = node.inputs
    dtype = rw.facts.dtype(like)
    if dtype is None or x is None:
        return None
    if rw.facts.dtype(x) == dtype:
        return x
    saturate = node.attributes.get("saturate")
    return rw.op("Cast", x, to=int(dtype), saturate=None if saturate is None else saturate.value)


@node_rule("cast-chain", "Cast")
def cast_chain(rw: Rewriter, node: onnx_ir.Node):
    """A Cast after a Cast that loses nothing is one Cast from the first type."""
    before = made_by(node.inputs[0], "Cast")
    if before is None:
        return None
    x, between, to = before.inputs[0], int_attr(before, "to", 0), DType(int_attr(node, "to", 0))
    source = rw.facts.dtype(x)
    if not lossless(source, DType(between)) or (to not in _FLOATS and to not in _INTEGERS):
        return None
    return x if source == to else cast(rw, x, to)


RULES = (cast_to_same, cast_like, cast_chain)
