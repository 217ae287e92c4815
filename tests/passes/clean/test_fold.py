"""Constant folding: what is folded, what it may cost, and what must never be computed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.backend.test
import pytest
from onnx import TensorProto, helper, numpy_helper

from optc.ir.saving import save, to_proto
from optc.passes.clean.dedup import equal

from .pipelines import check, floats, optimize

X = {"x": floats(2, 3)}
IMPORTS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]


def info(name: str, shape: list | None = None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def build(
    nodes: list[onnx.NodeProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray],
    inputs: list[onnx.ValueInfoProto] | None = None,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs = [info("x", [2, 3])] if inputs is None else inputs
    return helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs, tensors), opset_imports=IMPORTS, ir_version=10
    )


# what is folded ---------------------------------------------------------------------------------------------------


def test_only_what_the_rest_reads_is_stored() -> None:
    done = check(
        """agraph (float[2, 3] x) => (float[2, 3] y) <float[3] k = {1, 2, 3}> {
            c = Constant <value = float[3] {4, 5, 6}> ()
            a = Mul (k, c)  b = Exp (a)  d = Sqrt (b)
            t = Add (x, d)  y = Mul (t, b)
        }""",
        "fold",
        X,
    )
    assert done.ops == {"Add": 1, "Mul": 1}
    assert set(done.model.graph.initializers) == {"b", "d"}


def test_every_form_of_constant_becomes_an_initializer() -> None:
    done = check(
        """agraph (float[2, 3] x) => (float[2, 3] y, int64[3] z) {
            f = Constant <value_float = 2.0> ()
            fs = Constant <value_floats = [1.0, 2.0, 3.0]> ()
            i = Constant <value_int = 1> ()
            is = Constant <value_ints = [1, 2, 3]> ()
            a = Mul (x, f)  y = Add (a, fs)
            s = Shape (y)  g = Size (x)  h = Add (g, i)  z = Mul (is, h)
        }""",
        "fold",
        X,
    )
    assert done.ops == {"Mul": 1, "Add": 1, "Shape": 1, "Constant": 1}  # the last one makes the output z


def test_strings() -> None:
    nodes = [
        helper.make_node("Constant", [], ["s"], value_strings=["a", "b"]),
        helper.make_node("Constant", [], ["t"], value_string="c"),
        helper.make_node("StringConcat", ["s", "t"], ["u"]),
        helper.make_node("StringConcat", ["u", "i"], ["y"]),
    ]
    inputs = [info("i", [2], TensorProto.STRING)]
    proto = build(nodes, [info("y", [2], TensorProto.STRING)], {}, inputs)
    done = check(proto, "fold", {"i": np.array(["x", "y"], object)})
    assert done.ops == {"StringConcat": 1}
    assert done.constant("u").tolist() == [b"ac", b"bc"]


def test_known_contents_are_folded_without_an_evaluator() -> None:
    text = """agraph (float[2, 3, n] x) => (float[m, k] y) <int64[1] last = {-1}, int64 i = {0}, int64 j = {1}> {
        s = Shape (x)
        a = Gather <axis = 0> (s, i)  b = Gather <axis = 0> (s, j)
        c = Mul (a, b)  d = Constant <value = int64[1] {0}> ()  e = Unsqueeze (c, d)
        f = Concat <axis = 0> (e, last)
        y = Reshape (x, f)
    }"""
    done = check(text, "fold", {"x": floats(2, 3, 4)}, evaluate=False)
    assert done.ops == {"Reshape": 1}
    assert done.constant("f").tolist() == [6, -1]


def test_without_an_evaluator_nothing_is_computed() -> None:
    text = "agraph (float[2, 3] x) => (float[2, 3] y) <float k = {2.0}> { a = Exp (k)  y = Mul (x, a) }"
    assert optimize(text, "fold", evaluate=False).ops == {"Exp": 1, "Mul": 1}
    assert check(text, "fold", X).ops == {"Mul": 1}


def test_outputs_keep_their_names_and_nothing_is_folded_twice() -> None:
    done = check(
        """agraph (float[2, 3] x) => (float[3] y, float[3] z, float[3] w, float[2, 3] v) <float[3] k = {1, 2, 3}> {
            y = Exp (k)  z = Identity (k)  w = Constant <value = float[3] {1, 2, 3}> ()
            v = Add (x, y)
        }""",
        "fixpoint<8>(fold,dce)",
        X,
    )
    assert done.ops == {"Identity": 1, "Constant": 2, "Add": 1}
    assert done.hits["fold"]["fold"] == 1


def test_constants_inside_of_subgraphs() -> None:
    done = check(
        """agraph (float[2, 3] x, bool c) => (float[2, 3] y) <float[3] k = {1, 2, 3}> {
            e = Exp (k)
            y = If (c) <
                then_branch = t () => (p) {
                    m = Constant <value = float[3] {4, 5, 6}> ()
                    u = Mul (e, m)  p = Add (x, u)
                },
                else_branch = s () => (q) {
                    m = Constant <value = float[3] {7, 8, 9}> ()
                    u = Mul (k, m)  q = Sub (x, u)
                }
            >
        }""",
        "fold",
        {**X, "c": np.array(True)},
    )
    assert done.ops == {"If": 1, "Add": 1, "Sub": 1}
    assert [len(graph.initializers) for graph in done.model.graphs()] == [2, 0, 0]


def test_the_output_of_a_subgraph_may_be_constant() -> None:
    done = check(
        """agraph (float[2, 3] x, bool c) => (float[3] y) <float[3] k = {1, 2, 3}> {
            y = If (c) <
                then_branch = t () => (p) { p = Exp (k) },
                else_branch = s () => (q) { q = Constant <value = float[3] {7, 8, 9}> () }
            >
        }""",
        "fixpoint<8>(fold,cse,dce)",
        {**X, "c": np.array(True)},
    )
    assert done.ops == {"If": 1, "Constant": 2}


def test_a_constant_loop_is_run() -> None:
    done = check(
        """agraph (float[2, 3] x) => (float[2, 3] y) <int64 trips = {5}, bool yes = {1}, float[3] k = {1, 2, 3}> {
            a = Loop (trips, yes, k) <
                body = b (int64 i, bool ci, float[3] s) => (bool co, float[3] so) {
                    co = Identity (ci)  so = Add (s, k)
                }
            >
            y = Add (x, a)
        }""",
        "fold",
        X,
    )
    assert done.ops == {"Add": 1}


def test_results_whose_size_only_the_data_tell() -> None:
    done = check(
        """agraph (float[2, 3] x) => (float[n, 3] y) <bool[2] k = {0, 1}, int64[1] zero = {0}> {
            a = NonZero (k)  b = Squeeze (a, zero)  y = Gather <axis = 0> (x, b)
        }""",
        "fixpoint<8>(fold,dce)",
        X,
    )
    assert done.ops == {"Gather": 1}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.uint8, np.bool_, ml_dtypes.int4])
def test_types(dtype: type) -> None:
    weight = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    nodes = [
        helper.make_node("Transpose", ["k"], ["t"]),
        helper.make_node("Cast", ["t"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    assert check(build(nodes, [info("y", [2, 2])], {"k": weight}), "fold", X).ops == {"MatMul": 1}


def test_a_large_output_is_an_initializer() -> None:
    nodes = [helper.make_node("Exp", ["k"], ["y"])]
    done = check(build(nodes, [info("y", [600, 1000])], {"k": floats(600, 1000)}), "fixpoint<8>(fold,dce)", X)
    assert done.ops == {"Identity": 1}


def test_an_output_of_a_type_that_only_constants_have_kernels_for() -> None:
    nodes = [helper.make_node("Cast", ["k"], ["y"], to=TensorProto.INT4)]
    proto = build(nodes, [info("y", [5], TensorProto.INT4)], {"k": np.arange(5, dtype=np.float32)})
    assert check(proto, "fixpoint<8>(fold,dce)", X).ops == {"Constant": 1}


# what is not ------------------------------------------------------------------------------------------------------


def test_weights_stay_quantized() -> None:
    done = check(
        """agraph (float[2, 3] x) => (float[2, 3] y) <float[3, 3] k = {1, 2, 3, 4, 5, 6, 7, 8, 9}, float s = {0.1},
            int8 z = {0}> {
            q = QuantizeLinear (k, s, z)  d = DequantizeLinear (q, s, z)  y = MatMul (x, d)
        }""",
        "fold",
        X,
    )
    assert done.ops == {"DequantizeLinear": 1, "MatMul": 1}
    assert done.constant("q").dtype == np.int8


def test_random_numbers_are_drawn_at_run_time() -> None:
    done = optimize(
        """agraph (float[2, 3] x) => (float[2, 3] y) <float[3] k = {1, 2, 3}> {
            r = RandomNormal <shape = [3]> ()  u = RandomUniformLike (k)  b = Bernoulli (k)
            y = Sum (x, r, u, b)
        }""",
        "fold",
    )
    assert done.ops == {"RandomNormal": 1, "RandomUniformLike": 1, "Bernoulli": 1, "Sum": 1}


def test_initializers_that_are_inputs_are_no_constants() -> None:
    text = "agraph (float[2, 3] x, float k = {2.0}) => (float[2, 3] y) { a = Exp (k)  y = Mul (x, a) }"
    assert optimize(text, "fold").ops == {"Exp": 1, "Mul": 1}


def test_a_node_that_fails_is_left_and_not_tried_again() -> None:
    done = optimize(
        """agraph (float[2, 3] x) => (float[2, 3] y) <float[3] k = {1, 2, 3}, int64 i = {7}> {
            a = Gather <axis = 0> (k, i)  b = Exp (k)  c = Add (a, b)  y = Mul (x, c)
        }""",
        "fixpoint<8>(fold,cse)",
    )
    assert done.ops == {"Gather": 1, "Add": 1, "Mul": 1}
    assert [(remark.kind, "cannot be evaluated" in remark.reason) for remark in done.remarks] == [("skipped", True)]


@pytest.mark.parametrize(
    "body",
    [
        "a = ConstantOfShape (big)",
        "f = Constant <value = float {1.0}> ()  a = Expand (f, big)",
        "f = Constant <value = float[1, 1] {1.0}> ()  a = Tile (f, big)",
        "r = Range (zero, huge, one)  b = Cast <to = 1> (r)  m = ReduceMax (b)  a = Reshape (m, ones)",
        "z = ConstantOfShape (big)  m = ReduceSum (z)  a = Reshape (m, ones)",
        "v = Range (fzero, fhuge, fone)  m = ReduceSum (v)  a = Reshape (m, ones)",
        "o = Constant <value = int64[1, 1] {0}> ()  h = OneHot (o, huge, values)  a = ReduceSum (h, ones)",
        """l = Loop (huge, yes, fzero) <
            body = b (int64 i, bool ci, float s) => (bool co, float so) { co = Identity (ci)  so = Exp (s) }
        > a = Reshape (l, ones)""",
        """l, c = Loop (one, yes, fzero) <
            body = b (int64 i, bool ci, float s) => (bool co, float so, float[m, n] scan) {
                co = Identity (ci)  so = Exp (s)  scan = ConstantOfShape (big)
            }
        > a = ReduceMax (c, ones)""",
    ],
)
def test_nothing_huge_is_allocated_or_waited_for(body: str) -> None:
    start = time.perf_counter()
    done = optimize(
        f"""agraph (float[2, 3] x) => (float[m, n] y)
            <int64[2] big = {{1000000, 1000000}}, int64 huge = {{1000000000000}}, int64 zero = {{0}}, int64 one = {{1}},
             int64[2] ones = {{1, 1}}, float fzero = {{0.0}}, float fone = {{1.0}}, float fhuge = {{1000000000000.0}},
             bool yes = {{1}}, float[2] values = {{0.0, 1.0}}>
        {{ {body}  y = Add (x, a) }}""",
        "fold",
    )
    assert done.ops["Add"] == 1 and len(done.ops) > 1
    assert time.perf_counter() - start < 5


# the budget -------------------------------------------------------------------------------------------------------


def weight_bytes(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def expanding(rows: int, weight: int) -> onnx.ModelProto:
    """A model with ``weight`` floats that multiplies by a constant of ``rows * 100`` floats written by Expand."""
    nodes = [
        helper.make_node("Expand", ["row", "shape"], ["wide"]),
        helper.make_node("Exp", ["wide"], ["e"]),
        helper.make_node("Add", ["x", "e"], ["a"]),
        helper.make_node("Gather", ["w", "i"], ["g"]),
        helper.make_node("Add", ["a", "g"], ["y"]),
    ]
    weights = {
        "row": floats(100),
        "shape": np.array([rows, 100]),
        "w": floats(weight),
    }
    inputs = [info("x", [rows, 100]), info("i", [], TensorProto.INT64)]
    return build(nodes, [info("y", [rows, 100])], weights, inputs)


@pytest.mark.parametrize(("rows", "weight", "folded"), [(50, 1000, False), (50, 3_000_000, True), (50, 100, False)])
def test_growth_is_bounded_by_the_size_of_the_weights(rows: int, weight: int, folded: bool) -> None:
    proto = expanding(rows, weight)
    done = check(proto, "fixpoint<8>(fold,cse,dce)", {"x": floats(rows, 100), "i": np.array(1)})
    assert ("Expand" not in done.ops) == folded
    grown = weight_bytes(to_proto(done.model)) - weight_bytes(proto)
    assert grown <= 0.01 * weight_bytes(proto) + 4096
    if not folded:
        assert any("growth" in remark.reason for remark in done.remarks)
    assert "Expand" not in optimize(proto, "fold{growth=1000.0}").ops


def test_the_budget_is_for_all_rounds_together() -> None:
    nodes, names = [], []
    for index in range(40):
        nodes += [helper.make_node("Cast", [f"h{index}"], [f"f{index}"], to=TensorProto.FLOAT)]
        nodes += [helper.make_node("Mul", ["x", f"f{index}"], [f"m{index}"])]
        nodes += [helper.make_node("Cast", [f"h{index}"], [f"g{index}"], to=TensorProto.DOUBLE)]
        nodes += [helper.make_node("Cast", ["x"], [f"xd{index}"], to=TensorProto.DOUBLE)]
        nodes += [helper.make_node("Mul", [f"xd{index}", f"g{index}"], [f"n{index}"])]
        names += [f"m{index}", f"n{index}"]
    weights = {f"h{index}": floats(400, seed=index).astype(np.float16) for index in range(40)}
    outputs = [info(n, [400], TensorProto.FLOAT if n[0] == "m" else TensorProto.DOUBLE) for n in names]
    proto = build(nodes, outputs, weights, [info("x", [400])])
    done = check(proto, "fixpoint<8>(fold{growth=0.2},cse,dce)", {"x": floats(400)})
    grown = weight_bytes(to_proto(done.model)) - weight_bytes(proto)
    assert 0 < grown <= 0.2 * weight_bytes(proto) + 4096


def test_what_frees_as_much_as_it_takes_is_free() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("Mul", ["t", "s"], ["m"]),
        helper.make_node("MatMul", ["x", "m"], ["y"]),
    ]
    proto = build(nodes, [info("y", [2, 64])], {"w": floats(64, 3), "s": floats(64)})
    assert check(proto, "fold{growth=0.0,slack=0}", X).ops == {"MatMul": 1}
    shared = build(
        [*nodes, helper.make_node("MatMul", ["y", "w"], ["z"])],
        [info("z", [2, 3])],
        {"w": floats(64, 3), "s": floats(64)},
    )
    assert check(shared, "fold{growth=0.0,slack=0}", X).ops["Transpose"] == 1


def test_a_value_that_does_not_fit_leaves_its_small_operands_folded() -> None:
    done = check(
        """agraph (float[300, 300] x) => (float[300, 300] y) <float k = {2.0}, int64[1] n = {300}> {
            e = Exp (k)
            s = Concat <axis = 0> (n, n)
            b = Expand (e, s)
            y = Mul (x, b)
        }""",
        "fixpoint<8>(fold,dce)",
        {"x": floats(300, 300)},
    )
    assert done.ops == {"Expand": 1, "Mul": 1}
    assert set(done.model.graph.initializers) == {"e", "s"}


LIGHT = sorted((Path(onnx.backend.test.__file__).parent / "data" / "light").glob("light_*.onnx"))


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_models_that_write_their_weights_at_run_time_do_not_grow(path: Path, tmp_path: Path) -> None:
    proto = onnx.load(path)
    done = optimize(proto, "fixpoint<8>(fold,control-flow,cse,dce),dedup")
    save(done.model, tmp_path / "light.onnx")
    assert (tmp_path / "light.onnx").stat().st_size <= path.stat().st_size


# large weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("Transpose", {})], lambda w: w.T),
        ([("Transpose", {"perm": [1, 0]}), ("Transpose", {})], lambda w: w),
        ([("Reshape", {}), ("Transpose", {"perm": [2, 0, 1]})], lambda w: w.reshape(600, 32, 32).transpose(2, 0, 1)),
    ],
)
def test_large_weights_that_are_only_moved_are_not_held_in_memory(
    nodes: list[tuple[str, dict]], expected: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    protos, name = [], "w"
    for index, (op, attributes) in enumerate(nodes):
        operands = [name, "shape"] if op == "Reshape" else [name]
        protos.append(helper.make_node(op, operands, [f"v{index}"], **attributes))
        name = f"v{index}"
    protos.append(helper.make_node("Add", [name, "x"], ["y"]))
    w = floats(600, 1024)
    proto = build(protos, [info("y")], {"w": w, "shape": np.array([600, 32, 32])}, [info("x", [1])])
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    done = check(onnx.load(tmp_path / "m.onnx"), "fold", {"x": floats(1)})
    assert done.ops == {"Add": 1}
    (tensor,) = [v.const_value for v in done.model.graph.initializers.values() if v.const_value.nbytes > 1000]
    assert type(tensor).__name__ == "LazyTensor"
    assert np.array_equal(tensor.numpy(), expected(w))
    assert equal(tensor, tensor)
    save(done.model, tmp_path / "saved.onnx")
    saved = {tensor.name: tensor for tensor in onnx.load(tmp_path / "saved.onnx").graph.initializer}
    assert np.array_equal(numpy_helper.to_array(saved[tensor.name]), expected(w))


def test_memory_for_results_is_bounded() -> None:
    nodes = [helper.make_node("Neg", [f"w{i}"], [f"n{i}"]) for i in range(4)]
    nodes += [helper.make_node("Sum", ["x", *(f"n{i}" for i in range(4))], ["y"])]
    proto = build(nodes, [info("y", [1000])], {f"w{i}": floats(1000, seed=i) for i in range(4)}, [info("x", [1000])])
    assert "Neg" not in check(proto, "fold", {"x": floats(1000)}).ops
    assert check(proto, "fold{memory=10000}", {"x": floats(1000)}).ops["Neg"] == 2
    assert check(proto, "fold{limit=100}", {"x": floats(1000)}).ops["Neg"] == 4
