"""Drawn inputs: deterministic, of the declared shape and type, and valid for how the model uses them."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.backends.base import ValueSpec
from optc.backends.ort import Session
from optc.input_roles import input_roles
from optc.inputs import dimension_bindings, draw_inputs, fallback_bindings, input_specs, shape_of, symbols
from optc.ir.errors import DataError


def model(text: str, opset: int = 17) -> onnx_ir.Model:
    return onnx_ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]> {text}')


TABLE = "float[10, 4] t = {" + ", ".join(["1"] * 40) + "}"
SIZE = {"N": 200}


def drawn(text: str, name: str = "x", seed: int = 0, **bindings: int) -> np.ndarray:
    """Values for one input; that the model runs with them is part of the contract."""
    m = model(text)
    feeds = draw_inputs(m, {**SIZE, **bindings}, seed)
    Session(m, optimization="off", threads=1).run(feeds)
    return feeds[name]


def span(array: np.ndarray) -> tuple[int, int]:
    return int(array.min()), int(array.max())


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("y = Gather(t, x)", (0, 9)),
        ("c = Constant<value_int = 2>() i = Add(x, c) y = Gather(t, i)", (0, 7)),
        ("c = Constant<value_int = 2>() i = Add(c, x) y = Gather(t, i)", (0, 7)),
        ("c = Constant<value_int = 2>() i = Sub(x, c) y = Gather(t, i)", (2, 11)),
        ("c = Constant<value_int = 5>() i = Sub(c, x) y = Gather(t, i)", (0, 5)),
        ("c = Constant<value_int = 3>() i = Mul(x, c) y = Gather(t, i)", (0, 3)),
        ("c = Constant<value_int = 30>() i = Add(x, c) y = Gather(t, i)", (-30, -21)),
        ("n = Neg(x) c = Constant<value_int = 4>() i = Add(n, c) y = Gather(t, i)", (0, 4)),
        ("c = Cast<to = 6>(x) s = Constant<value_ints = [-1, 1]>() i = Reshape(c, s) y = Gather(t, i)", (0, 9)),
        ("y = Gather<axis = 1>(t, x)", (0, 3)),
        ("a = Gather(t, x) b = Gather<axis = 1>(t, x) y = Identity(a)", (0, 3)),
        ("z = Constant<value_int = 0>() k = Equal(x, z) y = Gather(t, x)", (0, 9)),
    ],
)
def test_indices_stay_within_their_table(body, want):
    text = f"g (int64[N] x) => (float y) <{TABLE}> {{ {body} }}"
    m = model(text)
    m.graph.outputs[0].shape = None
    feeds = draw_inputs(m, SIZE)
    got = span(feeds["x"])
    assert got == want, "200 draws stay inside and reach both ends"
    Session(m, optimization="off", threads=1).run(feeds)


def test_a_table_of_symbolic_size_bounds_by_its_binding():
    m = model("g (int64[N] x, float[K, 4] t) => (float[N, 4] y) { y = Gather(t, x) }")
    assert span(draw_inputs(m, {"N": 300, "K": 6})["x"]) == (0, 5)
    assert span(draw_inputs(m, {"N": 300, "K": 1})["x"]) == (0, 0)


def test_small_integer_types_stay_representable():
    m = model(
        "g (uint8[N] x) => (float[N, 1] y) <float[1000, 1] t = {" + ",".join(["1"] * 1000) + "}>"
        "{ i = Cast<to = 7>(x) y = Gather(t, i) }"
    )
    low, high = span(draw_inputs(m, {"N": 5000})["x"])
    assert (low, high) == (0, 255)


@pytest.mark.parametrize(
    "body",
    [
        "b = Cast<to = 9>(x) n = Not(b) y = Cast<to = 1>(n)",
        "f = Cast<to = 1>(x) c = Constant<value_float = 1.0>() s = Sub(c, f) y = Identity(s)",
        "z = Constant<value_int = 0>() e = Equal(x, z) y = Cast<to = 1>(e)",
        "u = Constant<value_ints = [1]>() w = Unsqueeze(x, u) o = Constant<value_int = 1>() e = Less(w, o)"
        " y = Cast<to = 1>(e)",
    ],
)
def test_masks(body):
    mask = drawn(f"g (int64[B, S] x) => (float[B, S] y) {{ {body} }}".replace("[B, S] y", " y"), B=7, S=9)
    assert set(np.unique(mask)) == {0, 1}
    assert (mask[:, 0] == 1).all(), "no row is empty, even under a causal mask"
    assert (mask == 0).any()


def test_mask_by_name_is_a_fallback():
    text = "g (float[B, S] attention_mask, float[B, S] other) => (float[B, S] y) { y = Mul(attention_mask, other) }"
    feeds = draw_inputs(model(text), {"B": 5, "S": 8})
    assert set(np.unique(feeds["attention_mask"])) == {0.0, 1.0}
    assert len(np.unique(feeds["other"])) == 40
    roles = input_roles(model(text))
    assert roles["attention_mask"].why == "its name"
    table = model(f"g (int64[N] mask_ids) => (float[N, 4] y) <{TABLE}> {{ y = Gather(t, mask_ids) }}")
    assert input_roles(table)["mask_ids"].kind == "index", "use beats name"


@pytest.mark.parametrize("shape", ["", "[1]", "[B]", "[B, S]", "[B, 1, S, S]"])
def test_booleans(shape):
    m = model(f"g (bool{shape} x) => (bool{shape} y) {{ y = Not(x) }}")
    mask = draw_inputs(m, {"B": 3, "S": 4})["x"]
    assert mask.dtype == bool
    assert mask.ndim == 0 or mask.any(axis=-1).all()


@pytest.mark.parametrize(
    "text",
    [
        "g (float[6] d, int64[2] x) => (float y) { y = Reshape(d, x) }",
        "g (float[6] d, int64[2] x) => (float y) { y = Expand(d, x) }",
        "g (int64[3] x) => (float y) { y = ConstantOfShape(x) }",
        "g (int64 x) => (int64 y) { a = Constant<value_int=0>() d = Constant<value_int=1>() y = Range(a, x, d) }",
        "g (float[6] d, int64[1] x) => (float y) { y = Tile(d, x) }",
        "g (float[6] d, int64[1] x) => (float y, int64 i) { y, i = TopK(d, x) }",
        "g (float[6] d, int64[1] x, int64[1] e) => (float y) { y = Slice(d, x, e) }",
        "g (float[6] d, int64[2] x) => (float y) { y = Pad(d, x) }",
        "g (float[1, 1, 4, 4] d, float[4] x) => (float y) { y = Resize(d, , x) }",
        "g (float[6] d, int64 x) => (float y) { y = CumSum(d, x) }",
        "g (int64[4] d, int64 x) => (int64 y) { v = Constant<value_ints=[0, 1]>() y = OneHot(d, x, v) }",
        "g (int64[4] x) => (int64 y) { d = Constant<value_int=3>() v = Constant<value_ints=[0, 1]>()"
        " y = OneHot(x, d, v) }",
        "g (float[5, 2, 3] d, int64[2] x) => (float y) { y = ReverseSequence<batch_axis = 1, time_axis = 0>(d, x) }",
        "g (float[4, 3] d, int64[2, 2] x) => (float y) { y = GatherND(d, x) }",
        "g (float[4, 3] d, int64[2, 3] x) => (float y) { y = GatherElements(d, x) }",
        "g (float[4, 3] d, int64[2, 1] x, float[2, 3] u) => (float y) { y = ScatterND(d, x, u) }",
    ],
)
def test_shape_like_and_indexing_inputs_let_the_model_run(text):
    m = model(text)
    for output in m.graph.outputs:
        output.shape = None
    session = Session(m, optimization="off", threads=1)
    for seed in range(5):
        session.run(draw_inputs(m, {}, seed))


def test_floats_stay_where_functions_are_defined():
    m = model("g (float[N] a, float[N] b, float[N] c) => (float[N] x, float[N] y, float[N] z)"
              "{ x = Log(a) y = Acos(b) z = Identity(c) }")  # fmt: skip
    outputs = Session(m).run(draw_inputs(m, {"N": 100}))
    assert np.isfinite(outputs["x"]).all()
    assert np.isfinite(outputs["y"]).all()
    assert abs(outputs["z"].mean()) < 0.5
    assert 0.7 < outputs["z"].std() < 1.3


def test_uses_inside_functions_branches_and_loops_count():
    m = onnx_ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 17, "my": 1]>'
        f"g (int64[N] x, int64[N] z, bool c) => (float[N, 4] y, float[N, 4] w) <{TABLE}> {{"
        " y = my.embed(t, x)"
        " w = If (c) <then_branch = a () => (float[N, 4] r) { r = Gather(t, z) },"
        " else_branch = b () => (float[N, 4] s) { s = Gather(t, z) }> }"
        ' <domain: "my", opset_import: ["": 17]> embed (table, i) => (o) { k = Identity(i) o = Gather(table, k) }'
    )
    roles = input_roles(m)
    assert roles["z"].kind == "index"
    assert roles["z"].limits[0].size == 10
    assert roles["x"].kind == "index"


def test_strings_and_other_types():
    text = (
        "g (string[N] s, float16[N] h, bfloat16[N] b, double[N] d, uint8[N] u, int8[N] i, int32[N] w) => (string[N] y)"
    )
    feeds = draw_inputs(model(text + "{ y = Identity(s) }"), SIZE)
    assert feeds["s"].dtype == object
    assert [str(feeds[name].dtype) for name in "hbduiw"] == ["float16", "bfloat16", "float64", "uint8", "int8", "int32"]
    assert span(feeds["u"])[1] > 200
    assert span(feeds["i"])[0] < -100
    assert span(feeds["w"])[0] >= 0


def test_seeds_and_streams():
    m = model("g (float[N] a, float[N] b) => (float[N] y) { y = Add(a, b) }")
    one, same, other = (draw_inputs(m, SIZE, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one["a"], same["a"])
    assert (one["a"] != other["a"]).any()
    assert (one["a"] != one["b"]).any()
    alone = model("g (float[N] b) => (float[N] y) { y = Relu(b) }")
    np.testing.assert_array_equal(draw_inputs(alone, SIZE)["b"], one["b"])


def test_initializers_that_are_listed_as_inputs_are_not_drawn():
    m = model("g (float[N] x, float[1] w) => (float[N] y) <float[1] w = {2.0}> { y = Mul(x, w) }")
    assert [spec.name for spec in input_specs(m)] == ["x"]


def test_what_cannot_be_drawn_says_so():
    m = model("g (seq(float[N]) s) => (float[N] y) { i = Constant<value_int = 0>() y = SequenceAt(s, i) }")
    with pytest.raises(DataError, match="input 's' is a sequence"):
        draw_inputs(m, SIZE)
    with pytest.raises(DataError, match="has no value"):
        shape_of(ValueSpec("x", onnx_ir.DataType.FLOAT, ("K",)), {})


# dims ------------------------------------------------------------------------------------------------------------


def test_symbols_anonymous_dims_and_expressions():
    m = model(
        "g (float[batch, past, 3] a, float[batch, seq] b, float[batch, t] c) => (float[batch, past, 3] y) {y=Relu(a)}"
    )
    c = m.graph.inputs[2]
    c.shape = onnx_ir.Shape(["batch", "past + seq"])
    m.graph.inputs[1].shape = onnx_ir.Shape([None, "seq"])
    assert symbols(m) == ("batch", "past", "b[0]", "seq")
    bindings = {"batch": 2, "past": 3, "seq": 4, "b[0]": 5}
    assert [shape_of(spec, bindings) for spec in input_specs(m)] == [(2, 3, 3), (5, 4), (2, 7)]


def test_names_that_only_look_like_expressions_are_symbols():
    m = model("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    m.graph.inputs[0].shape = onnx_ir.Shape(["a + b"])
    assert symbols(m) == ("a + b",)
    assert shape_of(input_specs(m)[0], {"a + b": 3}) == (3,)


def test_negative_sizes_mean_any():
    m = model("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    m.graph.inputs[0].shape = onnx_ir.Shape([-1])
    assert symbols(m) == ("x[0]",)


def test_bindings_are_varied():
    m = model("g (int64[batch, seq] a, int64[batch, seq] b) => (int64[batch, seq] y) { y = Add(a, b) }")
    bindings = dimension_bindings(m)
    assert bindings[:3] == [{"batch": 2, "seq": 3}, {"batch": 1, "seq": 1}, {"batch": 2, "seq": 16}]
    assert len({tuple(one.items()) for one in bindings}) == len(bindings) == 4
    assert len(dimension_bindings(m, 9)) == 9


def test_dims_that_a_model_names_differently_but_needs_equal():
    m = model("g (float[p, q] a, float[r, s] b) => (float[p, q] y) { y = Add(a, b) }")
    session = Session(m, optimization="off", threads=1)
    ran = []
    for bindings in dimension_bindings(m):
        try:
            session.run(draw_inputs(m, bindings))
            ran.append(bindings)
        except Exception:
            continue
    assert any(one["p"] == one["r"] > 1 and one["q"] == one["s"] > 1 and one["p"] != one["q"] for one in ran)


def test_no_symbols_means_one_binding():
    m = model("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    assert dimension_bindings(m) == [{}]
    assert list(fallback_bindings(m)) == []


def test_fallback_reaches_image_sizes_without_filling_the_memory():
    m = model("g (float[batch, 3, h, w] x) => (float[batch, 3, h, w] y) { y = Relu(x) }")
    found = list(fallback_bindings(m))
    assert {"batch": 1, "h": 224, "w": 224} in found
    assert any(len(set(one.values())) == 1 for one in found)
    assert all(one["batch"] * 3 * one["h"] * one["w"] <= 4_000_000 for one in found)
    assert len({tuple(one.items()) for one in found}) == len(found)


def test_inputs_of_unknown_rank_get_the_rank_their_consumer_wants():
    m = model("g (float x) => (float y) <float[2, 3, 3] w = {" + ",".join(["1"] * 18) + "}> { y = Conv(x, w) }")
    m.graph.inputs[0].shape = None
    assert len(input_specs(m)[0].shape) == 3


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 50),
    scale=st.integers(-4, 4).filter(bool),
    offset=st.integers(-40, 40),
    count=st.integers(0, 30),
    seed=st.integers(0, 5),
)
def test_affine_indices_are_always_valid(size, scale, offset, count, seed):
    """Wherever scale * x + offset can hit the table at all, what is drawn hits it."""
    m = model(
        f"g (int64[N] x) => (float[N] y) <float[{size}] t = {{{','.join(['1'] * size)}}}> {{"
        f" a = Constant<value_int = {scale}>() b = Constant<value_int = {offset}>()"
        " i = Mul(x, a) j = Add(i, b) y = Gather(t, j) }"
    )
    x = draw_inputs(m, {"N": count}, seed)["x"]
    reachable = [v for v in range(-200, 201) if 0 <= scale * v + offset < size]
    if reachable:
        assert set(x.tolist()) <= set(reachable)
