"""Removal of what no output depends on."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir

from optc.ir.functions import drop_unused_functions
from optc.ir.rewriter import is_dead
from optc.ir.verify import schema_of
from optc.passes.base import Pass, PassContext, all_graphs

_OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional
#: Operators whose further outputs switch between modes: leaving one out is a change of meaning, or (ONNX
#: Runtime's Attention, which wants to put the present somewhere) an error.
_MODAL = {"Attention", "BatchNormalization"}


@dataclass(frozen=True)
class DeadCodeElimination(Pass):
    """Remove nodes, outputs, initializers, functions and opset imports that nothing uses.

    A node without outputs is kept: it can only be there for its effects. Initializers that are also inputs are part of
    the interface and stay.
    """

    name = "dce"
    restructures = False

    def run(self, ctx: PassContext) -> None:
        rw, model = ctx.rewriter, ctx.model
        changes = rw.changes
        for graph in list(all_graphs(model)):
            for node in reversed(graph):
                if node.graph is not None and node.outputs and is_dead(node):
                    rw.erase(node)
        if rw.changes != changes:
            ctx.hit("node", rw.changes - changes)
        for graph in all_graphs(model):
            for node in graph:
                for index in _unused_optional_outputs(node, rw.opset(node.domain)):
                    rw.drop_output(node, index)
                    ctx.hit("output")
            for value in list(graph.initializers.values()):
                if not (value.uses() or value.is_graph_input() or value.is_graph_output()):
                    rw.erase_initializer(value)
                    ctx.hit("initializer")
        functions = drop_unused_functions(model)
        imports = _unused_imports(model)
        for domain in imports:
            del model.graph.opset_imports[domain]
        for rule, count in (("function", functions), ("opset import", len(imports))):
            if count:
                ctx.hit(rule, count)
                rw.changes += count


def _unused_optional_outputs(node: onnx_ir.Node, version: int) -> list[int]:
    """Named outputs that nobody reads and that the operator lets be left out, the last one first."""
    if len(node.outputs) < 2 or node.op_type in _MODAL:
        return []
    unused = [
        index
        for index, value in enumerate(node.outputs)
        if value.name and not (value.uses() or value.is_graph_output())
    ]
    schema = schema_of(node, version) if unused else None
    if schema is None:
        return []
    formals = schema.outputs
    return [i for i in reversed(unused) if i < len(formals) and formals[i].option == _OPTIONAL]


def _unused_imports(model: onnx_ir.Model) -> list[str]:
    """Domains that the model imports and that no node is of; the default domain is always kept."""
    used = {node.domain for node in model.graph.all_nodes()}
    for function in model.functions.values():
        used |= {node.domain for node in function.all_nodes()}
    return [domain for domain in model.graph.opset_imports if domain and domain not in used]
