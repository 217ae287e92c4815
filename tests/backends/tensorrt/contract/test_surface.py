"""The stored surfaces are those of the real bindings, and the double made from them is as strict as they are."""

from __future__ import annotations

import importlib.util

import pytest

from optc.backends.tensorrt.library import SINCE

from . import surface
from .double import TensorRT

MAJORS = (10, 11)


def test_the_surface_is_that_of_the_bindings():
    reason = surface.missing()
    if reason is not None:
        pytest.skip(reason)
    folder = surface.installed()
    assert surface.read(folder) == surface.load(surface.major_of(folder)), (
        "the bindings changed: write the snapshot again with python -m tests.backends.tensorrt.contract.surface"
    )


def test_the_bindings_do_not_pass_for_tensorrt():
    """They are a module of another name, so nothing takes this environment for one with TensorRT."""
    if surface.installed() is None:
        pytest.skip("tensorrt-cu12-bindings is not installed")
    spec = importlib.util.find_spec("tensorrt")
    assert spec is None or "tensorrt_bindings" not in str(spec.origin)


@pytest.mark.parametrize("major", MAJORS)
def test_what_versions_differ_in_is_there_in_the_newest(major):
    stored = surface.load(major)
    for name in SINCE:
        owner, _, member = name.partition(".")
        if not member:
            assert owner in stored["enums"] or owner in stored["classes"]
        elif owner in stored["enums"]:
            assert member in stored["enums"][owner]
        else:
            described = stored["classes"][owner]
            assert member in described["properties"] or member in described["methods"]


def test_what_11_took_away_is_not_there():
    older, newer = (surface.load(major) for major in MAJORS)
    gone = {"FP16", "BF16", "INT8", "FP8", "INT4", "OBEY_PRECISION_CONSTRAINTS"}
    assert gone <= set(older["enums"]["BuilderFlag"])
    assert not gone & set(newer["enums"]["BuilderFlag"])
    assert "IInt8Calibrator" in older["classes"] and "IInt8Calibrator" not in newer["classes"]


@pytest.fixture(params=MAJORS)
def trt(request):
    """The double's module."""
    return TensorRT(request.param).module


def _config(trt):
    return trt.Builder(trt.Logger()).create_builder_config()


def test_a_misspelt_flag_fails(trt):
    with pytest.raises(AttributeError):
        _config(trt).set_flag(trt.BuilderFlag.VERSION_COMPATIBEL)


def test_a_misspelt_attribute_fails(trt):
    with pytest.raises(AttributeError):
        _config(trt).builder_optimisation_level = 3
    with pytest.raises(AttributeError):
        _config(trt).builder_optimisation_level  # noqa: B018


@pytest.mark.parametrize(
    "call",
    [
        lambda trt: _config(trt).set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        lambda trt: _config(trt).set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1, 2),
        lambda trt: _config(trt).set_memory_pool_limit(pool=trt.MemoryPoolType.WORKSPACE, size=1),
        lambda trt: _config(trt).set_memory_pool_limit(trt.BuilderFlag.TF32, 1),
        lambda trt: _config(trt).set_flag(0),
        lambda trt: setattr(_config(trt), "profiling_verbosity", trt.HardwareCompatibilityLevel.NONE),
        lambda trt: trt.Builder(trt.Logger()).build_serialized_network(None),
        lambda trt: trt.Runtime(trt.Logger()).deserialize_cuda_engine("a path"),
        lambda trt: trt.ICudaEngine(),
        lambda trt: trt.Builder("a logger"),
    ],
)
def test_a_call_that_fits_no_signature_fails(trt, call):
    with pytest.raises(TypeError):
        call(trt)


def test_a_subclass_must_call_the_constructor_of_its_base(trt):
    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            self.steps = 0

    with pytest.raises(TypeError, match="must be called"):
        Monitor()


def test_what_only_10_has_fails_under_11():
    older, newer = (TensorRT(major).module for major in MAJORS)
    _config(older).set_flag(older.BuilderFlag.FP16)
    assert older.Builder(older.Logger()).platform_has_fast_fp16 in (True, False)
    with pytest.raises(AttributeError):
        _config(newer).set_flag(newer.BuilderFlag.FP16)
    with pytest.raises(AttributeError):
        newer.Builder(newer.Logger()).platform_has_fast_fp16  # noqa: B018
    with pytest.raises(AttributeError):
        newer.NetworkDefinitionCreationFlag.EXPLICIT_BATCH  # noqa: B018


def test_calls_are_remembered_and_behave_as_told():
    double = TensorRT(11, {"OnnxParser.parse_from_file": lambda on, model: model == "good.onnx"})
    trt = double.module
    logger = trt.Logger()
    network = trt.Builder(logger).create_network()
    assert trt.OnnxParser(network, logger).parse_from_file("good.onnx")
    assert not trt.OnnxParser(network, logger).parse_from_file("bad.onnx")
    assert [call.arguments for call in double.named("OnnxParser.parse_from_file")] == [
        {"model": "good.onnx"},
        {"model": "bad.onnx"},
    ]
