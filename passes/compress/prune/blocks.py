"""Removing whole residual blocks: where x + f(x) can be x.

A block is a sum one side of which is all that the other side is made of. What it is worth is the size of f(x) as a
share of that of x, measured; the least goes first, and the others are measured anew now and then, as those behind it
see something else then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import is_op
from optc.ir.rewriter import Rewriter, users
from optc.passes.calibration.store import Request
from optc.passes.compress.prune.cut import drop_unused
from optc.passes.compress.prune.work import Work

#: Blocks between two measurements of what the others are worth, as a share of all.
_STEP = 1 / 8


@dataclass(frozen=True, eq=False)
class Block:
    """A sum x + f(x).

    Attributes:
        node: The Add, or an operator that adds and normalizes.
        kept: The side that stays, x.
        branch: The side that goes, f(x).
        body: The nodes of f that nothing else reads.
        share: The size of f(x) over that of x; None if it was not measured.
    """

    node: onnx_ir.Node
    kept: onnx_ir.Value
    branch: onnx_ir.Value
    body: frozenset[onnx_ir.Node]
    share: float | None = None

    @property
    def name(self) -> str:
        """The name of the sum."""
        return self.node.name or self.node.outputs[0].name or ""


def blocks_of(graph: onnx_ir.Graph, facts: Facts) -> Iterator[Block]:
    """The residual blocks of a graph, in order."""
    for node in graph:
        summands = _summands(node, facts)
        if summands is None:
            continue
        for kept, branch in permutations(summands):
            body = _body(branch, kept, node)
            if body and facts.shape(kept) is not None and facts.shape(kept) == facts.shape(node.outputs[0]):
                yield Block(node, kept, branch, body)
                break


def _summands(node: onnx_ir.Node, facts: Facts) -> tuple[onnx_ir.Value, onnx_ir.Value] | None:
    """The two computed values that a node adds, constants aside."""
    if is_op(node, "Add", "Sum"):
        given = [value for value in node.inputs if value is not None]
    elif node.domain == "com.microsoft" and node.op_type in _NORMALIZED and facts.opset() >= 17:
        given = [value for value in node.inputs[:2] if value is not None]
    else:
        return None
    computed = [value for value in given if not facts.is_const(value)]
    return (computed[0], computed[1]) if len(computed) == 2 else None


#: Operators that add and normalize, and what normalizes alone; both are followed by weights and a bias.
_NORMALIZED = {
    "SkipLayerNormalization": "LayerNormalization",
    "SkipSimplifiedLayerNormalization": "SimplifiedLayerNormalization",
}


def _remove(rw: Rewriter, block: Block) -> None:
    """Let what reads the sum read the side that stays."""
    node = block.node
    with rw.at(node, "prune-block", tuple(block.body)):
        if node.op_type not in _NORMALIZED:
            rw.replace(node.outputs[0], block.kept)
        else:
            parameters = node.inputs[2:4] if node.op_type == "SkipLayerNormalization" else node.inputs[2:3]
            epsilon = node.attributes.get("epsilon")
            normalized = rw.op(
                _NORMALIZED[node.op_type],
                block.kept,
                *parameters,
                axis=-1,
                epsilon=1e-5 if epsilon is None else epsilon.as_float(),
            )
            rw.replace(node.outputs[0], normalized)
            if len(node.outputs) > 3:
                rw.replace(node.outputs[3], block.kept)
    rw.erase(node)


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
            _remove(rw, block)
            removed.append(block)
    drop_unused(rw)
    gone = {block.name for block in removed}
    left = {block.name: "other blocks are worth less" for block in found if block.name not in gone}
    return removed, left


def _measured(blocks: list[Block], work: Work, model: onnx_ir.Model) -> list[Block]:
    """Blocks with what they are worth, least first."""
    requests = [Request(value.name or "") for block in blocks for value in (block.kept, block.branch)]
    known = work.statistics.collect(model, requests)
    measured = []
    for block in blocks:
        kept, branch = block.kept.name or "", block.branch.name or ""
        if kept in known and branch in known:
            whole, part = known.moments(kept).mean_square, known.moments(branch).mean_square
            measured.append(replace(block, share=(part / max(whole, 1e-30)) ** 0.5))
    return sorted(measured, key=lambda block: block.share or 0.0)
