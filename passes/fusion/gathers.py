"""Chains of moves that only change the order of whole rows, as one Gather.

Swin's cyclic shifts and windows, patch merging by strided slices and their kind move blocks of channels around: a few
Slices and Concats, Reshapes and Transposes, each of which reads and writes everything. What the chain does to a row is
found by moving the numbers 0, 1, 2, ... instead of the data. The first axis may have any size: no link of the chain
mixes its entries, so all of them are moved alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import axis_of, cuts_of, is_op, made_by, perm_of, reshape
from optc.ir.rewriter import Rewriter, users
from optc.passes.rule import node_rule

#: A row of fewer bytes is not worth a copy of its own: a Gather calls the copy function once per row.
_ROW_BYTES = 64
#: Chains on more elements, or with more rows, are left alone: the row numbers are stored in the model.
_MAX_ELEMENTS, _MAX_ROWS = 1 << 22, 1 << 15
_MAX_LINKS = 16
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class _Link(NamedTuple):
    """One step of a chain.

    Attributes:
        source: The value that it reads.
        nodes: Its nodes.
        move: What it does to an array, the batch left out (its first axis has what is left of the first dim).
        copies: How many times its nodes write the data; views write nothing.
    """

    source: onnx_ir.Value
    nodes: tuple[onnx_ir.Node, ...]
    move: Callable[[np.ndarray], np.ndarray]
    copies: int


def _link(facts: Facts, value: onnx_ir.Value) -> _Link | None:
    """The step that makes a value, if it moves the entries of the first axis all alike."""
    node = value.producer()
    if node is None or node.domain or len(node.outputs) != 1 or not node.inputs or node.inputs[0] is None:
        return None
    source = node.inputs[0]
    if is_op(node, *_VIEWS):
        return _Link(source, (node,), lambda array: array, 0)
    if is_op(node, "Transpose"):
        perm = perm_of(node, facts)
        return _Link(source, (node,), lambda a: a.transpose(perm), 1) if perm and perm[0] == 0 else None
    if is_op(node, "Gather"):
        indices, axis = facts.const(node.inputs[1]), axis_of(node, facts, 0)
        if indices is None or indices.ndim != 1 or not axis:
            return None
        return _Link(source, (node,), lambda a: np.take(a, indices, axis), 1)
    return _joined_slices(facts, node) if is_op(node, "Concat") else None


def _joined_slices(facts: Facts, node: onnx_ir.Node) -> _Link | None:
    """A Concat of slices of one value."""
    axis = axis_of(node, facts, 1)
    pieces: list[list[onnx_ir.Node]] = []
    for value in node.inputs:
        cuts: list[onnx_ir.Node] = []
        while (cut := made_by(value, "Slice")) is not None:
            cuts.insert(0, cut)
            value = cut.inputs[0]
        pieces.append(cuts)
    sources = {cuts[0].inputs[0] for cuts in pieces if cuts}
    if not axis or len(sources) != 1 or not all(pieces):
        return None
    slices = tuple(dict.fromkeys(cut for cuts in pieces for cut in cuts))
    known = {cut: _slices(facts, cut) for cut in slices}
    if None in known.values() or not all(_stays_inside(cut.outputs[0], {*slices, node}) for cut in slices):
        return None

    def move(array: np.ndarray) -> np.ndarray:
        moved = []
        for cuts in pieces:
            piece = array
            for cut in cuts:
                piece = piece[known[cut]]
            moved.append(piece)
        return np.concatenate(moved, axis)

    return _Link(sources.pop(), (*slices, node), move, 2)  # type: ignore[arg-type]


def _slices(facts: Facts, node: onnx_ir.Node) -> tuple[slice, ...] | None:
    """What a Slice with constant bounds takes, in Python's terms; None if it cuts the first axis."""
    cuts, rank = cuts_of(node, facts), facts.rank(node.inputs[0])
    if cuts is None or rank is None or any(cut.axis == 0 for cut in cuts):
        return None
    taken = [slice(None)] * rank
    for cut in cuts:
        end = None if cut.step < 0 and cut.end < -(2**30) else cut.end
        taken[cut.axis] = slice(cut.start, end, cut.step)
    return tuple(taken)


