"""What TensorRT wants of QuantizeLinear and DequantizeLinear ("Working with Quantized Types", IQuantizeLayer).

Grids are symmetric: zero points are constants and 0. Scales are constants above 0, of the type of the floats; tensors
between layers have one, weights one per output channel, or one per block where a product reads them. Codes lie nowhere
but between the two operators, and four bits nowhere but in weights of products.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir

from optc.backends.tensorrt.operators import CODES
from optc.ir.facts import Facts
from optc.ir.ops import int_attr, is_op, operand
from optc.ir.rewriter import users

DType = onnx_ir.DataType
_NARROW = frozenset({DType.INT4, DType.FLOAT4E2M1})
_PRODUCTS = ("MatMul", "Gemm")
_AGAIN = "compile the float model with -O3 --calib DATA"

#: What is wrong, and what to do about it.
Finding = tuple[str, str]


def findings(node: onnx_ir.Node, facts: Facts) -> Iterator[Finding]:
    """What TensorRT does not take of a QuantizeLinear or DequantizeLinear."""
    quantizes = node.op_type == "QuantizeLinear"
    codes, floats = (node.outputs[0], node.inputs[0]) if quantizes else (node.inputs[0], node.outputs[0])
    dtype = facts.dtype(codes)
    if dtype is not None and dtype not in CODES:
        yield f"its codes are {dtype.name.lower()}", f"TensorRT has signed codes around 0 only: {_AGAIN}"
    yield from _parameters(node, facts, floats)
    scale = facts.shape(operand(node, 1))
    if scale is not None:
        yield from _scales(node, facts, codes, scale)
    if not quantizes and dtype in _NARROW and not (facts.is_const(codes) and _feeds_products(node)):
        yield f"codes of {dtype.name.lower()} are for constant weights of products", "use 8 bits here"


def stray_codes(value: onnx_ir.Value, facts: Facts) -> Finding | None:
    """What is wrong with a value of codes that something but a DequantizeLinear reads, or that something else makes."""
    readers = [
        use.node.op_type
        for use in value.uses()
        if not is_op(use.node, "DequantizeLinear") and not (is_op(use.node, "QuantizeLinear") and use.idx == 2)
    ]
    producer, dtype = value.producer(), facts.dtype(value) or value.dtype
    kind = dtype.name.lower() if dtype is not None else "codes"
    if readers:
        return f"{readers[0]} reads {kind} codes", "put the operator between DequantizeLinear and QuantizeLinear"
    if producer is not None and not is_op(producer, "QuantizeLinear", "Constant"):
        return f"{producer.op_type} makes {kind} codes", "put the operator between DequantizeLinear and QuantizeLinear"
    if producer is None and not value.is_initializer():
        return f"an input of {kind} is no tensor that TensorRT quantized", "give the model floats"
    return None


def _parameters(node: onnx_ir.Node, facts: Facts, floats: onnx_ir.Value | None) -> Iterator[Finding]:
    scale, zero = operand(node, 1), operand(node, 2)
    steps = facts.const(scale)
    if steps is None:
        yield "its scale is not constant", f"TensorRT computes no scales while it runs: {_AGAIN}"
    elif not (np.isfinite(steps.astype(np.float64)).all() and (steps.astype(np.float64) > 0).all()):
        yield "not all of its scales are above 0", _AGAIN
    if zero is not None:
        points = facts.const(zero)
        if points is None or points.astype(np.float64).any():
            yield "its zero point is not 0", f"TensorRT's grids are symmetric: {_AGAIN}"
    types = facts.dtype(scale), facts.dtype(floats)
    if None not in types and types[0] != types[1]:
        names = [one.name.lower() for one in types if one is not None]
        yield f"its scale is {names[0]} and its floats are {names[1]}", "give the scale the type of the floats"


def _scales(node: onnx_ir.Node, facts: Facts, codes: onnx_ir.Value | None, scale: tuple) -> Iterator[Finding]:
    shape, block = facts.shape(codes), int_attr(node, "block_size", 0)
    weights = node.op_type == "DequantizeLinear" and facts.is_const(codes)
    if block:
        yield from _blocks(node, facts, weights, shape, block)
    elif int(np.prod([dim for dim in scale if isinstance(dim, int)])) > 1 and scale:
        if not weights:
            yield "a tensor between layers has more than one scale", f"use one scale for it: {_AGAIN}"
        else:
            yield from _channels(node, facts, len(shape or ()))


def _blocks(node: onnx_ir.Node, facts: Facts, weights: bool, shape: tuple | None, block: int) -> Iterator[Finding]:
    axis = int_attr(node, "axis", 1)
    dtype = facts.dtype(node.inputs[0])
    if dtype == DType.INT8:
        yield "codes of int8 have no blocks with scales of their own", "use one scale per channel, or 4 bits"
    if not weights or not _feeds_products(node):
        yield "blocks with scales of their own are for constant weights of products", "use one scale per channel"
    if shape is None:
        return
    axis += len(shape) if axis < 0 else 0
    if axis < len(shape) - 2:
        yield "its blocks are along neither of the last two axes", "let them be along the rows of the matrix"
    if isinstance(shape[axis], int) and shape[axis] % block:
        yield f"blocks of {block} do not divide {shape[axis]}", "use blocks of a width that divides the rows"
    if dtype in _NARROW and isinstance(shape[-1], int) and shape[-1] % 2:
        yield "the last dim of weights in four bits must be even", "use 8 bits here"


def _channels(node: onnx_ir.Node, facts: Facts, rank: int) -> Iterator[Finding]:
    """Scales must be along the output channels of all that read the weights."""
    axis = int_attr(node, "axis", 1)
    axis += rank if axis < 0 else 0
    for user in users(node.outputs[0]):
        wanted = _output_axis(user, rank)
        if wanted is not None and axis != wanted:
            yield (
                f"its scales are along axis {axis}, and the output channels of {user.op_type} along axis {wanted}",
                "quantize the weights per output channel, or with one scale",
            )


def _output_axis(node: onnx_ir.Node, rank: int) -> int | None:
    """The axis of a layer's weights that its output channels are along; None for what is no layer."""
    if is_op(node, "Gemm"):
        return 0 if int_attr(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}.get(node.op_type) if node.domain == "" else None


def _feeds_products(node: onnx_ir.Node) -> bool:
    """Whether nothing but products reads a dequantized matrix, as their second operand."""
    uses = list(node.outputs[0].uses())
    return bool(uses) and all(is_op(use.node, *_PRODUCTS) and use.idx == 1 for use in uses)
