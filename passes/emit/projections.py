"""Queries, keys and values as one product, as ONNX Runtime's ``Attention`` wants them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir

from optc.ir import ops
from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter


@dataclass(frozen=True)
class Projection:
    """``source @ weight + bias`` with a constant matrix and a constant vector.

    Attributes:
        source: (B, S, D).
        weight: (D, W).
        bias: (W,), or None.
        nodes: The nodes that compute it.
    """

    source: onnx_ir.Value
    weight: onnx_ir.Value
    bias: onnx_ir.Value | None
    nodes: tuple[onnx_ir.Node, ...]


def merged(facts: Facts, call: onnx_ir.Node) -> tuple[list[Projection], tuple[int, int, int]] | str:
    """The projections that a call's queries, keys and values are, and their widths; or why they are not merged.

    One projection is given where the model holds a merged one already, which a Split takes apart; else three.
    """
    q, k, v = (value for value in call.inputs[:3])
    shapes = [facts.shape(value) for value in (q, k, v)]
    if any(shape is None or len(shape) != 3 or not isinstance(shape[2], int) for shape in shapes):
        return "queries, keys and values must be flat"
    widths = tuple(shape[2] for shape in shapes)  # type: ignore[index]
    split = q.producer()
    if split is not None and ops.is_op(split, "Split") and tuple(split.outputs) == (q, k, v):
        if ops.axis_of(split, facts, 0) != 2 or any(len(value.uses()) != 1 for value in split.outputs):
            return "queries, keys and values must be all of what is split, and be read here only"
        whole = projection(facts, split.inputs[0])
        if whole is None:
            return "queries, keys and values must be pieces of a product with a constant matrix"
        return [whole], widths  # type: ignore[return-value]
    each = [projection(facts, value) for value in (q, k, v)]
    if any(one is None for one in each):
        return "queries, keys and values must be products with constant matrices, read here only"
    found = [one for one in each if one is not None]
    if any(one.source is not found[0].source for one in found):
        return "queries, keys and values must be products of one value"
    if any(len(one.weight.uses()) > 1 or one.weight.is_graph_output() for one in found):
        return "a matrix that is used elsewhere as well would be stored twice"
    return found, widths  # type: ignore[return-value]


def projection(facts: Facts, value: onnx_ir.Value | None) -> Projection | None:
    """What a flat value that is read once is the product of."""
    if value is None or not ops.only_use(value):
        return None
    product, bias = _without_bias(facts, value)
    if product is not value and not ops.only_use(product):
        return None
    matmul = ops.made_by(product, "MatMul")
    if matmul is None:
        return None
    source, weight = matmul.inputs
    if source is None or facts.rank(source) != 3 or facts.rank(weight) != 2 or not facts.is_const(weight):
        return None
    nodes = (matmul,) if product is value else (matmul, value.producer())
    return Projection(source, weight, bias, nodes)  # type: ignore[arg-type]


def _without_bias(facts: Facts, value: onnx_ir.Value) -> tuple[onnx_ir.Value, onnx_ir.Value | None]:
    """What a constant vector is added to, and the vector; or the value itself."""
    add, shape = ops.made_by(value, "Add"), facts.shape(value)
    if add is not None and shape is not None:
        for x, bias in (add.inputs, reversed(add.inputs)):
            if facts.is_const(bias) and facts.shape(bias) == shape[-1:] and facts.shape(x) == shape:
                return x, bias  # type: ignore[return-value]
    return value, None


def merge(
    rw: Rewriter, projections: list[Projection], widths: tuple[int, int, int]
) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """(D, W) and (W,): the matrix and the bias, zeros where there is none, of the product of all.

    The kernel of the CPU reads the bias without asking whether there is one.
    """
    tensors = [rw.facts.tensor(one.weight) for one in projections]
    dtype = tensors[0].dtype  # type: ignore[union-attr]
    if len(projections) == 1:
        (one,) = projections
        return one.weight, one.bias or rw.constant(np.zeros(sum(widths), dtype.numpy()), "qkv_bias")
    shape = onnx_ir.Shape((rw.facts.shape(projections[0].weight)[0], sum(widths)))  # type: ignore[index, list-item]

    def join() -> onnx_ir.Tensor:
        return onnx_ir.Tensor(np.concatenate([tensor.numpy() for tensor in tensors], 1), dtype=dtype)  # type: ignore[union-attr]

    parts = [
        np.zeros(width, dtype.numpy()) if one.bias is None else rw.facts.const(one.bias)
        for one, width in zip(projections, widths, strict=True)
    ]
    weight = rw.constant(onnx_ir.LazyTensor(join, dtype, shape), "qkv_weight")
    return weight, rw.constant(np.concatenate(parts), "qkv_bias")  # type: ignore[arg-type]
