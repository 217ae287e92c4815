"""Running models of golden cases and comparing what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir
import onnxruntime

from optc.ir.functions import expanded
from optc.ir.saving import to_proto


def feeds_for(model: onnx.ModelProto, dims: Sequence[int], runs: int = 3) -> Iterator[dict[str, np.ndarray]]:
    """Random inputs, with other values of the symbolic dims in every run."""
    known = {tensor.name for tensor in model.graph.initializer}
    for run in range(runs):
        rng = np.random.default_rng(run)
        sizes: dict[str, int] = {}
        feeds = {}
        for value in model.graph.input:
            if value.name in known:
                continue
            kind = value.type.tensor_type
            shape = []
            for dim in kind.shape.dim:
                name = dim.dim_param or f"{value.name}.{len(shape)}"
                size = dim.dim_value or sizes.setdefault(name, dims[(len(sizes) + run) % len(dims)])
                shape.append(size)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            if "var" in value.name:
                array = rng.uniform(0.5, 1.5, shape)
            else:
                array = rng.standard_normal(shape) if dtype.kind in "fV" else rng.integers(0, 2, shape)
            feeds[value.name] = array.astype(dtype)
        yield feeds


def evaluate(model: onnx.ModelProto | onnx_ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs by name, computed with every optimization of ONNX Runtime off."""
    proto = to_proto(expanded(model)) if isinstance(model, onnx_ir.Model) else model
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_close(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], tolerance: float) -> None:
    """Same outputs, shapes and types; relative L2 error of each within the tolerance."""
    assert list(got) == list(want)
    for name, expected in want.items():
        actual = got[name]
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), name
        if expected.dtype.kind != "f":
            np.testing.assert_array_equal(actual, expected)
            continue
        assert np.isfinite(expected).all(), f"{name}: the case computes {expected}"
        error = np.linalg.norm(actual.astype(np.float64) - expected) / (np.linalg.norm(expected) + 1e-12)
        assert error <= tolerance, f"{name}: relative L2 error {error:.2e}"
