"""The groups of a graph: channels, neurons and heads that could be removed, and why others could not.

A walk over the nodes ties the axes of all values (:mod:`optc.passes.compress.prune.rules`). What is tied to nothing
that has to stay can be removed. Units that lie along the same axes are a group: each is as good as the other, and it
only matters which are needed least.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.verify import captured
from optc.passes.compress.prune.atoms import Ids, Units
from optc.passes.compress.prune.rules import RULES
from optc.passes.compress.prune.scope import Key, State, View, Weight

#: What a group is, and what it is called in options.
KINDS: dict[str, str] = {
    "conv": "channels between convolutions",
    "ffn": "neurons between products",
    "heads": "heads of attention, with all that belongs to them",
    "experts": "experts of a mixture, with their part of the router",
    "residual": "channels that several layers add to",
    "embedding": "columns of a table",
}


@dataclass(frozen=True, eq=False)
class Group:
    """Units that lie along the same axes.

    Attributes:
        name: Name of the first layer that makes them, by which reports and options know the group.
        kind: A key of :data:`KINDS`.
        roots: The units, in their order along the first axis.
        writers: Where layers make them, in order.
        readers: Where layers sum over them.
        least: How many have to be left.
    """

    name: str
    kind: str
    roots: np.ndarray
    writers: tuple[Weight, ...]
    readers: tuple[Weight, ...]
    least: int = 1

    def __len__(self) -> int:
        return len(self.roots)


@dataclass(frozen=True, eq=False)
class Structure:
    """What could be removed from a graph.

    Attributes:
        graph: The graph.
        facts: What was known of it.
        units: Which positions go together.
        state: The axes of all values.
        groups: What could be removed, in order.
        declined: By the name of a layer, why some or all of its channels stay.
    """

    graph: onnx_ir.Graph
    facts: Facts
    units: Units
    state: State
    groups: tuple[Group, ...] = ()
    declined: dict[str, str] = field(default_factory=dict)

    @cached_property
    def keys(self) -> list[Key]:
        """All values and uses of constants that have axes."""
        return [key for key, axes in self.state.axes.items() if axes is not None]

    def positions(self, group: Group, ids: Ids) -> np.ndarray:
        """Of every position of an axis, the index of its unit in a group; -1 for none."""
        order = np.argsort(group.roots)
        ranked = group.roots[order]
        mine = self.units.roots[ids]
        at = np.minimum(np.searchsorted(ranked, mine), len(ranked) - 1)
        return np.where(ranked[at] == mine, order[at], -1)


def structure_of(graph: onnx_ir.Graph, facts: Facts) -> Structure:
    """Find the groups of a model's main graph."""
    first = _walk(graph, facts, None)
    state = _walk(graph, facts, _choices(first, first.atoms.solve()))
    units = state.atoms.solve()
    groups = tuple(_groups(state, units))
    declined = _declined(state, units, groups)
    return Structure(graph, facts, units, state, groups, declined)


def _choices(state: State, units: Units) -> dict[tuple[onnx_ir.Node, int], int]:
    """Which of several axes that are one axis elsewhere is to be shortened: the outermost that can be.

    What is one axis here and several there may be so in other places too; all of them choose alike.
    """
    chosen, passed = np.zeros((2, len(units.roots)), bool)
    choices: dict[tuple[onnx_ir.Node, int], int] = {}
    for place, factors in state.factors.items():
        roots = [units.roots[ids] for ids in factors]
        free = [at for at, ids in enumerate(factors) if units.free(ids).any()] or [0]
        # False is less than True: what was chosen elsewhere, then what was not passed over, then the first.
        best = min(free, key=lambda at: (not chosen[roots[at]].any(), passed[roots[at]].any(), at))
        choices[place] = best
        chosen[roots[best]] = True
        for at, mine in enumerate(roots):
            if at != best:
                passed[mine] = True
    return choices


