"""Removing units from a graph: constants are cut, and what names sizes of axes is written anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import cuts_of, int_attr, ints_attr, is_op, operand
from optc.ir.rewriter import Rewriter
from optc.passes.compress.prune.atoms import Ids
from optc.passes.compress.prune.axes import Structure
from optc.passes.compress.prune.scope import cumulative

_RULE = "prune"


class Removal:
    """Which positions of every axis are left when some units are removed.

    Args:
        structure: The graph, as it was looked at.
        removed: Roots of the units that go.
    """

    def __init__(self, structure: Structure, removed: Iterable[int]) -> None:
        self.structure, self.facts = structure, structure.facts
        gone = np.zeros(len(structure.units.roots), bool)
        gone[np.fromiter(removed, np.int64)] = True
        self._gone = gone[structure.units.roots]

    def keep(self, ids: Ids) -> np.ndarray:
        """Of every position, whether it is left."""
        return ~self._gone[ids]

    def of(self, node: onnx_ir.Node, index: int) -> list[np.ndarray | None] | None:
        """What is left of every axis of an input; None for an axis of unknown size."""
        axes = self.structure.state.use(node, index) if operand(node, index) is not None else None
        return None if axes is None else [None if ids is None else self.keep(ids) for ids in axes]

    def picks(self, node: onnx_ir.Node, index: int) -> list[np.ndarray | None]:
        """What is left of every axis of an input as positions; None for an axis that is left whole."""
        keeps = self.of(node, index) or []
        return [None if keep is None or keep.all() else np.flatnonzero(keep) for keep in keeps]

    def made(self, node: onnx_ir.Node, index: int = 0) -> list[np.ndarray | None]:
        """The same of an output."""
        axes = self.structure.state.axes.get(node.outputs[index]) or ()
        return [None if ids is None else self.keep(ids) for ids in axes]

    def sizes(self, node: onnx_ir.Node) -> dict[int, int]:
        """The new sizes of those axes of a node's first output that become shorter."""
        made = self.made(node)
        return {at: int(keep.sum()) for at, keep in enumerate(made) if keep is not None and not keep.all()}


def cut(rw: Rewriter, structure: Structure, removed: Iterable[int]) -> dict[onnx_ir.Value, onnx_ir.Value]:
    """Remove units.

    Args:
        rw: The rewriter of the model that was looked at.
        structure: What was seen of its graph.
        removed: Roots of the units that go.

    Returns:
        The new constant for each old one that was cut.
    """
    removal = Removal(structure, removed)
    nodes = [node for node in structure.graph if not is_op(node, "Constant")]
    plans: list[tuple[onnx_ir.Node, Callable[[Rewriter], None]]] = []
    for node in nodes:
        plan = _PLANS.get(node.op_type)
        writing = plan(removal, node) if plan is not None else None
        if writing is not None:
            plans.append((node, writing))
    replaced = recut(rw, removal.facts, nodes, removal.picks, _RULE, "pruned")
    for node, writing in plans:
        with rw.at(node, _RULE):
            writing(rw)
    for node in nodes:
        for index, value in enumerate(node.outputs):
            made = removal.made(node, index)
            if value.shape is not None and len(made) == len(value.shape):
                dims = [
                    dim if keep is None or keep.all() else int(keep.sum())
                    for dim, keep in zip(value.shape, made, strict=True)
                ]
                value.shape = onnx_ir.Shape(dims)
    drop_unused(rw)
    rw.relearn()
    return replaced


def drop_unused(rw: Rewriter) -> None:
    """Drop constants that nothing reads any more, so that they are not counted."""
    for value in list(rw.model.graph.initializers.values()):
        rw.erase_initializer(value)


