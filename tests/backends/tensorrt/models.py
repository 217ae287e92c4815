"""Small models as texts, and what becomes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir

from optc.backends.ort import Session
from tests.passes.compress.texts import parse

__all__ = ["draw", "ops", "parse", "run", "standard"]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def standard(text: str, opset: int = 21, **weights: np.ndarray) -> onnx_ir.Model:
    """A model of an opset, with these initializers."""
    return parse(text, weights, opset)


def ops(model: onnx_ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def run(model: onnx_ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return list(Session(model, optimization="off").run(feeds).values())
