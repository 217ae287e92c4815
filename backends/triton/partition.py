"""A graph in parts: what becomes kernels, and what ONNX Runtime runs in between.

Every node has a stage, the lowest at which all that it reads is there: even stages are compiled, odd ones are not. The
nodes of a stage are one part, so that there are as few crossings as their order allows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir
from onnx_ir.convenience import extract

from optc.ir.dims import Dim
from optc.ir.facts import Facts
from optc.ir.functions import expanded
from optc.ir.verify import outer_reads


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Attributes:
        compiled: Whether it becomes kernels.
        nodes: Names of its nodes in the whole.
        model: The part as a model; its inputs and outputs have the names that they have in the whole.
    """

    compiled: bool
    nodes: tuple[str, ...]
    model: onnx_ir.Model

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what it reads."""
        return tuple(value.name or "" for value in self.model.graph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it makes, for other parts or as the result."""
        return tuple(value.name or "" for value in self.model.graph.outputs)


def parts(model: onnx_ir.Model, facts: Facts, elsewhere: Collection[str], names: dict[Dim, str]) -> list[Part]:
    """A model's parts in the order in which they run.

    Args:
        model: The model, whose nodes have names of their own. What crosses between parts gets the type and the shape
            that is known of it; nothing else is changed.
        facts: What is known of its values.
        elsewhere: Names of nodes that cannot be compiled.
        names: What dims that follow from others are called where they cross; new ones are added.
    """
    graph = model.graph
    stages = _stages(graph, elsewhere)
    made_in = {value: stage for stage, nodes in stages.items() for node in nodes for value in node.outputs}
    read_in: dict[onnx_ir.Value, set[int]] = {}
    for stage, nodes in stages.items():
        for value in (value for node in nodes for value in outer_reads(node)):
            read_in.setdefault(value, set()).add(stage)
    wanted, constant = set(graph.outputs), set(graph.initializers.values())
    found: list[Part] = []
    for stage in sorted(stages):
        inputs = [
            value
            for value, readers in read_in.items()
            if stage in readers and made_in.get(value) != stage and value not in constant
        ]
        made = (value for node in stages[stage] for value in node.outputs)
        outputs = [value for value in made if value in wanted or read_in.get(value, set()) - {stage}]
        if not outputs:
            continue
        for value in (*inputs, *outputs):
            _declare(value, facts, names)
        part = onnx_ir.Model(
            _extracted(graph, inputs, outputs),
            ir_version=model.ir_version,
            functions=[function.clone() for function in model.functions.values()],
        )
        part.graph.name = f"{graph.name or 'graph'}_{len(found)}"
        part.graph.opset_imports.update(graph.opset_imports)
        compiled = stage % 2 == 0
        names_of_nodes = tuple(node.name or "" for node in stages[stage])
        found.append(Part(compiled, names_of_nodes, part if compiled else expanded(part)))
    return found


def _extracted(
    graph: onnx_ir.Graph, inputs: Sequence[onnx_ir.Value], outputs: Sequence[onnx_ir.Value]
) -> onnx_ir.Graph:
    """A part of a graph, its constants in the order of the whole: ``extract`` has them in any."""
    part = extract(graph, inputs, outputs)
    found = [part.initializers.pop(name) for name in graph.initializers if name in part.initializers]
    for value in found:
        part.initializers.add(value)
    return part


def _stages(graph: onnx_ir.Graph, elsewhere: Collection[str]) -> dict[int, list[onnx_ir.Node]]:
    stages: dict[int, list[onnx_ir.Node]] = {}
    of: dict[onnx_ir.Node, int] = {}
    for node in graph:
        parity = int(node.name in elsewhere)
        producers = (value.producer() for value in outer_reads(node))
        stage = max((of[producer] for producer in producers if producer in of), default=parity)
        of[node] = stage + (stage % 2 != parity)
        stages.setdefault(of[node], []).append(node)
    return stages


def _declare(value: onnx_ir.Value, facts: Facts, names: dict[Dim, str]) -> None:
    """Write down what is known of a value that crosses; dims that follow from others get names of their own."""
    if value.is_graph_input() or value.is_graph_output():
        return
    shape, dtype = facts.shape(value), facts.dtype(value)
    if dtype is not None and value.dtype is None:
        value.dtype = dtype
    if shape is not None:
        value.shape = onnx_ir.Shape(
            [dim if isinstance(dim, int) else names.setdefault(dim, _name(dim, len(names))) for dim in shape]
        )


def _name(dim: Dim, number: int) -> str:
    text = str(dim)
    return text if text.isidentifier() else f"crossing_{number}"
