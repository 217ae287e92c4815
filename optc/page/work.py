"""How much every operator computes and moves: an estimate from shapes, for a roofline plot.

Williams, Waterman and Patterson, "Roofline", CACM 2009: an operator can run no faster than its operations at the peak
rate, nor than its bytes at the memory's bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir

from optc.ir.dims import evaluate
from optc.ir.facts import Facts
from optc.ir.ops import int_attr

_MOVES_NOTHING = frozenset(
    {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Constant", "Size", "Dropout"}
)


@dataclass(frozen=True)
class Work:
    """An operator's work.

    Attributes:
        op: Operator.
        count: How many nodes of it there are.
        operations: Arithmetic operations of all of them, a multiply-add counted as two.
        bytes: Bytes read and written by all of them, every operand once.
    """

    op: str
    count: int
    operations: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes if self.bytes else 0.0


class _Sizes:
    """Sizes of values at one choice of the symbolic dims."""

    def __init__(self, facts: Facts, bindings: Mapping[str, int]) -> None:
        self._facts, self._bindings = facts, bindings

    def shape(self, value: onnx_ir.Value | None) -> tuple[int, ...] | None:
        """The shape; None if it depends on more than the symbolic dims."""
        shape = self._facts.shape(value) if value is not None else ()
        if shape is None:
            return None
        try:
            return tuple(dim if isinstance(dim, int) else int(evaluate(dim, self._bindings)) for dim in shape)
        except (KeyError, ValueError, TypeError, ZeroDivisionError):
            return None

    def elements(self, value: onnx_ir.Value | None) -> float:
        shape = self.shape(value)
        return math.nan if shape is None else float(math.prod(shape))

    def bytes(self, value: onnx_ir.Value | None) -> float:
        dtype = self._facts.dtype(value) if value is not None else None
        return self.elements(value) * (dtype.itemsize if dtype is not None else 4) if value is not None else 0.0


def _product(node: onnx_ir.Node, sizes: _Sizes) -> float:
    """A matrix product: two operations for each result and step of the inner axis."""
    shape = sizes.shape(node.inputs[0])
    if not shape:
        return math.nan
    inner = shape[-2 if int_attr(node, "transA", 0) and len(shape) > 1 else -1]
    return 2 * inner * sizes.elements(node.outputs[0])


def _convolution(node: onnx_ir.Node, sizes: _Sizes) -> float:
    weight = sizes.shape(node.inputs[1])
    return 2 * math.prod(weight[1:]) * sizes.elements(node.outputs[0]) if weight else math.nan


def _attention(node: onnx_ir.Node, sizes: _Sizes) -> float:
    """Two products over all pairs of queries and keys; projections are not counted."""
    q, k = sizes.shape(node.inputs[0]), sizes.shape(node.inputs[1]) if len(node.inputs) > 1 else None
    if q is None or k is None or len(q) < 3 or len(k) < 3:
        return math.nan
    queries = math.prod(q) // q[-2] if len(q) == 3 else math.prod(q) // q[2]
    return 4 * queries * q[-2] * k[-2]


#: Operators whose work is more than a few operations for each element.
_OPERATIONS: Mapping[str, Callable[[onnx_ir.Node, _Sizes], float]] = {
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger", "QLinearMatMul"), _product),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "QGemm"), _product),
    **dict.fromkeys(("Conv", "FusedConv", "ConvInteger", "QLinearConv"), _convolution),
    **dict.fromkeys(("Attention", "MultiHeadAttention", "GroupQueryAttention"), _attention),
}
#: Operations for each element of the result; 1 for what is not named.
_PER_ELEMENT = {
    "Softmax": 5.0,
    "LayerNormalization": 7.0,
    "SimplifiedLayerNormalization": 5.0,
    "Gelu": 8.0,
    "BiasGelu": 9.0,
    "FastGelu": 8.0,
    "Erf": 6.0,
    "Exp": 4.0,
    "Tanh": 6.0,
    "Sigmoid": 5.0,
    "QuickGelu": 7.0,
}


def work(model: onnx_ir.Model, bindings: Mapping[str, int]) -> list[Work]:
    """The work of every operator of the main graph, largest first; nodes whose shapes are not known are left out.

    Args:
        model: The model.
        bindings: A size for each symbolic dim.
    """
    sizes = _Sizes(Facts(model), bindings)
    found: dict[str, list[float]] = {}
    for node in model.graph:
        if node.op_type in _MOVES_NOTHING:
            continue
        moved = sum(
            map(sizes.bytes, dict.fromkeys(v for v in (*node.inputs, *node.outputs) if v is not None and v.name))
        )
        done = _OPERATIONS[node.op_type](node, sizes) if node.op_type in _OPERATIONS else _elementwise(node, sizes)
        if math.isfinite(moved) and math.isfinite(done) and moved:
            entry = found.setdefault(node.op_type, [0, 0.0, 0.0])
            entry[0], entry[1], entry[2] = entry[0] + 1, entry[1] + done, entry[2] + moved
    return sorted((Work(op, int(n), ops, moved) for op, (n, ops, moved) in found.items()), key=lambda w: -w.bytes)


def _elementwise(node: onnx_ir.Node, sizes: _Sizes) -> float:
    return _PER_ELEMENT.get(node.op_type, 1.0) * sizes.elements(node.outputs[0])
