"""Removing whole residual blocks: where x + f(x) can be x.

A block is a sum one side of which is all that the other side is made of. What it is worth is the size of f(x) as a
share of the sum's, measured; the least goes first, and sums are measured anew after each, as the ones behind it see
something else then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir

from optc.ir.dims import Dim
from optc.ir.facts import Facts
from optc.ir.ops import is_op
from optc.ir.rewriter import Rewriter, users
from optc.passes.calibration.store import Request
from optc.passes.compress.prune.work import Work

#: Blocks between two measurements of what the others are worth, as a share of all.
_STEP = 1 / 8


@dataclass(frozen=True, eq=False)
class Block:
    """A sum x + f(x).

    Attributes:
        node: The Add.
        kept: The side that stays, x.
        body: The nodes of f that nothing else reads.
        share: The size of f(x) over that of the sum; None if it was not measured.
    """

    node: onnx_ir.Node
    kept: onnx_ir.Value
    body: frozenset[onnx_ir.Node]
    share: float | None = None

    @property
    def name(self) -> str:
        """The name of the Add."""
        return self.node.name or self.node.outputs[0].name or ""


def blocks_of(graph: onnx_ir.Graph, facts: Facts) -> Iterator[Block]:
    """The residual blocks of a graph, in order."""
    for node in graph:
        if not is_op(node, "Add") or any(v is None or facts.is_const(v) for v in node.inputs):
            continue
        left, right = node.inputs
        for kept, branch in ((left, right), (right, left)):
            body = _body(branch, kept, node)
            if body and _same(facts.shape(kept), facts.shape(node.outputs[0])):
                yield Block(node, kept, body)
                break


def _same(kept: tuple[Dim, ...] | None, made: tuple[Dim, ...] | None) -> bool:
    return kept is not None and kept == made


def _body(branch: onnx_ir.Value, kept: onnx_ir.Value, end: onnx_ir.Node) -> frozenset[onnx_ir.Node]:
    """The nodes from the kept side to the branch that nothing outside reads; none if it is no such branch."""
    body: set[onnx_ir.Node] = set()
    queue = [branch]
    reached = False
    while queue:
        value = queue.pop()
        if value is kept:
            reached = True
            continue
        node = value.producer()
        if node is None or node in body:
            continue
        readers = {reader for made in node.outputs for reader in users(made)}
        if any(made.is_graph_output() for made in node.outputs) or not readers <= body | {end}:
            continue  # a part that others read, too, stays
        body.add(node)
        queue += [one for one in node.inputs if one is not None]
    return frozenset(body) if reached else frozenset()


def remove_blocks(rw: Rewriter, work: Work, ratio: float) -> tuple[list[Block], dict[str, str]]:
    """Remove a share of the blocks, those that are worth least first.

    Returns:
        The blocks that went, and why others stayed.
    """
    graph = rw.model.graph
    found = list(blocks_of(graph, rw.facts))
    if not found:
        return [], {}
    if not work.has_data:
        return [], {block.name: "what a block is worth can only be measured, with calibration data" for block in found}
    wanted = min(round(ratio * len(found)), len(found))
    removed: list[Block] = []
    while len(removed) < wanted:
        candidates = _measured(list(blocks_of(graph, rw.facts)), work, rw.model)
        if not candidates:
            break
        step = max(1, int(len(found) * _STEP))
        for block in candidates[: min(step, wanted - len(removed))]:
            if block.node.graph is None or block.kept not in block.node.inputs:
                continue  # it was part of another one that went, or its input is another by now
            with rw.at(block.node, "prune-block", tuple(block.body)):
                rw.replace(block.node.outputs[0], block.kept)
            rw.erase(block.node)
            removed.append(block)
    gone = {block.name for block in removed}
    left = {block.name: "other blocks are worth less" for block in found if block.name not in gone}
    return removed, left


def _measured(blocks: list[Block], work: Work, model: onnx_ir.Model) -> list[Block]:
    """Blocks with what they are worth, least first."""
    names = {block: [block.node.outputs[0].name or "", *_branch(block)] for block in blocks}
    requests = [Request(name) for pair in names.values() for name in pair]
    known = work.statistics.collect(model, requests)
    measured = []
    for block, (total, branch) in names.items():
        if total in known and branch in known:
            whole, part = known.moments(total).mean_square, known.moments(branch).mean_square
            measured.append(Block(block.node, block.kept, block.body, (part / max(whole, 1e-30)) ** 0.5))
    return sorted(measured, key=lambda block: block.share or 0.0)


def _branch(block: Block) -> list[str]:
    return [v.name or "" for v in block.node.inputs if v is not None and v is not block.kept]
