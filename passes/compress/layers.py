"""Weighted layers: products with a constant, however a graph writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import onnx_ir

from optc.ir.errors import UsageError
from optc.ir.facts import Facts
from optc.ir.targets import suggestion
from optc.passes.calibration.views import COLUMNS, Patches, View

#: "matmul" is x (..., K) @ W; "conv" is a convolution, a product of image patches of K numbers with W;
#: "lookup" takes rows of a table, which is a product with rows of an identity.
Kind = Literal["matmul", "conv", "lookup"]

#: Weights of products with fewer elements than this are left alone: a kernel of their size costs next to nothing. Those
#: of convolutions are used for many pixels, and a small one left in floats would break a chain of integer ones.
MIN_WEIGHTS: dict[Kind, int] = {"matmul": 1 << 12, "conv": 1, "lookup": 1 << 12}


@dataclass(frozen=True)
class Layer:
    """A node that multiplies by a constant matrix.

    Attributes:
        node: The MatMul, Gemm, FusedMatMul, Conv, FusedConv or Gather.
        kind: What it does with its input.
        transposed: Whether the weight of a product is stored as (N, K).
        rows, columns: K and N; for a convolution K is C / groups times the size of the kernel. A table has N rows of K.
        groups: Groups of a convolution; 1 for products.
    """

    node: onnx_ir.Node
    kind: Kind
    transposed: bool
    rows: int
    columns: int
    groups: int = 1

    @property
    def name(self) -> str:
        """The node's name, by which ledgers and recipes know the layer."""
        return self.node.name or self.node.outputs[0].name or ""

    @property
    def x(self) -> onnx_ir.Value:
        """The activations, float32 and not constant: (..., K) of rank 2 or more, (B, C, ...) for a convolution.

        For a look-up, the indices.
        """
        return self.node.inputs[1 if self.kind == "lookup" else 0]

    @property
    def weight(self) -> onnx_ir.Value:
        """The constant: (K, N), or (N, K) if ``transposed``, or (N, C / groups, ...) for a convolution."""
        return self.node.inputs[0 if self.kind == "lookup" else 1]

    def matrix(self, facts: Facts) -> np.ndarray:
        """The weight as a float32 array of shape (K, N)."""
        return np.ascontiguousarray(self.by_output(facts).T, dtype=np.float32)

    def by_output(self, facts: Facts) -> np.ndarray:
        """The weight as (N, K): a view of what is stored, which is not read here."""
        array = facts.const(self.weight)
        assert array is not None
        if self.kind == "conv":
            return array.reshape(self.columns, -1)
        return array if self.transposed else array.T

    def stored(self, matrix: np.ndarray, facts: Facts) -> np.ndarray:
        """A matrix as :meth:`by_output` has it, in the form of the weight."""
        shape = tuple(int(size) for size in facts.shape(self.weight) or ())
        array = matrix.reshape(shape) if self.kind == "conv" or self.transposed else matrix.T
        return np.ascontiguousarray(array, np.float32)

    def view(self, facts: Facts) -> View:
        """How a product or convolution sees its input as rows."""
        if self.kind != "conv":
            return COLUMNS
        shape = facts.shape(self.weight) or ()
        return Patches.of(self.node, [int(size) for size in shape[2:]])  # type: ignore[arg-type]

    def on(self, node: onnx_ir.Node) -> Layer:
        """The same layer in a copy of its graph, where it is ``node``."""
        return dataclasses.replace(self, node=node)


def weighted_layers(
    graph: onnx_ir.Graph, facts: Facts, kinds: Collection[Kind] = ("matmul", "conv")
) -> Iterator[Layer]:
    """The layers of a graph that could be compressed, in order; those with constant fp32 weights only."""
    for node in graph:
        reader = _READERS.get((node.domain, node.op_type))
        layer = reader(node, facts) if reader is not None else None
        if layer is not None and layer.kind in kinds and layer.rows * layer.columns >= MIN_WEIGHTS[layer.kind]:
            yield layer


def named_layers(layers: Sequence[Layer], patterns: Sequence[str], what: str) -> list[Layer]:
    """Those of some layers that are named, by names or patterns of them; all if nothing is named.

    Args:
        layers: Those that there are.
        patterns: What is named.
        what: What becomes of them, for messages ("factored").

    Raises:
        UsageError: A pattern fits none of them.
    """
    names = [layer.name for layer in layers]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) or name == pattern for name in names):
            hint = suggestion(pattern, names, "optc inspect lists the nodes of a model")
            raise UsageError(f"there is no layer {pattern!r} that could be {what}", hint=hint)
    fits = [any(fnmatchcase(name, pattern) or name == pattern for pattern in patterns) for name in names]
    return [layer for layer, fit in zip(layers, fits, strict=True) if fit or not patterns]


def _weight_shape(node: onnx_ir.Node, facts: Facts) -> list[int] | None:
    """Shape of the weight, if it and the activations are what a layer has."""
    if len(node.inputs) < 2:
        return None
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None or facts.is_const(x) or not facts.is_const(weight):
        return None
    shape = facts.shape(weight)
    if shape is None or facts.dtype(weight) != onnx_ir.DataType.FLOAT:
        return None
    return [int(size) for size in shape]


def _product(node: onnx_ir.Node, facts: Facts) -> Layer | None:
    shape = _weight_shape(node, facts)
    if shape is None or len(shape) != 2 or (facts.rank(node.inputs[0]) or 0) < 2:
        return None
    form = _FORMS[(node.domain, node.op_type)]
    if any(_value(node, name, default) != default for name, default in form.items()):
        return None
    transposed = bool(_value(node, "transB", 0))
    rows, columns = reversed(shape) if transposed else shape
    return Layer(node, "matmul", transposed, rows, columns)


def _convolution(node: onnx_ir.Node, facts: Facts) -> Layer | None:
    shape = _weight_shape(node, facts)
    if shape is None or len(shape) < 3:
        return None
    columns, *rest = shape
    return Layer(node, "conv", False, int(np.prod(rest)), columns, int(_value(node, "group", 1)))


def _table(node: onnx_ir.Node, facts: Facts) -> Layer | None:
    table, indices = node.inputs
    shape = facts.shape(table)
    if not facts.is_const(table) or shape is None or len(shape) != 2 or _value(node, "axis", 0) != 0:
        return None
    if facts.dtype(table) != onnx_ir.DataType.FLOAT or facts.is_const(indices):
        return None
    columns, rows = (int(size) for size in shape)
    return Layer(node, "lookup", True, rows, columns)


def _value(node: onnx_ir.Node, name: str, default: float) -> float:
    attr = node.attributes.get(name)
    return default if attr is None else attr.value


#: The operators of products, and the attributes that must have these values for the node to be x @ W + bias.
_FORMS: dict[tuple[str, str], dict[str, float]] = {
    ("", "MatMul"): {},
    ("", "Gemm"): {"alpha": 1.0, "beta": 1.0, "transA": 0},
    ("com.microsoft", "FusedMatMul"): {"alpha": 1.0, "transA": 0, "transBatchA": 0, "transBatchB": 0},
}
_READERS: dict[tuple[str, str], Callable[[onnx_ir.Node, Facts], Layer | None]] = {
    **dict.fromkeys(_FORMS, _product),
    ("", "Conv"): _convolution,
    ("com.microsoft", "FusedConv"): _convolution,
    ("", "Gather"): _table,
}