def recut(
    rw: Rewriter,
    facts: Facts,
    nodes: Sequence[onnx_ir.Node],
    picks: Callable[[onnx_ir.Node, int], Sequence[np.ndarray | None]],
    rule: str,
    suffix: str,
) -> dict[onnx_ir.Value, onnx_ir.Value]:
    """Let nodes read other constants, made of positions of those that they read.

    Args:
        rw: The rewriter of the nodes' model.
        facts: What was known of it.
        nodes: The nodes.
        picks: For an input of a node, which positions of every axis to take; None for all of them as they are.
        rule: What nodes are stamped with.
        suffix: What new constants are called.

    Returns:
        The new constant for each old one.
    """
    made: dict[tuple[onnx_ir.Value, bytes], onnx_ir.Value] = {}
    replaced: dict[onnx_ir.Value, onnx_ir.Value] = {}
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is None or not facts.is_const(value):
                continue
            wanted = picks(node, index)
            if all(one is None for one in wanted):
                continue
            key = (value, b";".join(b"" if one is None else one.tobytes() for one in wanted))
            if key not in made:
                array = facts.const(value)
                assert array is not None
                made[key] = rw.constant(taken(array, wanted), f"{value.name}_{suffix}")
            replaced[value] = made[key]
            with rw.at(node, rule):
                rw.set_input(node, index, made[key])
    return replaced


def taken(array: np.ndarray, picks: Sequence[np.ndarray | None]) -> np.ndarray:
    """What is taken of an array; positions of every axis, None for all."""
    for axis, positions in enumerate(picks):
        if positions is not None:
            array = np.take(array, positions, axis=axis)
    return np.ascontiguousarray(array)


# what names sizes -------------------------------------------------------------------------------------------------

_Writing = Callable[[Rewriter], None]


def _attribute(node: onnx_ir.Node, name: str, value: object) -> _Writing:
    return lambda rw: rw.set_attribute(node, name, value)


