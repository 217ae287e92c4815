"""Removal of control flow whose course is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from optc.ir.cloning import Cloner
from optc.ir.ops import int_attr, ints_attr, squeeze, unsqueeze
from optc.ir.rewriter import Rewriter
from optc.passes.base import Pass, PassContext, all_graphs
from optc.passes.clean.numbering import Numbering
from optc.passes.clean.purity import is_pure


@dataclass(frozen=True)
class ControlFlow(Pass):
    """Replace If, Loop and Scan nodes whose course is known by the nodes that they run.

    An If with a constant condition, or with two equal branches, becomes its branch; a Loop that runs never or once
    becomes nothing or its body; so does a Scan over a sequence of one element.
    """

    name = "control-flow"
    restructures = False

    def run(self, ctx: PassContext) -> None:
        changed = False
        pending = [node for graph in all_graphs(ctx.model) for node in graph if node.op_type in _RESOLVERS]
        while pending:
            node = pending.pop()
            if node.graph is None or node.domain != "" or ctx.is_vetoed("control-flow", node):
                continue
            with ctx.rewriter.at(node, "control-flow"):
                inserted = _RESOLVERS[node.op_type](ctx, node)
            if inserted is None:
                continue
            changed = True
            ctx.hit(node.op_type)
            ctx.rewriter.erase(node)
            for new in inserted:
                pending.extend(_control_nodes(new))
        if changed:
            ctx.rewriter.relearn()


def _control_nodes(node: onnx_ir.Node) -> list[onnx_ir.Node]:
    """The control-flow nodes among a node and what is inside of it."""
    inside = [
        inner
        for attribute in node.attributes.values()
        if not attribute.is_ref() and attribute.type == onnx_ir.AttributeType.GRAPH
        for inner in attribute.as_graph().all_nodes()
    ]
    return [one for one in (node, *inside) if one.op_type in _RESOLVERS]


def _if(ctx: PassContext, node: onnx_ir.Node) -> list[onnx_ir.Node] | None:
    branches = [node.attributes.get(name) for name in ("else_branch", "then_branch")]
    if any(branch is None or branch.is_ref() for branch in branches):
        return None
    graphs = [branch.as_graph() for branch in branches if branch is not None]
    condition = ctx.facts.scalar(node.inputs[0])
    if condition is not None:
        return _run_once(ctx.rewriter, node, graphs[bool(condition)], (), range(len(node.outputs)))
    if is_pure(node, ctx) and Numbering(ctx).graphs_equal(*graphs):
        return _run_once(ctx.rewriter, node, graphs[1], (), range(len(node.outputs)))
    return None


def _loop(ctx: PassContext, node: onnx_ir.Node) -> list[onnx_ir.Node] | None:
    attribute = node.attributes.get("body")
    if attribute is None or attribute.is_ref():
        return None
    rw, body = ctx.rewriter, attribute.as_graph()
    states = len(node.inputs) - 2
    if len(body.inputs) != states + 2 or any(value is None for value in node.inputs[2:]):
        return None
    trips = _trips(ctx, node, body)
    if trips == 0:
        return _skip(ctx, node, body, states)
    if trips != 1:
        return None
    counter = rw.constant(np.zeros(_inner_shape(body.inputs[0]), np.int64), "iteration")
    condition = node.inputs[1] or rw.constant(np.ones(_inner_shape(body.inputs[1]), np.bool_), "condition")
    actuals = [counter, condition, *node.inputs[2:]]
    return _run_once(rw, node, body, actuals, range(1, len(body.outputs)), stacked=range(states, len(node.outputs)))


def _inner_shape(value: onnx_ir.Value) -> tuple[int, ...]:
    return (1,) if value.shape is not None and len(value.shape) == 1 else ()


def _trips(ctx: PassContext, node: onnx_ir.Node, body: onnx_ir.Graph) -> int | None:
    """How often a loop runs: 0, 1, or None for more often or nobody knows."""
    most = ctx.facts.scalar(node.inputs[0])
    starts = True if node.inputs[1] is None else ctx.facts.scalar(node.inputs[1])
    if (most is not None and most <= 0) or (starts is not None and not starts):
        return 0
    if starts is None or (node.inputs[0] is not None and most is None):
        return None
    if most == 1:
        return 1
    goes_on = ctx.facts.scalar(body.outputs[0])
    return 1 if goes_on is not None and not goes_on else None


def _skip(ctx: PassContext, node: onnx_ir.Node, body: onnx_ir.Graph, states: int) -> list[onnx_ir.Node] | None:
    """A loop that never runs: its state stays as it is, and what it collects is empty."""
    replacements: list[tuple[onnx_ir.Value, onnx_ir.Value]] = []
    for index, output in enumerate(node.outputs):
        if not (output.uses() or output.is_graph_output()):
            continue
        if index < states:
            new = node.inputs[2 + index]
        else:
            one = body.outputs[1 + index]
            shape, dtype = ctx.facts.shape(one), ctx.facts.dtype(one)
            if shape is None or dtype is None or not all(isinstance(dim, int) for dim in shape):
                return None
            if dtype == onnx_ir.DataType.STRING:
                return None
            empty = onnx_ir.Tensor(np.empty((0, *shape), dtype.numpy()), dtype=dtype)
            new = ctx.rewriter.constant(empty, f"{output.name}_empty")
        assert new is not None
        replacements.append((output, new))
    for old, new in replacements:
        ctx.rewriter.replace(old, new)
    return []


def _scan(ctx: PassContext, node: onnx_ir.Node) -> list[onnx_ir.Node] | None:
    attribute = node.attributes.get("body")
    if attribute is None or attribute.is_ref() or ctx.rewriter.opset() < 9:
        return None
    rw, body = ctx.rewriter, attribute.as_graph()
    scanned = int_attr(node, "num_scan_inputs", 0)
    states = len(node.inputs) - scanned
    if any(value is None for value in node.inputs) or len(body.inputs) != len(node.inputs):
        return None
    axes = ints_attr(node, "scan_input_axes") or (0,) * scanned
    places = []
    for value, axis in zip(node.inputs[states:], axes, strict=True):
        shape = ctx.facts.shape(value)
        if shape is None or not -len(shape) <= axis < len(shape) or shape[axis] != 1:
            return None
        places.append(axis % len(shape))
    out_axes = ints_attr(node, "scan_output_axes") or (0,) * (len(node.outputs) - states)
    if any(axis < 0 for axis in out_axes):
        return None
    slices = [squeeze(rw, v, [axis]) for v, axis in zip(node.inputs[states:], places, strict=True) if v is not None]
    actuals = [*node.inputs[:states], *slices]
    stacked = range(states, len(node.outputs))
    return _run_once(rw, node, body, actuals, range(len(body.outputs)), stacked, out_axes)


def _run_once(
    rw: Rewriter,
    node: onnx_ir.Node,
    graph: onnx_ir.Graph,
    actuals: Sequence[onnx_ir.Value | None],
    results: Sequence[int],
    stacked: Sequence[int] = (),
    stack_axes: Sequence[int] = (),
) -> list[onnx_ir.Node]:
    """Put a sub-graph in place of the node that holds it.

    Args:
        rw: The rewriter, anchored at the node.
        node: The If, Loop or Scan.
        graph: The sub-graph of it that runs.
        actuals: What the sub-graph's inputs are.
        results: Which output of the sub-graph each of the node's outputs is.
        stacked: The node's outputs that get a new axis of dim 1.
        stack_axes: Where; 0 by default.

    Returns:
        The inserted nodes that come from the sub-graph.
    """
    mapping: dict[onnx_ir.Value, onnx_ir.Value | None] = dict(zip(graph.inputs, actuals, strict=True))
    for value in graph.initializers.values():
        if value not in mapping and value.const_value is not None:
            mapping[value] = rw.constant(value.const_value, value.name or "const")
    cloner = Cloner(rw, mapping)
    inserted = []
    for inner in graph:
        with rw.at(node, "control-flow", [inner]):
            inserted.append(rw.insert(cloner.node(inner)))
    axes = dict(zip(stacked, stack_axes or (0,) * len(stacked), strict=True))
    for index, (old, result) in enumerate(zip(node.outputs, results, strict=True)):
        if not (old.uses() or old.is_graph_output()):
            continue
        new = cloner.value(graph.outputs[result])
        assert new is not None
        if index in axes:
            new = unsqueeze(rw, new, [axes[index]])
        rw.replace(old, new)
    return inserted


_RESOLVERS = {"If": _if, "Loop": _loop, "Scan": _scan}