def _walk(graph: onnx_ir.Graph, facts: Facts, choices: dict[tuple[onnx_ir.Node, int], int] | None) -> State:
    """Tie all axes of a graph."""
    state = State(facts, choices=choices)
    for value in graph.inputs:
        state.axes[value] = state.new(facts.shape(value), "an input of the model")
    for node in graph:
        if node.op_type == "Constant" and node.domain == "":
            continue
        view = View(state, node)
        rule = RULES.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
        if rule is None:
            reason = f"nothing is known of how {node.op_type} uses it"
            view.freeze_inputs(reason)
            results = [view.out(index, reason) for index in range(len(node.outputs))]
            for value in captured(node):
                view.freeze(state.of(value), "a sub-graph reads it")
        else:
            results = list(rule(view))
        for value, axes in zip(node.outputs, results, strict=True):
            state.axes[value] = _checked(view, value, axes)
    for value in graph.outputs:
        for ids in state.of(value) or ():
            if ids is not None:
                state.atoms.freeze(ids, "an output of the model")
    for axes in state.axes.values():
        for ids in axes or ():
            if ids is not None and len(ids) == 1:
                state.atoms.freeze(ids, "an axis of one position")
    return state


def _checked(view: View, value: onnx_ir.Value, axes: tuple[Ids | None, ...] | None) -> tuple[Ids | None, ...] | None:
    """What a rule said of an output, held against what is known of its shape."""
    shape = view.facts.shape(value)
    if shape is None or axes is None or len(shape) != len(axes):
        view.freeze(axes, "its shape is not known")
        return None
    for ids, dim in zip(axes, shape, strict=True):
        if ids is not None and isinstance(dim, int) and len(ids) != dim:
            view.freeze(axes, "its shape is not what it seems")
            return view.state.new(shape, "its shape is not what it seems")
    return axes


def _groups(state: State, units: Units) -> Iterator[Group]:
    """Units that may go and that layers make and sum over, by the axes that they lie along."""
    signatures = np.zeros(len(units.roots), np.uint64)
    rng = np.random.default_rng(0)
    seen: dict[int, Ids] = {}
    for axes in state.axes.values():
        for ids in axes or ():
            if ids is not None and id(ids) not in seen:
                seen[id(ids)] = ids
                np.add.at(signatures, units.roots[ids], rng.integers(1, 2**62, dtype=np.uint64))
    members: dict[int, dict[int, None]] = {}
    writers: dict[int, list[Weight]] = defaultdict(list)
    readers: dict[int, list[Weight]] = defaultdict(list)
    for weights, by in ((state.writers, writers), (state.readers, readers)):
        for weight in weights:
            mine = units.roots[weight.ids]
            free = mine[units.frozen[mine] < 0]
            for signature in np.unique(signatures[free]).tolist():
                by[signature].append(weight)
                members.setdefault(signature, {}).update(
                    dict.fromkeys(root for root in free.tolist() if signatures[root] == signature)
                )
    taken: dict[str, int] = {}
    for signature, roots in members.items():
        if len(roots) < 2 or not writers[signature] or not readers[signature]:
            continue
        first = writers[signature][0]
        name = first.node.name or first.node.outputs[0].name or ""
        taken[name] = taken.get(name, 0) + 1
        number = "" if taken[name] == 1 else f"#{taken[name]}"
        kind = _kind(writers[signature], units, next(iter(roots)))
        ordered = np.array(list(roots))
        # What is frozen is left in any case, but it is as well to count without it.
        least = max((count for ids, count in state.least if np.isin(units.roots[ids], ordered).any()), default=1)
        if least < len(ordered):
            made, read = tuple(writers[signature]), tuple(readers[signature])
            yield Group(f"{name}{number}", kind, ordered, made, read, least)


def _kind(writers: list[Weight], units: Units, root: int) -> str:
    for kind in ("heads", "experts", "residual"):
        if units.is_marked(root, kind):
            return kind
    ops = {weight.node.op_type for weight in writers}
    if ops <= {"Gather"}:
        return "embedding"
    return "conv" if any("Conv" in op for op in ops) else "ffn"


def _declined(state: State, units: Units, groups: tuple[Group, ...]) -> dict[str, str]:
    """Why channels of layers stay, by the layer's name."""
    grouped = np.zeros(len(units.roots), bool)
    for group in groups:
        grouped[group.roots] = True
    declined: dict[str, str] = {}
    for weight in state.writers:
        staying = weight.ids[~grouped[units.roots[weight.ids]]]
        if not len(staying):
            continue
        name = weight.node.name or weight.node.outputs[0].name or ""
        reasons = units.why(staying) or ["no layer with constant weights sums over it"]
        share = "" if len(staying) == len(weight.ids) else f"{len(staying)} of {len(weight.ids)}: "
        declined.setdefault(name, share + "; ".join(reasons[:2]))
    return declined
