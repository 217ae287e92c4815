"""Sequences of tensors whose make-up is known: they become the tensors themselves."""

from __future__ import annotations

import onnx_ir

from optc.ir.ops import axis_of, concat, int_attr, made_by, operand, split, squeeze, unsqueeze
from optc.ir.rewriter import Rewriter, users
from optc.passes.rule import node_rule

#: Sequences of more members than this stay what they are.
_MAX_MEMBERS = 64


@node_rule("split-sequence", "SplitToSequence")
def split_sequence(rw: Rewriter, node: onnx_ir.Node):
    """A SplitToSequence of which only single members are read, at known places, is a Split."""
    sequence, x = node.outputs[0], node.inputs[0]
    sizes = _member_sizes(rw, node)
    if sizes is None or sequence.is_graph_output() or x is None:
        return None
    readers = users(sequence)
    places = [rw.facts.scalar(operand(reader, 1)) if reader.op_type == "SequenceAt" else None for reader in readers]
    if any(place is None or not -len(sizes) <= place < len(sizes) for place in places):
        return None
    if any(reader.graph is not node.graph for reader in readers):
        return None
    axis = axis_of(node, rw.facts, 0)
    if axis is None or not readers:
        return None
    whole = operand(node, 1) is not None or int_attr(node, "keepdims", 1)
    parts = split(rw, x, sizes, axis)
    for reader, place in zip(readers, places, strict=True):
        part = parts[int(place)]  # type: ignore[arg-type]
        rw.replace(reader.outputs[0], part if whole else squeeze(rw, part, [axis]))
        rw.erase(reader)
    return True


def _member_sizes(rw: Rewriter, node: onnx_ir.Node) -> tuple[int, ...] | None:
    axis, shape = axis_of(node, rw.facts, 0), rw.facts.shape(node.inputs[0])
    dim = None if shape is None or axis is None or axis >= len(shape) else shape[axis]
    given = operand(node, 1)
    chunk: int | None = 1
    if given is not None:
        sizes = rw.facts.ints(given)
        if sizes is None or rw.facts.rank(given) is None:
            return None
        if rw.facts.rank(given) == 1:
            return sizes if 0 < len(sizes) <= _MAX_MEMBERS else None
        chunk = sizes[0]
    if not isinstance(dim, int) or chunk is None or chunk < 1 or not 0 < -(-dim // chunk) <= _MAX_MEMBERS:
        return None
    return tuple(min(chunk, dim - start) for start in range(0, dim, chunk))


@node_rule("member-of-sequence", "SequenceAt")
def member_of_sequence(rw: Rewriter, node: onnx_ir.Node):
    """A member of a sequence that was just put together."""
    made = made_by(node.inputs[0], "SequenceConstruct")
    place = rw.facts.scalar(operand(node, 1))
    if made is None or place is None or not -len(made.inputs) <= place < len(made.inputs):
        return None
    return made.inputs[int(place)]


@node_rule("concat-of-sequence", "ConcatFromSequence")
def concat_of_sequence(rw: Rewriter, node: onnx_ir.Node):
    """Joining a sequence that was just put together is a Concat; joining one that was just cut gives back the whole."""
    made = made_by(node.inputs[0], "SequenceConstruct", "SplitToSequence")
    if made is None:
        return None
    stacked = int_attr(node, "new_axis", 0)
    if made.op_type == "SplitToSequence":
        x = made.inputs[0]
        whole = operand(made, 1) is not None or int_attr(made, "keepdims", 1)
        here = axis_of(node, rw.facts, 0, rw.facts.rank(x))
        return x if whole and not stacked and here is not None and here == axis_of(made, rw.facts, 0) else None
    rank = rw.facts.rank(made.inputs[0])
    axis = axis_of(node, rw.facts, 0, None if rank is None else rank + stacked)
    parts = [part for part in made.inputs if part is not None]
    if axis is None or len({rw.facts.rank(part) for part in parts}) != 1:
        return None
    if stacked:
        parts = [unsqueeze(rw, part, [axis]) for part in parts]
    return concat(rw, parts, axis)


RULES = (split_sequence, member_of_sequence, concat_of_sequence)
