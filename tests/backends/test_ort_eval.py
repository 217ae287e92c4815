"""Constant evaluation: right values, honest failures, and a process that survives hostile arithmetic."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optc.backends import ort_eval, ort_fragment
from optc.backends.ort_eval import Evaluator
from optc.passes.base import Evaluator as EvaluatorProtocol

BIG = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)


def graph(body: str, opset: int = 17, **initializers: np.ndarray) -> onnx_ir.Graph:
    """A graph whose initializers have no declared inputs; ``x`` is the one real input."""
    model = onnx_ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]> '
        f"g (float[N] x) => (float[N] out) {{ {body} }}"
    )
    values = {}
    for node in model.graph:
        for position, value in enumerate(node.inputs):
            if value is not None and value.name in initializers:
                one = values.setdefault(
                    value.name,
                    onnx_ir.Value(
                        name=value.name, const_value=onnx_ir.tensor(initializers[value.name], name=value.name)
                    ),
                )
                node.replace_input_with(position, one)
    for value in values.values():
        model.graph.register_initializer(value)
    return model.graph


def value(graph: onnx_ir.Graph, name: str) -> onnx_ir.Value:
    return next(one for node in graph for one in node.outputs if one.name == name)


def nodes(graph: onnx_ir.Graph, *names: str) -> list[onnx_ir.Node]:
    return [node for node in graph if node.outputs[0].name in names]


def count_sessions(monkeypatch) -> list[int]:
    opened = []
    original = ort_eval.Session

    def counting(*args, **kwargs):
        opened.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(ort_eval, "Session", counting)
    return opened


def test_a_fragment_runs_in_one_session(monkeypatch):
    g = graph("a = Transpose<perm = [1, 0]>(w) b = Add(a, w) c = Relu(b) out = Identity(x)", w=BIG)
    opened = count_sessions(monkeypatch)
    result = Evaluator().evaluate(nodes(g, "a", "b", "c"), outputs=[value(g, "a"), value(g, "c")])
    np.testing.assert_array_equal(result.values[0], BIG.T)
    np.testing.assert_array_equal(result.values[1], np.maximum(BIG.T + BIG, 0))
    assert result.complete
    assert not result.failures
    assert len(opened) == 1


def test_the_evaluator_is_what_passes_ask_for():
    evaluator: EvaluatorProtocol = Evaluator()
    g = graph("a = Neg(w) out = Identity(x)", w=BIG)
    (array,) = evaluator.run(nodes(g, "a"), {}, [value(g, "a")])
    np.testing.assert_array_equal(array, -BIG)


def test_big_constants_are_fed_and_small_ones_embedded():
    g = graph("a = Reshape(w, s) out = Identity(x)", w=BIG, s=np.array([32, 128]))
    fragment = ort_fragment.build(nodes(g, "a"), [value(g, "a")], {}, {"": 17})
    assert list(fragment.feeds) == ["w"]
    assert np.shares_memory(fragment.feeds["w"], BIG)
    assert [tensor.name for tensor in fragment.proto.graph.initializer] == ["s"]


def test_fed_values_stand_for_inputs_that_are_not_constant():
    g = graph("a = Neg(x) out = Relu(a)")
    x = g.inputs[0]
    result = Evaluator().evaluate(list(g), {x: np.array([-2, 2], np.float32)})
    np.testing.assert_array_equal(result.values[0], [2, 0])


def test_constant_nodes_of_every_kind():
    g = graph(
        "a = Constant<value = float[2] {1, 2}>() b = Constant<value_float = 3.0>() c = Constant<value_ints = [4, 5]>() "
        "d = Constant<value_int = 6>() e = Constant<value_floats = [7.0]>() f = Mul(a, b) out = Identity(x)"
    )
    result = Evaluator().evaluate(list(g)[:-1], outputs=[value(g, name) for name in "abcdef"])
    assert [array.tolist() for array in result.values] == [[1, 2], 3, [4, 5], 6, [7], [3, 6]]
    assert [str(array.dtype) for array in result.values[:5]] == ["float32", "float32", "int64", "int64", "float32"]


def test_string_constants():
    g = graph(
        'a = Constant<value_strings = ["x", "y"]>() b = Constant<value = string[2] {"x", "z"}>() out = Identity(x)'
    )
    result = Evaluator().evaluate(list(g)[:-1], outputs=[value(g, "a"), value(g, "b")])
    assert [list(array) for array in result.values] == [["x", "y"], ["x", "z"]]


def test_types_that_numpy_lacks():
    data = np.array([1.5, -2, 3], ml_dtypes.bfloat16)
    g = graph("a = Cast<to = 1>(w) b = Cast<to = 16>(a) out = Identity(x)", w=data)
    wide, narrow = Evaluator().run(nodes(g, "a", "b"), {}, [value(g, "a"), value(g, "b")])
    np.testing.assert_array_equal(wide, data.astype(np.float32))
    assert narrow.dtype == data.dtype


def test_what_cannot_be_evaluated_is_named_and_the_rest_is_not_lost():
    g = graph(
        "a = Neg(w) b = MatMul(w, bad) c = Relu(b) d = com.microsoft.NoSuchOp(w) e = Abs(x) out = Identity(x)",
        w=BIG,
        bad=np.ones((3, 3), np.float32),
    )
    result = Evaluator().evaluate(list(g)[:-1], outputs=[value(g, name) for name in "abcde"])
    np.testing.assert_array_equal(result.values[0], -BIG)
    assert result.values[1:] == [None] * 4
    assert not result.complete
    reasons = {node.outputs[0].name: why for node, why in result.failures.items()}
    assert list(reasons) == ["b", "c", "d", "e"]
    assert "MatMul" in reasons["b"]
    assert reasons["c"] == "its input 'b' is not constant"
    assert "NoSuchOp" in reasons["d"]
    assert reasons["e"] == "its input 'x' is not constant"


@pytest.mark.parametrize("op", ["Div", "Mod"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_divisions_that_trap_are_refused(op, dtype):
    """The smallest integer divided by -1 raises SIGFPE in onnxruntime: without the guard this test kills pytest."""
    smallest = np.iinfo(dtype).min
    g = graph(
        f"n = Neg(one) a = {op}(low, n) b = {op}(low, zero) c = {op}(six, n) d = {op}(low, two) out = Identity(x)",
        low=np.array([smallest], dtype),
        one=np.array([1], dtype),
        zero=np.array([0], dtype),
        six=np.array([6], dtype),
        two=np.array([2], dtype),
    )
    result = Evaluator().evaluate(list(g)[:-1], outputs=[value(g, name) for name in "abcd"])
    assert result.values[:2] == [None, None]
    assert result.values[2].item() == (-6 if op == "Div" else 0)
    assert result.values[3].item() == (smallest // 2 if op == "Div" else 0)
    assert set(result.failures.values()) == {"integer division overflows", "integer division by zero"}


def test_a_safe_division_does_not_cost_the_single_session(monkeypatch):
    g = graph("a = Div(w, two) b = Neg(a) out = Identity(x)", w=np.array([6, 8]), two=np.array([2]))
    opened = count_sessions(monkeypatch)
    (array,) = Evaluator().run(nodes(g, "a", "b"), {}, [value(g, "b")])
    assert array.tolist() == [-3, -4]
    assert len(opened) == 1


def test_branches_use_values_of_the_outer_graph_by_name():
    model = onnx_ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 17]> g (float[N] x) => (float[N] out) {'
        " c = Constant<value = bool {1}>()"
        " w = Constant<value = float[2] {1, 2}>()"
        " y = If (c) <then_branch = t () => (float[2] r) { r = Neg(w) },"
        " else_branch = e () => (float[2] q) { q = Abs(w) }>"
        " out = Identity(x) }"
    )
    g = model.graph
    result = Evaluator().evaluate(nodes(g, "c", "w", "y"), outputs=[value(g, "y")])
    assert result.values[0].tolist() == [-1, -2]


def test_a_division_that_may_trap_inside_a_branch_is_refused():
    model = onnx_ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 17]> g (float[N] x) => (float[N] out) {'
        " c = Constant<value = bool {1}>()"
        " w = Constant<value = int64[1] {-9223372036854775808}>()"
        " m = Constant<value = int64[1] {-1}>()"
        " y = If (c) <then_branch = t () => (int64[1] r) { r = Div(w, m) }, else_branch = e () => (int64[1] q)"
        " { q = Abs(w) }> out = Identity(x) }"
    )
    g = model.graph
    result = Evaluator().evaluate(list(g)[:-1], outputs=[value(g, "y")])
    assert result.values == [None]
    assert "sub-graph divides" in next(iter(result.failures.values()))


def test_functions_can_be_called():
    model = onnx_ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 17, "my": 1]> g (float[N] x) => (float[N] out) {'
        " w = Constant<value = float[2] {1, 2}>() y = my.twice(w) out = Identity(x) }"
        ' <domain: "my", opset_import: ["": 17]> twice (a) => (b) { b = Add(a, a) }'
    )
    evaluator = Evaluator(functions=list(model.functions.values()))
    assert evaluator.run(list(model.graph)[:2], {}, [value(model.graph, "y")])[0].tolist() == [2, 4]


def test_values_of_equal_or_no_name_do_not_collide():
    a = onnx_ir.Value(name="v", const_value=onnx_ir.tensor(np.array([1.0, 2.0], np.float32)))
    b = onnx_ir.Value(name="v", const_value=onnx_ir.tensor(np.array([10.0, 20.0], np.float32)))
    first = onnx_ir.node("Sub", [b, a])
    second = onnx_ir.node("Neg", [first.outputs[0]])
    for node in (first, second):
        node.outputs[0].name = None
    result = Evaluator({"": 17}).evaluate([first, second], outputs=[second.outputs[0], first.outputs[0]])
    assert [array.tolist() for array in result.values] == [[-9, -18], [9, 18]]


def test_empty_fragments():
    assert Evaluator().evaluate([]).values == []


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.int64, np.int32]),
        hnp.array_shapes(max_dims=2, max_side=4),
        elements=st.one_of(st.integers(-3, 3), st.sampled_from([-(2**31), 2**31 - 1])),
    ),
    st.lists(st.tuples(st.sampled_from(["Add", "Mul", "Sub", "Div", "Mod"]), st.booleans()), min_size=1, max_size=4),
)
def test_integer_chains_survive_and_agree_with_numpy(data, ops):
    """Max and Min are left out: onnxruntime 1.31 gets Max(-2**32, -2**31) of int64 wrong, at run time as here."""
    constant = onnx_ir.Value(name="w", const_value=onnx_ir.tensor(data))
    constant.dtype = onnx_ir.DataType.from_numpy(data.dtype)
    chain, current, want = [], constant, data
    for op, flip in ops:
        pair = [constant, current] if flip else [current, constant]
        node = onnx_ir.node(op, pair)
        node.outputs[0].dtype = constant.dtype
        arrays = [data, want] if flip else [want, data]
        want = None if want is None else reference(op, *arrays)
        chain.append(node)
        current = node.outputs[0]
    (got,) = Evaluator({"": 17}).run(chain, {}, [current])
    if want is None:
        assert got is None
    else:
        np.testing.assert_array_equal(got, want)


def reference(op: str, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """NumPy's word on ONNX integer arithmetic; None where division is not defined."""
    if op in ("Div", "Mod"):
        if (b == 0).any() or ((b == -1).any() and (a == np.iinfo(a.dtype).min).any()):
            return None
        quotient = np.trunc(a.astype(np.longdouble) / b.astype(np.longdouble)).astype(a.dtype)
        return quotient if op == "Div" else np.mod(a, b)
    with np.errstate(over="ignore"):
        return {"Add": np.add, "Mul": np.multiply, "Sub": np.subtract}[op](a, b)


def test_scalars_stay_scalars():
    g = graph("a = Neg(w) b = Reshape(v, a) out = Identity(x)", w=np.array(-6), v=BIG)
    scalar = nodes(g, "a")
    assert Evaluator().run(scalar, {}, [value(g, "a")])[0].shape == ()
    assert Evaluator().run(scalar, {scalar[0].inputs[0]: np.array(4)}, [value(g, "a")])[0] == -4
