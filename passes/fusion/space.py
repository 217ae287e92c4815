"""Blocks of an image moved into channels and back, which generic transposes do slowly.

PyTorch writes ``pixel_shuffle`` and ``pixel_unshuffle`` (Shi et al., 2016) as a Transpose of six axes between Reshapes,
and YOLO's Focus layer is four strided Slices and a Concat. Whichever way, a block of ``b`` by ``b`` pixels and the
channels change places. ``SpaceToDepth`` here has the attribute ``order``: which channel of ONNX's operator, whose
channels are ordered by place in the block first, each channel of the result is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir

from optc.ir.dims import Dim
from optc.ir.facts import Facts
from optc.ir.functions import outline
from optc.ir.matcher import Match
from optc.ir.ops import TO_THE_END, axis_of, cuts_of, made_by, perm_of
from optc.ir.rewriter import Rewriter, users
from optc.passes.rule import fusion, node_rule

#: Permutation of (batch, ..., height, width) -> where the channels, the rows and the columns of a block are before it.
_TO_SPACE: dict[tuple[int, ...], tuple[str, int, int, int]] = {
    (0, 1, 4, 2, 5, 3): ("CRD", 1, 2, 3),
    (0, 3, 4, 1, 5, 2): ("DCR", 3, 1, 2),
}
#: Permutation of (batch, channels, height, row of a block, width, column) -> whether channels stay in front.
_TO_DEPTH: dict[tuple[int, ...], bool] = {(0, 3, 5, 1, 2, 4): False, (0, 1, 3, 5, 2, 4): True}


def _shapes(found: Match) -> tuple[Sequence[Dim], Sequence[Dim], Sequence[Dim], tuple[int, ...]] | None:
    """The shapes before, between and behind, and the permutation."""
    facts, turned = found.facts, found.turned.producer()
    shapes = [facts.shape(value) for value in (found.x, turned.inputs[0], found.output)]
    perm = perm_of(turned, facts)
    if perm is None or any(shape is None for shape in shapes) or [len(s) for s in shapes if s] != [4, 6, 4]:
        return None
    return (*shapes, perm)  # type: ignore[return-value]


def _depth_to_space(found: Match) -> dict[str, Any] | str:
    shapes = _shapes(found)
    if shapes is None or shapes[3] not in _TO_SPACE:
        return "the axes must be those of an image and of its blocks"
    (batch, channels, height, width), between, after, perm = shapes
    mode, kept, rows, columns = _TO_SPACE[perm]
    size = between[rows]
    if not isinstance(size, int) or size != between[columns]:
        return "the blocks must be squares of one size"
    if (between[0], between[4], between[5]) != (batch, height, width):
        return "the channels must be split, and nothing else"
    if channels != between[kept] * size * size or tuple(after) != (batch, between[kept], height * size, width * size):
        return "the blocks must be joined with the axes of space"
    return {"blocksize": size, "mode": mode}


@fusion("depth-to-space", "DepthToSpace", inputs=("x", "split", "join"), attributes=_depth_to_space)
def depth_to_space(p, x, split, join):
    """Channels become blocks of pixels (pixel shuffle)."""
    return p.Reshape(p.bind("turned", p.Transpose(p.Reshape(x, split))), join)


def _space_to_depth(found: Match) -> dict[str, Any] | str:
    shapes = _shapes(found)
    if shapes is None or shapes[3] not in _TO_DEPTH:
        return "the axes must be those of an image and of its blocks"
    (batch, channels, height, width), between, after, perm = shapes
    size = between[3]
    if not isinstance(size, int) or size != between[5] or not isinstance(channels, int):
        return "the blocks must be squares of one size, and the channels be known"
    if (between[0], between[1]) != (batch, channels) or (height, width) != (between[2] * size, between[4] * size):
        return "the axes of space must be split, and nothing else"
    if tuple(after) != (batch, channels * size * size, between[2], between[4]):
        return "the blocks must be joined with the channels"
    places = np.arange(channels * size * size).reshape(size * size, channels)
    order = places.T if _TO_DEPTH[perm] else places
    return {"blocksize": size, "order": order.reshape(-1).tolist()}


@fusion("space-to-depth", "SpaceToDepth", inputs=("x", "split", "join"), attributes=_space_to_depth)
def space_to_depth(p, x, split, join):
    """Blocks of pixels become channels (pixel unshuffle)."""
    return p.Reshape(p.bind("turned", p.Transpose(p.Reshape(x, split))), join)


@node_rule("focus", "Concat")
def focus(rw: Rewriter, node: onnx_ir.Node):
    """Every b-th pixel of every b-th row, from each start, joined as channels: blocks of pixels become channels."""
    facts, joined = rw.facts, len(node.inputs)
    size = round(joined**0.5)
    if size < 2 or size * size != joined or axis_of(node, facts, 1) != 1 or facts.rank(node.outputs[0]) != 4:
        return None
    taken, sources, slices = [], set(), []
    for value in node.inputs:
        starts: dict[int, int] = {}
        while (cut := made_by(value, "Slice")) is not None and cut.graph is node.graph:
            slices.append(cut)
            if not _every(facts, cut, size, starts):
                return "the slices must take every b-th pixel"
            value = cut.inputs[0]
        taken.append((starts.get(2), starts.get(3)))
        sources.add(value)
    x = sources.pop()
    shape = facts.shape(x)
    if not slices or sources or x is None or shape is None or not isinstance(shape[1], int):
        return None
    if set(taken) != {(row, column) for row in range(size) for column in range(size)}:
        return "each pixel of a block must be taken once"
    inside = {node, *slices}
    if any(cut.outputs[0].is_graph_output() or not inside.issuperset(users(cut.outputs[0])) for cut in slices):
        return "a slice is also used elsewhere"
    order = [(row * size + column) * shape[1] + c for row, column in taken for c in range(shape[1])]  # type: ignore[operator]
    parts = list(dict.fromkeys(reversed(slices)))
    with rw.at(node, "focus", parts):
        outline(rw, "SpaceToDepth", [x], node.outputs, [*parts, node], {"blocksize": size, "order": order})
    return True


def _every(facts: Facts, node: onnx_ir.Node, step: int, starts: dict[int, int]) -> bool:
    """Whether a Slice takes every ``step``-th entry of axes of space to the end; notes where it starts on each."""
    shape, cuts = facts.shape(node.inputs[0]), cuts_of(node, facts)
    if shape is None or cuts is None or len(shape) != 4:
        return False
    for cut in cuts:
        whole = cut.end >= TO_THE_END or (isinstance(shape[cut.axis], int) and cut.end >= shape[cut.axis])
        if cut.axis not in (2, 3) or cut.axis in starts or cut.step != step or not 0 <= cut.start < step or not whole:
            return False
        starts[cut.axis] = cut.start
    return True


RULES = (depth_to_space, space_to_depth, focus)
