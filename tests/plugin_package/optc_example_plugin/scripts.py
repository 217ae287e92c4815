"""GraphSurgeon scripts, as they are."""

import onnx_graphsurgeon as gs

from optc.passes.base import Numerics


def drop_abs(graph: gs.Graph) -> gs.Graph:
    """The absolute value of what a Relu gives is that itself."""
    for node in graph.nodes:
        if node.op == "Abs" and node.inputs[0].inputs and node.inputs[0].inputs[0].op == "Relu":
            for reader in list(node.outputs[0].outputs):
                reader.inputs[reader.inputs.index(node.outputs[0])] = node.inputs[0]
    return graph.cleanup().toposort()


drop_abs.numerics = Numerics.EXACT
