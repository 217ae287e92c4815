"""Which tensors lie on a grid of integers, once it is known which layers shall compute with integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import int_attr, only_use, operand
from optc.ir.rewriter import users
from optc.passes.compress.integer.placement import Placement, Result, Role, Rule, Sums

#: What a Relu or Clip is at least: bounds that leave 0 inside, so that a grid can end at both of them.
_Bounds = tuple[float, float]


@dataclass
class Plan:
    """Where the integers are.

    Attributes:
        placement: The target's rules.
        layers: The layers that compute with integers, in the order of the graph.
        passing: Other nodes that do, as their inputs are integers and their readers want some.
        results: Layer or passing node -> the value that its kernel writes: its output, or that of the activation or
            bias behind it that the kernel takes in.
        values: The values on a grid, in order of the graph.
        whole: Those of them that only exist on the grid: every reader reads the integers.
        groups: Values that must be on one grid, by any of them: equal objects are one grid.
        bounds: Values right behind an activation that clips: their ranges.
        refused: Layers that were asked for and stay in floats, with the reason.
    """

    placement: Placement
    layers: list[onnx_ir.Node] = field(default_factory=list)
    passing: list[onnx_ir.Node] = field(default_factory=list)
    results: dict[onnx_ir.Node, onnx_ir.Value] = field(default_factory=dict)
    values: list[onnx_ir.Value] = field(default_factory=list)
    whole: set[onnx_ir.Value] = field(default_factory=set)
    groups: dict[onnx_ir.Value, onnx_ir.Value] = field(default_factory=dict)
    bounds: dict[onnx_ir.Value, _Bounds] = field(default_factory=dict)
    refused: dict[onnx_ir.Node, str] = field(default_factory=dict)

    def group(self, value: onnx_ir.Value) -> onnx_ir.Value:
        """The value that stands for all that share a grid with this one."""
        while value in self.groups:
            value = self.groups[value]
        return value

    def reads(self, node: onnx_ir.Node) -> Iterator[int]:
        """The inputs of a layer or passing node that must be on a grid."""
        rule = self.placement.rules[node.op_type]
        indices = range(len(node.inputs)) if rule.operands is None else rule.operands
        for index in indices:
            value = operand(node, index)
            if value is not None and not self._is_joined(node, value):
                yield index

    def _is_joined(self, node: onnx_ir.Node, value: onnx_ir.Value) -> bool:
        """Whether an operand of a sum comes straight from the layer whose kernel adds."""
        return _is_joined_sum(self, node) and value is _joined(self, node)


def why_not(node: onnx_ir.Node, placement: Placement, facts: Facts) -> str | None:
    """Why a layer cannot compute with integers on such a target; None if it can."""
    if placement.why_not is not None:
        return placement.why_not
    rule = placement.rules.get(node.op_type) if node.domain == "" else None
    if rule is None or rule.role is not Role.LAYER:
        return f"{placement.name} has no integer {node.op_type}"
    x, weight = operand(node, 0), operand(node, 1)
    if x is None or facts.dtype(x) != onnx_ir.DataType.FLOAT or facts.is_const(x):
        return "its input is not in single precision, or constant"
    array = facts.shape(weight)
    if not facts.is_const(weight) or array is None or facts.dtype(weight) != onnx_ir.DataType.FLOAT:
        return "its weights are not constant, in single precision"
    if node.op_type == "MatMul" and len(array) != 2:
        return "its weights are not a matrix"
    if node.op_type == "Gemm":
        for name, wanted in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
            attr = node.attributes.get(name)
            if attr is not None and attr.value != wanted:
                return f"{name} is not {wanted:g}"
    reason = placement.unfit(node, tuple(int(size) for size in array))  # type: ignore[arg-type]
    if reason is not None:
        return reason
    bias = operand(node, rule.bias) if rule.bias is not None else None
    if bias is not None and placement.integer_bias:
        constant = facts.shape(bias)
        if not facts.is_const(bias) or constant is None or len(constant) != 1 or constant[0] != _channels(node, array):
            return "its bias is not one constant per output channel"
    if facts.opset() < 13:
        return "scales per channel need opset 13"
    return None


def _channels(node: onnx_ir.Node, weight: tuple) -> int:
    """Output channels of a layer."""
    if node.op_type == "ConvTranspose":
        return weight[1] * int_attr(node, "group", 1)
    return weight[0 if node.op_type == "Conv" or int_attr(node, "transB", 0) else 1]


def place(graph: onnx_ir.Graph, facts: Facts, placement: Placement, chosen: Iterable[onnx_ir.Node]) -> Plan:
    """Find the tensors to quantize so that the chosen layers, and what lies between them, compute with integers.

    Args:
        graph: The main graph; it is not changed.
        facts: What is known of its values.
        placement: The target's rules.
        chosen: The layers; those that the target has no kernel for are refused in the plan.
    """
    plan = Plan(placement)
    wanted = set(chosen)
    for node in graph:
        if node not in wanted:
            continue
        reason = why_not(node, placement, facts)
        if reason is None:
            plan.layers.append(node)
        else:
            plan.refused[node] = reason
    for node in plan.layers:
        plan.results[node] = _result(plan, node, facts)
    _find_passing(plan, graph, facts)
    _find_values(plan, graph, facts)
    return plan


def _result(plan: Plan, node: onnx_ir.Node, facts: Facts) -> onnx_ir.Value:
    """What a node's kernel writes: its output, or that of the activation behind it that the kernel takes in."""
    value = node.outputs[0]
    reader = users(value)[0] if only_use(value) else None
    if reader is None or reader.domain or reader.op_type not in plan.placement.folds or reader.graph is not node.graph:
        return value
    bounds = clip_bounds(reader, facts)
    if bounds is None or reader.inputs[0] is not value:
        return value
    plan.bounds[reader.outputs[0]] = bounds
    return reader.outputs[0]


