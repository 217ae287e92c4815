"""Copies of a model that show inner values, and run only what those depend on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir

from optc.ir.rewriter import Rewriter, is_dead


class Run(Protocol):
    """A model that was opened."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]: ...


#: Opens a model whose weights may be shared with it, without changing it.
Opener = Callable[[onnx_ir.Model], Run]


def values_of(graph: onnx_ir.Graph) -> dict[str, onnx_ir.Value]:
    """What can be made an output, by name: inputs that are fed, and what nodes of the main graph compute."""
    fed = (value for value in graph.inputs if value.name not in graph.initializers)
    computed = (value for node in graph for value in node.outputs)
    return {value.name: value for value in (*fed, *computed) if value.name}


def keep_only(graph: onnx_ir.Graph, outputs: Sequence[onnx_ir.Value]) -> None:
    """Make these the graph's outputs, and drop what none of them depends on. The inputs stay, read or not."""
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    for node in reversed(graph):
        if is_dead(node):
            graph.remove(node, safe=True)
    for value in list(graph.initializers.values()):
        if not (value.uses() or value.is_graph_input() or value.is_graph_output()):
            del graph.initializers[value.name or ""]


def needed(graph: onnx_ir.Graph, sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The part of a sample that the graph takes."""
    return {value.name or "": sample[value.name or ""] for value in graph.inputs if value.name in sample}


def shapes_of(
    model: onnx_ir.Model, names: Sequence[str], samples: Iterable[Mapping[str, np.ndarray]], opener: Opener
) -> dict[str, tuple[int, ...]]:
    """The largest shape of each value in some samples; the values themselves are not kept.

    Args:
        model: The model; it is not changed.
        names: Names of values of its main graph.
        samples: What to run.
        opener: Opens the copy that is run.
    """
    copy = model.clone()
    there = values_of(copy.graph)
    nodes = {name: onnx_ir.Node("", "Shape", [there[name]]) for name in names}
    fresh = Rewriter(copy).fresh_name
    for node in nodes.values():
        node.outputs[0].name = fresh("shape")
        node.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.INT64)
    copy.graph.extend(nodes.values())
    keep_only(copy.graph, [node.outputs[0] for node in nodes.values()])
    run = opener(copy)
    largest: dict[str, tuple[int, ...]] = {}
    for sample in samples:
        found = run.run(needed(copy.graph, sample))
        for name, node in nodes.items():
            shape = tuple(int(size) for size in found[node.outputs[0].name or ""])
            if name not in largest or math.prod(shape) > math.prod(largest[name]):
                largest[name] = shape
    return largest
