"""Inlining of model-local functions."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper

from optc.ir.errors import ModelError
from optc.ir.rewriter import Rewriter
from optc.ir.targets import builtin_targets
from optc.passes.base import PassContext
from optc.passes.clean.inline import Inline

from .pipelines import assert_same, check, floats, optimize, parse, run

HEADER = '<ir_version: 10, opset_import: ["" : 21, "local" : 1]>'
X = {"x": floats(2, 3)}


def test_nested_functions_and_overloads() -> None:
    # ONNX Runtime itself forgets the overload of a call inside of a function, so it cannot be the judge here.
    done = optimize(
        HEADER
        + """ agraph (float[N, M] x) => (float[N, M] y, float[N, M] z) {
            y = local.outer (x)
            z = local.twice:neg (x)
        }
        <domain: "local", opset_import: ["" : 21, "local" : 1]>
        outer (a) => (b) { t = local.twice (a)  b = local.twice:neg (t) }
        <domain: "local", opset_import: ["" : 21]>
        twice (a) => (b) { b = Add (a, a) }
        <domain: "local", overload: "neg", opset_import: ["" : 21]>
        twice (a) => (b) { t = Add (a, a)  b = Neg (t) }
        """,
        "inline,dce",
    )
    assert done.ops == {"Add": 3, "Neg": 2}
    assert not done.model.functions
    assert done.model.graph.opset_imports == {"": 21}
    assert done.hits["inline"] == {"inline": 4}
    outputs = run(done.model, X)
    assert_same(outputs["y"], -4 * X["x"], "y")
    assert_same(outputs["z"], -2 * X["x"], "z")


def test_attributes_are_resolved_with_defaults_and_left_out_where_not_given() -> None:
    done = check(
        HEADER
        + """ agraph (float[N, M] x) => (float[N, M] y, float[N, M] z) {
            y = local.leaky <alpha: float = 0.5> (x)
            z = local.leaky (x)
        }
        <domain: "local", opset_import: ["" : 21]>
        leaky <alpha: float = 0.25> (a) => (b) { b = LeakyRelu <alpha: float = @alpha> (a) }
        """,
        "inline",
        X,
    )
    assert [node.attributes["alpha"].as_float() for node in done.model.graph] == [0.5, 0.25]
    done = check(
        HEADER
        + """ agraph (float[N, M] x) => (float[N, M] y) { y = local.leaky (x) }
        <domain: "local", opset_import: ["" : 21]>
        leaky <alpha> (a) => (b) { b = LeakyRelu <alpha: float = @alpha> (a) }
        """,
        "inline",
        X,
    )
    assert "alpha" not in done.model.graph[0].attributes


def test_attributes_are_handed_down_through_nested_calls_and_into_subgraphs() -> None:
    done = check(
        HEADER
        + """ agraph (float[N, M] x, bool c) => (float[N, M] y) { y = local.outer <slope: float = 0.125> (x, c) }
        <domain: "local", opset_import: ["" : 21, "local" : 1]>
        outer <slope> (a, c) => (b) {
            b = If (c) <
                then_branch = t () => (p) { p = local.leaky <alpha: float = @slope> (a) },
                else_branch = e () => (q) { q = Neg (a) }
            >
        }
        <domain: "local", opset_import: ["" : 21]>
        leaky <alpha> (a) => (b) { t = Abs (a) s = Sub (a, t) b = LeakyRelu <alpha: float = @alpha> (s) }
        """,
        "inline",
        {**X, "c": np.array(True)},
    )
    leaky = next(node for node in done.model.graph.all_nodes() if node.op_type == "LeakyRelu")
    assert leaky.attributes["alpha"].as_float() == 0.125
    assert not done.model.functions


def test_a_function_with_subgraphs_inlined_twice_keeps_names_apart() -> None:
    done = check(
        HEADER
        + """ agraph (float[N, M] x, bool c) => (float[N, M] y) { t = local.f (x, c)  y = local.f (t, c) }
        <domain: "local", opset_import: ["" : 21]>
        f (a, c) => (b) {
            k = Constant <value = float {2.0}> ()
            d = Mul (a, k)
            b = If (c) <
                then_branch = t () => (p) { u = Add (d, a)  p = Abs (u) },
                else_branch = e () => (q) { u = Sub (d, a)  q = Abs (u) }
            >
        }
        """,
        "inline",
        {**X, "c": np.array(False)},
    )
    assert done.ops["If"] == 2


def test_calls_inside_of_subgraphs() -> None:
    done = check(
        HEADER
        + """ agraph (float[N, M] x, bool c) => (float[N, M] y) {
            y = If (c) <
                then_branch = t () => (p) { p = local.f (x) },
                else_branch = e () => (q) { w = local.f (x)  q = Neg (w) }
            >
        }
        <domain: "local", opset_import: ["" : 21]>
        f (a) => (b) { t = Exp (a) b = Tanh (t) }
        """,
        "inline",
        {**X, "c": np.array(False)},
    )
    assert done.ops == {"If": 1, "Exp": 2, "Tanh": 2, "Neg": 1}


def test_optional_inputs_and_unused_outputs() -> None:
    done = check(
        HEADER
        + """ agraph (float[N, M] x) => (float[N, M] y) { y, unused = local.clip (x) }
        <domain: "local", opset_import: ["" : 21]>
        clip (a, low) => (b, both) { b = Clip (a, low)  both = Identity (a) }
        """,
        "inline,dce",
        X,
    )
    assert [len(node.inputs) for node in done.model.graph] == [1]


def test_a_function_may_hand_its_input_on() -> None:
    # ONNX Runtime does not load such a function, so there is nothing to compare with.
    done = optimize(
        HEADER
        + """ agraph (float[N, M] x) => (float[N, M] y, float[N, M] z) { t, z = local.f (x)  y = Neg (t) }
        <domain: "local", opset_import: ["" : 21]>
        f (a) => (a, b) { b = Abs (a) }
        """,
        "inline",
    )
    assert done.ops == {"Neg": 1, "Abs": 1}
    assert_same(run(done.model, X)["y"], -X["x"], "y")


def test_another_opset_is_inlined_where_it_means_the_same() -> None:
    text = """ agraph (float[N, M] x) => (float[N, M] y) { y = local.f (x) }
        <domain: "local", opset_import: ["" : 17]>
        f (a) => (b) { BODY }
        """
    done = optimize(HEADER + text.replace("BODY", "b = Relu (a)"), "inline")
    assert done.ops == {"Relu": 1}
    done = optimize(HEADER + text.replace("BODY", "b = ReduceMax <axes = [1]> (a)"), "inline")
    assert done.ops == {"f": 1} and len(done.model.functions) == 1
    assert "ReduceMax differs" in done.remarks[0].reason


def test_functions_called_by_functions_that_stay_are_kept() -> None:
    done = optimize(
        HEADER
        + """ agraph (float[N, M] x) => (float[N, M] y) { y = local.f (x) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]>
        f (a) => (b) { t = ReduceMax <axes = [1]> (a)  b = local.g (t) }
        <domain: "local", opset_import: ["" : 21]>
        g (a) => (b) { b = Neg (a) }
        """,
        "inline,dce",
    )
    assert {key[1] for key in done.model.functions} == {"f", "g"}


def test_recursion_is_refused() -> None:
    model = onnx_ir.from_proto(
        parse(
            HEADER
            + """ agraph (float[N] x) => (float[N] y) { y = local.f (x) }
            <domain: "local", opset_import: ["" : 21, "local" : 1]> f (a) => (b) { b = local.g (a) }
            <domain: "local", opset_import: ["" : 21, "local" : 1]> g (a) => (b) { b = local.f (a) }
            """
        )
    )
    ctx = PassContext(Rewriter(model), builtin_targets()["cpu"])
    with pytest.raises(ModelError, match="cycle: local::g -> local::f -> local::g"):
        Inline().run(ctx)


def doubling(depth: int) -> onnx.ModelProto:
    """A chain of functions each of which calls the next one twice: 2 ** depth nodes."""
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    functions = []
    for level in range(depth):
        call = (f"f{level + 1}", "local") if level + 1 < depth else ("Neg", "")
        nodes = [helper.make_node(call[0], [a], [b], domain=call[1]) for a, b in (("x", "t"), ("t", "y"))]
        functions.append(helper.make_function("local", f"f{level}", ["x"], ["y"], nodes, imports))
    graph = helper.make_graph(
        [helper.make_node("f0", ["x"], ["y"], domain="local")],
        "doubling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)


def test_exponential_growth_is_bounded() -> None:
    assert check(doubling(5), "inline", {"x": floats(2)}).ops == {"Neg": 32}
    done = optimize(doubling(18), "inline")
    assert done.ops == {"f0": 1} and len(done.model.functions) == 18
    assert "grow beyond" in done.remarks[0].reason
    assert optimize(doubling(5), "inline{limit=31}").ops == {"f0": 1}


def test_unused_functions_go() -> None:
    done = optimize(
        HEADER
        + """ agraph (float[N] x) => (float[N] y) { y = Neg (x) }
        <domain: "local", opset_import: ["" : 21]> f (a) => (b) { b = Abs (a) }
        """,
        "inline",
    )
    assert not done.model.functions