def _stays_inside(value: onnx_ir.Value, nodes: set[onnx_ir.Node]) -> bool:
    return not value.is_graph_output() and nodes.issuperset(users(value))


def _inner(facts: Facts, value: onnx_ir.Value) -> tuple[int, ...] | None:
    """All dims but the first, if they are integers."""
    shape = facts.shape(value)
    if not shape or not all(isinstance(dim, int) and dim > 0 for dim in shape[1:]):
        return None
    return shape[1:]  # type: ignore[return-value]


def _chain(facts: Facts, root: onnx_ir.Value) -> list[_Link]:
    """The steps that make a value, the first one first."""
    links: list[_Link] = []
    value = root
    while len(links) < _MAX_LINKS and (value is root or _stays_inside(value, set(links[0].nodes))):
        link = _link(facts, value)
        if link is None or link.nodes[-1].graph is not root.graph:
            break
        if _inner(facts, value) is None or _inner(facts, link.source) is None:
            break
        links.insert(0, link)
        value = link.source
    return links


def _rows(facts: Facts, links: Sequence[_Link]) -> tuple[np.ndarray, int, int] | None:
    """What a chain does to a group of entries of the first axis: the number of the source's row that each row of the
    result is, the elements of a row, and the rows of the source. A group is as large as the entries of every step need.
    """
    sizes = [math.prod(_inner(facts, link.source) or ()) for link in links]
    last = math.prod(_inner(facts, links[-1].nodes[-1].outputs[0]) or ())
    elements, group = Fraction(sizes[0]), 1
    for link, size, after in zip(links, sizes, (*sizes[1:], last), strict=True):
        elements *= Fraction(after, size) if link.copies else 1
        group = math.lcm(group, (elements / after).denominator)
    total = group * sizes[0]
    if total > _MAX_ELEMENTS:
        return None
    array = np.arange(total, dtype=np.int32)
    for link in links:
        array = link.move(array.reshape(-1, *(_inner(facts, link.source) or ())))
    flat = array.reshape(-1)
    breaks = np.flatnonzero(np.diff(flat) != 1) + 1
    if len(breaks) >= _MAX_ROWS:
        return None
    starts = flat[np.concatenate(([0], breaks))]
    width = math.gcd(total, flat.size, *map(int, breaks), *map(int, starts))
    return flat[::width] // width, width, total // width


@node_rule("moves-to-gather", "Concat", "Transpose", "Gather")
def moves_to_gather(rw: Rewriter, node: onnx_ir.Node):
    """Moves that only change the order of rows are one Gather, where there are several of them."""
    facts, result = rw.facts, node.outputs[0]
    links = _chain(facts, result)
    if sum(link.copies for link in links) < 2:
        return None
    while links and not links[0].copies:
        links.pop(0)
    found, dtype = _rows(facts, links), facts.dtype(result)
    if found is None or dtype is None:
        return "rows are torn apart"
    rows, width, count = found
    if width * dtype.itemsize < _ROW_BYTES:
        return "the rows are too short"
    if rows.size > _MAX_ROWS:
        return "there are too many rows"
    inner = _inner(facts, result) or ()
    with rw.at(node, "moves-to-gather", [one for link in links for one in link.nodes]):
        taken = reshape(rw, links[0].source, (-1, count, width))
        if not np.array_equal(rows, np.arange(count)):
            taken = rw.op("Gather", taken, rw.constant(rows.astype(np.int64), "rows"), axis=1)
        return reshape(rw, taken, (0 if rows.size * width == math.prod(inner) else -1, *inner))


RULES = (moves_to_gather,)
