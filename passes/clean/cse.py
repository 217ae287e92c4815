"""Common sub-expression elimination."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable
from dataclasses import dataclass

import onnx_ir

from optc.ir.verify import subgraphs
from optc.passes.base import Pass, PassContext
from optc.passes.clean.numbering import Numbering


@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """Compute once what several nodes compute from the same inputs.

    Value numbering over the scopes of the model: a node of an outer graph also serves the graphs inside of it, never
    the other way round. Random draws and operators that nobody knows are left alone.
    """

    name = "cse"
    restructures = False

    def run(self, ctx: PassContext) -> None:
        _merge(ctx, ctx.model.graph, Numbering(ctx), ChainMap())


def _merge(
    ctx: PassContext, graph: onnx_ir.Graph, numbering: Numbering, seen: ChainMap[Hashable, onnx_ir.Node]
) -> None:
    for node in graph:
        key = numbering.node_key(node)
        if key is not None and node.op_type != "Constant":
            first = seen.get(key)
            if first is None:
                seen[key] = node
            elif _pays(node, first) and not ctx.is_vetoed("cse", node):
                with ctx.rewriter.at(node, "cse", [first]):
                    for old, new in zip(node.outputs, first.outputs, strict=True):
                        if old.uses() or old.is_graph_output():
                            ctx.rewriter.replace(old, new)
                ctx.rewriter.erase(node)
                ctx.hit("cse")
                continue
        for inner in subgraphs(node):
            _merge(ctx, inner, numbering, seen.new_child())


def _pays(node: onnx_ir.Node, first: onnx_ir.Node) -> bool:
    """Whether replacing gains anything: an output that needs a node of its own is no better off with an Identity.

    It gains where others read the values, because they then may be the same too, unless it takes several Identities.
    """
    named = [
        old.is_graph_output() and (new.is_graph_output() or first.graph is not node.graph)
        for old, new in zip(node.outputs, first.outputs, strict=True)
    ]
    return not any(named) or (sum(named) == 1 and any(value.uses() for value in node.outputs))
