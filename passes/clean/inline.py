"""Inlining of model-local functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir

from optc.ir.callgraph import expanded_sizes
from optc.ir.functions import FUSED_DOMAIN, drop_unused_functions, inline
from optc.ir.names import function_name
from optc.ir.verify import schema_of
from optc.passes.base import Pass, PassContext, all_graphs

_Key = tuple[str, str, str]


@dataclass(frozen=True)
class Inline(Pass):
    """Put the bodies of model-local functions in place of their calls.

    Fused ops keep their functions; so do functions that mean something else under the model's opsets, and calls that
    would let the graph grow beyond ``limit`` nodes (nested functions can double in size at every level).
    """

    name = "inline"
    restructures = False

    limit: int = 250_000

    def run(self, ctx: PassContext) -> None:
        functions = {key: f for key, f in ctx.model.functions.items() if key[0] != FUSED_DOMAIN}
        if not functions:
            return
        for key, reason in _refused(ctx.model, functions).items():
            ctx.remark("skipped", f"inlining of function {function_name(key)}", reason)
            del functions[key]
        sizes = expanded_sizes(functions)
        size = sum(len(graph) for graph in all_graphs(ctx.model))
        for key, call in _calls(ctx.model.graph, functions):
            if size + sizes[key] > self.limit:
                reason = f"its {sizes[key]} nodes would let the graph grow beyond {self.limit}"
                ctx.remark("skipped", f"inlining of function {function_name(key)} at {call.name!r}", reason)
                continue
            size += sizes[key]
            _inline_all(ctx, call, functions)
        ctx.rewriter.changes += drop_unused_functions(ctx.model)


def _calls(graph: onnx_ir.Graph, functions: dict[_Key, onnx_ir.Function]) -> list[tuple[_Key, onnx_ir.Node]]:
    return [(node.op_identifier(), node) for node in graph.all_nodes() if node.op_identifier() in functions]


def _inline_all(ctx: PassContext, call: onnx_ir.Node, functions: dict[_Key, onnx_ir.Function]) -> None:
    """Inline a call and all calls in what it is replaced by."""
    pending = [call]
    while pending:
        node = pending.pop()
        inserted = inline(ctx.rewriter, node)
        ctx.hit("inline")
        pending.extend(inner for new in reversed(inserted) for inner in _with_inner(new) if _is_call(inner, functions))


def _is_call(node: onnx_ir.Node, functions: dict[_Key, onnx_ir.Function]) -> bool:
    return node.op_identifier() in functions


def _with_inner(node: onnx_ir.Node) -> Iterator[onnx_ir.Node]:
    """A node and the nodes of its sub-graphs."""
    yield node
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
        elif attribute.type == onnx_ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from graph.all_nodes()


def _refused(model: onnx_ir.Model, functions: dict[_Key, onnx_ir.Function]) -> dict[_Key, str]:
    """Functions whose nodes would mean something else in the model, and why."""
    refused: dict[_Key, str] = {}
    imports = model.graph.opset_imports
    for key, function in functions.items():
        for domain, version in function.opset_imports.items():
            ours = imports.get(domain, version)
            if ours == version:
                continue
            changed = [
                node
                for node in function.all_nodes()
                if node.domain == domain
                and node.op_identifier() not in model.functions
                and _meaning(node, version) != _meaning(node, ours)
            ]
            if changed:
                refused[key] = (
                    f"it is written for opset {version} of domain {domain or 'ai.onnx'!r}, the model for {ours}, "
                    f"and {changed[0].op_type} differs between them"
                )
    return refused


def _meaning(node: onnx_ir.Node, version: int) -> int:
    """The version in which the operator was last changed; that of the opset itself where nobody knows."""
    schema = schema_of(node, version)
    return version if schema is None else schema.since_version
