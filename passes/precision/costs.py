"""What a narrow type gains and what casts cost: estimates from a target's rates, not measurements."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir

from optc.ir.dims import Dim, evaluate
from optc.ir.facts import Facts
from optc.ir.targets import Target
from optc.passes.precision.kinds import ATTENTIONS, is_product
from optc.passes.precision.narrow import Narrow
from optc.passes.precision.slots import Slots

#: Where a target says nothing: a device whose narrow products run eight times as fast.
_BANDWIDTH, _WIDE_RATE, _NARROW_RATE = 1e12, 20e12, 160e12
#: Seconds that any kernel takes. What is looked at are usual sizes only; so a product, which may be larger in other
#: runs, counts for several launches at least and is worth casts around it.
_LAUNCH = 1e-6
_PRODUCT = 5e-6
#: What a dim counts for that is not bound.
_USUAL = 32
#: Operators that only look at the same memory in another way.
_VIEWS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape", "Size"})


class Costs:
    """Seconds, at one set of sizes.

    Args:
        facts: What is known of the graph.
        target: Whose rates count.
        narrow: The narrow type.
        bindings: Sizes of symbolic dims.
    """

    def __init__(self, facts: Facts, target: Target, narrow: Narrow, bindings: Mapping[str, int]) -> None:
        self._facts, self._bindings = facts, bindings
        self._bandwidth = target.bandwidth or _BANDWIDTH
        self._wide = target.peak.get("tf32") or target.peak.get("fp32") or _WIDE_RATE
        self._narrow = max(target.peak.get(narrow.name) or _NARROW_RATE, self._wide)

    def cast(self, value: onnx_ir.Value) -> float:
        """Seconds of a cast: it reads the value in one type and writes it in the other."""
        return _LAUNCH + 6 * self._elements(value) / self._bandwidth

    def gain(self, node: onnx_ir.Node, slots: Slots) -> float:
        """Seconds that a node saves in the narrow type.

        Weights count as a whole, as they take room even where few of their rows are read.
        """
        values = [node.inputs[index] for index in slots.inputs] + [node.outputs[index] for index in slots.outputs]
        count = sum(self._elements(value) for value in values if value is not None)
        if node.op_type in _VIEWS and not any(self._facts.is_const(value) for value in values):
            count = 0
        saved = 2 * count / self._bandwidth
        if is_product(node):
            saved += _PRODUCT + self._operations(node) * (1 / self._wide - 1 / self._narrow)
        return saved

    def bytes(self, value: onnx_ir.Value) -> int:
        """Bytes of a value in single precision."""
        return 4 * self._elements(value)

    def _operations(self, node: onnx_ir.Node) -> float:
        """Multiplications and additions of a product."""
        result, x = self._elements(node.outputs[0]), node.inputs[0]
        if node.op_type in ATTENTIONS:
            shape = self._sizes(x) or (0, 0)
            return 4.0 * result * (shape[-2] if len(shape) > 1 else 0)
        weight = self._sizes(node.inputs[1] if len(node.inputs) > 1 else None)
        if not weight:
            return 0.0
        if "Conv" in node.op_type:
            outputs = self._elements(x) if node.op_type == "ConvTranspose" else result
            return 2.0 * outputs * float(np.prod(weight[1:]))
        return 2.0 * result * (self._sizes(x) or (0,))[-1]

    def _elements(self, value: onnx_ir.Value | None) -> int:
        return int(np.prod(self._sizes(value) or (1,)))

    def _sizes(self, value: onnx_ir.Value | None) -> tuple[int, ...] | None:
        shape = self._facts.shape(value)
        return None if shape is None else tuple(self._size(dim) for dim in shape)

    def _size(self, dim: Dim) -> int:
        if isinstance(dim, int):
            return dim
        try:
            return max(int(evaluate(dim, _Usual(self._bindings))), 0)
        except (ArithmeticError, ValueError):
            return _USUAL


class _Usual(dict[str, int]):
    """Sizes of dims; a usual one for what is not bound."""

    def __missing__(self, name: str) -> int:
        return _USUAL


def bound_dims(graph: onnx_ir.Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The sizes that symbolic dims of a graph's inputs have in a set of inputs."""
    found: dict[str, int] = {}
    for value in graph.inputs:
        array = feeds.get(value.name or "")
        if array is None or value.shape is None:
            continue
        for dim, size in zip(value.shape, array.shape, strict=False):
            name = None if isinstance(dim, int) else dim.value
            if name:
                found.setdefault(str(name), int(size))
    return found
