"""TensorRT and the CUDA driver without a GPU: strict doubles that remember what they were asked."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec

import onnx
import pytest

from optc.backends.tensorrt.recipe import BuildRecipe, ShapeRange, digests, write_recipe

from .contract.double import TensorRT


@pytest.fixture(params=[10, 11])
def double(request, monkeypatch):
    """TensorRT of a major version, in place of the real one."""
    made = TensorRT(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", made.module)
    made.module.__spec__ = ModuleSpec("tensorrt", None)
    return made


@pytest.fixture
def driver(monkeypatch):
    """Puts a driver in place of the real one; to be called with one."""

    def put(made):
        return made.put(monkeypatch)

    return put


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where timing caches are kept in a test."""
    monkeypatch.setenv("OPTC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


MODEL = """
<ir_version: 8, opset_import: ["": 17]>
g (float[batch,4] x) => (float[batch,4] y)
{
    [first] a = Relu (x)
    [second] y = Neg (a)
}
"""


@pytest.fixture
def bundle(tmp_path):
    """Writes a bundle; to be called with what its recipe has besides the files."""

    def write(**fields):
        folder = tmp_path / "model.trt"
        folder.mkdir(exist_ok=True)
        onnx.save(onnx.parser.parse_model(MODEL), folder / "model.onnx")
        names = ["model.onnx", *fields.pop("files", ())]
        fields.setdefault("profiles", ({"x": ShapeRange((1, 4), (8, 4), (16, 4))},))
        write_recipe(folder, BuildRecipe(files=digests(folder, names), **fields))
        return folder

    return write
