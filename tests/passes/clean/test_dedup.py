"""Storing equal weights once."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from optc.ir.model import load
from optc.passes.clean.dedup import equal, fingerprint

from .pipelines import check, optimize


def summing(arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A model that casts its weights to float32 and outputs each of their sums."""
    nodes, outputs = [], []
    for name in arrays:
        nodes.append(helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceSum", [f"{name}_float"], [f"{name}_sum"], keepdims=0))
        outputs.append(helper.make_tensor_value_info(f"{name}_sum", TensorProto.FLOAT, []))
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "summing", [], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_equal_means_dtype_shape_and_bytes() -> None:
    zeros = np.zeros((2, 8), np.float32)
    done = check(
        summing(
            {
                "a": zeros,
                "b": zeros.copy(),
                "reshaped": zeros.reshape(4, 4),
                "retyped": zeros.view(np.int32),
                "negative": -zeros,
                "nan": np.full((2, 8), np.nan, np.float32),
                "nan_too": np.full((2, 8), np.nan, np.float32),
                "half": np.arange(4, dtype=ml_dtypes.bfloat16),
                "half_too": np.arange(4, dtype=ml_dtypes.bfloat16),
            }
        ),
        "dedup",
    )
    assert list(done.model.graph.initializers) == ["a", "reshaped", "retyped", "negative", "nan", "half"]


def test_large_weights_that_differ_in_one_byte_are_kept_apart() -> None:
    a = np.random.default_rng(0).standard_normal((300, 1001)).astype(np.float32)
    for place in (1, 150_000, a.size - 2):
        b = a.copy()
        b.reshape(-1)[place] += 1
        done = check(summing({"a": a, "b": b, "c": a.copy()}), "dedup")
        assert list(done.model.graph.initializers) == ["a", "b"]


@pytest.mark.parametrize("dtype", [np.float32, np.int8, ml_dtypes.bfloat16, ml_dtypes.int4])
def test_however_a_tensor_is_stored_it_has_one_fingerprint(dtype: type) -> None:
    array = np.random.default_rng(0).integers(-7, 7, (301, 404)).astype(dtype)
    plain = onnx_ir.Tensor(array)
    lazy = onnx_ir.LazyTensor(lambda: onnx_ir.Tensor(array.T.copy().T), plain.dtype, plain.shape)
    proto = onnx_ir.from_proto(onnx_ir.to_proto(plain))
    other = array.copy()
    other[200, 200] = array[200, 200] + 1
    for one in (lazy, proto):
        assert fingerprint(plain) == fingerprint(one)
        assert equal(plain, one) and equal(one, plain)
        assert not equal(one, onnx_ir.Tensor(other))


def test_external_data_is_compared_in_its_file(tmp_path: Path) -> None:
    a = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    b = a.copy()
    b[50, 3] = 7
    proto = summing({"a": a, "same": a, "other": b})
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = load(tmp_path / "m.onnx")
    done = check(onnx.load(tmp_path / "m.onnx"), "dedup")
    assert list(done.model.graph.initializers) == ["a", "other"]
    a_tensor, same, other = (model.graph.initializers[name].const_value for name in ("a", "same", "other"))
    assert equal(a_tensor, same) and not equal(a_tensor, other)


def test_strings() -> None:
    texts = [helper.make_tensor(name, TensorProto.STRING, [2], [b"x", last]) for name, last in
             (("a", b"y"), ("b", b"y"), ("c", b"z"))]  # fmt: skip
    nodes = [helper.make_node("StringConcat", ["a", "b"], ["t"]), helper.make_node("StringConcat", ["t", "c"], ["y"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.STRING, [2])]
    proto = helper.make_model(
        helper.make_graph(nodes, "strings", [], outputs, texts),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    assert list(check(proto, "dedup").model.graph.initializers) == ["a", "c"]


def test_inputs_and_outputs_stay() -> None:
    done = optimize(
        """agraph (float[2] x, float[2] k = {1.0, 2.0}) => (float[2] y, float[2] l) <
            float[2] l = {1.0, 2.0}, float[2] m = {1.0, 2.0}, float[2] n = {1.0, 2.0}> {
            t = Add (x, k)  u = Add (t, m)  v = Add (u, l)  y = Add (v, n)
        }""",
        "dedup",
    )
    assert set(done.model.graph.initializers) == {"k", "l"}


def test_the_main_graph_serves_its_subgraphs() -> None:
    inner = [numpy_helper.from_array(np.array([1.0, 2.0], np.float32), name) for name in ("u", "v")]
    branches = {}
    for name, tensor in zip(("then_branch", "else_branch"), inner, strict=True):
        out = [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [2])]
        node = helper.make_node("Add" if name[0] == "t" else "Mul", ["x", tensor.name], [f"{name}_out"])
        branches[name] = helper.make_graph([node], name, [], out, [tensor])
    nodes = [helper.make_node("If", ["c"], ["t"], **branches), helper.make_node("Sub", ["t", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]), helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    done = check(proto, "dedup", {"x": np.ones(2, np.float32), "c": np.array(False)})
    assert [len(graph.initializers) for graph in done.model.graphs()] == [1, 0, 0]
