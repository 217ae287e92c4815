"""Cross-layer equalization: even channels between layers, by scaling one layer's outputs and the next one's inputs.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019). Where only a function f
with f(s x) = s f(x) for s > 0 lies between two layers (nothing, Relu, LeakyRelu), channel i between them may be divided
by any s_i > 0: the same function. The factors make the ranges of the weights that write a channel and of those that
read it alike; a depthwise convolution in the middle makes a triple of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import int_attr, is_op, only_use, operand
from optc.ir.rewriter import Rewriter, users
from optc.passes.base import Numerics, Pass, PassContext

#: What may lie between two layers.
_HOMOGENEOUS = ("Relu", "LeakyRelu", "Identity")
#: Rounds over all chains, and the change of the largest factor that ends them.
_ROUNDS, _SETTLED = 20, 0.01
#: Factors of one round are kept within these bounds; channels that are nearly dead are left alone.
_LEAST, _MOST, _DEAD = 1e-3, 1e3, 1e-8


@dataclass(frozen=True)
class Chain:
    """Layers of which each one's channels are read by the next alone.

    Attributes:
        first: The layer that writes the channels.
        middle: A depthwise convolution that keeps them apart; None for a pair.
        last: The layer that reads them.
    """

    first: onnx_ir.Node
    middle: onnx_ir.Node | None
    last: onnx_ir.Node


@dataclass(frozen=True)
class Equalize(Pass):
    """Scale channels between layers so that weights before and behind them have like ranges; the same function."""

    name: ClassVar[str] = "equalize"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def run(self, ctx: PassContext) -> None:
        count = equalize(ctx.rewriter)
        if count:
            ctx.hit(self.name, count)


def chains(graph: onnx_ir.Graph, facts: Facts) -> Iterator[Chain]:
    """The pairs and triples of a graph, in order."""
    for node in graph:
        if not _is_layer(node, facts) or _is_depthwise(node, facts):
            continue
        after = _next(node, facts)
        if after is None:
            continue
        if not _is_depthwise(after, facts):
            yield Chain(node, None, after)
        elif (last := _next(after, facts)) is not None and not _is_depthwise(last, facts):
            yield Chain(node, after, last)


def equalize(rw: Rewriter) -> int:
    """Equalize all chains of the main graph; how many there are."""
    facts = rw.facts
    found = list(chains(rw.model.graph, facts))
    nodes = list(dict.fromkeys(n for c in found for n in (c.first, c.middle, c.last) if n is not None))
    weights = {node: np.array(facts.const(node.inputs[1]), np.float64) for node in nodes}
    biases = {n: np.array(facts.const(b), np.float64) for n in nodes if (b := operand(n, 2)) is not None}
    for _ in range(_ROUNDS):
        largest = max((_balance(chain, weights, biases) for chain in found), default=0.0)
        if largest < _SETTLED:
            break
    for node in nodes:
        with rw.at(node, Equalize.name):
            for index, arrays in ((1, weights), (2, biases)):
                old = operand(node, index)
                if old is not None:
                    rw.set_input(node, index, rw.constant(arrays[node].astype(np.float32), f"{old.name}_equalized"))
                    rw.erase_initializer(old)
    return len(found)


def _balance(chain: Chain, weights: dict[onnx_ir.Node, np.ndarray], biases: dict[onnx_ir.Node, np.ndarray]) -> float:
    """Scale one chain's channels in place; how far the largest factor was from 1."""
    parts = [chain.first, *([chain.middle] if chain.middle is not None else [])]
    reach = [_written(node, weights[node]) for node in parts]
    reach.append(_read(chain.last, weights[chain.last]))
    mean = np.prod(reach, axis=0) ** (1 / len(reach))
    alive = np.min(reach, axis=0) > _DEAD * max(float(one.max(initial=0)) for one in reach)
    # Dividing the first by r1 / mean gives it the range mean, and so for each: what is divided here is multiplied next.
    before = np.ones_like(mean)
    change = 0.0
    for node, own in zip(parts, reach, strict=False):
        scale = np.where(alive, np.clip(own / np.where(alive, mean, 1), _LEAST, _MOST), 1.0)
        total = before * scale
        shape = [1] * weights[node].ndim
        shape[_written_axis(node)] = -1
        # A depthwise convolution reads what was divided by ``before`` and writes what is divided by ``total``.
        weights[node] *= (before / total).reshape(shape)
        if node in biases:
            biases[node] /= total
        before = total
        change = max(change, float(np.abs(np.log(scale)).max(initial=0)))
    shape = [1] * weights[chain.last].ndim
    shape[_read_axis(chain.last)] = -1
    weights[chain.last] *= before.reshape(shape)
    return change


