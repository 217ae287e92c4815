"""Shapes of inner values, in models whose names are not ours."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir

from optc.backends.ort import Session
from optc.ir.model import load
from optc.passes.calibration.taps import shapes_of


def test_names_that_are_taken_are_left_alone() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 2] y)
        <float[4, 2] shape = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] shape_1 = {1, 2}>
        { shape_0 = MatMul(x, shape) y = Add(shape_0, shape_1) }"""
    model = load(onnx_ir.from_onnx_text(text))
    found = shapes_of(
        model, ["x", "shape_0"], [{"x": np.ones((3, 4), np.float32)}], partial(Session, optimization="off")
    )
    assert found == {"x": (3, 4), "shape_0": (3, 2)}
