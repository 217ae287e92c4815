"""Running a piece of a graph in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir
import torch
from torch import Tensor

from optc.ir.facts import Facts
from optc.recovery.engine import attention, elementwise, layers, movement, quantized
from optc.recovery.engine.table import OPERATORS, Call, Unsupported
from optc.recovery.places import stored_codes

#: The modules whose functions fill the table.
FAMILIES = (elementwise, movement, layers, attention, quantized)


class NodeFailed(Exception):
    """A node cannot be run.

    Attributes:
        node: Which one.
    """

    def __init__(self, node: onnx_ir.Node, why: str) -> None:
        self.node = node
        super().__init__(why)


def why_not(node: onnx_ir.Node) -> str | None:
    """Why no gradient can be sent through a node; None if one can, as far as its operator goes."""
    if (node.domain, node.op_type) in OPERATORS:
        return None
    return f"the gradient of {node.domain + '::' if node.domain else ''}{node.op_type} is not known"


class Program:
    """Nodes of a graph, in order, whose constants are read once.

    Args:
        nodes: The nodes.
        facts: Of the model, for its constants.
        opsets: Opset version per domain.
        device: Where to compute.
    """

    def __init__(
        self, nodes: Sequence[onnx_ir.Node], facts: Facts, opsets: Mapping[str, int], device: torch.device
    ) -> None:
        self._calls = [Call(node, opsets.get(node.domain, 1)) for node in nodes]
        made = {value for node in nodes for value in node.outputs}
        self._constants: dict[onnx_ir.Value, Tensor] = {}
        self.reads: list[str] = []
        for node in nodes:
            for place, value in enumerate(node.inputs):
                if value is None or value in made or value in self._constants:
                    continue
                tensor = facts.tensor(value)
                if tensor is None:
                    if value.name not in self.reads:
                        self.reads.append(value.name or "")
                elif node.op_type == "MatMulNBits" and place == 1:
                    self._constants[value] = torch.from_numpy(stored_codes(node, tensor)).to(device)
                else:
                    self._constants[value] = tensor_of(tensor.numpy(), device)

    def run(
        self, feeds: Mapping[str, Tensor], learned: Mapping[onnx_ir.Value, Tensor], wanted: Sequence[onnx_ir.Value]
    ) -> list[Tensor]:
        """The wanted values.

        Args:
            feeds: What :attr:`reads` names.
            learned: Constants in the state in which they are learned.
            wanted: Values that the nodes make.

        Raises:
            NodeFailed: A node asks for what is not known here.
        """
        values: dict[onnx_ir.Value, Tensor | None] = {**self._constants, **learned}
        for call in self._calls:
            inputs = [
                None if value is None else values[value] if value in values else feeds[value.name or ""]
                for value in call.node.inputs
            ]
            try:
                made = OPERATORS[call.node.domain, call.node.op_type](call, *inputs)
            except Unsupported as error:
                raise NodeFailed(call.node, str(error)) from error
            except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
                what = f"{call.node.op_type} cannot be run in PyTorch: {str(error).splitlines()[0]}"
                raise NodeFailed(call.node, what) from error
            results = made if isinstance(made, tuple) else (made,)
            values.update(zip(call.node.outputs, results, strict=False))
        return [_there(values[value]) for value in wanted]


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def tensor_of(array: np.ndarray, device: torch.device) -> Tensor:
    """An array as operators want it: floats, and codes of at most 8 bits, in single precision; others as they are."""
    floats = array.dtype.kind == "f" or "float" in array.dtype.name
    codes = array.dtype.itemsize == 1 and array.dtype.kind != "b"
    if floats or codes:
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array)).to(device)
