"""Fused ops as model-local functions: outlining a sub-graph into one, and inlining it back.

A fused op is a call of a function whose body is the sub-graph that it stands for. So it can be checked on its own,
every runtime can run it before a backend has claimed it, and what no backend claims is put back as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir
from onnx_ir import serde

from optc.ir.cloning import Cloner
from optc.ir.errors import PassError
from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter

#: The domain of fused ops between fusion and emission.
FUSED_DOMAIN = "optc"
#: Metadata of a call: names and provenance of the nodes that it stands for.
_PARTS_KEY = "optc.parts"
#: Constants up to this many elements that a body needs become part of it; larger ones are inputs.
_INNER_CONSTANT_SIZE = 256


def outline(
    rewriter: Rewriter,
    op_type: str,
    inputs: Sequence[onnx_ir.Value | None],
    outputs: Sequence[onnx_ir.Value],
    nodes: Iterable[onnx_ir.Node],
    attributes: Mapping[str, Any],
) -> list[onnx_ir.Value]:
    """Replace ``nodes`` by a call of the function ``optc::op_type`` whose body they are.

    Call it inside ``rewriter.at(root, rule)``; the call is inserted before the root.

    Args:
        rewriter: The rewriter of the model.
        op_type: Name of the fused op.
        inputs: The values that the call reads, in the order of the fused op's definition; None for one left out.
        outputs: The matched values that the call computes.
        nodes: The matched nodes.
        attributes: What a backend needs to know to claim the op (epsilon, axis, ...). The body does not read them.

    Returns:
        The values that replaced ``outputs``.

    Raises:
        PassError: The nodes read a value that is neither an input nor a small constant.
    """
    body_nodes = _in_order(nodes)
    root = body_nodes[-1].graph
    function = _body(rewriter, op_type, inputs, outputs, body_nodes, attributes)
    rewriter.model.functions.setdefault(function.identifier(), function)
    results = rewriter.op(
        op_type, *inputs, domain=FUSED_DOMAIN, outputs=len(outputs), overload=function.overload, **attributes
    )
    results = [results] if len(outputs) == 1 else list(results)
    results[0].producer().metadata_props[_PARTS_KEY] = json.dumps([_identity(node) for node in body_nodes])
    for result, old in zip(results, outputs, strict=True):
        rewriter.facts.assume(result, like=old)
    replaced = []
    for old, new in zip(outputs, results, strict=True):
        replaced.append(rewriter.replace(old, new))
        rewriter.keep_name(old, replaced[-1])
    for node in reversed(body_nodes):
        rewriter.erase(node)
    if len(outputs) > 1 and root is not None:
        rewriter.restore_order(root)  # what reads an inner output may come before the root, where the call now is
    return replaced


def inline(rewriter: Rewriter, call: onnx_ir.Node, rule: str = "inline") -> list[onnx_ir.Node]:
    """Replace a call of a model-local function by the function's body; the inserted nodes are returned.

    The function's parameters take the call's attributes, or their defaults, at any depth of sub-graphs. The call may
    leave out trailing inputs and outputs. It is up to the caller that the function's opset imports mean the same in the
    model.

    Raises:
        PassError: The call uses an output that is one of the inputs which it leaves out.
    """
    function = rewriter.model.functions[call.op_identifier()]
    mapping: dict[onnx_ir.Value, onnx_ir.Value | None] = {
        formal: call.inputs[index] if index < len(call.inputs) else None for index, formal in enumerate(function.inputs)
    }
    defaults = {name: attr for name, attr in function.attributes.items() if attr.value is not None}
    cloner = Cloner(rewriter, mapping, {**defaults, **call.attributes})
    inserted, outputs = [], []
    with rewriter.at(call, rule):
        for domain, version in function.opset_imports.items():
            rewriter.import_opset(domain, version)
        for node in function:
            inserted.append(rewriter.insert(cloner.node(node)))
        for old, formal in zip(call.outputs, function.outputs, strict=False):
            if not (old.uses() or old.is_graph_output()):
                continue
            new = cloner.value(formal)
            if new is None:
                raise PassError(f"function {function.name!r} returns an input that the call leaves out")
            rewriter.facts.assume(new, like=old)
            replaced = rewriter.replace(old, new)
            if formal.producer() is not None:
                rewriter.keep_name(old, replaced)
            outputs.append(replaced)
        rewriter.erase(call)
    _restore(call, inserted, outputs)
    return inserted


def drop_unused_functions(model: onnx_ir.Model) -> int:
    """Remove functions that nothing calls any more, and opset imports of the fused domain; how many went."""
    called: set[onnx_ir.OperatorIdentifier] = set()
    pending: list[Iterable[onnx_ir.Node]] = [model.graph.all_nodes()]
    used = set()
    while pending:
        for node in pending.pop():
            used.add(node.domain)
            key = node.op_identifier()
            if key in model.functions and key not in called:
                called.add(key)
                pending.append(model.functions[key].all_nodes())
    unused = [key for key in model.functions if key not in called]
    for key in unused:
        del model.functions[key]
    if FUSED_DOMAIN not in used:
        model.graph.opset_imports.pop(FUSED_DOMAIN, None)
    return len(unused)


def _identity(node: onnx_ir.Node) -> list[Any]:
    """What a node is known by, which the body of a function shared by several calls cannot hold."""
    return [node.name, [value.name for value in node.outputs], dict(node.metadata_props)]


def _restore(call: onnx_ir.Node, inserted: Sequence[onnx_ir.Node], outputs: Iterable[onnx_ir.Value]) -> None:
    """Give the nodes of an outlined call back the names and the provenance that they had.

    The names are free: the rewriter never gives one twice. Those of the outputs were kept all along.
    """
    parts = json.loads(call.metadata_props.get(_PARTS_KEY, "[]"))
    nodes = [node for node in inserted if not (node.op_type == "Constant" and node.domain == "")]
    if len(parts) != len(nodes):
        return
    kept = set(outputs)
    for node, (name, names, metadata) in zip(nodes, parts, strict=True):
        node.name = name
        node.metadata_props.clear()
        node.metadata_props.update(metadata)
        for value, old in zip(node.outputs, names, strict=True):
            if value not in kept and value.name:
                value.name = old


def _in_order(nodes: Iterable[onnx_ir.Node]) -> list[onnx_ir.Node]:
    """The nodes in the order of their graph."""
    wanted = list(dict.fromkeys(nodes))
    inside = set(wanted)
    ordered: list[onnx_ir.Node] = []
    state: dict[onnx_ir.Node, bool] = {}

    def visit(node: onnx_ir.Node) -> None:
        if state.get(node) is not None:
            return
        state[node] = False
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer in inside:
                visit(producer)  # patterns are small; recursion is bounded by their depth
        state[node] = True
        ordered.append(node)

    for node in wanted:
        visit(node)
    return ordered


def _body(
    rewriter: Rewriter,
    op_type: str,
    inputs: Sequence[onnx_ir.Value | None],
    outputs: Sequence[onnx_ir.Value],
    nodes: Sequence[onnx_ir.Node],
    attributes: Mapping[str, Any],
) -> onnx_ir.Function:
    """The function; its overload is a digest of its body, so that equal bodies are one function."""
    mapping: dict[onnx_ir.Value, onnx_ir.Value] = {}
    formals = []
    for index, actual in enumerate(inputs):
        formal = onnx_ir.Value(name=f"x{index}")
        formals.append(formal)
        if actual is not None:
            mapping.setdefault(actual, formal)
    body: list[onnx_ir.Node] = []
    digest = hashlib.sha256(repr((op_type, sorted(attributes.items()), [i is None for i in inputs])).encode())
    counter = 0
    for node in nodes:
        for value in node.inputs:
            if value is None or value in mapping:
                continue
            mapping[value] = _inner_constant(rewriter, value, f"c{counter}", op_type, body, digest)
            counter += 1
        arguments = [None if v is None else mapping[v] for v in node.inputs]
        clone = onnx_ir.Node(
            node.domain,
            node.op_type,
            arguments,
            [a for a in node.attributes.values()],
            overload=node.overload,
            num_outputs=len(node.outputs),
        )
        for old, new in zip(node.outputs, clone.outputs, strict=True):
            new.name = f"v{counter}" if old.name else ""
            counter += 1
            mapping[old] = new
        digest.update(
            repr(
                (
                    clone.op_identifier(),
                    [None if v is None else v.name for v in arguments],
                    [v.name for v in clone.outputs],
                    [
                        serde.serialize_attribute(clone.attributes[name]).SerializeToString(deterministic=True)
                        for name in sorted(clone.attributes)
                    ],
                )
            ).encode()
        )
        body.append(clone)
    digest.update(repr([mapping[v].name for v in outputs]).encode())
    imports = {d: v for d, v in rewriter.model.graph.opset_imports.items() if any(n.domain == d for n in body)}
    graph = onnx_ir.Graph(formals, [mapping[v] for v in outputs], nodes=body, opset_imports=imports)
    return onnx_ir.Function(
        domain=FUSED_DOMAIN,
        name=op_type,
        overload=digest.hexdigest()[:12],
        graph=graph,
        attributes=[onnx_ir.Attr(name, onnx_ir.AttributeType.UNDEFINED, None) for name in attributes],
    )


def unnamed(
    facts: Facts, inputs: Iterable[onnx_ir.Value | None], nodes: Iterable[onnx_ir.Node]
) -> onnx_ir.Value | None:
    """A value that the nodes read and that :func:`outline` could neither pass in nor keep inside, if any."""
    nodes = list(nodes)
    known = {*inputs, *(value for node in nodes for value in node.outputs)}
    for node in nodes:
        for value in node.inputs:
            if value is not None and value not in known and not _fits_inside(facts, value):
                return value
    return None


def _fits_inside(facts: Facts, value: onnx_ir.Value) -> bool:
    size = facts.const_size(value)
    return size is not None and size <= _INNER_CONSTANT_SIZE


def _inner_constant(
    rewriter: Rewriter, value: onnx_ir.Value, name: str, op_type: str, body: list[onnx_ir.Node], digest: Any
) -> onnx_ir.Value:
    array = rewriter.facts.const(value) if _fits_inside(rewriter.facts, value) else None
    if array is None:
        raise PassError(f"fused op {op_type} would need {value.name!r}, which its pattern does not name")
    tensor = onnx_ir.Tensor(np.array(array), dtype=rewriter.facts.dtype(value))
    node = onnx_ir.Node("", "Constant", [], [onnx_ir.AttrTensor("value", tensor)])
    node.outputs[0].name = name
    digest.update(repr((array.dtype.name, array.shape)).encode() + array.tobytes())
    body.append(node)
    return node.outputs[0]


def expanded(model: onnx_ir.Model) -> onnx_ir.Model:
    """A copy in which every fused op is its original nodes again: what a runtime is given of an unfinished model.

    ONNX Runtime loses the overload of a call inside of a function, and crashes on a body that holds an operator which
    only its own schemas know; so a model is run in this form until its fused ops have been emitted.
    """
    copy = model.clone()
    rewriter = Rewriter(copy)
    pending = [node for graph in copy.graphs() for node in graph if node.domain == FUSED_DOMAIN]
    while pending:
        pending.extend(node for node in inline(rewriter, pending.pop()) if node.domain == FUSED_DOMAIN)
    drop_unused_functions(copy)
    return copy


def runnable(model: onnx_ir.Model) -> onnx_ir.Model:
    """The model without fused ops that no runtime knows; itself if it has none."""
    return expanded(model) if has_fused_ops(model) else model


def has_fused_ops(model: onnx_ir.Model) -> bool:
    """Whether fused ops are left that no backend has claimed yet."""
    return any(domain == FUSED_DOMAIN for domain, _, _ in model.functions)
