"""Running engines: the calls to TensorRT 10 and 11 and to the driver, and everything that is refused before them."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx_ir
import pytest

from optc.backends.base import Runner
from optc.backends.tensorrt.engine_file import EngineInfo, Tensor, info_path, read_info
from optc.backends.tensorrt.inspector import Layer
from optc.backends.tensorrt.recipe import digest
from optc.backends.tensorrt.runner import _KEPT, DTYPES, EngineRunner
from optc.ir.errors import BackendError, DataError

from ..driver.double import Driver


class Engine:
    """An engine that doubles its input: what the double of TensorRT says of it, and what a run does."""

    def __init__(self, double, driver):
        self.double, self.driver = double, driver
        trt = double.module
        self.dtype = "FLOAT"
        self.tensors = {"x": ((-1, 4), "INPUT"), "y": ((-1, 4), "OUTPUT")}
        self.hosts: set[str] = set()
        self.profiles = [{"x": ((1, 4), (8, 4), (16, 4))}]
        self.unknown_outputs = False
        self.runs = 0
        self.succeeds = True
        double.behaviours |= {
            "ICudaEngine.num_io_tensors": lambda on: len(self.tensors),
            "ICudaEngine.get_tensor_name": lambda on, index: list(self.tensors)[index],
            "ICudaEngine.get_tensor_dtype": lambda on, name: trt.DataType[self.dtype],
            "ICudaEngine.get_tensor_shape": lambda on, name: trt.Dims(self.tensors[name][0]),
            "ICudaEngine.get_tensor_mode": lambda on, name: trt.TensorIOMode[self.tensors[name][1]],
            "ICudaEngine.get_tensor_location": lambda on, name: trt.TensorLocation[
                "HOST" if name in self.hosts else "DEVICE"
            ],
            "ICudaEngine.num_optimization_profiles": lambda on: len(self.profiles),
            "ICudaEngine.get_tensor_profile_shape": lambda on, name, profile_index: list(
                self.profiles[profile_index][name]
            ),
            "ICudaEngine.create_execution_context": lambda on, **_: self._context(),
            "IExecutionContext.active_optimization_profile": lambda on: vars(on)["profile"],
            "IExecutionContext.set_optimization_profile_async": self._set_profile,
            "IExecutionContext.set_input_shape": self._set_shape,
            "IExecutionContext.get_tensor_shape": self._shape,
            "IExecutionContext.set_tensor_address": self._set_address,
            "IExecutionContext.set_output_allocator": self._set_allocator,
            "IExecutionContext.execute_async_v3": self._run,
        }

    def _context(self):
        made = self.double.make("IExecutionContext")
        vars(made).update(profile=0, shapes={}, addresses={}, allocators={})
        return made

    def _set_profile(self, on, profile_index, stream_handle):
        vars(on)["profile"] = profile_index
        return True

    def _set_shape(self, on, name, shape):
        vars(on)["shapes"][name] = tuple(shape)
        return True

    def _shape(self, on, name):
        shape = vars(on)["shapes"].get("x", self.tensors["x"][0])
        return self.double.module.Dims((-1, 4) if self.unknown_outputs and name == "y" else shape)

    def _set_address(self, on, name, memory):
        vars(on)["addresses"][name] = memory
        return True

    def _set_allocator(self, on, name, output_allocator):
        vars(on)["allocators"][name] = output_allocator
        return True

    def _run(self, on, stream_handle):
        self.runs += 1
        if not self.succeeds:
            return False
        state = vars(on)
        shape = state["shapes"].get("x", self.tensors["x"][0])
        kind = np.dtype(DTYPES[self.dtype].numpy())
        size = int(np.prod(shape)) * kind.itemsize
        source = self.driver.array(state["addresses"]["x"])[:size].view(kind)
        if self.unknown_outputs:
            allocator = state["allocators"]["y"]
            address = allocator.reallocate_output_async("y", 0, size, 256, 0)
            allocator.notify_shape("y", self.double.module.Dims(shape))
        else:
            address = state["addresses"]["y"]
        self.driver.array(address)[:size] = (source + source).view(np.uint8)
        return True


@pytest.fixture
def engine(double, driver):
    return Engine(double, driver(Driver(device_name="NVIDIA A100")))


@pytest.fixture
def path(tmp_path, double):
    """An engine file with what is known of it."""
    found = tmp_path / "model.engine"
    found.write_bytes(b"a plan")
    info = EngineInfo(
        file=digest(found),
        tensorrt=double.module.__version__,
        device="NVIDIA A100",
        compute_capability="8.0",
        hardware_compatibility="none",
        version_compatible=False,
        recipe="",
        inputs=(Tensor("x", "FLOAT", ("batch", 4)),),
        outputs=(Tensor("y", "FLOAT", ("batch", 4)),),
    )
    info_path(found).write_text(info.to_json())
    return found


def _x(rows):
    return np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)


def test_arrays_go_in_and_come_out(engine, path):
    runner = EngineRunner(path)
    assert isinstance(runner, Runner)
    assert [str(spec) for spec in (*runner.inputs, *runner.outputs)] == ["x: float[batch, 4]", "y: float[batch, 4]"]
    for rows in (3, 3, 16, 1):
        np.testing.assert_array_equal(runner.run({"x": _x(rows)})["y"], 2 * _x(rows))


def test_an_array_that_is_not_contiguous(engine, path):
    x = _x(8)[::2]
    np.testing.assert_array_equal(EngineRunner(path).run({"x": x})["y"], 2 * x)


def test_bfloat16(engine, path, tmp_path):
    engine.dtype = "BF16"
    info_path(path).unlink()
    x = _x(2).astype(ml_dtypes.bfloat16)
    y = EngineRunner(path).run({"x": x})["y"]
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y, x + x)


def test_an_engine_of_another_tool_opens_unchecked(engine, path):
    info_path(path).unlink()
    runner = EngineRunner(path)
    assert [spec.shape for spec in runner.inputs] == [(None, 4)]
    np.testing.assert_array_equal(runner.run({"x": _x(2)})["y"], 2 * _x(2))


def test_layers_are_those_that_were_written_down_or_the_engines(engine, path, double):
    layer = Layer("fused", "gemm", ("a",), ("source",))
    info_path(path).write_text(replace(read_info(path), layers=(layer,)).to_json())
    assert EngineRunner(path).layers() == (layer,)
    assert not double.named("ICudaEngine.create_engine_inspector")
    info_path(path).unlink()
    double.behaviours["EngineInspector.get_engine_information"] = lambda on, format: '{"Layers": ["one"]}'
    assert [layer.name for layer in EngineRunner(path).layers()] == ["one"]


@pytest.mark.parametrize(
    "feeds, problem",
    [
        ({}, "missing: x"),
        ({"x": _x(1), "z": _x(1)}, "unknown: z"),
        ({"x": _x(1).astype(np.float64)}, r"'x' is float64\[1, 4\], but the engine takes x: float\[batch, 4\]"),
        ({"x": _x(1)[0]}, r"'x' is float32\[4\]"),
        ({"x": np.zeros((2, 5), np.float32)}, r"'x' is float32\[2, 5\]"),
        ({"x": _x(17)}, r"dim 'batch' of input 'x' is 17; the engine was built for 1\.\.16"),
        ({"x": _x(0)}, r"dim 'batch' of input 'x' is 0; the engine was built for 1\.\.16"),
    ],
)
def test_feeds_that_do_not_fit(engine, path, feeds, problem):
    with pytest.raises(DataError, match=problem):
        EngineRunner(path).run(feeds)
    assert engine.runs == 0


def test_the_profile_that_takes_the_shapes_is_used(engine, path, double):
    engine.profiles = [{"x": ((1, 4), (1, 4), (2, 4))}, {"x": ((8, 4), (8, 4), (32, 4))}]
    runner = EngineRunner(path)
    runner.run({"x": _x(2)})
    assert not double.named("IExecutionContext.set_optimization_profile_async")
    runner.run({"x": _x(9)})
    assert double.one("IExecutionContext.set_optimization_profile_async")["profile_index"] == 1
    with pytest.raises(DataError, match=r"'batch' of input 'x' is 5; the engine was built for 1\.\.2 or 8\.\.32"):
        runner.run({"x": _x(5)})


def test_inputs_that_disagree_on_a_dim(engine, path, double):
    engine.tensors = {"x": ((-1, 4), "INPUT"), "z": ((-1, 4), "INPUT"), "y": ((-1, 4), "OUTPUT")}
    engine.profiles = [{"x": ((1, 4), (8, 4), (16, 4)), "z": ((1, 4), (8, 4), (16, 4))}]
    info = EngineInfo(
        digest(path), double.module.__version__, "NVIDIA A100", "8.0", "none", False, "",
        (Tensor("x", "FLOAT", ("batch", 4)), Tensor("z", "FLOAT", ("batch", 4))), (Tensor("y", "FLOAT", ("batch", 4)),),
    )  # fmt: skip
    info_path(path).write_text(info.to_json())
    with pytest.raises(DataError, match="dim 'batch' is 2 in 'x' and 3 in 'z'"):
        EngineRunner(path).run({"x": _x(2), "z": _x(3)})


def test_later_runs_of_a_shape_are_one_graph(engine, path):
    runner = EngineRunner(path)
    runner.run({"x": _x(3)})
    assert engine.runs == 2, "a run, and one that is recorded"
    assert engine.driver.count("cuGraphInstantiate") == 1
    taken = engine.driver.count("cuMemAlloc")
    runner.run({"x": _x(3)})
    assert engine.runs == 2 and engine.driver.count("cuGraphLaunch") == 1
    assert engine.driver.count("cuMemAlloc") == taken, "memory is taken once per shape"
    runner.run({"x": _x(4)})
    assert engine.runs == 4 and engine.driver.count("cuGraphInstantiate") == 2


def test_graphs_can_be_left_out(engine, path):
    runner = EngineRunner(path, cuda_graphs=False)
    for _ in range(3):
        runner.run({"x": _x(3)})
    assert engine.runs == 3 and engine.driver.count("cuStreamBeginCapture") == 0


def test_an_engine_that_cannot_be_recorded_runs_without(engine, path):
    engine.driver.failing = "cuStreamEndCapture"
    runner = EngineRunner(path)
    for _ in range(3):
        np.testing.assert_array_equal(runner.run({"x": _x(3)})["y"], 2 * _x(3))
    assert engine.driver.count("cuStreamBeginCapture") == 1, "it is tried once"
    assert engine.driver.count("cuGraphLaunch") == 0


def test_old_shapes_give_their_memory_back(engine, path, double):
    runner = EngineRunner(path)
    for rows in range(1, _KEPT + 4):
        runner.run({"x": _x(rows)})
    assert len(double.named("ICudaEngine.create_execution_context")) == _KEPT
    assert engine.driver.count("cuMemFree") == 2 * 3
    assert engine.driver.count("cuGraphExecDestroy") == 3
    np.testing.assert_array_equal(runner.run({"x": _x(1)})["y"], 2 * _x(1))
    runner.close()
    assert "memory" not in engine.driver.alive()


def test_outputs_whose_shape_the_run_decides(engine, path):
    engine.unknown_outputs = True
    runner = EngineRunner(path)
    for rows in (3, 3, 12, 5):
        np.testing.assert_array_equal(runner.run({"x": _x(rows)})["y"], 2 * _x(rows))
    assert engine.driver.count("cuStreamBeginCapture") == 0, "memory may move between runs"
    runner.close()
    assert "memory" not in engine.driver.alive()


def test_memory_for_such_an_output_that_is_not_there(engine, path):
    engine.unknown_outputs = True
    runner = EngineRunner(path)

    def run(on, stream_handle):
        engine.driver.failing = "cuMemAlloc"
        address = vars(on)["allocators"]["y"].reallocate_output_async("y", 0, 64, 256, 0)
        assert address == 0, "nothing is raised through TensorRT"
        return False

    engine.double.behaviours["IExecutionContext.execute_async_v3"] = run
    with pytest.raises(BackendError, match="could not run the engine"):
        runner.run({"x": _x(2)})


def test_a_run_that_fails(engine, path):
    engine.succeeds = False
    with pytest.raises(BackendError, match="TensorRT could not run the engine"):
        EngineRunner(path).run({"x": _x(2)})


def test_no_memory(engine, path):
    runner = EngineRunner(path)
    engine.driver.failing = "cuMemAlloc"
    with pytest.raises(BackendError, match="bytes of GPU memory for 'x': CUDA_ERROR_OUT_OF_MEMORY"):
        runner.run({"x": _x(2)})
    engine.driver.failing = None
    np.testing.assert_array_equal(runner.run({"x": _x(2)})["y"], 2 * _x(2))


# what is refused when it is opened ------------------------------------------------------------------------------------


def test_another_gpu_or_version_is_refused_before_tensorrt_sees_the_engine(engine, path, double, driver):
    driver(Driver(capability=(9, 0), device_name="NVIDIA H100"))
    with pytest.raises(BackendError, match=r"compute capability 8\.0; this GPU is NVIDIA H100, with 9\.0"):
        EngineRunner(path)
    driver(Driver(device_name="NVIDIA A100"))
    here, double.module.__version__ = double.module.__version__, "10.1.0"
    with pytest.raises(BackendError, match=rf"built by TensorRT {here}, this is TensorRT 10\.1\.0"):
        EngineRunner(path)
    assert not double.named("Runtime.deserialize_cuda_engine")


def test_an_engine_that_tensorrt_refuses(engine, path, double):
    double.behaviours["Runtime.deserialize_cuda_engine"] = lambda on, serialized_engine: None
    with pytest.raises(BackendError, match="cannot load the engine:"):
        EngineRunner(path)
    info_path(path).unlink()
    with pytest.raises(BackendError, match=r"no \.json beside it that says what it was built for"):
        EngineRunner(path)


def test_no_gpu(engine, path, double):
    def refuse(on, logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    double.behaviours["Runtime.__init__"] = refuse
    with pytest.raises(BackendError, match="cannot start on this machine: it found no GPU"):
        EngineRunner(path)


def test_an_empty_engine(engine, path):
    path.write_bytes(b"")
    info_path(path).unlink()
    with pytest.raises(BackendError, match="the engine is empty"):
        EngineRunner(path)


def test_an_interface_that_is_not_the_engines(engine, path):
    engine.tensors = {"x": ((-1, 4), "INPUT"), "z": ((-1, 4), "OUTPUT")}
    with pytest.raises(BackendError, match="a tensor 'z' that is not the one that was written down"):
        EngineRunner(path)


def test_a_type_that_numpy_has_not(engine, path):
    engine.dtype = "INT4"
    with pytest.raises(BackendError, match="'x' is of type INT4"):
        EngineRunner(path)


def test_version_compatible_engines_may_bring_code(engine, path, double):
    text = info_path(path).read_text().replace('"version_compatible": false', '"version_compatible": true')
    info_path(path).write_text(text)
    EngineRunner(path)
    assert double.one("Runtime.engine_host_code_allowed=") == {"arg1": True}


def test_a_budget_for_weights(engine, path, double):
    EngineRunner(path, weight_budget=1 << 20)
    assert double.one("ICudaEngine.weight_streaming_budget_v2=") == {"arg1": 1 << 20}


def test_every_type_has_its_numpy_type(double):
    kinds = double.module.DataType.__members__
    assert set(DTYPES) <= set(kinds)
    for kind in DTYPES.values():
        assert isinstance(kind, onnx_ir.DataType) and kind.numpy()
