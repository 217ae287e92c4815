"""The table of operators, and what a function in it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import onnx_ir
from torch import Tensor

Result: TypeAlias = Tensor | tuple[Tensor | None, ...]
Function = Callable[..., Result]

MS = "com.microsoft"
#: (domain, operator) -> function of a call and its inputs, None for those that are left out.
OPERATORS: dict[tuple[str, str], Function] = {}


class Unsupported(Exception):
    """No gradient can be sent through a node; the message says why."""


class Call:
    """A node as its function sees it.

    Attributes:
        node: The node.
        opset: The version of its domain that the model imports.
    """

    def __init__(self, node: onnx_ir.Node, opset: int) -> None:
        self.node, self.opset = node, opset

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        attr = self.node.attributes.get(name)
        return default if attr is None else attr.as_int()

    def integers(self, name: str) -> list[int] | None:
        """An attribute that lists integers; None where it is not set."""
        attr = self.node.attributes.get(name)
        return None if attr is None else [int(item) for item in attr.as_ints()]

    def real(self, name: str, default: float) -> float:
        """A float attribute."""
        attr = self.node.attributes.get(name)
        return default if attr is None else attr.as_float()

    def reals(self, name: str) -> list[float] | None:
        """An attribute that lists floats; None where it is not set."""
        attr = self.node.attributes.get(name)
        return None if attr is None else [float(item) for item in attr.as_floats()]

    def text(self, name: str, default: str) -> str:
        """A text attribute."""
        attr = self.node.attributes.get(name)
        return default if attr is None else attr.as_string()

    def refuse(self, why: str) -> Unsupported:
        """What to raise where a node asks for more than its function knows."""
        return Unsupported(f"{self.node.op_type} {why}")


def operator(*names: str, domain: str = "") -> Callable[[Function], Function]:
    """Enter a function into the table."""

    def enter(function: Function) -> Function:
        for name in names:
            OPERATORS[domain, name] = function
        return function

    return enter


def listed(tensor: Tensor | None, attribute: Sequence[int] | None) -> list[int] | None:
    """Integers that were an attribute once and became an input later."""
    if tensor is not None:
        return [int(item) for item in tensor.reshape(-1).tolist()]
    return None if attribute is None else list(attribute)


def rounded(x: Tensor) -> Tensor:
    """The nearest integers, ties to even; gradients pass as if nothing were rounded (Bengio et al., 2013)."""
    return x + (x.round() - x).detach()


def broadcast_along(x: Tensor, axis: int, rank: int) -> Tensor:
    """A vector in a shape that broadcasts along one axis; anything else is left as it is."""
    if x.dim() != 1 or x.numel() == 1:
        return x
    shape: list[Any] = [1] * rank
    shape[axis] = -1
    return x.reshape(shape)
