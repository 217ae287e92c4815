"""The device "cuda" without a GPU: a driver that remembers what it was asked, and refuses as a real one does."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("triton")

import optc
from optc.ir.errors import BackendError
from optc.kernels.library import KERNELS

from .models import model

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[B,8] x, float[8,4] w_1) => (float[B,4] y)
{
    h = MatMul (x, w_1)
    y = Relu (h)
}
"""


class Driver:
    """The calls of the CUDA driver that the device makes."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared")

    def __init__(self, capability=(8, 0), version=12040, failing=None):
        self.capability, self.version, self.failing = capability, version, failing
        self.calls: list[tuple[str, tuple[object, ...]]] = []
        self.next = 4096

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, arguments))
            if name == self.failing:
                return (2,)
            return (0, *self.answer(name, arguments))

        return call

    def cuGetErrorName(self, status):
        return 0, b"CUDA_ERROR_OUT_OF_MEMORY"

    def answer(self, name, arguments):
        if name == "cuDeviceGetAttribute":
            return (dict(zip(("major", "minor"), self.capability, strict=True))[arguments[0]],)
        if name == "cuDeviceGetName":
            return (b"a GPU\0\0",)
        if name == "cuDriverGetVersion":
            return (self.version,)
        if name == "cuMemAlloc":
            self.next += arguments[0] + 4096
            return (self.next - arguments[0] - 4096,)
        return (
            () if name in ("cuInit", "cuCtxSetCurrent", "cuMemcpyHtoD", "cuMemcpyDtoH", "cuLaunchKernel") else (name,)
        )


@pytest.fixture
def shapes():
    """The sizes for which the artifact is made."""
    return {}


@pytest.fixture
def artifact(tmp_path, shapes):
    return optc.compile(model(TEXT), target="a100", output=tmp_path / "m.optc", verify="off", shapes=shapes).artifact


@pytest.fixture
def opened_at(monkeypatch):
    """Opens an artifact on a driver."""

    def open_on(artifact, driver):
        bindings = ModuleType("cuda.bindings")
        bindings.driver = driver
        monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
        monkeypatch.delitem(sys.modules, "optc.backends.triton.cuda_device", raising=False)
        return optc.load(artifact, device="cuda")

    yield open_on
    sys.modules.pop("optc.backends.triton.cuda_device", None)
    importlib.invalidate_caches()


@pytest.fixture
def opened(artifact, opened_at):
    """Opens the artifact on a driver."""
    return lambda driver: opened_at(artifact, driver)


def test_what_a_launch_passes(opened):
    driver = Driver()
    runner = opened(driver)
    outputs = runner.run({"x": np.zeros((3, 8), np.float32)})
    assert outputs["y"].shape == (3, 4)
    entry = next(iter(runner.artifact.plan.kernels.values()))
    variant = entry.variants["sm_80"]
    ((_, launched),) = [call for call in driver.calls if call[0] == "cuLaunchKernel"]
    assert launched[4:7] == (32 * variant.num_warps, 1, 1)
    assert launched[7] == variant.shared
    values, kinds = launched[9]
    assert len(values) == len(kinds) == len(variant.parameters)
    assert values[-2:] == (0, 0)
    assert 3 in values, "the number of rows is an argument"
    copies = [arguments for name, arguments in driver.calls if name == "cuMemcpyHtoD"]
    assert {arguments[2] for arguments in copies} == {8 * 4 * 4, 3 * 8 * 4}


def test_sizes_are_passed_in_the_order_of_the_functions_parameters(tmp_path, opened_at):
    """The plan's JSON sorts its keys; the function's parameters are not sorted by name."""
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[B,N] x) => (float[B,N] y) { y = Softmax <axis=-1> (x) }'
    artifact = optc.compile(model(text), target="a100", output=tmp_path / "s.optc", verify="off").artifact
    driver = Driver()
    runner = opened_at(artifact, driver)
    runner.run({"x": np.zeros((3, 5), np.float32)})
    (entry,) = runner.artifact.plan.kernels.values()
    sizes = KERNELS[entry.kernel].sizes
    assert entry.passed == sizes != tuple(sorted(sizes))
    ((_, launched),) = [call for call in driver.calls if call[0] == "cuLaunchKernel"]
    assert list(launched[9][0][-4:]) == [3, 5, 0, 0]


def test_memory_is_taken_once_per_size(opened):
    driver = Driver()
    runner = opened(driver)
    for _ in range(3):
        runner.run({"x": np.zeros((3, 8), np.float32)})
    taken = sum(name == "cuMemAlloc" for name, _ in driver.calls)
    runner.run({"x": np.zeros((4, 8), np.float32)})
    assert taken == 4  # a weight, the arena, input and output
    assert sum(name == "cuMemAlloc" for name, _ in driver.calls) == taken + 3


@pytest.mark.parametrize("shapes", [{"B": (0, 20)}])
def test_memory_for_a_range_is_taken_once_for_all_sizes(opened):
    driver = Driver()
    runner = opened(driver)
    for batch in (3, 6, 1, 3):
        assert runner.run({"x": np.zeros((batch, 8), np.float32)})["y"].shape == (batch, 4)
    taken = [arguments[0] for name, arguments in driver.calls if name == "cuMemAlloc"]
    assert sorted(taken[1:]) == [256, 20 * 4 * 4, 20 * 8 * 4]  # the arena has nothing in it
    launched = [arguments[9][0] for name, arguments in driver.calls if name == "cuLaunchKernel"]
    assert len({tuple(v for v in values if v >= 4096) for values in launched}) == 1, "the same addresses"
    assert [batch in values for batch, values in zip((3, 6, 1, 3), launched, strict=True)] == [True] * 4


def test_nothing_is_launched_where_there_is_nothing_to_do(opened):
    driver = Driver()
    assert opened(driver).run({"x": np.zeros((0, 8), np.float32)})["y"].shape == (0, 4)
    assert not any(name == "cuLaunchKernel" for name, _ in driver.calls)


@pytest.mark.parametrize("capability", [(8, 6), (8, 9)])
def test_code_of_a_generation_runs_on_its_later_chips(opened, capability):
    opened(Driver(capability=capability))


@pytest.mark.parametrize(
    ("driver", "problem"),
    [
        (Driver(capability=(9, 0)), "this GPU is sm_90; the artifact was compiled for sm_80"),
        (Driver(capability=(7, 5)), "this GPU is sm_75"),
        (Driver(version=11080), r"the driver knows CUDA 11.8, the kernels need 12.0"),
        (Driver(failing="cuInit"), "cannot start CUDA"),
        (Driver(failing="cuMemAlloc"), "cannot get 128 bytes of GPU memory for a weight: CUDA_ERROR_OUT_OF_MEMORY"),
    ],
)
def test_what_is_in_the_way_is_said_in_words(opened, driver, problem):
    with pytest.raises(BackendError, match=problem):
        opened(driver)