def _written_axis(node: onnx_ir.Node) -> int:
    return 0 if is_op(node, "Conv") or int_attr(node, "transB", 0) else 1


def _read_axis(node: onnx_ir.Node) -> int:
    return 1 - _written_axis(node)


def _written(node: onnx_ir.Node, weight: np.ndarray) -> np.ndarray:
    """The largest weight that writes each channel."""
    return _over(weight, _written_axis(node))


def _read(node: onnx_ir.Node, weight: np.ndarray) -> np.ndarray:
    """The largest weight that reads each channel."""
    return _over(weight, _read_axis(node))


def _over(weight: np.ndarray, axis: int) -> np.ndarray:
    others = tuple(one for one in range(weight.ndim) if one != axis)
    return np.abs(weight).max(axis=others, initial=0)


def _next(node: onnx_ir.Node, facts: Facts) -> onnx_ir.Node | None:
    """The layer that alone reads what a layer writes, behind homogeneous functions."""
    value = node.outputs[0]
    while only_use(value):
        reader = users(value)[0]
        if reader.graph is not node.graph or reader.inputs[0] is not value:
            return None
        if _is_layer(reader, facts):
            if is_op(reader, "Conv") != is_op(node, "Conv"):
                return None  # the axis that one writes is not the one that the other sums over
            same = _count(node, facts, _written_axis) == _count(reader, facts, _read_axis)
            return reader if same or _is_depthwise(reader, facts) else None
        if not is_op(reader, *_HOMOGENEOUS):
            return None
        value = reader.outputs[0]
    return None


def _count(node: onnx_ir.Node, facts: Facts, axis: Callable[[onnx_ir.Node], int]) -> object:
    """How many channels a layer writes or reads."""
    shape = facts.shape(node.inputs[1])
    return None if shape is None else shape[axis(node)]


def _is_depthwise(node: onnx_ir.Node, facts: Facts) -> bool:
    """Whether every channel of a convolution is made of one channel."""
    shape = facts.shape(node.inputs[1])
    return is_op(node, "Conv") and shape is not None and shape[1] == 1 and int_attr(node, "group", 1) == shape[0] > 1


def _is_layer(node: onnx_ir.Node, facts: Facts) -> bool:
    """A Conv, MatMul or Gemm with constant parameters in single precision, whose channels can be scaled."""
    if not is_op(node, "Conv", "MatMul", "Gemm") or facts.is_const(node.inputs[0]):
        return False
    given = [(1, facts.rank(node.inputs[1])), *([(2, 1)] if operand(node, 2) is not None else [])]
    for index, rank in given:
        value = node.inputs[index]
        if not facts.is_const(value) or facts.rank(value) != rank or facts.dtype(value) != onnx_ir.DataType.FLOAT:
            return False
    if is_op(node, "Conv"):
        return int_attr(node, "group", 1) == 1 or _is_depthwise(node, facts)
    plain: Sequence[str] = ("alpha", "beta", "transA")
    attributes = {name: node.attributes[name].value for name in plain if name in node.attributes}
    return facts.rank(node.inputs[1]) == 2 and all(
        value == (0 if name == "transA" else 1) for name, value in attributes.items()
    )
