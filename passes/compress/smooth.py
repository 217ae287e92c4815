"""SmoothQuant: moving what makes activations hard to quantize into the weights behind them.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models" (2022). Each
channel j of the activations x is divided by s_j and row j of every weight that reads x is multiplied by it: the same
function. Dividing costs nothing where the producer can do it, and one product per element where it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import int_attr, is_op, only_use, operand
from optc.ir.rewriter import Rewriter, users
from optc.passes.compress.layers import Layer

#: Strengths that are tried: 0 moves nothing, 1 moves all of the activations' spread into the weights.
ALPHAS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
#: Rows from which on what they say of single channels holds for others. With fewer, factors fitted to the largest of
#: each channel would let every channel of other data be clipped.
ENOUGH = 128
#: Factors are kept within these bounds of their geometric mean: a channel that was silent need not stay so.
_LEAST, _MOST = 1e-3, 1e4
_TINY = 1e-5

#: Normalizations whose scale (and bias) multiply the channels: the inputs that do.
_NORMS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "LayerNormalization"): (1, 2),
    ("", "RMSNormalization"): (1,),
    ("", "SimplifiedLayerNormalization"): (1,),
    ("com.microsoft", "SkipLayerNormalization"): (2, 3),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): (2,),
}
#: Operators f with f(x * s) = f(x) * s for positive s of one factor per channel, elementwise.
_HOMOGENEOUS = ("Relu", "LeakyRelu", "Identity")


def factors(absmax: np.ndarray, weights: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """How much smaller to make each channel.

    Args:
        absmax: The largest magnitude of every channel of the activations, (K,).
        weights: The weights that read them, (K, N) each.
        alpha: How much of the spread to move.

    Returns:
        (K,) float32, positive, of geometric mean 1.
    """
    reach = np.max([np.abs(weight).max(axis=1, initial=0) for weight in weights], axis=0)
    scale = np.maximum(absmax, _TINY) ** alpha / np.maximum(reach, _TINY) ** (1 - alpha)
    scale = np.where((absmax > 0) & (reach > 0), scale, 1.0) if alpha else np.ones_like(reach)
    scale = scale / np.exp(np.mean(np.log(scale)))
    return np.clip(scale, _LEAST, _MOST).astype(np.float32)


def best_factors(
    absmax: np.ndarray,
    weights: Sequence[np.ndarray],
    error: Callable[[np.ndarray], float],
    alphas: Sequence[float] = ALPHAS,
) -> tuple[float, np.ndarray, float]:
    """The strength whose factors make the least error, those factors, and the error.

    Args:
        absmax, weights: As for :func:`factors`.
        error: The error of the layers' outputs when activations are divided by some factors.
        alphas: The strengths to try.
    """
    tried = []
    for alpha in alphas:
        scale = factors(absmax, weights, alpha)
        tried.append((error(scale), alpha, scale))
    least, alpha, scale = min(tried, key=lambda one: one[:2])
    return alpha, scale, least


# -- folding --------------------------------------------------------------------------------------------------------


def why_not_folded(x: onnx_ir.Value, layers: Sequence[Layer], facts: Facts) -> str | None:
    """Why the producer of an activation cannot divide it at no cost; None if it can.

    Args:
        x: The activation, (..., K).
        layers: The products that read it and are to be scaled.
        facts: What is known of the graph.
    """
    if x.is_graph_output():
        return "it is an output of the model"
    scaled = {layer.node for layer in layers if layer.x is x}
    if any(user not in scaled for user in users(x)):
        return "something else than products reads it"
    target = _producer(x, facts)
    return target if isinstance(target, str) else None


def fold_scale(rw: Rewriter, x: onnx_ir.Value, scale: np.ndarray, layers: Sequence[Layer]) -> None:
    """Let the producer of ``x`` make ``x / scale``, and multiply the rows of the weights that read it.

    Args:
        rw: The rewriter of the model.
        x: The activation, for which :func:`why_not_folded` knows no reason.
        scale: One positive factor per channel, (K,).
        layers: The products that read it.
    """
    target = _producer(x, rw.facts)
    assert not isinstance(target, str), target
    node, places = target
    inverse = (1 / scale.astype(np.float64)).astype(np.float32)
    with rw.at(node, "smooth"):
        for place in places:
            _scale_constant(rw, node, place.operand, inverse, place.axis)
    for layer in layers:
        scale_rows(rw, layer, scale)


def move(rw: Rewriter, x: onnx_ir.Value, scale: np.ndarray, layers: Sequence[Layer]) -> onnx_ir.Value:
    """Let products read ``x / scale`` with their weights scaled: at no cost where that is possible.

    Returns:
        What they read now.
    """
    if why_not_folded(x, layers, rw.facts) is None:
        fold_scale(rw, x, scale, layers)
        return x
    return divide(rw, x, scale, layers)


def divide(rw: Rewriter, x: onnx_ir.Value, scale: np.ndarray, layers: Sequence[Layer]) -> onnx_ir.Value:
    """Let some products read ``x / scale``, made by a Mul of its own, and multiply the rows of their weights."""
    first = min(layers, key=lambda layer: _position(layer.node)).node
    with rw.at(first, "smooth", [layer.node for layer in layers]):
        inverse = rw.constant((1 / scale.astype(np.float64)).astype(np.float32), f"{x.name}_smooth")
        divided = rw.op("Mul", x, inverse)
        rw.facts.assume(divided, like=x)
        for layer in layers:
            rw.set_input(layer.node, 0, divided)
            scale_rows(rw, layer, scale)
    return divided


def scale_rows(rw: Rewriter, layer: Layer, scale: np.ndarray) -> None:
    """Multiply the rows of a product's weight, one factor per input channel."""
    with rw.at(layer.node, "smooth"):
        _scale_constant(rw, layer.node, 1, scale, 1 if layer.transposed else 0)


