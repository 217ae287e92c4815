"""The order in which nodes are inferred: producers first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import onnx_ir


def in_order(graph: onnx_ir.Graph) -> Iterable[onnx_ir.Node]:
    """The nodes of ``graph`` so that producers come before consumers, be the graph itself sorted or not."""
    nodes = list(graph)
    seen: set[onnx_ir.Node] = set()
    for node in nodes:
        if any(needed.graph is graph and needed not in seen for needed in _needs(node)):
            return _topological(graph, nodes)
        seen.add(node)
    return nodes


def _needs(node: onnx_ir.Node) -> Iterator[onnx_ir.Node]:
    """The producers of all that ``node`` uses, its sub-graphs included."""
    for value in node.inputs:
        if value is not None and (producer := value.producer()) is not None:
            yield producer
    for attr in node.attributes.data.values():
        if attr.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS) and not attr.is_ref():
            graphs = (attr.value,) if attr.type == onnx_ir.AttributeType.GRAPH else attr.value
            for graph in graphs:
                for value in graph.outputs:
                    if (producer := value.producer()) is not None:
                        yield producer
                for inner in graph.all_nodes():
                    for value in inner.inputs:
                        if value is not None and (producer := value.producer()) is not None:
                            yield producer


def _topological(graph: onnx_ir.Graph, nodes: list[onnx_ir.Node]) -> list[onnx_ir.Node]:
    """Kahn's algorithm, in the given order where there is a choice. Nodes on a cycle come last, as given."""
    waiting: dict[onnx_ir.Node, int] = {}
    users: dict[onnx_ir.Node, list[onnx_ir.Node]] = {}
    for node in nodes:
        needed = {need for need in _needs(node) if need.graph is graph and need is not node}
        waiting[node] = len(needed)
        for need in needed:
            users.setdefault(need, []).append(node)
    ready = deque(node for node in nodes if not waiting[node])
    order: list[onnx_ir.Node] = []
    while ready:
        node = ready.popleft()
        order.append(node)
        for user in users.get(node, ()):
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    done = set(order)
    return order + [node for node in nodes if node not in done]
