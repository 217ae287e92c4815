"""The classic vision networks in the onnx package, whose weights are ConstantOfShape nodes.

They must answer as before, and their files must not grow: folding a ConstantOfShape into a stored weight turns a file
of kilobytes into one of hundreds of megabytes.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.backend.test
import pytest
from onnx import numpy_helper
from onnx.backend.test.runner import Runner

import optc

from .cases import Case, fed_inputs
from .judge import answer_problem, judge

LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"
#: Names of what a node was made from take a little room.
_GROWTH = 1.1
MODELS = sorted(path for path in LIGHT.glob("light_*.onnx"))


def load_case(path: Path) -> Case:
    """The model with the dummy image that its stored output was computed from."""
    model = onnx.load(path)
    feeds = {info.name: Runner.generate_dummy_data(info, name=path.stem) for info in fed_inputs(model)}
    stored = onnx.TensorProto.FromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
    return Case(path.stem, model, ((feeds, [numpy_helper.to_array(stored)]),), rtol=2e-3, atol=1e-7)


def test_the_models_are_there() -> None:
    assert len(MODELS) == 9


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_light_model_keeps_its_answer_and_does_not_grow(path: Path) -> None:
    case = load_case(path)
    assert answer_problem(case, case.model) is None, "the original does not give its stored output"
    failures = []

    def optimize(model: onnx.ModelProto, level: int) -> onnx.ModelProto:
        optimized = optc.optimize(model, level=level, target="cpu")
        before, after = case.model.ByteSize(), optimized.ByteSize()
        if after > _GROWTH * before:
            failures.append(f"{path.stem}, level {level}: grew from {before} to {after} bytes")
        return optimized

    for level in (1, 2):
        if problem := judge(case, optimize, level):
            failures.append(f"{path.stem}, level {level}: {problem}")
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)
