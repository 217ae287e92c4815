"""The example models, compiled at every level, against stored outputs of the original models.

``cnn.npz`` and ``vit.npz`` hold ``logits`` [32, 10] float32 for the first images of the test split, as ONNX Runtime
computed them with its own optimizations off. ``pytest --update-golden`` writes them anew, never under CI.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest

import optc

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parents[1] / "examples" / "digits"
IMAGES = 32
MODELS = ("cnn", "vit")

# Relative L2 error of the logits that each level may cause. Levels 0 and 1 keep the numbers; what is left to them is
# the rounding of another processor's kernels.
MAX_ERROR = {0: 1e-5, 1: 1e-5, 2: 1e-4, 3: 0.03}
MAX_ACCURACY_DROP = 0.005


def _evaluate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits_evaluate", DIGITS / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


evaluate = _evaluate()


@pytest.fixture(scope="module")
def held_out() -> tuple[np.ndarray, np.ndarray]:
    with np.load(DIGITS / "test.npz") as data:
        return data["image"], data["label"]


def original_outputs(name: str, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(DIGITS / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


def golden_outputs(name: str, images: np.ndarray, update: bool) -> np.ndarray:
    path = HERE / f"{name}.npz"
    if update:
        if os.environ.get("CI"):
            pytest.fail("--update-golden is not for CI: expectations are rewritten and reviewed by hand")
        np.savez_compressed(path, logits=original_outputs(name, images))
    with np.load(path) as stored:
        return stored["logits"]


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want.astype(np.float64)))


@pytest.mark.parametrize("level", sorted(MAX_ERROR))
@pytest.mark.parametrize("name", MODELS)
def test_compiled_example_keeps_its_outputs(
    name: str, level: int, held_out: tuple[np.ndarray, np.ndarray], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    images, labels = held_out
    update = request.config.getoption("--update-golden", default=False)
    golden = golden_outputs(name, images[:IMAGES], update)

    output = tmp_path / f"{name}.onnx"
    optc.compile(DIGITS / f"{name}.onnx", level=level, target="cpu", output=output, calib=DIGITS / "calib.npz")
    outputs = optc.load(output).run({"image": images})
    assert set(outputs) == {"logits"}
    logits = outputs["logits"]
    assert (logits.shape, logits.dtype) == ((len(images), 10), np.float32)

    error = relative_l2(logits[:IMAGES], golden)
    assert error <= MAX_ERROR[level], f"{name} -O{level}: relative L2 error {error:.2e}"
    before = evaluate.accuracy(original_outputs(name, images), labels)
    after = evaluate.accuracy(outputs, labels)
    assert before - after <= MAX_ACCURACY_DROP, f"{name} -O{level}: accuracy {before:.2%} became {after:.2%}"


@pytest.mark.parametrize("name", MODELS)
def test_stored_outputs_belong_to_the_model(name: str, held_out: tuple[np.ndarray, np.ndarray]) -> None:
    """A model that was trained again needs new stored outputs."""
    images, labels = held_out
    golden = golden_outputs(name, images[:IMAGES], update=False)
    assert relative_l2(original_outputs(name, images[:IMAGES]), golden) <= MAX_ERROR[0]
    assert evaluate.accuracy(golden, labels[:IMAGES]) >= 0.97
    assert evaluate.accuracy(original_outputs(name, images), labels) >= 0.97
