"""TensorRT and the CUDA driver without a GPU: strict doubles that remember what they were asked."""

from __future__ import annotations

import ctypes
import itertools
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest

from optc.backends.tensorrt.recipe import BuildRecipe, ShapeRange, digests, write_recipe

from .contract.double import TensorRT

#: The driver's functions that are used -> how many arguments each takes (cuda-bindings 12.9 and 13).
DRIVER = {
    "cuInit": 1,
    "cuDeviceGet": 1,
    "cuDeviceGetAttribute": 2,
    "cuDeviceGetName": 2,
    "cuDevicePrimaryCtxRetain": 1,
    "cuCtxSetCurrent": 1,
    "cuGetErrorName": 1,
    "cuGraphDestroy": 1,
    "cuGraphExecDestroy": 1,
    "cuGraphInstantiate": 2,
    "cuGraphLaunch": 2,
    "cuMemAlloc": 1,
    "cuMemFree": 1,
    "cuMemcpyDtoHAsync": 4,
    "cuMemcpyHtoDAsync": 4,
    "cuStreamBeginCapture": 2,
    "cuStreamCreate": 1,
    "cuStreamDestroy": 1,
    "cuStreamEndCapture": 1,
    "cuStreamSynchronize": 1,
}
_SILENT = {name for name in DRIVER if name.startswith(("cuInit", "cuCtx", "cuMemcpy", "cuMemFree"))}
_SILENT |= {"cuStreamSynchronize", "cuStreamDestroy", "cuStreamBeginCapture", "cuGraphDestroy"}
_SILENT |= {"cuGraphExecDestroy", "cuGraphLaunch"}


class Driver:
    """The CUDA driver; memory that it gives out is NumPy's, so that copies can be looked at."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
    )
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, capability=(8, 0), name="NVIDIA A100", failing=None):
        self.capability, self.name, self.failing = capability, name, failing
        self.calls: list[str] = []
        self.memory: dict[int, np.ndarray] = {}
        self._handles = itertools.count(1)

    def __getattr__(self, name):
        if name not in DRIVER:
            raise AttributeError(name)

        def call(*arguments):
            assert len(arguments) == DRIVER[name], f"{name} takes {DRIVER[name]} arguments"
            self.calls.append(name)
            if name == self.failing:
                return (2,)
            return (0, *self._answer(name, arguments))

        return call

    def cuGetErrorName(self, status):
        return 0, b"CUDA_ERROR_OUT_OF_MEMORY"

    def count(self, name):
        return self.calls.count(name)

    def array(self, address):
        """What lies at an address."""
        return self.memory[address]

    def _answer(self, name, arguments):
        if name == "cuDeviceGetAttribute":
            return (dict(zip(("major", "minor"), self.capability, strict=True))[arguments[0]],)
        if name == "cuDeviceGetName":
            return (self.name.encode().ljust(arguments[0], b"\0"),)
        if name == "cuMemAlloc":
            memory = np.full(arguments[0], 0xFF, np.uint8)
            self.memory[memory.ctypes.data] = memory
            return (memory.ctypes.data,)
        if name == "cuMemFree":
            del self.memory[arguments[0]]
        if name in ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"):
            to, source, size, _ = arguments
            ctypes.memmove(to, source, size)
        return () if name in _SILENT else (next(self._handles),)


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
        bindings = ModuleType("cuda.bindings")
        bindings.driver = made
        monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", made)
        return made

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
