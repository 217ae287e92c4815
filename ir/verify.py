"""What must hold of every graph between passes: its structure and its interface."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx
import onnx_ir

from optc.ir.names import label

#: Domains whose operators the onnx package describes; other domains are not second-guessed.
_CHECKED_DOMAINS = {"", "ai.onnx.ml"}
#: Operators that ONNX Runtime's own tools write into the default domain.
_RUNTIME_OPS = {"SimplifiedLayerNormalization", "LayerNormalization", "GroupNormalization"}


def verify_structure(model: onnx_ir.Model) -> list[str]:
    """Check the invariants of ONNX IR (onnx/docs/IR.md) that rewriting could break.

    Every input is defined before it is used in its own or an outer scope, a graph's outputs are values of that very
    graph, no name is defined twice where both are visible, known operators have a legal number of inputs and outputs
    with none left out that is required, and functions do not call themselves.

    Returns:
        What is wrong, one sentence each, naming the node and op; empty if nothing is.
    """
    problems: list[str] = []
    _check_graph(model.graph, frozenset(), set(), model, problems)
    for function in model.functions.values():
        _check_graph(function.graph, frozenset(), set(), model, problems)
    problems.extend(f"the function {name!r} calls itself" for name in _recursive_functions(model))
    return problems


def _check_graph(
    graph: onnx_ir.Graph,
    outer: frozenset[onnx_ir.Value],
    outer_names: set[str],
    model: onnx_ir.Model,
    problems: list[str],
) -> None:
    defined: set[onnx_ir.Value] = set()
    names: set[str] = set()

    def define(values: Iterable[onnx_ir.Value], what: str) -> None:
        for value in values:
            if value in defined:
                continue
            if not value.name:
                # A missing optional output keeps an empty name.
                continue
            if value.name in names or value.name in outer_names:
                problems.append(f"the name {value.name!r} is defined twice ({what})")
            names.add(value.name)
            defined.add(value)

    define(graph.inputs, "graph inputs")
    define(graph.initializers.values(), "initializers")
    opsets = graph.opset_imports or model.graph.opset_imports
    for node in graph:
        for value in node.inputs:
            if value is None or value in defined or value in outer:
                continue
            problems.append(f"node {label(node)} reads {value.name!r}, which nothing before it defines")
        _check_operator(node, opsets, model, problems)
        if inner := list(subgraphs(node)):
            scope, scope_names = outer | defined, outer_names | names
            for subgraph in inner:
                _check_graph(subgraph, scope, scope_names, model, problems)
        define(node.outputs, f"node {label(node)}")
    for value in graph.outputs:
        if value not in defined:
            problems.append(f"the output {value.name!r} is not defined in its graph {graph.name!r}")


def _check_operator(node: onnx_ir.Node, opsets: dict[str, int], model: onnx_ir.Model, problems: list[str]) -> None:
    if node.op_identifier() in model.functions:
        return
    if node.domain not in opsets:
        problems.append(f"node {label(node)}: the model imports no opset for domain {node.domain!r}")
        return
    if node.domain not in _CHECKED_DOMAINS or node.op_type in _RUNTIME_OPS:
        return
    schema = schema_of(node, opsets[node.domain])
    if schema is None:
        return  # TensorRT plugins and other custom operators live in the default domain too.
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        problems.append(f"node {label(node)} has {len(node.inputs)} inputs, which {node.op_type} does not take")
    if not schema.min_output <= len(node.outputs) <= schema.max_output:
        problems.append(f"node {label(node)} has {len(node.outputs)} outputs, which {node.op_type} does not give")

    for name in _left_out(schema, node):
        problems.append(f"node {label(node)} leaves out the input {name!r}, which {node.op_type} needs")


def _left_out(schema: onnx.defs.OpSchema, node: onnx_ir.Node) -> list[str]:
    """Names of the required inputs that a node leaves out."""
    required = onnx.defs.OpSchema.FormalParameterOption.Single
    pairs = zip(schema.inputs, node.inputs, strict=False)
    return [formal.name for formal, value in pairs if value is None and formal.option == required]


def _recursive_functions(model: onnx_ir.Model) -> list[str]:
    """Names of the functions that a call of themselves leads back to."""
    calls = {
        key: {node.op_identifier() for node in function.all_nodes()} & model.functions.keys()
        for key, function in model.functions.items()
    }
    while ends := [key for key, called in calls.items() if not called & calls.keys()]:
        for key in ends:
            del calls[key]
    return [name for _, name, _ in calls]


def schema_of(node: onnx_ir.Node, version: int) -> onnx.defs.OpSchema | None:
    """The operator's schema at an opset version of its domain, or None where onnx knows none."""
    return _schema(node.op_type, version, node.domain)


