"""What a layer is for, found from the graph and never from names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.rewriter import users
from optc.passes.compress.layers import Layer

#: What is no layer, and so has a precision only.
RESIDUAL = "residual"
#: All roles, and what they are; a layer has several. A part after a dot narrows the role before it.
ROLES: dict[str, str] = {
    "attention": "makes queries, keys or values of attention, or takes its output",
    "attention.in": "makes queries, keys or values of attention",
    "attention.out": "takes the output of attention",
    "ffn": "stands before or after an activation between two layers",
    "ffn.up": "its output goes through an activation, or is gated by one, to another layer",
    "ffn.down": "its input comes through an activation from another layer",
    "conv": "a convolution",
    "conv.depthwise": "a convolution of each channel by itself",
    "conv.pointwise": "a convolution with a kernel of one pixel",
    "matmul": "a MatMul or Gemm",
    "first": "no other layer stands before it",
    "last": "no other layer stands behind it",
    RESIDUAL: "adds two values of one shape, as residual connections do; only its precision can change",
}

_ACTIVATIONS = frozenset(
    (
        *("Relu", "LeakyRelu", "Elu", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Silu", "Swish", "Mish"),
        *("HardSwish", "Sigmoid", "Tanh", "Erf", "Softplus"),
    )
)
_ATTENTIONS = frozenset(("Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention"))


def roles_of(layers: Sequence[Layer], facts: Facts) -> list[frozenset[str]]:
    """The roles of each layer, see :data:`ROLES`.

    A layer's surroundings are what can be reached from it without passing another layer or an attention. Attention is
    an operator of that kind, or a product of two values that are computed (scores, and their sums over the values).
    """
    nodes = {layer.node for layer in layers}
    walk = _Walk(lambda node: node in nodes or _is_attention(node, facts))
    roles = [set(_roles(layer, walk, facts, nodes)) for layer in layers]
    gates = {
        (layer.x, user)
        for layer, own in zip(layers, roles, strict=True)
        if "ffn.up" in own
        for user in walk.forth(layer.node)[0]
    }
    for layer, own in zip(layers, roles, strict=True):
        if own == {"matmul"} and any((layer.x, user) in gates for user in walk.forth(layer.node)[0]):
            own |= {"ffn", "ffn.up"}  # the other half of a gated unit
    return [frozenset(own) for own in roles]


def _roles(layer: Layer, walk: _Walk, facts: Facts, layers: set[onnx_ir.Node]) -> Iterable[str]:
    before, seen_before = walk.back(layer.node)
    behind, seen_behind = walk.forth(layer.node)
    yield layer.kind
    if layer.kind == "conv":
        shape = facts.shape(layer.weight) or ()
        if layer.groups > 1 and shape[1:2] == (1,):
            yield "conv.depthwise"
        elif all(size == 1 for size in shape[2:]):
            yield "conv.pointwise"
    makes = any(_is_attention(node, facts) for node in behind)
    takes = any(_is_attention(node, facts) for node in before)
    if makes or takes:
        yield from ("attention", "attention.in" if makes else "attention.out")
    elif layer.kind == "matmul":
        up = _activated(seen_behind) and any(node in layers for node in behind)
        down = _activated(seen_before) and any(node in layers for node in before)
        if up or down:
            yield from ("ffn", "ffn.up" if up and not down else "ffn.down")
    if not before:
        yield "first"
    if not behind:
        yield "last"


def _is_attention(node: onnx_ir.Node, facts: Facts) -> bool:
    if node.op_type in _ATTENTIONS:
        return True
    return node.op_type in ("MatMul", "FusedMatMul") and not any(
        value is None or facts.is_const(value) for value in node.inputs[:2]
    )


def _activated(nodes: Iterable[onnx_ir.Node]) -> bool:
    return any(node.op_type in _ACTIVATIONS for node in nodes)


class _Walk:
    """Walks from a node until something stops it."""

    def __init__(self, stops: Callable[[onnx_ir.Node], bool]) -> None:
        self.stops = stops

    def back(self, start: onnx_ir.Node) -> tuple[set[onnx_ir.Node], set[onnx_ir.Node]]:
        """What stops the walk against the flow, and what is passed."""
        makers = lambda node: [p for v in node.inputs if v is not None and (p := v.producer()) is not None]  # noqa: E731
        return self._go(makers(start), makers)

    def forth(self, start: onnx_ir.Node) -> tuple[set[onnx_ir.Node], set[onnx_ir.Node]]:
        """What stops the walk with the flow, and what is passed."""
        readers = lambda node: [user for value in node.outputs for user in users(value)]  # noqa: E731
        return self._go(readers(start), readers)

    def _go(
        self, start: Sequence[onnx_ir.Node], follow: Callable[[onnx_ir.Node], Sequence[onnx_ir.Node]]
    ) -> tuple[set[onnx_ir.Node], set[onnx_ir.Node]]:
        stopped: set[onnx_ir.Node] = set()
        passed: set[onnx_ir.Node] = set()
        queue = list(start)
        while queue:
            node = queue.pop()
            if node in stopped or node in passed or node.op_type in ("Shape", "Size"):
                continue  # what is made of sizes is not made of numbers
            if self.stops(node):
                stopped.add(node)
            else:
                passed.add(node)
                queue += follow(node)
        return stopped, passed
