"""Operators between DequantizeLinear and QuantizeLinear, which integer kernels compute without leaving integers.

The kernels sum products exactly, in 32 bits, and scale once; the operators of floats round every sum. Both then round
to the same grid, so that an element may come out one step apart where the exact result lies between two steps. It is
what ONNX Runtime makes of such graphs when it loads them; here it is only done where the sum provably fits its 32 bits
and a bias has the scale that the kernels take for granted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.functions import outline
from optc.ir.ops import int_attr, ints_attr, made_by, only_use, operand
from optc.ir.rewriter import Rewriter
from optc.passes.base import Numerics
from optc.passes.clean.rules_quantized import RANGES, Grid, grid_of
from optc.passes.rule import node_rule

DType = onnx_ir.DataType
_BYTES = frozenset({DType.INT8, DType.UINT8})
_INT32_MAX = 2**31 - 1
#: How far a bias's scale may be from the product of the others: a few roundings in single precision.
_SCALE_ERROR = 1e-6


class _Quantized(NamedTuple):
    """A tensor of integers, the parameters that make floats of them, and the node that does."""

    value: onnx_ir.Value
    scale: onnx_ir.Value
    zero: onnx_ir.Value
    grid: Grid
    node: onnx_ir.Node

    @property
    def triple(self) -> list[onnx_ir.Value]:
        return [self.value, self.scale, self.zero]

    @property
    def reach(self) -> int:
        """The largest distance of an integer from the zero point."""
        low, high = RANGES[self.grid.dtype]
        return max(max(high - zero, zero - low) for zero in self.grid.zero)


class _Site(NamedTuple):
    """An operator on dequantized operands whose result is quantized (or not, where ``result`` is None).

    What is ``added`` to the result are floats.
    """

    rw: Rewriter
    node: onnx_ir.Node
    operands: list[_Quantized]
    result: _Quantized | None
    added: list[onnx_ir.Value]

    @property
    def made(self) -> list[onnx_ir.Value]:
        """Scale and zero point of the result."""
        assert self.result is not None
        return [self.result.scale, self.result.zero]


#: Inputs of the fused op, or the reason why it cannot serve.
_Inputs = list[onnx_ir.Value | None] | str


@dataclass(frozen=True)
class _Kind:
    """How one operator's quantized form is made.

    Attributes:
        fused: The fused op.
        inputs: Its inputs.
        floats: Inputs of the operator, from the first on, that are dequantized; None for all of them.
        first: The first of these.
        attributes: Names of the operator's attributes that the fused op keeps.
        checked: Names of those that it lacks, but ``inputs`` makes sure to be of no effect; no other may be set.
        bias: Which input is a bias of 32-bit integers, if it is there.
    """

    fused: str
    inputs: Callable[[_Site], _Inputs]
    floats: int | None = 1
    first: int = 0
    attributes: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    bias: int | None = None


def _quantized(rw: Rewriter, value: onnx_ir.Value | None, dtypes: frozenset[DType] = _BYTES) -> _Quantized | str:
    """What a float operand is dequantized from."""
    node = made_by(value, "DequantizeLinear")
    if node is None:
        return "an operand is not dequantized"
    return _described(rw, node, node.inputs[0], dtypes)


def _described(rw: Rewriter, node: onnx_ir.Node, value: onnx_ir.Value, dtypes: frozenset[DType]) -> _Quantized | str:
    facts = rw.facts
    dtype, scale = facts.dtype(value), facts.const(operand(node, 1))
    if dtype not in dtypes:
        return f"integers of type {'unknown' if dtype is None else dtype.name.lower()} have no kernel"
    grid = grid_of(node, facts) if dtype in RANGES else _bias_grid(node, facts)
    if grid is None or scale is None:
        return "scales and zero points must be constant, in single precision, and not by blocks"
    zero = operand(node, 2)
    if zero is None:
        zero = rw.constant(np.zeros(scale.shape, dtype.numpy()), "zero_point")
    return _Quantized(value, node.inputs[1], zero, grid, node)


def _bias_grid(node: onnx_ir.Node, facts: Facts) -> Grid | None:
    """The grid of 32-bit integers, whose zero point is 0."""
    scale, zero = facts.const(operand(node, 1)), facts.const(operand(node, 2))
    if scale is None or facts.dtype(operand(node, 1)) != DType.FLOAT or (zero is not None and zero.any()):
        return None
    axis = 0 if scale.size > 1 else None
    return Grid(DType.INT32, tuple(map(float, scale.reshape(-1))), (0,) * scale.size, axis)


def _elementwise(site: _Site) -> _Inputs:
    if not all(one.grid.single for one in (*site.operands, site.result) if one is not None):
        return "there must be one scale for all elements"
    return [*(value for one in site.operands for value in one.triple), *site.made]


def _concat(site: _Site) -> _Inputs:
    inputs = _elementwise(site)
    return inputs if isinstance(inputs, str) else [*site.made, *inputs[:-2]]


def _where(site: _Site) -> _Inputs:
    inputs = _elementwise(site)
    return inputs if isinstance(inputs, str) else [site.node.inputs[0], *inputs]


def _average_pool(site: _Site) -> _Inputs:
    if set(ints_attr(site.node, "dilations") or (1,)) != {1}:
        return "the kernel knows no dilations"
    return _elementwise(site)


def _max_pool(site: _Site) -> _Inputs:
    (x,), y = site.operands, site.result
    if y is None or x.grid != y.grid or not x.grid.single:
        return "the scales and zero points before and behind must be the same"
    return [x.value]


def _product(site: _Site, weight_axis: int, sum_axes: Callable[[int], Sequence[int]]) -> _Inputs | None:
    """Refuse products whose scales or sums the kernels cannot take; None if they can.

    Args:
        site: The product.
        weight_axis: The axis of the weights along which they may have scales of their own, from the front.
        sum_axes: The axes of the weights that are summed over, given their rank.
    """
    x, w = site.operands[:2]
    bias = site.operands[2] if len(site.operands) > 2 else None
    if not x.grid.single or (site.result is not None and not site.result.grid.single):
        return "the activations must have one scale"
    if not w.grid.single and (w.grid.axis != weight_axis or len(set(w.grid.zero)) > 1):
        return "the weights may have one scale, or one per output channel with one zero point"
    if bias is not None:
        wanted = np.float64(x.grid.scale[0]) * np.asarray(w.grid.scale)
        if len(bias.grid.scale) not in (1, wanted.size) or not np.allclose(
            bias.grid.scale, wanted, rtol=_SCALE_ERROR, atol=0
        ):
            return "the bias must have the scale of the product"
    if _largest_sum(site.rw.facts, x, w, bias, sum_axes) > _INT32_MAX:
        return "the sum of the products might not fit 32 bits"
    return None


def _largest_sum(
    facts: Facts, x: _Quantized, w: _Quantized, bias: _Quantized | None, sum_axes: Callable[[int], Sequence[int]]
) -> float:
    """A bound of the magnitude of the sums; infinite where none is known."""
    shape = facts.shape(w.value)
    if shape is None:
        return np.inf
    axes = tuple(sum_axes(len(shape)))
    weights = facts.const(w.value)
    if weights is not None:
        rows = np.abs(weights.astype(np.int32) - w.grid.zero[0]).sum(axis=axes, dtype=np.int64)
        largest = int(rows.max(initial=0))
    else:
        dims = [shape[axis] for axis in axes]
        if not all(isinstance(dim, int) for dim in dims):
            return np.inf
        largest = int(np.prod([*dims, 1], dtype=np.int64)) * w.reach  # type: ignore[arg-type]
    added = 0
    if bias is not None:
        addends = facts.const(bias.value)
        added = _INT32_MAX if addends is None else int(np.abs(addends.astype(np.int64)).max(initial=0))
    return largest * x.reach + added


def _conv(site: _Site) -> _Inputs:
    x, w, *bias = site.operands
    reason = _product(site, 0, lambda rank: range(1, rank))
    return reason or [*x.triple, *w.triple, *site.made, *(value for one in bias for value in one.triple)]


def _matmul(site: _Site) -> _Inputs:
    a, b = site.operands
    rank = site.rw.facts.rank(b.value)
    if rank is None or rank < 2 or (not b.grid.single and rank != 2):
        return "the second operand must be a matrix"
    reason = _product(site, rank - 1, lambda rank: (rank - 2,))
    if reason:
        return reason
    if site.result is None:  # MatMulIntegerToFloat
        return [a.value, b.value, a.scale, b.scale, a.zero, b.zero, *site.added]
    return [*a.triple, *b.triple, *site.made]


def _gemm(site: _Site) -> _Inputs:
    a, b, *bias = site.operands
    transposed = int_attr(site.node, "transB", 0)
    beta = site.node.attributes.get("beta")
    if beta is not None and beta.as_float() != 1.0:
        return "beta must be 1"
    if site.node.attributes.get("alpha") is not None and site.node.attributes["alpha"].as_float() != 1.0 and bias:
        return "alpha must be 1 beside a bias"
    reason = _product(site, 0 if transposed else 1, lambda rank: (rank - 1 if transposed else rank - 2,))
    if reason:
        return reason
    columns = site.rw.facts.shape(b.value)
    if bias and (columns is None or site.rw.facts.shape(bias[0].value) != (columns[0 if transposed else 1],)):
        return "the bias must be one number per column"
    given = bias[0].triple if bias else [None]
    made = [] if site.result is None else site.made
    return [*a.triple, *b.triple, given[0], *made, *given[1:]]


_POOL = ("auto_pad", "ceil_mode", "kernel_shape", "pads", "strides")
#: Operator on floats -> how its quantized form is made.
KINDS: dict[str, _Kind] = {
    "Conv": _Kind(
        "QLinearConv", _conv, 2, 0, ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"), bias=2
    ),
    "MatMul": _Kind("QLinearMatMul", _matmul, 2),
    "Gemm": _Kind("QGemm", _gemm, 2, 0, ("alpha", "transA", "transB"), ("beta",), bias=2),
    "Add": _Kind("QLinearAdd", _elementwise, 2),
    "Mul": _Kind("QLinearMul", _elementwise, 2),
    "Sigmoid": _Kind("QLinearSigmoid", _elementwise),
    "LeakyRelu": _Kind("QLinearLeakyRelu", _elementwise, attributes=("alpha",)),
    "AveragePool": _Kind(
        "QLinearAveragePool", _average_pool, attributes=(*_POOL, "count_include_pad"), checked=("dilations",)
    ),
    "GlobalAveragePool": _Kind("QLinearGlobalAveragePool", _elementwise),
    "Concat": _Kind("QLinearConcat", _concat, None, attributes=("axis",)),
    "Where": _Kind("QLinearWhere", _where, 2, 1),
    "MaxPool": _Kind("QuantizedMaxPool", _max_pool, attributes=(*_POOL, "dilations", "storage_order")),
}
#: Binary operators whose operands all have the type of the result in ONNX Runtime's kernels.
_ONE_TYPE = frozenset({"Add", "Mul", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool", "Where"})


@node_rule("quantized-op", "QuantizeLinear", numerics=Numerics.ROUNDING)
def quantized_op(rw: Rewriter, node: onnx_ir.Node):
    """An operator on dequantized operands whose result is quantized again works on the integers."""
    inside = made_by(node.inputs[0], *KINDS)
    if inside is None or inside.graph is not node.graph:
        return None
    if len([value for value in inside.outputs if value.uses() or value.is_graph_output()]) > 1:
        return "another output of the operator is used"
    if not only_use(node.inputs[0]):
        return "the float result is also used elsewhere"
    result = _described(rw, node, node.outputs[0], _BYTES)
    return result if isinstance(result, str) else _fuse(rw, inside, KINDS[inside.op_type], result)


#: Operator on floats -> how the form that multiplies integers and writes floats is made.
TO_FLOAT = {
    "MatMul": _Kind("MatMulIntegerToFloat", _matmul, 2),
    "Gemm": _Kind("GemmIntegerToFloat", _gemm, 2, 0, ("alpha", "transA", "transB"), ("beta",), bias=2),
}


@node_rule("dequantized-product", "MatMul", "Gemm", numerics=Numerics.ROUNDING)
def dequantized_product(rw: Rewriter, node: onnx_ir.Node):
    """A product of two dequantized matrices multiplies the integers and scales the result."""
    if not all(made_by(value, "DequantizeLinear") for value in node.inputs):
        return None
    return _fuse(rw, node, TO_FLOAT[node.op_type], None)


@node_rule("dequantized-matmul-bias", "Add", numerics=Numerics.ROUNDING)
def dequantized_matmul_bias(rw: Rewriter, node: onnx_ir.Node):
    """A number per column that is added to a product of dequantized matrices is added by the same kernel."""
    for value, bias in (node.inputs, reversed(node.inputs)):
        product = made_by(value, "MatMul")
        if product is None or not all(made_by(one, "DequantizeLinear") for one in product.inputs):
            continue
        columns = rw.facts.shape(product.inputs[1])
        if not only_use(value) or product.graph is not node.graph:
            return "the product is also used elsewhere"
        if not columns or not rw.facts.is_const(bias) or rw.facts.shape(bias) != (columns[-1],):
            return "what is added must be constant, one number per column"
        return _fuse(rw, product, TO_FLOAT["MatMul"], None, node, bias)
    return None


def _fuse(
    rw: Rewriter,
    node: onnx_ir.Node,
    kind: _Kind,
    result: _Quantized | None,
    adder: onnx_ir.Node | None = None,
    bias: onnx_ir.Value | None = None,
) -> str | bool:
    """Replace an operator with its De- and QuantizeLinears, and the Add behind it, by the fused op; or say why not."""
    unknown = set(node.attributes) - {*kind.attributes, *kind.checked}
    if unknown:
        return f"the kernel knows no {sorted(unknown)[0]}"
    end = len(node.inputs) if kind.floats is None else kind.first + kind.floats
    operands: list[_Quantized] = []
    for index in range(kind.first, end):
        one = _quantized(rw, node.inputs[index])
        if isinstance(one, str):
            return one
        operands.append(one)
    if kind.bias is not None and operand(node, kind.bias) is not None:
        one = _quantized(rw, node.inputs[kind.bias], frozenset({DType.INT32}))
        if isinstance(one, str):
            return "the bias must be dequantized from 32-bit integers"
        operands.append(one)
    if node.op_type in _ONE_TYPE and len({one.grid.dtype for one in (*operands, result) if one is not None}) > 1:
        return "operands and result must have one type"
    site = _Site(rw, node, operands, result, [] if bias is None else [bias])
    inputs = kind.inputs(site)
    if isinstance(inputs, str):
        return inputs
    last = adder or (node if result is None else result.node)
    before = [one.node for one in operands]
    attributes: dict[str, Any] = {name: attr.value for name, attr in node.attributes.items() if name in kind.attributes}
    with rw.at(node, "dequantize", before):
        for index, value in enumerate(node.inputs):
            if made_by(value, "DequantizeLinear") in before and not only_use(value):
                rw.set_input(node, index, _copy(rw, value))
    parts = [made for value in node.inputs if (made := made_by(value, "DequantizeLinear")) is not None]
    name = "dequantized-product" if result is None else "quantized-op"
    with rw.at(last, name, [*parts, node]):
        outline(
            rw, kind.fused, inputs, last.outputs[:1], [*parts, node, *([last] if last is not node else [])], attributes
        )
    return True


def _copy(rw: Rewriter, value: onnx_ir.Value) -> onnx_ir.Value:
    """A DequantizeLinear of its own for one reader."""
    node = value.producer()
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    return rw.op("DequantizeLinear", *node.inputs, **attributes)


#: In phases: a product whose result is quantized is the larger match, and then one with a bias.
PHASES = ((quantized_op,), (dequantized_matmul_bias,), (dequantized_product,))
