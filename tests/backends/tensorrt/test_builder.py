"""Building: the calls to TensorRT 10 and 11, and every way in which it can fail."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest

from optc.backends.tensorrt import builder
from optc.backends.tensorrt.builder import build
from optc.backends.tensorrt.engine_file import read_info
from optc.backends.tensorrt.recipe import Device, Plugin, ShapeRange
from optc.ir.errors import BackendError

from ..driver.double import Driver

LAYERS = json.dumps(
    {
        "Layers": [
            {
                "Name": "fused",
                "LayerType": "kgen",
                "Metadata": "[ONNX Layer: first]\x1f[ONNX Layer: second]",
                "TacticName": "a_kernel",
                "Outputs": [{"Name": "y", "DataType": "Float", "Format": "Row major linear"}],
            },
            {"Name": "Reformat", "LayerType": "Reformat", "Metadata": ""},
        ]
    }
)


class Network:
    """What the double's network has, and how its build ends."""

    def __init__(self, double, shape=(-1, 4)):
        self.double, self.shape, self.plan, self.during = double, shape, b"a plan", lambda: None
        trt = double.module
        tensor = double.make("ITensor")
        double.behaviours |= {
            "INetworkDefinition.num_inputs": lambda on: 1,
            "INetworkDefinition.get_input": lambda on, index: tensor,
            "ITensor.name": lambda on: "x",
            "ITensor.shape": lambda on: trt.Dims(self.shape),
            "ITensor.dtype": lambda on: trt.DataType.FLOAT,
            "ITensor.is_shape_tensor": lambda on: False,
            "Builder.build_serialized_network": self._build,
            "ITimingCache.serialize": lambda on: b"timings",
            "EngineInspector.get_engine_information": lambda on, format: LAYERS,
            "IProgressMonitor.__init__": lambda on: setattr(self, "monitor", on),
            "ILogger.__init__": lambda on: setattr(self, "logger", on),
        }

    def _build(self, on, network, config):
        self.during()
        return self.plan


@pytest.fixture
def network(double, driver):
    driver(Driver(device_name="NVIDIA A100"))
    return Network(double)


def test_an_engine_is_built_as_the_recipe_says(double, network, bundle, tmp_path):
    folder = bundle(
        devices=(Device("a100", "8.0"),),
        workspace_bytes=1 << 30,
        builder_optimization_level=4,
        hardware_compatibility="ampere_plus",
        version_compatible=True,
        weight_streaming=True,
        refit=True,
        sparse_weights=True,
    )
    built = build(folder, tmp_path / "model.engine")
    trt = double.module
    strong = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert double.one("Builder.create_network") == {"flags": strong}
    assert double.one("OnnxParser.parse_from_file") == {"model": str(folder / "model.onnx")}
    assert double.one("IBuilderConfig.set_memory_pool_limit") == {
        "pool": trt.MemoryPoolType.WORKSPACE,
        "pool_size": 1 << 30,
    }
    assert {call.arguments["flag"] for call in double.named("IBuilderConfig.set_flag")} == {
        trt.BuilderFlag.VERSION_COMPATIBLE,
        trt.BuilderFlag.WEIGHT_STREAMING,
        trt.BuilderFlag.REFIT,
        trt.BuilderFlag.SPARSE_WEIGHTS,
    }
    assert double.one("IBuilderConfig.builder_optimization_level=") == {"arg1": 4}
    assert double.one("IBuilderConfig.profiling_verbosity=") == {"arg1": trt.ProfilingVerbosity.DETAILED}
    assert double.one("IBuilderConfig.hardware_compatibility_level=") == {
        "arg1": trt.HardwareCompatibilityLevel.AMPERE_PLUS
    }
    assert double.one("IOptimizationProfile.set_shape") == {
        "input": "x",
        "min": (1, 4),
        "opt": (8, 4),
        "max": (16, 4),
    }
    assert built.path.read_bytes() == b"a plan"
    assert built.files == (tmp_path / "model.engine", tmp_path / "model.engine.json")
    info = read_info(built.path)
    assert info == built.info
    assert (info.tensorrt, info.device, info.compute_capability) == (trt.__version__, "NVIDIA A100", "8.0")
    assert [tensor.dims for tensor in info.inputs] == [("batch", 4)]
    assert info.layers[0].nodes == ("first", "second") and info.layers[1].nodes == ()


