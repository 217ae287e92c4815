"""The shapes pass: arithmetic on shapes, done once and with few nodes, or not at all."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir

from optc.ir.ops import is_op
from optc.ir.verify import subgraphs
from optc.passes.base import Numerics, Pass, PassContext
from optc.passes.clean import rules_broadcasts, rules_gathers, rules_shapes
from optc.passes.clean.shape_plans import Plan, Planner, Sources, build, nodes_of
from optc.passes.clean.simplify import select
from optc.passes.driver import apply_rules
from optc.passes.rule import Rule

RULES: dict[str, Rule] = {
    rule.name: rule for module in (rules_shapes, rules_broadcasts, rules_gathers) for rule in module.RULES
}


@dataclass(frozen=True)
class Shapes(Pass):
    """Symbolic shape arithmetic: constant Reshape targets, no-op views, equal shapes computed once from the inputs.

    Attributes:
        skip: Names of rules to leave out.
    """

    name: ClassVar[str] = "shapes"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    restructures = False

    skip: tuple[str, ...] = ()

    def run(self, ctx: PassContext) -> None:
        apply_rules(ctx, select(RULES, (), self.skip))
        merge_equal(ctx)
        rebuild(ctx)


# the region -------------------------------------------------------------------------------------------------------


def is_symbolic(ctx: PassContext, value: onnx_ir.Value | None) -> bool:
    """Whether the contents of a value are known, but not the same integers in every run."""
    elements = ctx.facts.elements(value)
    return elements is not None and any(not isinstance(element, int) for element in elements)


def in_region(ctx: PassContext, node: onnx_ir.Node | None) -> bool:
    """Whether a node is arithmetic on shapes: it makes symbolic contents from shapes or from known contents."""
    if node is None or any(True for _ in subgraphs(node)):
        return False
    if not all(is_symbolic(ctx, out) for out in node.outputs if out.name):
        return False
    if is_op(node, "Shape", "Size"):
        return True
    return all(value is None or ctx.facts.elements(value) is not None for value in node.inputs)


# equal contents ---------------------------------------------------------------------------------------------------


def merge_equal(ctx: PassContext) -> None:
    """Of several values with equal symbolic contents, keep the first of each scope."""
    merged: list[onnx_ir.Node] = []
    _merge(ctx, ctx.model.graph, ChainMap(), merged)
    for node in merged:  # only now: a value that is unused for a while may be the first of others
        ctx.rewriter.erase(node)


def _merge(ctx: PassContext, graph: onnx_ir.Graph, known: ChainMap, merged: list[onnx_ir.Node]) -> None:
    for value in graph.inputs:
        _note(ctx, value, known)
    for node in list(graph):
        for subgraph in subgraphs(node):
            _merge(ctx, subgraph, known.new_child(), merged)
        shape_node = in_region(ctx, node)
        for value in node.outputs:
            first = _note(ctx, value, known)
            if first is value or not shape_node or value.is_graph_output() or ctx.is_vetoed("equal-contents", node):
                continue
            with ctx.rewriter.at(node, "equal-contents"):
                ctx.rewriter.replace(value, first)
            merged.append(node)
            ctx.hit("equal-contents")


def _note(ctx: PassContext, value: onnx_ir.Value, known: ChainMap) -> onnx_ir.Value:
    """The first value with the contents of this one, which may be itself."""
    if not is_symbolic(ctx, value):
        return value
    fact = ctx.facts.fact(value)
    return known.setdefault((fact.dtype, fact.shape, ctx.facts.elements(value)), value)


# rebuilding -------------------------------------------------------------------------------------------------------


@dataclass
class _Sink:
    """A value of the region that something outside of it reads, and how it could be computed."""

    value: onnx_ir.Value
    node: onnx_ir.Node
    scope: Sources
    plan: Plan | onnx_ir.Value | None


@dataclass
class _Survey:
    """The arithmetic on shapes of a model, and how it could be done instead."""

    ctx: PassContext
    sinks: list[_Sink] = field(default_factory=list)

    def walk(self, graph: onnx_ir.Graph, sources: Sources, root: bool = False) -> None:
        facts = self.ctx.facts
        for value in graph.inputs:
            sources.add(value, facts.shape(value) or (), item=False, is_input=root)
            self._add_items(value, sources, root)
        planner = Planner(self.ctx.rewriter, sources)
        for node in graph:
            for subgraph in subgraphs(node):
                self.walk(subgraph, Sources(sources))
            if in_region(self.ctx, node):
                for value in node.outputs:
                    if is_symbolic(self.ctx, value) and self._is_sink(value):
                        self.sinks.append(_Sink(value, node, sources, self._plan(planner, value)))
                continue
            for value in node.outputs:
                sources.add(value, facts.shape(value) or (), item=False, is_input=False)
                self._add_items(value, sources, False)

    def _add_items(self, value: onnx_ir.Value, sources: Sources, root: bool) -> None:
        if (self.ctx.facts.rank(value) or 0) <= 1 and self.ctx.facts.dtype(value) == onnx_ir.DataType.INT64:
            sources.add(value, self.ctx.facts.elements(value) or (), item=True, is_input=root)

    def _is_sink(self, value: onnx_ir.Value) -> bool:
        return value.is_graph_output() or any(not in_region(self.ctx, use.node) for use in value.uses())

    def _plan(self, planner: Planner, value: onnx_ir.Value) -> Plan | onnx_ir.Value | None:
        if value.is_graph_output():
            return None
        fact, elements = self.ctx.facts.fact(value), self.ctx.facts.elements(value)
        if elements is None or fact.shape is None:
            return None
        plan = planner.plan(elements, len(fact.shape), fact.dtype)
        if plan is None or _cost_of_plans([plan]) > self.cost_of_nodes([value]):
            return None
        return plan

    def cost_of_nodes(self, values: Iterable[onnx_ir.Value]) -> tuple[int, int]:
        """How many nodes of the region these values need, and how many of them look at tensors inside the graph."""
        needed = set(self._ancestors(values))
        return len(needed), sum(is_op(node, "Shape", "Size") and not _is_input(node.inputs[0]) for node in needed)

    def _ancestors(self, values: Iterable[onnx_ir.Value]) -> Iterator[onnx_ir.Node]:
        seen: set[onnx_ir.Node] = set()
        pending = [value.producer() for value in values]
        while pending:
            node = pending.pop()
            if node is None or node in seen or not in_region(self.ctx, node):
                continue
            seen.add(node)
            yield node
            pending.extend(value.producer() for value in node.inputs if value is not None)


def _cost_of_plans(plans: Iterable[Plan | onnx_ir.Value]) -> tuple[int, int]:
    nodes = {node for plan in plans for node in nodes_of(plan)}
    return len(nodes), sum(node.op == "Shape" and not _is_input(node.operands[0]) for node in nodes)


def _is_input(value) -> bool:
    return isinstance(value, onnx_ir.Value) and value.is_graph_input() and value.producer() is None


def rebuild(ctx: PassContext) -> None:
    """Compute shapes from where they are nearest to the inputs, if that takes fewer nodes.

    As many nodes that look at fewer tensors inside the graph count as fewer: a tensor that is only looked at for its
    shape cannot be fused away.
    """
    survey = _Survey(ctx)
    survey.walk(ctx.model.graph, Sources(), root=True)
    planned = [sink for sink in survey.sinks if sink.plan is not None]
    if not planned:
        return
    before = survey.cost_of_nodes(sink.value for sink in survey.sinks)
    kept = survey.cost_of_nodes(sink.value for sink in survey.sinks if sink.plan is None)
    new = _cost_of_plans(sink.plan for sink in planned if sink.plan is not None)
    if (kept[0] + new[0], kept[1] + new[1]) >= before:
        return
    for sink in planned:
        with ctx.rewriter.at(sink.node, "rebuilt-shape"):
            value = build(ctx.rewriter, sink.plan, sink.scope.built)  # type: ignore[arg-type]
            ctx.rewriter.replace(sink.value, value)
        ctx.hit("rebuilt-shape")
    for sink in planned:
        ctx.rewriter.erase(sink.node)