def _groups(removal: Removal, node: onnx_ir.Node) -> _Writing | None:
    """Conv and ConvTranspose: groups that went."""
    groups = int_attr(node, "group", 1)
    x, weight = removal.of(node, 0), removal.of(node, 1)
    if groups == 1 or x is None or weight is None or x[1] is None or weight[1] is None:
        return None
    per_group = x[1].size // groups
    if is_op(node, "ConvTranspose") or weight[1].all():
        return _attribute(node, "group", int(x[1].sum()) // per_group)
    return None


def _norm_groups(removal: Removal, node: onnx_ir.Node) -> _Writing | None:
    name = "groups" if node.domain else "num_groups"
    channels = -1 if node.domain and int_attr(node, "channels_last", 1) else 1
    x = removal.of(node, 0)
    if x is None or x[channels] is None or x[channels].all():
        return None
    groups = int_attr(node, name, 1)
    return _attribute(node, name, int(x[channels].sum()) * groups // x[channels].size)


def _heads(*names: str) -> Callable[[Removal, onnx_ir.Node], _Writing | None]:
    """Operators that know heads by number; all numbers shrink by the same share of the channels (or heads)."""

    def plan(removal: Removal, node: onnx_ir.Node) -> _Writing | None:
        keeps = removal.of(node, 1 if node.op_type == "Attention" and node.domain else 0)
        if keeps is None:
            return None
        sizes = ints_attr(node, "qkv_hidden_sizes")
        keep = keeps[1 if len(keeps) in (2, 4) else 2]
        if keep is None or keep.all():
            return None
        left, all_ = int(keep.sum()), keep.size

        def write(rw: Rewriter) -> None:
            for name in names:
                number = int_attr(node, name, 0)
                if number:
                    rw.set_attribute(node, name, number * left // all_)
            if sizes is not None:
                rw.set_attribute(node, "qkv_hidden_sizes", [size * left // all_ for size in sizes])

        return write

    return plan


def _split(removal: Removal, node: onnx_ir.Node) -> _Writing | None:
    before = removal.of(node, 0)
    axis = int_attr(node, "axis", 0)
    if before is None or before[axis] is None or before[axis].all():
        return None
    made = [removal.made(node, index)[axis] for index in range(len(node.outputs))]
    sizes = [int(keep.sum()) for keep in made if keep is not None]

    def write(rw: Rewriter) -> None:
        if rw.opset() < 13:
            rw.set_attribute(node, "split", sizes)
            return
        _set_operand(rw, node, 1, np.array(sizes, np.int64), "sizes")
        rw.set_attribute(node, "num_outputs", None)

    return write


def _slice(removal: Removal, node: onnx_ir.Node) -> _Writing | None:
    cuts, before = cuts_of(node, removal.facts), removal.of(node, 0)
    if cuts is None or before is None:
        return None
    changed = [keep is not None and not keep.all() for keep in (before[cut.axis] for cut in cuts)]
    if not any(changed):
        return None
    starts, ends = [], []
    for one in cuts:
        keep = before[one.axis]
        start, end = one.start, one.end
        if keep is not None and not keep.all():
            first, last, _ = slice(start, end).indices(keep.size)
            count = cumulative(keep)
            start, end = int(count[first]), int(count[max(first, last)])
        starts.append(start)
        ends.append(end)

    def write(rw: Rewriter) -> None:
        if rw.opset() < 10:
            rw.set_attribute(node, "starts", starts)
            rw.set_attribute(node, "ends", ends)
            return
        dtype = removal.facts.const(operand(node, 1)) if removal.facts.is_const(operand(node, 1)) else None
        kind = np.int64 if dtype is None else dtype.dtype
        for index, bounds in ((1, starts), (2, ends)):
            limit = np.iinfo(kind)
            _set_operand(rw, node, index, np.clip(bounds, limit.min, limit.max).astype(kind), "bounds")

    return write


def _gather(removal: Removal, node: onnx_ir.Node) -> _Writing | None:
    data, chosen = removal.of(node, 0), removal.facts.const(operand(node, 1))
    keep = data[int_attr(node, "axis", 0)] if data is not None else None
    if keep is None or keep.all() or chosen is None:
        return None
    numbers = cumulative(keep)
    left = np.where(chosen < 0, chosen + keep.size, chosen)
    if chosen.ndim:
        left = left[keep[left]]
    return lambda rw: _set_operand(rw, node, 1, numbers[left].astype(chosen.dtype), "indices")


def _target(index: int) -> Callable[[Removal, onnx_ir.Node], _Writing | None]:
    """Operators that are told the shape of their result: entries of shorter axes are written anew."""

    def plan(removal: Removal, node: onnx_ir.Node) -> _Writing | None:
        sizes, target = removal.sizes(node), operand(node, index)
        if not sizes:
            return None
        if target is None:
            given = ints_attr(node, "shape")  # Reshape before opset 5
            return None if given is None else _attribute(node, "shape", _entries(removal.facts, node, given, sizes))
        elements = removal.facts.elements(target)
        if elements is None:
            return None
        offset = len(removal.made(node)) - len(elements)  # Expand may name fewer axes than there are
        sizes = {at - offset: size for at, size in sizes.items() if at >= offset}
        new = _entries(removal.facts, node, elements, sizes)
        if list(new) == list(elements):
            return None
        constant = removal.facts.const(target)
        if constant is not None:
            return lambda rw: _set_operand(rw, node, index, np.array(new, constant.dtype), "shape")
        delta = np.array([int(b - a) for a, b in zip(elements, new, strict=True)], np.int64)
        return lambda rw: rw.set_input(node, index, rw.op("Add", target, rw.constant(delta, "shorter")))

    return plan


def _entries(facts: Facts, node: onnx_ir.Node, elements: Sequence, sizes: dict[int, int]) -> list:
    """A target with the sizes of shorter axes in it; what is inferred or copied stays so."""
    before = facts.shape(node.inputs[0]) or ()
    behind = facts.shape(node.outputs[0]) or ()
    result = list(elements)
    for at, size in sizes.items():
        inferred = is_op(node, "Reshape") and elements[at] == -1
        copied = elements[at] == 0 and is_op(node, "Reshape") and not int_attr(node, "allowzero", 0)
        # A dim that is copied from the same place is as short as that one, if it is the same axis.
        same = copied and before[: at + 1] == behind[: at + 1]
        if not inferred and not same and not (is_op(node, "Expand") and elements[at] == 1):
            result[at] = size
    return result


def _set_operand(rw: Rewriter, node: onnx_ir.Node, index: int, array: np.ndarray, name: str) -> None:
    """Let an input be a constant, one that was left out too."""
    while len(node.inputs) <= index:
        node.resize_inputs(len(node.inputs) + 1)
    rw.set_input(node, index, rw.constant(array, name))


_PLANS: dict[str, Callable[[Removal, onnx_ir.Node], _Writing | None]] = {
    **dict.fromkeys(("Conv", "FusedConv", "ConvTranspose"), _groups),
    **dict.fromkeys(("GroupNormalization", "GroupNorm"), _norm_groups),
    **dict.fromkeys(
        ("MultiHeadAttention", "GroupQueryAttention", "Attention", "RotaryEmbedding"),
        _heads("num_heads", "kv_num_heads", "q_num_heads"),
    ),
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Reshape": _target(1),
    "Expand": _target(1),
    "Resize": _target(3),
}