def clip_bounds(node: onnx_ir.Node, facts: Facts) -> _Bounds | None:
    """Between what a Relu or Clip keeps numbers; None if that is not known, or leaves out 0."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    found = []
    for index, otherwise in ((1, -np.inf), (2, np.inf)):
        given = operand(node, index)
        scalar = otherwise if given is None else facts.scalar(given)
        if scalar is None:
            return None
        found.append(float(scalar))
    low, high = found
    return (low, high) if low <= 0.0 <= high and low < high else None


# -- what lies between layers ---------------------------------------------------------------------------------------


def _find_passing(plan: Plan, graph: onnx_ir.Graph, facts: Facts) -> None:
    """The largest set of nodes that have integers before them and a reader of integers behind them."""
    rules = plan.placement.rules
    candidates = [node for node in graph if _may_pass(node, rules.get(node.op_type), facts)]
    for node in candidates:
        plan.results[node] = _result(plan, node, facts)
    kept = dict.fromkeys(candidates)
    while True:
        made = {plan.results[node]: rules[node.op_type].result for node in plan.layers}
        for node in kept:  # what only moves integers makes nothing of its own
            moves, before_it = rules[node.op_type].role is Role.MOVES, node.inputs[0]
            made[plan.results[node]] = made.get(before_it, Result.GRID) if moves else rules[node.op_type].result
        joined = {node for node in kept if _is_joined_sum(plan, node)}
        before = [
            n for n in kept if n in joined or all(_comes_so(rules[n.op_type], made, n.inputs[i]) for i in plan.reads(n))
        ]
        readers = {*plan.layers, *before}
        behind = [n for n in before if n in joined or any(use in readers for use in users(plan.results[n]))]
        if len(behind) == len(kept):
            break
        kept = dict.fromkeys(behind)
    for node in candidates:
        if node not in kept:
            plan.bounds.pop(plan.results[node], None)
            del plan.results[node]
    plan.passing = list(kept)


def _comes_so(rule: Rule, made: Mapping[onnx_ir.Value, Result], value: onnx_ir.Value | None) -> bool:
    """Whether a value is made of integers, and is on a grid anyway where the node would round again."""
    result = made.get(value)  # type: ignore[arg-type]
    return result is not None and (rule.role is Role.MOVES or result is not Result.EITHER)


def _may_pass(node: onnx_ir.Node, rule: Rule | None, facts: Facts) -> bool:
    if rule is None or rule.role is Role.LAYER or node.domain or len(node.outputs) != 1:
        return False
    indices = range(len(node.inputs)) if rule.operands is None else rule.operands
    given = [operand(node, index) for index in indices]
    if any(one is None or facts.is_const(one) or facts.dtype(one) != onnx_ir.DataType.FLOAT for one in given):
        return False
    return node.op_type not in ("MaxPool", "AveragePool") or facts.rank(given[0]) == 4


def _is_joined_sum(plan: Plan, node: onnx_ir.Node) -> bool:
    return node.op_type == "Add" and plan.placement.sums is Sums.JOINED and _joined(plan, node) is not None


def _joined(plan: Plan, node: onnx_ir.Node) -> onnx_ir.Value | None:
    """The operand of a sum that a layer's kernel adds the other operand to."""
    joins = plan.placement.joins
    own = {plan.results[layer] for layer in plan.layers if layer in plan.results and layer.op_type in joins}
    fitting = [value for value in node.inputs[:2] if value in own and value is not None and only_use(value)]
    return fitting[-1] if fitting else None


# -- values ---------------------------------------------------------------------------------------------------------


def _find_values(plan: Plan, graph: onnx_ir.Graph, facts: Facts) -> None:
    rules = plan.placement.rules
    inside = {*plan.layers, *plan.passing}
    made = {plan.results[node]: node for node in inside}
    found: dict[onnx_ir.Value, None] = {}
    for node in graph:
        if node not in inside:
            continue
        for index in plan.reads(node):
            found.setdefault(node.inputs[index])  # type: ignore[arg-type]
        if rules[node.op_type].result is Result.GRID:
            found.setdefault(plan.results[node])
    for value in found:
        maker = made.get(value)
        if maker is None:
            continue
        uses = ((use.node, use.idx) for use in value.uses())
        only_integers = not value.is_graph_output() and all(
            node in inside and index in set(plan.reads(node)) for node, index in uses
        )
        result = rules[maker.op_type].result
        if result is Result.GRID or (result is Result.EITHER and only_integers):
            plan.whole.add(value)
    for node in plan.passing:
        if rules[node.op_type].role is Role.MOVES or node.op_type in plan.placement.one_grid:
            for index in plan.reads(node):
                _join(plan, node.inputs[index], plan.results[node])  # type: ignore[arg-type]
    # A grid must end where the activation in front of it clips, for the kernel to take that in.
    plan.bounds = {value: bounds for value, bounds in plan.bounds.items() if value in found}
    plan.values = list(found)


def _join(plan: Plan, one: onnx_ir.Value, other: onnx_ir.Value) -> None:
    one, other = plan.group(one), plan.group(other)
    if one is not other:
        plan.groups[other] = one


__all__ = ["Plan", "clip_bounds", "place", "why_not"]
