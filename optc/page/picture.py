"""A graph as a drawing: its nodes in layers, each below what it reads."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.names import join_op
from optc.ir.rewriter import RULE_KEY, sources
from optc.ir.verify import outer_reads

#: Distances of the drawing, in pixels.
_COLUMN, _LAYER = 148, 46
_SWEEPS = 4


@dataclass
class PictureNode:
    """A node and its place.

    Attributes:
        name: Its name.
        op: Its operator, with the domain if that is not the default one.
        reads: Positions (in the list of nodes) of the nodes whose results it reads.
        sources: Names of the nodes of the original model that it stands for.
        rules: The rules that made it, first to last; empty if it is as it was.
        outputs: Types of its results, as text.
        fed: Whether it depends on an input of the graph.
        x, y: Its centre.
    """

    name: str
    op: str
    reads: list[int]
    sources: list[str]
    rules: list[str]
    outputs: str
    fed: bool
    x: float = 0.0
    y: float = 0.0


@dataclass
class Picture:
    """All nodes of a graph; those of sub-graphs are part of the node that holds them."""

    nodes: list[PictureNode] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0


def picture(model: onnx_ir.Model) -> Picture:
    """Lay out the main graph of a model; constants are left out.

    Layers are longest paths from the inputs, and nodes are ordered within them by the mean place of their neighbours
    (Sugiyama, Tagawa and Toda, "Methods for Visual Understanding of Hierarchical System Structures", 1981).
    """
    facts = Facts(model)
    shown = [node for node in model.graph if node.op_type != "Constant"]
    place = {node: at for at, node in enumerate(shown)}
    nodes: list[PictureNode] = []
    for node in shown:
        nodes.append(_node(node, place, facts))
        nodes[-1].fed = nodes[-1].fed or any(nodes[at].fed for at in nodes[-1].reads if at < len(nodes))
    layers = _layers(nodes)
    _arrange(nodes, layers)
    return Picture(nodes, max((n.x for n in nodes), default=0) + _COLUMN, len(layers) * _LAYER + _LAYER)


def _node(node: onnx_ir.Node, place: dict[onnx_ir.Node, int], facts: Facts) -> PictureNode:
    read = list(outer_reads(node))
    producers = [value.producer() for value in read]
    rules = node.metadata_props.get(RULE_KEY, "")
    return PictureNode(
        name=node.name or "",
        op=join_op(node.domain, node.op_type),
        reads=sorted({place[p] for p in producers if p is not None and p in place and p is not node}),
        sources=list(sources(node)),
        rules=rules.split(",") if rules else [],
        outputs=", ".join(_type(value, facts) for value in node.outputs if value.name),
        fed=any(value.is_graph_input() and not value.is_initializer() for value in read),
    )


def _type(value: onnx_ir.Value, facts: Facts) -> str:
    dtype, shape = facts.dtype(value), facts.shape(value)
    dims = "?" if shape is None else ",".join(map(str, shape))
    return f"{dtype.name.lower() if dtype is not None else '?'}[{dims}]"


def _layers(nodes: list[PictureNode]) -> list[list[int]]:
    rank: list[int] = []
    for node in nodes:  # producers come first in a graph
        rank.append(1 + max((rank[at] for at in node.reads if at < len(rank)), default=-1))
    # What depends on nothing but constants stands close above its readers instead of at the top.
    lowest = dict[int, int]()
    for at in reversed(range(len(nodes))):
        if not nodes[at].fed and at in lowest:
            rank[at] = lowest[at] - 1
        for read in nodes[at].reads:
            lowest[read] = min(rank[at], lowest.get(read, rank[at]))
    layers: dict[int, list[int]] = defaultdict(list)
    for at, layer in enumerate(rank):
        layers[layer].append(at)
    return [layers[layer] for layer in sorted(layers)]


def _arrange(nodes: list[PictureNode], layers: list[list[int]]) -> None:
    readers: dict[int, list[int]] = defaultdict(list)
    for at, node in enumerate(nodes):
        for read in node.reads:
            readers[read].append(at)
    for depth, layer in enumerate(layers):
        for column, at in enumerate(layer):
            nodes[at].x, nodes[at].y = (column + 1) * _COLUMN, (depth + 1) * _LAYER
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            wanted = {
                at: _mean([nodes[other].x for other in (nodes[at].reads if down else readers[at])], nodes[at].x)
                for at in layer
            }
            _spread(nodes, sorted(layer, key=lambda at: wanted[at]), wanted)
    left = min((node.x for node in nodes), default=0.0)
    for node in nodes:
        node.x = round(node.x - left + _COLUMN / 2 + 8, 1)


def _mean(places: list[float], otherwise: float) -> float:
    return sum(places) / len(places) if places else otherwise


def _spread(nodes: list[PictureNode], order: list[int], wanted: dict[int, float]) -> None:
    """Put nodes as near to where they want to be as their neighbours allow, keeping the layer centred on its wishes."""
    at_least = float("-inf")
    for at in order:
        nodes[at].x = max(wanted[at], at_least)
        at_least = nodes[at].x + _COLUMN
    shift = sum(nodes[at].x - wanted[at] for at in order) / len(order)
    for at in order:
        nodes[at].x -= shift
