"""Small networks, and what compression makes of them, as ONNX texts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir

from optc.ir.model import load


def graph(text: str, weights: Mapping[str, np.ndarray], opset: int = 21) -> onnx_ir.Model:
    """A model of one graph whose constants are given as arrays."""
    made = onnx_ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>\n{text}')
    for name, array in weights.items():
        tensor = onnx_ir.tensor(array, name=name)
        value = next(value for node in made.graph for value in node.inputs if value is not None and value.name == name)
        value.const_value, value.type, value.shape = tensor, onnx_ir.TensorType(tensor.dtype), tensor.shape
        made.graph.register_initializer(value)
    return load(made)


def weights(seed: int = 0, width: int = 8) -> dict[str, np.ndarray]:
    """Of a network with two residual layers and a head."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    return {"w1": drawn(width, width), "b1": drawn(width), "w2": drawn(width, width), "w3": drawn(width, 4)}


PLAIN = """g (float[batch, 8] x) => (float[batch, 4] y) {
    p1 = MatMul (x, w1)
    a1 = Add (p1, b1)
    r1 = Relu (a1)
    s1 = Add (x, r1)
    p2 = MatMul (s1, w2)
    r2 = Tanh (p2)
    s2 = Add (s1, r2)
    y = MatMul (s2, w3)
}"""


def plain() -> onnx_ir.Model:
    """The original."""
    return graph(PLAIN, weights())


def halved() -> onnx_ir.Model:
    """The original with two of four weights gone, as 2:4 sparsity has it."""
    return graph(PLAIN, {name: sparse(array) if array.ndim == 2 else array for name, array in weights().items()})


def sparse(array: np.ndarray) -> np.ndarray:
    """The two largest of each four numbers of a column."""
    groups = array.reshape(-1, 4, array.shape[1])
    order = np.argsort(-np.abs(groups), axis=1, kind="stable")
    keep = np.zeros(groups.shape, bool)
    np.put_along_axis(keep, order[:, :2], True, axis=1)
    return np.where(keep, groups, 0).reshape(array.shape).astype(np.float32)


def codes(array: np.ndarray, levels: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Codes from -levels to levels, and a scale per column."""
    scale = (np.abs(array).max(0) / levels).astype(np.float32)
    return np.rint(array / scale).astype(np.int8), scale


def quantized() -> onnx_ir.Model:
    """The original with coarse INT8 codes in place of two weights."""
    drawn = weights()
    text = PLAIN.replace("p1 = ", "d1 = DequantizeLinear <axis = 1> (c1, k1)\n    p1 = ").replace("(x, w1)", "(x, d1)")
    text = text.replace("p2 = ", "d2 = DequantizeLinear <axis = 1> (c2, k2)\n    p2 = ").replace("(s1, w2)", "(s1, d2)")
    (c1, k1), (c2, k2) = codes(drawn.pop("w1"), 3), codes(drawn.pop("w2"), 3)
    return graph(text, {**drawn, "c1": c1, "k1": k1, "c2": c2, "k2": k2})


def data(rows: int = 96, seed: int = 1) -> dict[str, np.ndarray]:
    """Rows to learn from, whose columns depend on each other, as those of real activations do."""
    turned, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))
    drawn = np.random.default_rng(seed).standard_normal((rows, 8)) * 2.0 ** -np.arange(8)
    return {"x": (2 * drawn @ turned).astype(np.float32)}
