"""The printer: its text reads back to the same model, is canonical if asked, and keeps large data out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from optc.ir.model import load
from optc.ir.printer import Style, print_graph, print_model, print_node, print_type
from optc.ir.rewriter import Rewriter
from optc.ir.saving import to_proto

TEXT = """<ir_version: 10, opset_import: ["": 17, "my.domain": 2]>
net (float[B,4] x, bool cond, seq(float[2]) s, float[] free, float["a b",?] odd) => (float[B,4] y, float[B,?] z)
<
   float[4] w = {1, -2.5, 1e-07, 3},
   int64[2] axes = {-1, 0},
   float16 h = {14336},  # 0.5
   double d = {0.1},
   bool[2] flags = {1, 0},
   string[2] words = {"a\\"b", "c"}
>
{
   [first] a = Add (x, w)
   ["odd name/1"] "a/b", "" = my.domain.Custom <alpha = 0.5, empty: ints = [], names = ["p", "q"]> (a, "", w)
   [again] free2 = my.domain.Custom <beta = 1.0, list = [1, 2], text = "hi", value = float[2] {1, 2}> (a)
   [branch] y = If (cond) <
      else_branch = right () => (r)
      {
         [r1] r = Neg ("a/b")
      },
      then_branch = left () => (l)
      <
         float inner = {2}
      >
      {
         [l1] l = Mul (x, inner)
      }
   >
   [last] z = Call (x)
}
"""


def test_reads_back_as_it_was_printed():
    model = load(onnx.parser.parse_model(TEXT))
    assert print_model(model) == TEXT
    assert print_model(load(onnx.parser.parse_model(print_model(model)))) == TEXT


def test_functions_are_printed_and_read_back():
    text = """<ir_version: 10, opset_import: ["": 17, "f": 1]>
net (float[2] x) => (float[2] y)
{
   [call] y = f.Twice:one <scale = 2.0> (x)
}
<domain: "f", overload: "one", opset_import: ["": 17]>
Twice <scale> (a) => (b)
{
   [c] c = Constant <value_float: float = @scale> ()
   [m] b = Mul (a, c)
}
"""
    model = load(onnx.parser.parse_model(text))
    assert print_model(model) == text


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8),
    st.sampled_from([np.float32, np.float16, np.float64]),
)
def test_floats_keep_every_bit(values, dtype):
    with np.errstate(over="ignore"):
        array = np.array(values, dtype)
    array = np.where(np.isfinite(array), array, dtype(0))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), array.shape)],
        initializer=[numpy_helper.from_array(array, "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    again = onnx.parser.parse_model(print_model(load(model)))
    np.testing.assert_array_equal(numpy_helper.to_array(again.graph.initializer[0]), array)


def _chain(names: list[str], weight: np.ndarray | None = None) -> onnx.ModelProto:
    a, b, w = names
    weight = np.arange(3, dtype=np.float32) if weight is None else weight
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Mul", ["x", w], [a], name=f"node_{a}"),
                helper.make_node("Relu", [a], [b]),
                helper.make_node("Neg", [b], ["y"]),
            ],
            f"graph_{a}",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
            initializer=[numpy_helper.from_array(np.ones(2, np.float32), "unused"), numpy_helper.from_array(weight, w)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def test_canonical_text_does_not_hang_on_names():
    style = Style(canonical=True)
    one, other = (print_model(load(_chain(names)), style) for names in (["a", "b", "w"], ["t/1", "c0", "v1"]))
    assert one == other
    assert one == (
        '<opset_import: ["": 17]>\nmain (float[N,3] x) => (float[N,3] y)\n<\n   float[3] c0 = {0, 1, 2}\n>\n{\n'
        "   v0 = Mul (x, c0)\n   v1 = Relu (v0)\n   y = Neg (v1)\n}\n"
    )


def test_canonical_names_avoid_those_of_the_interface():
    model = _chain(["a", "b", "w"])
    model.graph.input[0].name = model.graph.node[0].input[0] = "v0"
    model.graph.output[0].name = model.graph.node[2].output[0] = "c0"
    text = print_model(load(model), Style(canonical=True))
    assert "v1 = Mul (v0, c1)" in text
    assert "c0 = Neg (v2)" in text


def test_canonical_text_tells_different_models_apart():
    style = Style(canonical=True)
    assert print_model(load(_chain(["a", "b", "w"])), style) != print_model(
        load(_chain(["a", "b", "w"], np.array([0, 1, 3], np.float32))), style
    )


@pytest.mark.parametrize("digests", [True, False])
def test_large_tensors_are_elided(digests):
    style = Style(digests=digests)
    texts = [print_model(load(_chain(["a", "b", "w"], np.full((99, 3), fill, np.float32))), style) for fill in (0, 1)]
    assert "float[99,3] w  # 1188 bytes" in texts[0]
    assert ("sha256" in texts[0]) == digests
    assert (texts[0] != texts[1]) == digests
    onnx.parser.parse_model(texts[0])


def test_what_the_parser_cannot_read_is_shown_in_a_comment():
    text = print_model(load(_chain(["a", "b", "w"], np.array([np.nan, np.inf, 1], np.float32))))
    assert "float[3] w  # {nan, inf, 1}" in text
    onnx.parser.parse_model(text)


def test_types_and_provenance():
    model = load(_chain(["a", "b", "w"]))
    node = next(iter(model.graph))
    rewriter = Rewriter(model)
    with rewriter.at(node, "some-rule", [node]):
        new = rewriter.op("Abs", node.inputs[0])
    style = Style(types=True, provenance=True)
    text = print_graph(model.graph, style)
    assert "# float[N,3]; some-rule: node_a" in text or "# ?; some-rule: node_a" in text
    assert print_node(new.producer()).endswith("= Abs (x)")
    assert print_type(model.graph.inputs[0]) == "float[N,3]"


def test_printing_changes_nothing():
    model = load(_chain(["a", "b", "w"]))
    before = to_proto(model).SerializeToString(deterministic=True)
    print_model(model, Style(canonical=True, types=True, provenance=True))
    assert to_proto(model).SerializeToString(deterministic=True) == before
