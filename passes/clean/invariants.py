"""Loop-invariant code: what every round of a loop would compute alike is computed once, before it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir

from optc.ir.cloning import Cloner
from optc.ir.verify import subgraphs
from optc.passes.base import Pass, PassContext, all_graphs
from optc.passes.clean.purity import is_pure

_LOOPS = frozenset({"Loop", "Scan"})
#: Operators that cannot fail on operands whose shapes are known to fit. Only these move out of a loop that may not run
#: at all: whatever else could raise an error that the original does not raise.
_TOTAL = frozenset(
    [
        *("Abs", "Add", "And", "Cast", "Ceil", "Cos", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater"),
        *("GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LayerNormalization", "LeakyRelu", "Less"),
        *("LessOrEqual", "Log", "MatMul", "Max", "Min", "Mul", "Neg", "Not", "Or", "Reciprocal", "Relu", "Round"),
        *("Shape", "Sigmoid", "Sign", "Sin", "Softmax", "Softplus", "Sqrt", "Sub", "Sum", "Tanh", "Transpose"),
        *("Unsqueeze", "Where", "Xor"),
    ]
)


@dataclass(frozen=True)
class LoopInvariants(Pass):
    """Move out of Loop and Scan bodies what does not depend on the round.

    A node moves if it is pure and reads nothing that the body computes or is given, and if it cannot fail or the loop
    provably runs. What is a result of the body stays.
    """

    name = "loop-invariants"
    restructures = False

    def run(self, ctx: PassContext) -> None:
        loops = [
            node for graph in all_graphs(ctx.model) for node in graph if node.op_type in _LOOPS and not node.domain
        ]
        for loop in reversed(loops):  # inner ones first: what leaves them may leave the outer one as well
            for body in subgraphs(loop):
                _hoist(ctx, loop, body)


def _hoist(ctx: PassContext, loop: onnx_ir.Node, body: onnx_ir.Graph) -> None:
    rw = ctx.rewriter
    runs = _runs(ctx, loop, body)
    for node in list(body):
        if ctx.is_vetoed("loop-invariant", loop) or not _may_leave(ctx, node, body, runs):
            continue
        with rw.at(loop, "loop-invariant", [node]):
            own = {
                value: rw.constant(tensor, value.name or "constant")
                for value in node.inputs
                if value is not None and value.graph is body and (tensor := ctx.facts.tensor(value)) is not None
            }
            moved = rw.insert(Cloner(rw, dict(own)).node(node))
            for old, new in zip(node.outputs, moved.outputs, strict=True):
                rw.replace(old, new)
        rw.erase(node)
        ctx.hit("loop-invariant")


def _may_leave(ctx: PassContext, node: onnx_ir.Node, body: onnx_ir.Graph, runs: bool) -> bool:
    if node.op_type == "Constant" or list(subgraphs(node)) or any(value.is_graph_output() for value in node.outputs):
        return False
    for value in node.inputs:
        if value is not None and value.graph is body and ctx.facts.tensor(value) is None:
            return False
    return (runs or _cannot_fail(ctx, node)) and is_pure(node, ctx)


def _cannot_fail(ctx: PassContext, node: onnx_ir.Node) -> bool:
    if node.domain or node.op_type not in _TOTAL:
        return False
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    return all(ctx.facts.shape(value) is not None and ctx.facts.dtype(value) is not None for value in values)


def _runs(ctx: PassContext, loop: onnx_ir.Node, body: onnx_ir.Graph) -> bool:
    """Whether a loop provably runs at least once."""
    if loop.op_type == "Loop":
        most, starts = loop.inputs[0], loop.inputs[1]
        trips = None if most is None else ctx.facts.scalar(most)
        return (most is None or (trips is not None and trips >= 1)) and (
            starts is None or bool(ctx.facts.scalar(starts))
        )
    count = loop.attributes["num_scan_inputs"].as_int()
    axes = loop.attributes.get("scan_input_axes")
    first = loop.inputs[-count] if count else None
    shape = ctx.facts.shape(first) if first is not None else None
    axis = axes.as_ints()[0] if axes is not None else 0
    return shape is not None and bool(shape) and isinstance(shape[axis], int) and shape[axis] >= 1
