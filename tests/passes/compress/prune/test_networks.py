"""Whole networks: whatever can be removed is removed, and the result is that in which nothing reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from optc.ir.errors import OptcError
from optc.ir.facts import Facts
from optc.ir.model import load
from optc.passes.compress.prune.axes import structure_of
from optc.passes.compress.prune.cost import parameters
from tests.passes.compress.prune.silence import check

ROOT = Path(__file__).resolve().parents[4]
DIGITS = ROOT / "examples" / "digits"
EXAMS = ROOT.parent / "shared" / "exams" / "models"
ZOO = os.environ.get("OPTC_ZOO")
LAYERS = {"Conv", "Gemm", "MatMul", "ConvTranspose"}
#: Larger ones need more memory than a test may ask for.
MOST_BYTES = 2**30


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_network_of_convolutions(share: float) -> None:
    model = load(DIGITS / "cnn.onnx")
    before = parameters(model)
    groups = check(model, share)
    assert {group.kind for group in groups} == {"conv", "residual", "ffn"}
    # Layers between two groups lose both ways, so less than the square of the share is left of most.
    assert parameters(model) < before * (1 - share) * 1.1


@pytest.mark.skipif(not EXAMS.is_dir(), reason="no exams beside this repository")
def test_exam_models_with_layers() -> None:
    pruned = 0
    for path in sorted(EXAMS.rglob("*.onnx")):
        try:
            model = load(path)
        except OptcError:
            continue
        if LAYERS.isdisjoint(node.op_type for node in model.graph):
            continue
        structure = structure_of(model.graph, Facts(model))
        try:
            pruned += bool(check(model, run=bool(structure.groups)))
        except OptcError as error:
            assert "failed in" in error.what, f"{path}: {error}"  # the model does not run on inputs that are drawn
    assert pruned >= 20


def _zoo_models() -> list[Path]:
    paths = sorted(Path(ZOO).glob("*.onnx")) if ZOO else []
    return [path for path in paths if path.stat().st_size <= MOST_BYTES and not Path(f"{path}.data").exists()]


@pytest.mark.slow
@pytest.mark.skipif(not ZOO, reason="OPTC_ZOO names no folder of models")
@pytest.mark.parametrize("path", _zoo_models(), ids=lambda path: path.stem)
def test_zoo_models(path: Path) -> None:
    check(load(path), 0.5)
