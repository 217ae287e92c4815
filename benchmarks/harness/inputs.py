"""Seeded inputs from a model's own signature, and ONNX Runtime sessions that are fair to compare."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
    **{f"tensor({name})": np.dtype(name).type for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32")},
    "tensor(int64)": np.int64,
    "tensor(uint64)": np.uint64,
}


def open_session(path: str, optimize: bool, threads: int = 0) -> onnxruntime.InferenceSession:
    """A CPU session with every graph optimization or with none; its threads do not spin between runs."""
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def make_feeds(session: onnxruntime.InferenceSession, dims: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Normal floats, masks of ones, other integers 0 or 1 (valid as token, segment and class alike).

    Args:
        session: Gives names, types and shapes of the inputs.
        dims: Size of each named dynamic dim; one that is missing is 1 if it leads a shape, else 64.
        seed: Of the random generator.

    Raises:
        TypeError: An input is not a tensor of a type that can be fed.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    for info in session.get_inputs():
        if info.type not in DTYPES:
            raise TypeError(f"input {info.name!r} is a {info.type}, which the benchmark cannot feed")
        sizes = enumerate(info.shape)
        shape = [dim if isinstance(dim, int) else dims.get(dim, 1 if axis == 0 else 64) for axis, dim in sizes]
        dtype = np.dtype(DTYPES[info.type])
        if dtype.kind == "f":
            feeds[info.name] = rng.standard_normal(shape).astype(dtype)
        elif "mask" in info.name.lower():
            feeds[info.name] = np.ones(shape, dtype)
        else:
            feeds[info.name] = rng.integers(0, 2, shape).astype(dtype)
    return feeds