@functools.lru_cache(maxsize=4096)
def _schema(op_type: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def subgraphs(node: onnx_ir.Node) -> Iterable[onnx_ir.Graph]:
    """The graphs held by a node's attributes (If, Loop, Scan, ...)."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == onnx_ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def inner_nodes(node: onnx_ir.Node) -> Iterator[onnx_ir.Node]:
    """The nodes in a node's sub-graphs, in those of their own too."""
    for graph in subgraphs(node):
        yield from graph.all_nodes()


def captured(node: onnx_ir.Node) -> Iterator[onnx_ir.Value]:
    """The outer values that a node's sub-graphs use."""
    for graph in subgraphs(node):
        inside = set(graph.inputs) | set(graph.initializers.values())
        nodes = list(graph.all_nodes())
        for one in nodes:
            inside.update(one.outputs)
            for inner in subgraphs(one):
                inside.update(inner.inputs)
                inside.update(inner.initializers.values())
        used = [value for one in nodes for value in one.inputs] + list(graph.outputs)
        yield from (value for value in used if value is not None and value not in inside)


def outer_reads(node: onnx_ir.Node) -> Iterator[onnx_ir.Value]:
    """What a node reads: its inputs, and the outer values that its sub-graphs use."""
    yield from (value for value in node.inputs if value is not None)
    yield from captured(node)


@dataclass(frozen=True)
class Interface:
    """Names, order, types and dims of a model's inputs and outputs: the contract with whoever calls it.

    Attributes:
        inputs: Name, type and dims of each.
        outputs: The same.
        defaults: Names of the inputs that may be left out, as an initializer gives their default.
    """

    inputs: tuple[tuple[str, str, tuple[str, ...] | None], ...]
    outputs: tuple[tuple[str, str, tuple[str, ...] | None], ...]
    defaults: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: onnx_ir.Model) -> Interface:
        graph = model.graph
        defaults = frozenset(value.name or "" for value in graph.inputs if value.is_initializer())
        return cls(tuple(map(_signature, graph.inputs)), tuple(map(_signature, graph.outputs)), defaults)

    def differences(self, other: Interface) -> list[str]:
        """What of this interface the other one no longer honours; it may know more, never less or other."""
        found = []
        for kind in ("inputs", "outputs"):
            ours, theirs = getattr(self, kind), getattr(other, kind)
            if [s[0] for s in ours] != [s[0] for s in theirs]:
                found.append(f"{kind} were {[s[0] for s in ours]}, now {[s[0] for s in theirs]}")
                continue
            for (name, dtype, dims), (_, new_dtype, new_dims) in zip(ours, theirs, strict=True):
                if dtype not in (new_dtype, ""):
                    found.append(f"{kind[:-1]} {name!r} was {dtype}, now {new_dtype or 'untyped'}")
                if dims is not None and not _refines(dims, new_dims):
                    found.append(f"{kind[:-1]} {name!r} had dims {dims}, now {new_dims}")
        found.extend(f"input {name!r} has lost its default" for name in sorted(self.defaults - other.defaults))
        return found


def _signature(value: onnx_ir.Value) -> tuple[str, str, tuple[str, ...] | None]:
    dims = None if value.shape is None else tuple(str(d) if isinstance(d, int) else d.value or "" for d in value.shape)
    return value.name or "", str(value.type or ""), dims


def _refines(dims: tuple[str, ...], new: tuple[str, ...] | None) -> bool:
    return new is not None and len(dims) == len(new) and all(a in (b, "") for a, b in zip(dims, new, strict=True))
