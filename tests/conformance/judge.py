"""Judge an optimizer on one case: expected outputs, and an unchanged interface."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from .cases import Case, bind, fed_inputs

Optimizer = Callable[[onnx.ModelProto, int], onnx.ModelProto]

# Element types that ONNX Runtime's Python interface cannot pass in or out as NumPy arrays.
UNFEEDABLE = frozenset(
    code
    for name, code in TensorProto.DataType.items()
    if name.startswith(("BFLOAT", "FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2"))
)


class Unrunnable(Exception):
    """ONNX Runtime does not run the model."""


@functools.cache
def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    """Outputs of the model as ONNX Runtime computes them with its own graph optimizations off.

    Inputs of types that cannot be fed become initializers, outputs of types that cannot be fetched are cast to
    float32 (exact for all of them).

    Raises:
        Unrunnable: ONNX Runtime refuses the model or the inputs.
    """
    types = {info.name: info.type.tensor_type.elem_type for info in fed_inputs(model)}
    unfeedable = {name: value for name, value in feeds.items() if types.get(name) in UNFEEDABLE}
    try:
        model = _fetchable(bind(model, unfeedable) if unfeedable else model)
        session = onnxruntime.InferenceSession(model.SerializeToString(), _options(), ["CPUExecutionProvider"])
        return session.run(None, {name: value for name, value in feeds.items() if name not in unfeedable})
    except Exception as error:
        raise Unrunnable(" ".join(str(error).split())[:400]) from error


def _fetchable(model: onnx.ModelProto) -> onnx.ModelProto:
    if not any(info.type.tensor_type.elem_type in UNFEEDABLE for info in model.graph.output):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for index, info in enumerate(copy.graph.output):
        if info.type.tensor_type.elem_type in UNFEEDABLE:
            shown = f"{info.name}/as_float32"
            copy.graph.node.append(helper.make_node("Cast", [info.name], [shown], to=TensorProto.FLOAT))
            copy.graph.output[index].CopyFrom(helper.make_tensor_value_info(shown, TensorProto.FLOAT, None))
    return copy


def difference(expected: Any, got: Any, rtol: float, atol: float) -> str | None:
    """What is wrong with ``got``, or None; arrays, sequences and empty optionals."""
    if expected is None or got is None:
        return None if expected is None and got is None else f"expected {_brief(expected)}, got {_brief(got)}"
    if isinstance(expected, list):
        if not isinstance(got, list) or len(got) != len(expected):
            return f"expected {_brief(expected)}, got {_brief(got)}"
        return next((d for e, g in zip(expected, got, strict=True) if (d := difference(e, g, rtol, atol))), None)
    got = np.asarray(got)
    if expected.shape != got.shape:
        return f"shape {got.shape} instead of {expected.shape}"
    if expected.dtype.kind in "OSU" or got.dtype.kind in "OSU":
        same = np.array_equal(expected.astype(object), got.astype(object))
        return None if same else "different strings"
    if helper.np_dtype_to_tensor_dtype(expected.dtype) in UNFEEDABLE:
        expected = expected.astype(np.float32)  # as run() shows such outputs
    if expected.dtype != got.dtype:
        return f"dtype {got.dtype} instead of {expected.dtype}"
    if np.allclose(got, expected, rtol=rtol, atol=atol, equal_nan=True):
        return None
    with np.errstate(all="ignore"):
        gap = np.abs(got.astype(np.complex128) - expected.astype(np.complex128))
    return f"values differ by up to {np.nanmax(gap) if gap.size else 0:.3g} (rtol {rtol:g}, atol {atol:g})"


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return f"a sequence of {len(value)}"
    return "nothing" if value is None else f"{type(value).__name__} {getattr(value, 'shape', '')}"


def judgeable(case: Case) -> Case:
    """The case with outputs that ONNX Runtime gives for the original model.

    Where these are the expected ones the case is returned as it is. Where ONNX Runtime deviates from the standard's
    answer (its DFT is less accurate than the tolerance, for instance), its own answer becomes the expected one:
    optimizing must keep that too.

    Raises:
        Unrunnable: ONNX Runtime refuses the original, or does not answer the same twice.
    """
    if answer_problem(case, case.model) is None:
        return case
    own = replace(case, datasets=tuple((inputs, run(case.model, inputs)) for inputs, _ in case.datasets))
    if problem := answer_problem(own, case.model):
        raise Unrunnable(f"differs from run to run: {problem}")
    return own


def answer_problem(case: Case, model: onnx.ModelProto) -> str | None:
    """What ``model`` does wrong on the case's inputs, or None."""
    names = [info.name for info in case.model.graph.output]
    for inputs, expected in case.datasets:
        try:
            outputs = run(model, inputs)
        except Unrunnable as error:
            return f"ONNX Runtime refuses it: {error}"
        if len(outputs) != len(expected):
            return f"{len(outputs)} outputs instead of {len(expected)}"
        for name, want, got in zip(names, expected, outputs, strict=True):
            if problem := difference(want, got, case.rtol, case.atol):
                return f"output {name!r}: {problem}"
    return None


def interface_problem(before: onnx.ModelProto, after: onnx.ModelProto) -> str | None:
    """How the interface changed, or None. A dim or shape that was left open may be known afterwards."""
    for what, old, new in (
        ("inputs", fed_inputs(before), fed_inputs(after)),
        ("outputs", list(before.graph.output), list(after.graph.output)),
    ):
        if [info.name for info in old] != [info.name for info in new]:
            return f"{what} {[info.name for info in old]} became {[info.name for info in new]}"
        for a, b in zip(old, new, strict=True):
            if problem := _type_problem(a.type, b.type):
                return f"{what[:-1]} {a.name!r}: {problem}"
    return None


def _type_problem(a: onnx.TypeProto, b: onnx.TypeProto) -> str | None:
    kind = a.WhichOneof("value")
    if kind != b.WhichOneof("value"):
        return f"type {kind} became {b.WhichOneof('value')}"
    if kind in ("sequence_type", "optional_type"):
        return _type_problem(getattr(a, kind).elem_type, getattr(b, kind).elem_type)
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return None if a == b else "type changed"
    old, new = getattr(a, kind), getattr(b, kind)
    if old.elem_type != new.elem_type:
        return f"element type {old.elem_type} became {new.elem_type}"
    if not old.HasField("shape"):
        return None
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in old.shape.dim]
    seen = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in new.shape.dim]
    same = new.HasField("shape") and len(dims) == len(seen)
    same = same and all(x in ("", y) for x, y in zip(dims, seen, strict=True))
    return None if same else f"dims {dims} became {seen if new.HasField('shape') else 'unknown'}"


def judge(case: Case, optimizer: Optimizer, level: int) -> str | None:
    """What the optimizer gets wrong on a case that ONNX Runtime answers as expected, or None."""
    original = onnx.ModelProto()
    original.CopyFrom(case.model)
    try:
        optimized = optimizer(original, level)
    except Exception as error:
        return f"the optimizer raised {type(error).__name__}: {' '.join(str(error).split())[:400]}"
    if original != case.model:
        return "the optimizer changed the model that it was given"
    return interface_problem(case.model, optimized) or answer_problem(case, optimized)
