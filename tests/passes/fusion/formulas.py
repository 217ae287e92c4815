"""Formulas written in a random way: the same mathematics in another grouping, order and spelling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from optc.backends import ort_kernels
from optc.ir.model import load
from optc.ir.saving import to_proto
from optc.ir.targets import builtin_targets
from optc.passes.manager import PassManager, PipelineResult
from optc.passes.pipeline import parse_pipeline
from optc.passes.registry import pass_registry


class Formula:
    """Nodes of a graph, added one by one; constants are initializers or Constant nodes, of rank 0 or 1, by chance."""

    def __init__(self, draw: Callable, opset: int = 17, dtype: type = np.float32) -> None:
        self.draw, self.opset, self.dtype = draw, opset, np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, op_type: str, *inputs: str, **attributes) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def constant(self, value: float) -> str:
        array = np.full(self.draw(st.sampled_from([(), (1,)])), value, self.dtype)
        if self.draw(st.booleans()):
            return self.weight(array)
        return self.op("Constant", value=numpy_helper.from_array(array))

    def scaled(self, x: str, factor: float) -> str:
        """x * factor, or x / (1 / factor)."""
        if self.draw(st.booleans()):
            return self.op("Div", x, self.constant(1 / factor))
        return self.joined("Mul", [x, self.constant(factor)])

    def joined(self, op_type: str, terms: Sequence[str]) -> str:
        """A random tree of a sum or a product over the terms."""
        terms = list(terms)
        while len(terms) > 1:
            left = terms.pop(self.draw(st.integers(0, len(terms) - 1)))
            right = terms.pop(self.draw(st.integers(0, len(terms) - 1)))
            terms.append(self.op(op_type, left, right))
        return terms[0]

    def mean(self, x: str, axes: Sequence[int]) -> str:
        """ReduceMean with axes as an attribute or as an input, whatever the opset wants."""
        if self.opset < 18:
            return self.op("ReduceMean", x, axes=list(axes), keepdims=1)
        return self.op("ReduceMean", x, self.weight(np.array(axes, np.int64)), keepdims=1)

    def model(self, inputs: dict[str, Sequence[int | str]], result: str) -> onnx.ModelProto:
        """The model; the result is called y."""
        self.nodes.append(helper.make_node("Identity", [result], ["y"], name="end"))
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        graph = helper.make_graph(
            self.nodes,
            "formula",
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info("y", kind, None)],
            initializer=self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def rewrite(model: onnx.ModelProto, pipeline: str = "fuse,emit", target: str = "cpu", **services) -> PipelineResult:
    """Run a pipeline with ONNX Runtime's kernel census, or the given services."""
    manager = PassManager(builtin_targets()[target], services or {"kernels": ort_kernels}, strict=True)
    return manager.run(load(model), parse_pipeline(pipeline, pass_registry()))


def fired(result: PipelineResult) -> dict[str, int]:
    return next(record for record in result.records if record.name == "fuse").hits


def evaluate(model: onnx.ModelProto | PipelineResult, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The first output, with ONNX Runtime's own optimizations off."""
    proto = to_proto(model.model) if isinstance(model, PipelineResult) else model
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def close(got: np.ndarray, want: np.ndarray, tolerance: float = 1e-5) -> bool:
    """Same shape, relative L2 error within the tolerance."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    return bool(np.linalg.norm(got.astype(np.float64) - want) <= tolerance * (np.linalg.norm(want) + 1e-6))


FLOAT = TensorProto.FLOAT