def _scale_constant(rw: Rewriter, node: onnx_ir.Node, index: int, scale: np.ndarray, axis: int) -> None:
    old = node.inputs[index]
    assert old is not None
    array = rw.facts.const(old)
    assert array is not None
    shape = [1] * array.ndim
    shape[axis] = -1
    product = (array.astype(np.float64) * scale.reshape(shape)).astype(np.float32)
    rw.set_input(node, index, rw.constant(product, f"{old.name}_smooth"))
    rw.erase_initializer(old)


class _Place(NamedTuple):
    """A constant of a node that has a number per channel: which input, along which axis, of what rank."""

    operand: int
    axis: int
    rank: int


_Target = tuple[onnx_ir.Node, list[_Place]]


def _producer(x: onnx_ir.Value, facts: Facts) -> _Target | str:
    """The node whose constants scale the channels of ``x``, with their places; or why there is none."""
    node = x.producer()
    while node is not None and is_op(node, *_HOMOGENEOUS) and node.inputs[0] is not None:
        if not only_use(node.inputs[0]):
            return f"what is in front of {node.op_type} is also read elsewhere"
        node = node.inputs[0].producer()
    if node is None:
        return "it is an input of the model"
    if (node.domain, node.op_type) in _NORMS:
        return _norm(node, facts)
    if is_op(node, "Mul"):
        return _factor(node, facts)
    if is_op(node, "MatMul"):
        return _checked(node, [_Place(1, 1, 2)], facts)
    if (node.domain, node.op_type) == ("com.microsoft", "FusedMatMul"):
        return _checked(node, [_Place(1, 0 if int_attr(node, "transB", 0) else 1, 2)], facts)
    if is_op(node, "Gemm"):
        places = [_Place(1, 0 if int_attr(node, "transB", 0) else 1, 2), _Place(2, 0, 1)]
        return _checked(node, [place for place in places if operand(node, place.operand) is not None], facts)
    return f"{node.op_type} cannot scale its channels"


def _factor(node: onnx_ir.Node, facts: Facts) -> _Target | str:
    """What scales one factor of a product of two activations, as in gated units."""
    for value, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        if facts.shape(value) == facts.shape(node.outputs[0]) and value is not other and only_use(value):
            found = _producer(value, facts)
            if not isinstance(found, str):
                return found
    return "neither factor's producer can scale its channels"


def _norm(node: onnx_ir.Node, facts: Facts) -> _Target | str:
    if node.domain == "" and int_attr(node, "axis", -1) not in (-1, (facts.rank(node.inputs[0]) or 0) - 1):
        return "the normalization is not over the channels alone"
    given = [index for index in _NORMS[node.domain, node.op_type] if operand(node, index) is not None]
    if not given or given[0] != _NORMS[node.domain, node.op_type][0]:
        return "the normalization has no scale"
    return _checked(node, [_Place(index, 0, 1) for index in given], facts)


def _checked(node: onnx_ir.Node, places: list[_Place], facts: Facts) -> _Target | str:
    for place in places:
        value = node.inputs[place.operand]
        if not facts.is_const(value) or facts.rank(value) != place.rank:
            return f"the parameters of {node.op_type} are not constant"
        if facts.dtype(value) != onnx_ir.DataType.FLOAT:
            return f"the parameters of {node.op_type} are not in single precision"
    return node, places


def _position(node: onnx_ir.Node) -> int:
    assert node.graph is not None
    return next(index for index, other in enumerate(node.graph) if other is node)
