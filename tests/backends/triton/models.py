"""Models in text, and what must hold of their artifacts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir

from optc.backends.ort import Session
from optc.backends.triton.artifact import open_artifact
from optc.backends.triton.interpreter_device import InterpreterDevice


def model(text: str, seed: int = 0) -> onnx_ir.Model:
    """A model from text; inputs whose names begin with "w_" become weights, with contents that are drawn."""
    made, rng = onnx_ir.from_onnx_text(text), np.random.default_rng(seed)
    for value in [value for value in made.graph.inputs if value.name.startswith("w_")]:
        made.graph.inputs.remove(value)
        array = (0.3 * rng.normal(size=tuple(value.shape.numpy()))).astype(value.dtype.numpy())
        value.const_value = onnx_ir.tensor(array, name=value.name)
        made.graph.initializers[value.name] = value
    return made


def agrees(source, artifact: Path, feeds, tolerance: float = 1e-5) -> None:
    """The interpreter computes what ONNX Runtime does, whatever lay in the arena before."""
    wanted = Session(source, optimization="off").run(feeds)
    plan = open_artifact(artifact).plan
    for poison in (0xFF, 0x00):
        device = InterpreterDevice(open_artifact(artifact), poison=poison)
        found = device.run(feeds, plan.bind({name: array.shape for name, array in feeds.items()}))
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            assert found[name].shape == array.shape
            largest = np.abs(array).max(initial=1)
            np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * largest)