def test_a_plain_recipe_sets_nothing_that_it_does_not_ask_for(double, network, bundle, tmp_path):
    build(bundle(), tmp_path / "model.engine")
    for name in ("set_flag", "set_memory_pool_limit", "hardware_compatibility_level=", "progress_monitor="):
        assert not double.named(f"IBuilderConfig.{name}")


def test_fixed_shapes_need_no_profile(double, network, bundle, tmp_path):
    network.shape = (8, 4)
    build(bundle(profiles=()), tmp_path / "model.engine")
    assert not double.named("Builder.create_optimization_profile")


@pytest.mark.parametrize(
    "profiles, shape, problem",
    [
        ((), (-1, 4), "input 'x' has dims of any size, and the recipe has no profile"),
        (({"z": ShapeRange((1,), (1,), (1,))},), (-1, 4), "no shapes for input 'x'"),
        (({"x": ShapeRange((1, 5), (2, 5), (3, 5))},), (-1, 4), "do not fit"),
        (({"x": ShapeRange((1,), (2,), (3,))},), (-1, 4), "do not fit"),
    ],
)
def test_profiles_that_do_not_fit_the_network(network, bundle, tmp_path, profiles, shape, problem):
    network.shape = shape
    with pytest.raises(BackendError, match=problem):
        build(bundle(profiles=profiles), tmp_path / "model.engine")
    assert not (tmp_path / "model.engine").exists()


def test_a_profile_that_tensorrt_refuses(double, network, bundle, tmp_path):
    double.behaviours["IBuilderConfig.add_optimization_profile"] = lambda on, profile: -1
    with pytest.raises(BackendError, match="does not take profile 0"):
        build(bundle(), tmp_path / "model.engine")


def test_an_input_that_decides_on_shapes(double, network, bundle, tmp_path):
    double.behaviours["ITensor.is_shape_tensor"] = lambda on: True
    double.behaviours["ITensor.dtype"] = lambda on: double.module.DataType.INT64
    with pytest.raises(BackendError, match="input 'x' decides on shapes by its contents"):
        build(bundle(), tmp_path / "model.engine")


def test_all_errors_of_the_parser_are_listed_with_their_nodes(double, network, bundle, tmp_path):
    told = [("conv_7", "Conv", "bad   pads", []), ("", "Foo", "no\nplugin", ["outer", "inner"]), ("z", "", "x", [])]
    errors = [double.make("ParserError") for _ in told]
    for error, (name, op, desc, stack) in zip(errors, told, strict=True):
        error.__dict__["told"] = (name, op, desc, stack)
    double.behaviours |= {
        "OnnxParser.parse_from_file": lambda on, model: False,
        "OnnxParser.num_errors": lambda on: len(errors),
        "OnnxParser.get_error": lambda on, index: errors[index],
        "ParserError.node_name": lambda on: on.__dict__["told"][0],
        "ParserError.node_operator": lambda on: on.__dict__["told"][1],
        "ParserError.desc": lambda on: on.__dict__["told"][2],
        "ParserError.local_function_stack": lambda on: on.__dict__["told"][3],
        "ParserError.node": lambda on: 5,
    }
    with pytest.raises(BackendError) as raised:
        build(bundle(), tmp_path / "model.engine")
    text = raised.value.what
    assert "Conv 'conv_7': bad pads" in text
    assert "Foo 'number 5' (in inner in outer): no plugin" in text
    assert "node 'z': x" in text


def test_a_build_that_fails_tells_what_the_logger_heard(double, network, bundle, tmp_path):
    severity = double.module.ILogger.Severity

    def fail():
        network.logger.log(severity.INFO, "fine")
        network.logger.log(severity.WARNING, "hm")
        network.logger.log(severity.ERROR, "Error Code 10:  no implementation\nfor node x")
        network.logger.log(severity.ERROR, "Error Code 10: no implementation for node x")
        network.logger.log(severity.INTERNAL_ERROR, "and worse")

    network.plan, network.during = None, fail
    with pytest.raises(BackendError) as raised:
        build(bundle(), tmp_path / "model.engine")
    assert raised.value.what.splitlines()[1:] == [
        "  Error Code 10: no implementation for node x",
        "  and worse",
    ]
    assert list(tmp_path.glob("model.engine*")) == []


