"""The pass that removes channels that are zero, or that nothing reads: the same function, by fewer numbers.

A channel is dead for a layer that sums over it if the layer's weights on it are zero, or if it is zero whatever the
input: the layer that makes it has neither weights nor a bias for it, and what lies between keeps zero zero. (In both
cases numbers are taken to be finite: zero times infinity is no number, and is not kept.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import int_attr, operand
from optc.passes.base import Numerics, Pass, PassContext
from optc.passes.compress.prune.axes import Group, Structure, structure_of
from optc.passes.compress.prune.cut import cut
from optc.passes.compress.prune.scope import Weight

#: Rounds: what is removed may leave layers before it without readers.
_ROUNDS = 8

#: Operators that are zero where their first input is.
_FIRST = frozenset(
    (
        *("Abs", "Asin", "Asinh", "Atan", "Atanh", "AveragePool", "Cast", "Ceil", "Celu", "Dropout", "Elu", "Erf"),
        *(
            "Expand",
            "Flatten",
            "Floor",
            "Gather",
            "Gelu",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "HardSwish",
            "Identity",
        ),
        *("LeakyRelu", "MaxPool", "Mish", "Neg", "PRelu", "QuickGelu", "ReduceMean", "ReduceSum", "Relu", "Reshape"),
        *("Round", "Selu", "Sign", "Sin", "Sinh", "Slice", "Softsign", "Split", "Sqrt", "Squeeze", "Swish", "Tan"),
        *("Tanh", "Tile", "Transpose", "Unsqueeze"),
    )
)
#: Operators that are zero where all of their inputs are.
_ALL = frozenset(("Add", "BiasAdd", "BiasGelu", "Concat", "FastGelu", "Max", "Mean", "Min", "Sub", "Sum"))
#: Activations of com.microsoft::FusedConv that keep zero.
_ACTIVATIONS = ("", "Relu", "Tanh", "LeakyRelu")


@dataclass(frozen=True)
class DeadChannels(Pass):
    """Remove channels that are zero or that nothing reads."""

    name: ClassVar[str] = "dead-channels"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def run(self, ctx: PassContext) -> None:
        for _ in range(_ROUNDS):
            structure = structure_of(ctx.model.graph, ctx.facts)
            dead = list(dead_units(structure))
            if not dead:
                return
            cut(ctx.rewriter, structure, [root for _, roots in dead for root in roots])
            for group, roots in dead:
                ctx.hit(f"dead-{group.kind}", len(roots))
                ctx.remark("done", group.name, f"{len(roots)} of {len(group)} channels are zero or are not read")


def dead_units(structure: Structure) -> Iterator[tuple[Group, list[int]]]:
    """The units that nothing loses anything without, by group; one unit of each group stays in any case."""
    zeros = zero_units(structure)
    for group in structure.groups:
        if group.kind == "experts":
            continue  # one that makes only zeros still has its share of what the router gives
        dead = np.ones(len(group), bool)
        for weight in group.readers:
            value = weight.node.inputs[weight.x]
            unread = _all_zero(structure.facts, weight)
            positions = structure.positions(group, weight.ids)
            read = np.zeros(len(group), bool)
            read[positions[(positions >= 0) & ~unread]] = True
            known = zeros.get(value) if value is not None else None
            if known is not None:
                read &= ~np.isin(group.roots, known)
            dead &= ~read
        for product in structure.state.products:
            read = np.isin(group.roots, structure.units.roots[product.ids])
            for value in product.node.inputs[:2]:
                if value in zeros:
                    read &= ~np.isin(group.roots, zeros[value])
            dead &= ~read
        if dead.all():
            dead[0] = False
        if dead.any():
            yield group, group.roots[dead].tolist()


def _all_zero(facts: Facts, weight: Weight) -> np.ndarray:
    """Of every position of a weight's axis, whether there are only zeros."""
    array = facts.const(weight.value)
    assert array is not None
    others = tuple(axis for axis in range(array.ndim) if axis != weight.axis)
    return ~np.any(array, axis=others)


def zero_units(structure: Structure) -> dict[onnx_ir.Value, np.ndarray]:
    """Of every value, the units all positions of which are zero in every run."""
    zeros: dict[onnx_ir.Value, np.ndarray] = {}
    made: dict[onnx_ir.Node, list[Weight]] = {}
    for weight in structure.state.writers:
        made.setdefault(weight.node, []).append(weight)
    for node in structure.graph:
        found = _zeros_of(structure, node, made.get(node, []), zeros)
        if found is not None and len(found):
            for value in node.outputs:
                zeros[value] = found
    return zeros


