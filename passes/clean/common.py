"""What several rules of the clean-up ask of values."""

from __future__ import annotations

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import made_by, only_use

#: Constants of more elements than this are not looked through to see whether they are all alike.
MAX_SCANNED = 1 << 16

DType = onnx_ir.DataType
INTEGERS = frozenset(
    {DType.INT8, DType.INT16, DType.INT32, DType.INT64, DType.UINT8, DType.UINT16, DType.UINT32, DType.UINT64}
)
FLOATS = frozenset({DType.FLOAT, DType.DOUBLE, DType.FLOAT16, DType.BFLOAT16})


def same_type(facts: Facts, a: onnx_ir.Value, b: onnx_ir.Value) -> bool:
    """Whether two values provably have one shape, and no other dtype as far as is known."""
    return same_shape(facts, a, b) and facts.dtype(a) in (facts.dtype(b), None)


def same_shape(facts: Facts, a: onnx_ir.Value, b: onnx_ir.Value) -> bool:
    """Whether two values provably have the same shape in every run."""
    shape = facts.shape(a)
    return shape is not None and shape == facts.shape(b)


def keeps_shape(facts: Facts, x: onnx_ir.Value, other: onnx_ir.Value, out: onnx_ir.Value) -> bool:
    """Whether broadcasting ``x`` with the constant ``other``, which gives ``out``, leaves the shape of ``x`` alone."""
    if same_shape(facts, x, out):
        return True
    tensor, rank = facts.tensor(other), facts.rank(x)
    if tensor is None or tensor.size != 1:
        return False
    return len(tensor.shape) == 0 or (rank is not None and len(tensor.shape) <= rank)


def is_free(old: onnx_ir.Value, new: onnx_ir.Value) -> bool:
    """Whether ``new`` can stand for ``old`` without an Identity between: a graph makes its outputs itself."""
    if not old.is_graph_output():
        return True
    producer = new.producer()
    return producer is not None and producer.graph is old.graph and not new.is_graph_output()


def inner(value: onnx_ir.Value | None, *ops: str) -> onnx_ir.Node | None:
    """The node of one of these ops that makes a value which nothing else reads; None otherwise."""
    node = made_by(value, *ops)
    return node if node is not None and only_use(node.outputs[0]) else None