def test_warnings_become_notes(double, network, bundle, tmp_path):
    network.during = lambda: network.logger.log(double.module.ILogger.Severity.WARNING, "a weight is subnormal")
    assert "TensorRT: a weight is subnormal" in build(bundle(), tmp_path / "model.engine").notes


def test_no_gpu(double, network, bundle, tmp_path):
    def refuse(on, logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    double.behaviours["Builder.__init__"] = refuse
    with pytest.raises(BackendError, match="cannot start on this machine: it found no GPU"):
        build(bundle(), tmp_path / "model.engine")


def test_no_driver(double, bundle, driver, tmp_path):
    class Missing(Driver):
        def _cuInit(self, flags):
            raise RuntimeError("libcuda.so.1 is not there")

    driver(Missing())
    with pytest.raises(BackendError, match="cannot start CUDA: NVIDIA's driver is not installed"):
        build(bundle(), tmp_path / "model.engine")


def test_an_engine_that_cannot_be_loaded_is_not_written(double, network, bundle, tmp_path):
    double.behaviours["Runtime.deserialize_cuda_engine"] = lambda on, serialized_engine: None
    with pytest.raises(BackendError, match="cannot load what it built"):
        build(bundle(), tmp_path / "model.engine")
    assert list(tmp_path.glob("model.engine*")) == []


def test_another_gpu_than_the_bundle_is_for_is_told(network, bundle, tmp_path):
    notes = build(bundle(devices=(Device("h100", "9.0"),)), tmp_path / "model.engine").notes
    assert any("prepared for h100 (9.0)" in note and "NVIDIA A100 (8.0)" in note for note in notes)
    assert not any("prepared for" in note for note in build(bundle(), tmp_path / "again.engine").notes)


def test_same_compute_capability_needs_10_9(double, network, bundle, tmp_path):
    trt = double.module
    build(bundle(hardware_compatibility="same_compute_capability"), tmp_path / "model.engine")
    assert double.one("IBuilderConfig.hardware_compatibility_level=") == {
        "arg1": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    }
    trt.HardwareCompatibilityLevel, trt.__version__ = object(), "10.8.0"
    with pytest.raises(BackendError, match=r"TensorRT 10\.8\.0 cannot do this") as raised:
        build(bundle(hardware_compatibility="same_compute_capability"), tmp_path / "model.engine")
    assert "10.9 or later" in raised.value.hint


def test_plugins_of_ours_are_preferred_ahead_of_time(double, network, bundle, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(builder, "register", lambda *arguments: asked.append(arguments[2:]))
    folder = bundle()
    (folder / "p.json").write_text("{}")
    ours = Plugin("optc::p", ("p.json",))
    build(bundle(files=("p.json",), plugins=(ours,)), tmp_path / "model.engine")
    flags = double.module.NetworkDefinitionCreationFlag
    wanted = 1 << int(flags.STRONGLY_TYPED) | 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS)
    assert double.one("Builder.create_network") == {"flags": wanted}
    assert asked == [(folder, (ours,), (8, 0))]


def test_plugins_of_tensorrt_itself_are_loaded(double, network, bundle, tmp_path):
    build(bundle(), tmp_path / "model.engine")
    assert not double.named("init_libnvinfer_plugins")
    build(bundle(plugins=(Plugin("EfficientNMS_TRT"),)), tmp_path / "model.engine")
    assert double.one("init_libnvinfer_plugins")["namespace"] == ""
    assert double.named("Builder.create_network")[-1].arguments["flags"] == 1 << int(
        double.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    )


# the timing cache -------------------------------------------------------------------------------------------------


def test_the_timing_cache_is_kept_and_read_again(double, network, bundle, tmp_path, cache):
    first = build(bundle(), tmp_path / "model.engine")
    (kept,) = (cache / "timing").iterdir()
    assert kept.read_bytes() == b"timings"
    assert kept.name == f"NVIDIA-A100-sm80-trt{double.module.__version__}.cache"
    assert any("timed from scratch" in note for note in first.notes)
    double.calls.clear()
    second = build(bundle(), tmp_path / "model.engine")
    blobs = [call.arguments["serialized_timing_cache"] for call in double.named("IBuilderConfig.create_timing_cache")]
    assert blobs[0] == b"timings"
    assert all(not call.arguments["ignore_mismatch"] for call in double.named("IBuilderConfig.set_timing_cache"))
    assert double.named("ITimingCache.combine"), "what other builds wrote in the meantime is kept"
    assert not any("timed from scratch" in note for note in second.notes)


def test_a_cache_that_tensorrt_refuses_is_not_used(double, network, bundle, tmp_path, cache):
    build(bundle(), tmp_path / "model.engine")
    tried = []

    def take(on, cache, ignore_mismatch):
        tried.append(cache)
        return len(tried) > 1  # the first one is of another GPU

    double.behaviours["IBuilderConfig.set_timing_cache"] = take
    assert any("timed from scratch" in note for note in build(bundle(), tmp_path / "model.engine").notes)
    assert len(tried) == 2


def test_a_bundle_may_bring_a_cache(double, network, bundle, tmp_path):
    folder = bundle()
    (folder / "timing.cache").write_bytes(b"from elsewhere")
    build(bundle(files=("timing.cache",), timing_cache="timing.cache"), tmp_path / "model.engine")
    blobs = [call.arguments["serialized_timing_cache"] for call in double.named("IBuilderConfig.create_timing_cache")]
    assert blobs[0] == b"from elsewhere"


def test_a_cache_that_cannot_be_written_does_no_harm(network, bundle, tmp_path, cache):
    cache.write_text("a file where the folder should be")
    assert build(bundle(), tmp_path / "model.engine").path.exists()


# progress ---------------------------------------------------------------------------------------------------------


class Listener:
    def __init__(self):
        self.events = []

    def start(self, stage, total=None):
        self.events.append(("start", stage, total))

    def advance(self, stage, steps=1, text=""):
        self.events.append(("advance", stage, steps, text))

    def finish(self, stage):
        self.events.append(("finish", stage))


def test_progress_is_told_by_stage(network, bundle, tmp_path):
    def phases():
        monitor = network.monitor
        monitor.phase_start("Building Engine", None, 2)
        monitor.phase_start("Tactics", "Building Engine", 5)
        assert monitor.step_complete("Tactics", 0) is True
        monitor.phase_finish("Tactics")
        assert monitor.step_complete("Building Engine", 0) is True
        monitor.phase_finish("Building Engine")

    network.during = phases
    listener = Listener()
    build(bundle(), tmp_path / "model.engine", listener)
    assert listener.events == [
        ("start", "Building Engine", 2),
        ("advance", "Building Engine", 0, "Tactics"),
        ("advance", "Building Engine", 1, ""),
        ("finish", "Building Engine"),
    ]


def test_a_listener_that_fails_does_not_raise_into_tensorrt(network, bundle, tmp_path):
    class Broken(Listener):
        def start(self, stage, total=None):
            raise RuntimeError("no terminal")

    network.during = lambda: network.monitor.phase_start("Building", None, 1)
    assert build(bundle(), tmp_path / "model.engine", Broken()).path.exists()


def test_ctrl_c_ends_the_build_and_writes_nothing(network, bundle, tmp_path):
    told = []

    def interrupted():
        network.monitor.phase_start("Building", None, 9)
        os.kill(os.getpid(), signal.SIGINT)
        worker = threading.Thread(target=lambda: told.append(network.monitor.step_complete("Building", 0)))
        worker.start()
        worker.join()
        network.plan = None

    network.during = interrupted
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(bundle(), tmp_path / "model.engine", Listener())
    assert told == [False], "TensorRT is told to stop, in whatever thread it asks"
    assert signal.getsignal(signal.SIGINT) is handler
    assert list(tmp_path.glob("model.engine*")) == []


def test_a_build_in_another_thread_leaves_signals_alone(network, bundle, tmp_path):
    done = []
    worker = threading.Thread(target=lambda: done.append(build(bundle(), tmp_path / "model.engine", Listener())))
    worker.start()
    worker.join()
    assert done


# what the double is for -------------------------------------------------------------------------------------------


def test_a_flag_that_this_version_does_not_have_would_be_found(double, network, bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(builder._FLAGS, "refit", "FP16")  # only in 10
    if double.major == 10:
        build(bundle(refit=True), tmp_path / "model.engine")
    else:
        with pytest.raises(AttributeError, match="FP16"):
            build(bundle(refit=True), tmp_path / "model.engine")
    monkeypatch.setitem(builder._FLAGS, "refit", "REFITT")
    with pytest.raises(AttributeError, match="REFITT"):
        build(bundle(refit=True), tmp_path / "model.engine")
