"""Which outputs of a model depend on random numbers, and so cannot be compared from run to run."""

from __future__ import annotations

import onnx_ir

from optc.backends.ort_fragment import constant_array
from optc.ir.verify import outer_reads, subgraphs

_RANDOM_OPS = frozenset(
    {
        ("", "Bernoulli"),
        ("", "Multinomial"),
        ("", "RandomNormal"),
        ("", "RandomNormalLike"),
        ("", "RandomUniform"),
        ("", "RandomUniformLike"),
        ("com.microsoft", "Sampling"),
    }
)
#: Ops that draw only in training mode -> position of the input that says so.
_DROPOUTS = {("", "Dropout"): 2, ("com.microsoft", "BiasDropout"): 4, ("com.microsoft", "BitmaskDropout"): 2}


def random_outputs(model: onnx_ir.Model) -> frozenset[str]:
    """Names of the graph outputs that a random number may reach, through any node, branch or function."""
    drawing = _DrawingFunctions(model)
    tainted: set[onnx_ir.Value] = set()
    for node in model.graph:
        uses = set(outer_reads(node))
        if drawing.node(node) or not tainted.isdisjoint(uses):
            tainted.update(node.outputs)
    return frozenset(value.name or "" for value in model.graph.outputs if value in tainted)


class _DrawingFunctions:
    """Tells whether a node draws random numbers, itself or in what it calls."""

    def __init__(self, model: onnx_ir.Model) -> None:
        self._functions = model.functions
        self._known: dict[onnx_ir.OperatorIdentifier, bool] = {}

    def node(self, node: onnx_ir.Node) -> bool:
        domain = "" if node.domain == "ai.onnx" else node.domain
        function = self._functions.get(node.op_identifier())
        if function is not None:
            return self._function(function)
        if (domain, node.op_type) in _RANDOM_OPS or _drops(node, domain):
            return True
        return any(self.node(inner) for graph in subgraphs(node) for inner in graph)

    def _function(self, function: onnx_ir.Function) -> bool:
        key = function.identifier()
        if key not in self._known:
            self._known[key] = False  # recursion is not allowed in ONNX; do not hang on it either
            self._known[key] = any(self.node(inner) for inner in function)
        return self._known[key]


def _drops(node: onnx_ir.Node, domain: str) -> bool:
    """Whether a dropout is, or may be, in training mode."""
    position = _DROPOUTS.get((domain, node.op_type))
    if position is None:
        return False
    mode = node.inputs[position] if position < len(node.inputs) else None
    if mode is None:
        return False
    array = constant_array(mode)
    return array is None or bool(array.any())
