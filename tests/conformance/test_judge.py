"""The judge itself: it passes an optimizer that changes nothing and catches each kind of damage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from .cases import Case, frozen, open_dims, with_weights
from .judge import Unrunnable, judge, judgeable


def example(op: str = "Sub", kind: int = TensorProto.FLOAT) -> Case:
    """y = op(a, b) on [2, 3] tensors."""
    a, b, y = (helper.make_tensor_value_info(name, kind, [2, 3]) for name in "aby")
    graph = helper.make_graph([helper.make_node(op, ["a", "b"], ["y"])], "example", [a, b], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    one, two = np.arange(6).reshape(2, 3).astype(dtype), np.ones((2, 3)).astype(dtype)
    return Case("example", model, (({"a": one, "b": two}, [(one - two).astype(dtype)]),), rtol=1e-3, atol=1e-7)


def unchanged(model: onnx.ModelProto, level: int) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def damaged(change: Callable[[onnx.ModelProto], object]) -> Callable[[onnx.ModelProto, int], onnx.ModelProto]:
    def optimize(model: onnx.ModelProto, level: int) -> onnx.ModelProto:
        copy = unchanged(model, level)
        change(copy)
        return copy

    return optimize


def swap_operands(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[:] = reversed(model.graph.node[0].input)


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.node[0].output[0] = model.graph.output[0].name = "renamed"


def reorder_inputs(model: onnx.ModelProto) -> None:
    first, second = model.graph.input
    infos = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in (second, first)]
    del model.graph.input[:]
    model.graph.input.extend(infos)


def widen_output(model: onnx.ModelProto) -> None:
    model.graph.node[0].output[0] = "narrow"
    model.graph.node.append(helper.make_node("Cast", ["narrow"], ["y"], to=TensorProto.DOUBLE))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def forget_dims(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.ClearField("shape")


def unknown_op(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "NoSuchOp"


def raise_error(model: onnx.ModelProto) -> None:
    raise KeyError("broken")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT32])
def test_an_optimizer_that_changes_nothing_passes(kind: int) -> None:
    assert judge(example(kind=kind), unchanged, 1) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (swap_operands, "values differ"),
        (rename_output, "outputs"),
        (reorder_inputs, "inputs"),
        (widen_output, "element type"),
        (forget_dims, "dims"),
        (unknown_op, "refuses"),
        (raise_error, "raised KeyError"),
    ],
)
def test_damage_is_caught(change: Callable[[onnx.ModelProto], object], words: str) -> None:
    problem = judge(example(), damaged(change), 1)
    assert problem is not None
    assert words in problem


def test_changing_the_given_model_is_caught() -> None:
    def in_place(model: onnx.ModelProto, level: int) -> onnx.ModelProto:
        model.graph.name = "changed"
        return model

    assert "given" in (judge(example(), in_place, 1) or "")


@pytest.mark.parametrize("variant", [with_weights, frozen, open_dims])
def test_variants_keep_the_expected_answer(variant: Callable[[Case], Case | None]) -> None:
    changed = variant(example())
    assert changed is not None
    assert changed.model != example().model
    assert judge(changed, unchanged, 1) is None
    assert judge(changed, damaged(swap_operands), 1) is not None


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.FLOAT8E5M2, TensorProto.UINT4])
def test_types_that_numpy_cannot_pass_are_judged(kind: int) -> None:
    """b is cast from the type under test, so that its bits matter."""
    source, x = helper.make_tensor_value_info("b", kind, [3]), helper.make_tensor_value_info("x", kind, [3])
    out = helper.make_tensor_value_info("y", kind, [3])
    nodes = [
        helper.make_node("Cast", ["b"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Abs", ["wide"], ["positive"]),
        helper.make_node("Cast", ["positive"], ["y"], to=kind),
    ]
    graph = helper.make_graph(nodes, "example", [x, source], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    value = np.array([1, 2, 3]).astype(helper.tensor_dtype_to_np_dtype(kind))
    case = Case("cast", model, (({"x": value, "b": value}, [value]),), rtol=0, atol=0)
    wrong = unchanged(model, 1)
    wrong.graph.node[0].input[0] = "zeros"
    wrong.graph.initializer.append(numpy_helper.from_array(np.zeros(3).astype(value.dtype), "zeros"))
    assert judge(case, unchanged, 1) is None
    assert "values differ" in (judge(case, lambda *_: wrong, 1) or "")


def test_a_model_that_cannot_run_is_not_judged() -> None:
    case = example()
    unknown_op(case.model)
    with pytest.raises(Unrunnable):
        judgeable(case)
