"""Putting channels into another order where that costs nothing: what makes them writes them in that order.

Which positions of all axes go together is known from :mod:`optc.passes.compress.prune.axes`. What that proves is more
than that units can be removed. If an operator does to any part of an axis what it does to the whole (and this is what
makes a unit removable), what it makes of one position cannot depend on where that position is, and what it sums up
cannot either: so it commutes with any order, too. Two things could still tell positions apart: operators whose removal
takes new attributes (the sizes of a Split, the ends of a Slice, indices of a Gather), and axes on which other channels
lie beside the group's (Concat). Both show in the positions: in a group that may be put in order, every axis that has a
unit of it has all of them, each once, in one order, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir

from optc.ir.ops import is_op, operand
from optc.ir.rewriter import Rewriter
from optc.passes.compress.prune.atoms import Ids
from optc.passes.compress.prune.axes import Group, Structure
from optc.passes.compress.prune.cut import drop_unused, recut

#: Where every unit of a group comes from, by group.
Orders = Mapping[Group, np.ndarray]


def movable(structure: Structure) -> list[Group]:
    """The groups of a graph whose units may lie in any order."""
    fixed = np.full(len(structure.units.roots), -1)
    for number, group in enumerate(structure.groups):
        fixed[group.roots] = number
    stays: set[int] = set()
    for key in structure.keys:
        for ids in structure.state.axes[key] or ():
            if ids is None or not len(ids):
                continue
            roots = structure.units.roots[ids]
            for number in np.unique(fixed[roots]).tolist():
                if number >= 0 and not np.array_equal(roots, structure.groups[number].roots):
                    stays.add(number)
    return [group for number, group in enumerate(structure.groups) if number not in stays]


def reorder(rw: Rewriter, structure: Structure, orders: Orders) -> None:
    """Let units lie in another order: all constants along whose axes they are found are written anew.

    Args:
        rw: The rewriter of the model that was looked at.
        structure: What was seen of its graph.
        orders: For groups that are :func:`movable`.
    """
    by_root = {int(group.roots[0]): (group, order) for group, order in orders.items()}

    def order_of(ids: Ids | None) -> np.ndarray | None:
        found = by_root.get(int(structure.units.roots[ids[0]])) if ids is not None and len(ids) else None
        return found[1] if found is not None and len(ids) == len(found[0]) else None

    def picks(node: onnx_ir.Node, index: int) -> Sequence[np.ndarray | None]:
        axes = structure.state.use(node, index) if operand(node, index) is not None else None
        return [order_of(ids) for ids in axes or ()]

    nodes = [node for node in structure.graph if not is_op(node, "Constant")]
    recut(rw, structure.facts, nodes, picks, "sparsity-order", "reordered")
    drop_unused(rw)
    rw.relearn()