def _zeros_of(
    structure: Structure, node: onnx_ir.Node, writers: Sequence[Weight], zeros: dict[onnx_ir.Value, np.ndarray]
) -> np.ndarray | None:
    op = node.op_type
    if op in ("Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm"):
        return _unwritten(structure, node, writers, zeros)
    if op in _FIRST:
        return _of_input(structure, node, 0, zeros)
    given = [index for index in range(len(node.inputs)) if operand(node, index) is not None]
    parts = [_of_input(structure, node, index, zeros) for index in given]
    if op == "Mul":
        return np.unique(np.concatenate([part for part in parts if part is not None] or [np.zeros(0, np.int64)]))
    if op in _ALL and parts:
        wholly = [_roots_of(structure, node, index) for index in given]
        every = np.unique(np.concatenate(wholly))
        # Of each unit, nobody may bring anything else than zeros; who knows nothing of it must be zero.
        for index, part, mine in zip(given, parts, wholly, strict=True):
            unknown = ~np.isin(every, mine)
            free = op == "Concat" or _is_zero(structure.facts, operand(node, index))
            every = every[(unknown & free) | (np.isin(every, part) if part is not None else False)]
        return every
    if op == "Clip":
        low, high = (structure.facts.scalar(operand(node, index)) for index in (1, 2))
        absent = operand(node, 1) is None, operand(node, 2) is None
        inside = (absent[0] or (low is not None and low <= 0)) and (absent[1] or (high is not None and high >= 0))
        return _of_input(structure, node, 0, zeros) if inside and "min" not in node.attributes else None
    return None


def _is_zero(facts: Facts, value: onnx_ir.Value | None) -> bool:
    array = facts.const(value)
    return array is not None and not np.any(array)


def _roots_of(structure: Structure, node: onnx_ir.Node, index: int) -> np.ndarray:
    """The units that lie along any axis of an input."""
    axes = structure.state.use(node, index) or ()
    roots = [structure.units.roots[ids] for ids in axes if ids is not None]
    return np.unique(np.concatenate(roots)) if roots else np.zeros(0, np.int64)


def _of_input(
    structure: Structure, node: onnx_ir.Node, index: int, zeros: dict[onnx_ir.Value, np.ndarray]
) -> np.ndarray | None:
    """The units that are zero in an input, a constant or not."""
    value = operand(node, index)
    if value is None:
        return None
    array = structure.facts.const(value)
    if array is None:
        return zeros.get(value)
    axes = structure.state.use(node, index) or ()
    found = []
    for axis, ids in enumerate(axes):
        if ids is not None:
            others = tuple(other for other in range(array.ndim) if other != axis)
            found.append(_only(structure, ids, ~np.any(array, axis=others)))
    return np.unique(np.concatenate(found)) if found else None


def _only(structure: Structure, ids: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """The units of an axis all of whose positions are zero."""
    roots = structure.units.roots[ids]
    return np.setdiff1d(roots[zero], roots[~zero])


def _unwritten(
    structure: Structure, node: onnx_ir.Node, writers: Sequence[Weight], zeros: dict[onnx_ir.Value, np.ndarray]
) -> np.ndarray | None:
    """The units for which a layer has neither weights nor a bias."""
    facts = structure.facts
    summand, bias = operand(node, 3), operand(node, 2)
    activation = node.attributes.get("activation")
    known = activation is None or activation.as_string() in _ACTIVATIONS
    last = [weight for weight in writers if weight.index == 1]
    if len(last) != 1 or not known or (node.op_type == "FusedMatMul" and int_attr(node, "transBatchB", 0)):
        return None
    (weight,) = last
    zero = _all_zero(facts, weight)
    if int_attr(node, "group", 1) > 1 and (facts.shape(weight.value) or ())[1:2] == (1,):
        # Depthwise: what is made of a channel is removed with it, and is zero where it is.
        zero |= np.isin(structure.units.roots[weight.ids], zeros.get(node.inputs[0], np.zeros(0, np.int64)))
    if bias is not None:
        array = facts.const(bias)
        if array is None or array.ndim > 1:
            return None
        zero = zero & (np.broadcast_to(array, zero.shape) == 0)
    found = _only(structure, weight.ids, zero)
    if summand is not None:
        found = np.intersect1d(found, zeros.get(summand, np.zeros(0, np.int64)))
    return found
