"""Blocks of vision networks as exporters write them, norms in parts, with weights drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class _Builder:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def constant(self, array: np.ndarray | float) -> str:
        name = f"c{len(self.weights)}"
        array = np.asarray(array)
        self.weights.append(
            numpy_helper.from_array(array if array.dtype == np.int64 else array.astype(np.float32), name)
        )
        return name

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        fan = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        return self.constant(self.rng.normal(0, scale / np.sqrt(fan), shape))

    def norm(self, x: str, width: int) -> str:
        """LayerNorm over the last axis, in the parts in which it is exported below opset 17."""
        centered = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1], keepdims=1))
        square = self.op("Pow", centered, self.constant(2.0))
        variance = self.op("Add", self.op("ReduceMean", square, axes=[-1], keepdims=1), self.constant(1e-6))
        unit = self.op("Div", centered, self.op("Sqrt", variance))
        scale, bias = (self.constant(base + self.rng.normal(0, 0.1, width)) for base in (1.0, 0.0))
        return self.op("Add", self.op("Mul", unit, scale), bias)

    def linear(self, x: str, rows: int, columns: int) -> str:
        return self.op("Add", self.op("MatMul", x, self.weight(rows, columns)), self.constant(np.zeros(columns)))

    def gelu(self, x: str) -> str:
        erf = self.op("Erf", self.op("Div", x, self.constant(np.sqrt(2))))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, self.constant(1.0))), self.constant(0.5))

    def model(self, shape: list[int | str], result: str, make: Callable[[], list[int | str]]) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info(result, TensorProto.FLOAT, make())
        graph = helper.make_graph(self.nodes, "block", [x], [y], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)


def vit_block(width: int = 64, heads: int = 2) -> onnx.ModelProto:
    """A transformer block on (B, 16, width): attention and a network of two layers, each behind a norm."""
    b, size = _Builder(), width // heads
    split = b.constant(np.array([0, 16, heads, size], np.int64))
    merge = b.constant(np.array([0, 16, width], np.int64))

    def head(x: str, perm: list[int]) -> str:
        return b.op("Transpose", b.op("Reshape", b.linear(x, width, width), split), perm=perm)

    normed = b.norm("x", width)
    q, k, v = (head(normed, perm) for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    scores = b.op("Softmax", b.op("Mul", b.op("MatMul", q, k), b.constant(size**-0.5)), axis=-1)
    mixed = b.op("Reshape", b.op("Transpose", b.op("MatMul", scores, v), perm=[0, 2, 1, 3]), merge)
    x = b.op("Add", "x", b.linear(mixed, width, width))
    hidden = b.gelu(b.linear(b.norm(x, width), width, 4 * width))
    y = b.op("Add", x, b.linear(hidden, 4 * width, width))
    return b.model(["B", 16, width], y, lambda: ["B", 16, width])


def convnext_block(width: int = 32) -> onnx.ModelProto:
    """A ConvNeXt block on (B, width, 8, 8): a depthwise convolution, a norm over channels, two layers, and a scale."""
    b = _Builder()
    x = b.op("Conv", "x", b.weight(width, 1, 7, 7), kernel_shape=[7, 7], pads=[3] * 4, group=width)
    x = b.op("Transpose", x, perm=[0, 2, 3, 1])
    x = b.gelu(b.linear(b.norm(x, width), width, 4 * width))
    x = b.op("Mul", b.linear(x, 4 * width, width), b.constant(b.rng.normal(0.5, 0.1, width)))
    y = b.op("Add", "x", b.op("Transpose", x, perm=[0, 3, 1, 2]))
    return b.model(["B", width, 8, 8], y, lambda: ["B", width, 8, 8])
