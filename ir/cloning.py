"""Copying nodes into another place of a model, with other inputs: what inlining of any kind is made of."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir

from optc.ir.errors import PassError
from optc.ir.rewriter import Rewriter


class Cloner:
    """Copies nodes, with their sub-graphs at any depth; every copied value and node gets a name of its own.

    Args:
        rewriter: The rewriter of the model that the copies are for.
        mapping: What stands for the values of the source; None for an absent optional one. The outputs of copied
            nodes are added. A value that is not in it lies in an outer scope, and the copies read it as it is.
        attributes: What the parameters of a function are in the call at hand; None where no function is involved.
    """

    def __init__(
        self,
        rewriter: Rewriter,
        mapping: dict[onnx_ir.Value, onnx_ir.Value | None],
        attributes: Mapping[str, onnx_ir.Attr] | None = None,
    ) -> None:
        self._rewriter = rewriter
        self._mapping = mapping
        self._attributes = attributes

    def value(self, value: onnx_ir.Value) -> onnx_ir.Value | None:
        """What stands for a value of the source."""
        return self._mapping.get(value, value)

    def node(self, node: onnx_ir.Node) -> onnx_ir.Node:
        """A copy that is not part of any graph yet."""
        inputs = [None if value is None else self.value(value) for value in node.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes = [copy for name, attr in node.attributes.items() if (copy := self._attribute(name, attr))]
        clone = onnx_ir.Node(
            node.domain,
            node.op_type,
            inputs,
            attributes,
            overload=node.overload,
            num_outputs=len(node.outputs),
            version=node.version,
            name=node.name,
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props),
        )
        for old, new in zip(node.outputs, clone.outputs, strict=True):
            self._describe(old, new)
            self._mapping[old] = new
        return clone

    def graph(self, graph: onnx_ir.Graph) -> onnx_ir.Graph:
        """A copy of a sub-graph."""
        inputs = [self._copy(value) for value in graph.inputs]
        initializers = [self._mapping.get(v) or self._copy(v) for v in graph.initializers.values()]
        nodes = []
        for node in graph:
            clone = self.node(node)
            clone.name = self._rewriter.fresh_name(node.name or node.op_type)
            nodes.append(clone)
        outputs = [self.value(value) for value in graph.outputs]
        if None in outputs:
            raise PassError(f"the sub-graph {graph.name!r} returns an input that the call leaves out")
        return onnx_ir.Graph(
            inputs,
            outputs,  # type: ignore[arg-type]
            nodes=nodes,
            initializers=initializers,
            name=graph.name,
            doc_string=graph.doc_string,
            opset_imports=dict(graph.opset_imports),
            metadata_props=dict(graph.metadata_props),
        )

    def _attribute(self, name: str, attribute: onnx_ir.Attr) -> onnx_ir.Attr | None:
        if attribute.is_ref():
            if self._attributes is None:
                return attribute
            given = self._attributes.get(attribute.ref_attr_name or "")
            if given is None:
                return None  # a parameter that is neither given nor has a default leaves the attribute out
            # A graph given by the caller reads values of the caller's scope, not of the function's.
            given = Cloner(self._rewriter, {})._attribute(name, given) or given
            return onnx_ir.Attr(name, given.type, given.value, doc_string=given.doc_string)
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            return onnx_ir.AttrGraph(name, self.graph(attribute.as_graph()))
        if attribute.type == onnx_ir.AttributeType.GRAPHS:
            return onnx_ir.AttrGraphs(name, [self.graph(graph) for graph in attribute.as_graphs()])
        return attribute

    def _copy(self, value: onnx_ir.Value) -> onnx_ir.Value:
        new = onnx_ir.Value(const_value=value.const_value)
        self._describe(value, new)
        self._mapping[value] = new
        return new

    def _describe(self, old: onnx_ir.Value, new: onnx_ir.Value) -> None:
        new.name = self._rewriter.fresh_name(old.name) if old.name else ""
        new.type = old.type
        if old.shape is None:
            return
        if self._attributes is None or old.const_value is not None:
            new.shape = old.shape.copy()
        else:
            # The symbols of a function are its own: equal names say nothing about dims outside.
            new.shape = onnx_ir.Shape([dim if isinstance(dim, int) else None for dim in old.shape])
