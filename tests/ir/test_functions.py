"""Fused ops as functions: outlining and inlining change nothing that is computed."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optc.backends.ort import Session
from optc.ir.errors import PassError
from optc.ir.functions import FUSED_DOMAIN, drop_unused_functions, inline, outline
from optc.ir.model import load
from optc.ir.rewriter import Rewriter, sources
from optc.ir.saving import save
from optc.ir.verify import Interface, verify_structure

HEADER = '<ir_version: 10, opset_import: ["": 17]>'
X = np.linspace(-3, 3, 8, dtype=np.float32).reshape(2, 4)


def parse(body: str, functions: str = "", header: str = HEADER) -> onnx_ir.Model:
    model = load(onnx_ir.to_proto(onnx_ir.from_onnx_text(f"{header} {body} {functions}")))
    for graph in model.graphs():
        for node in graph:
            node.name = node.name or f"{node.outputs[0].name}_node"
    return model


def values(model: onnx_ir.Model) -> dict[str, onnx_ir.Value]:
    found = {value.name: value for value in model.graph.inputs}
    for graph in model.graphs():
        found.update({value.name: value for node in graph for value in node.outputs})
    return found


def fuse(rw: Rewriter, op: str, inputs: str, outputs: str, nodes: str, **attributes) -> list:
    """Outline the producers of some values, all by name; the root is the producer of the first output."""
    found = values(rw.model)
    outs, parts = [found[name] for name in outputs.split()], [found[name].producer() for name in nodes.split()]
    with rw.at(outs[0].producer(), "fuse", parts):
        return outline(rw, op, [found.get(name) for name in inputs.split()], outs, parts, attributes)


def unfuse(rw: Rewriter) -> None:
    for graph in list(rw.model.graphs()):
        for node in list(graph):
            if node.domain == FUSED_DOMAIN:
                inline(rw, node)
    drop_unused_functions(rw.model)


def run(model: onnx_ir.Model, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    return Session(model, optimization="off").run({"x": X, **feeds})


def assert_same(model: onnx_ir.Model, expected: dict[str, np.ndarray], **feeds: np.ndarray) -> None:
    assert verify_structure(model) == []
    for name, array in run(model, **feeds).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def ops(model: onnx_ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


CHAIN = """g (float[N, 4] x) => (float[N, 4] y) {
    c = Constant<value = float {0.5}>()
    a = Mul(x, c) b = Exp(a) d = Add(b, x) y = Neg(d)
}"""


def test_out_and_in_again_is_the_identity():
    model = parse(CHAIN)
    before, expected, interface = ops(model), run(model), Interface.of(model)
    rw = Rewriter(model)
    fuse(rw, "Thing", "x", "d", "a b d", factor=0.5)
    assert ops(model) == ["Thing", "Neg"]
    call = model.graph[0]
    assert call.domain == FUSED_DOMAIN and call.attributes["factor"].value == pytest.approx(0.5)
    assert set(sources(call)) == {"a_node", "b_node", "d_node"}
    assert rw.facts.rank(call.outputs[0]) == 2
    assert_same(model, expected)
    unfuse(rw)
    assert sorted(ops(model)) == sorted(before)
    assert_same(model, expected)
    assert not model.functions and FUSED_DOMAIN not in model.graph.opset_imports
    assert interface.differences(Interface.of(model)) == []
    assert {s for node in model.graph for s in sources(node)} >= {"a_node", "b_node", "d_node", "y_node"}


def test_it_survives_saving(tmp_path):
    model = parse(CHAIN)
    expected = run(model)
    rw = Rewriter(model)
    fuse(rw, "Thing", "x", "y", "a b d y")
    loaded = load(save(model, tmp_path / "m.onnx")[0])
    assert ops(loaded) == ["Thing"]
    assert_same(loaded, expected)
    unfuse(Rewriter(loaded))
    assert_same(loaded, expected)


def test_equal_bodies_are_one_function_and_others_are_not():
    body = """g (float[N, 4] x) => (float[N, 4] y) {
        c = Constant<value = float {0.5}>() d = Constant<value = float {0.5}>() e = Constant<value = float {0.25}>()
        a1 = Mul(x, c) b1 = Exp(a1) a2 = Mul(b1, d) b2 = Exp(a2) a3 = Mul(b2, e) b3 = Exp(a3)
        a4 = Mul(c, b3) y = Exp(a4)
    }"""
    model = parse(body)
    expected = run(model)
    rw = Rewriter(model)
    for number, (x, y) in enumerate((("x", "b1"), ("b1", "b2"), ("b2", "b3"), ("b3", "y")), 1):
        fuse(rw, "Scaled", x, y, f"a{number} {y}")
    assert ops(model) == ["Scaled"] * 4
    overloads = [node.overload for node in model.graph if node.op_type == "Scaled"]
    assert overloads[0] == overloads[1] and len(set(overloads)) == 3 == len(model.functions)
    assert_same(model, expected)
    unfuse(rw)
    assert_same(model, expected)


def test_bodies_that_differ_in_a_large_tensor_are_told_apart():
    model = parse(
        """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {
            k = Shape(x) a = ConstantOfShape<value = float[1] {1.0}>(k) y = Add(x, a)
            b = ConstantOfShape<value = float[1] {1.00000001}>(k) z = Add(x, b)
        }"""
    )
    for name, value in (("a", 1.0), ("b", np.nextafter(np.float32(1), np.float32(2)))):
        node = values(model)[name].producer()
        node.attributes["value"] = onnx_ir.AttrTensor("value", onnx_ir.tensor(np.array([value], np.float32)))
    expected = run(model)
    assert not np.array_equal(expected["y"], expected["z"])
    rw = Rewriter(model)
    fuse(rw, "Plus", "x k", "y", "a y")
    fuse(rw, "Plus", "x k", "z", "b z")
    assert len(model.functions) == 2
    assert_same(model, expected)


def test_attributes_and_absent_inputs_make_other_functions():
    body = "g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z, float[N, 4] w) { y = Exp(x) z = Exp(x) w = Exp(x) }"
    model = parse(body)
    expected = run(model)
    rw = Rewriter(model)
    fuse(rw, "E", "x", "y", "y", axis=1)
    fuse(rw, "E", "x", "z", "z", axis=2)
    fuse(rw, "E", "none x", "w", "w", axis=1)
    assert len(model.functions) == 3
    assert [value and value.name for value in model.graph[2].inputs] == [None, "x"]
    assert_same(model, expected)
    unfuse(rw)
    assert_same(model, expected)


def test_inner_outputs_and_readers_before_the_root():
    model = parse(
        """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z, float[N, 4] s) {
            s = Add(x, x) z = Neg(s) a = Exp(s) y = Abs(a)
        }"""
    )
    expected, interface = run(model), Interface.of(model)
    rw = Rewriter(model)
    results = fuse(rw, "Both", "x", "y s", "s a y")
    assert [value.name for value in results] == ["y", "s"]
    assert ops(model) == ["Both", "Neg"]
    assert_same(model, expected)
    assert interface.differences(Interface.of(model)) == []
    unfuse(rw)
    assert_same(model, expected)
    assert interface.differences(Interface.of(model)) == []


def test_readers_and_fusions_in_branches():
    model = parse(
        """g (bool c, float[N, 4] x) => (float[N, 4] y) {
            a = Exp(x) b = Neg(a)
            y = If(c) <then_branch = t () => (float[N, 4] p) { q = Abs(b) p = Sqrt(q) },
                       else_branch = e () => (float[N, 4] r) { r = Relu(b) }>
        }"""
    )
    both = [np.array(True), np.array(False)]
    expected = [run(model, c=c) for c in both]
    rw = Rewriter(model)
    fuse(rw, "Outer", "x", "b", "a b")
    fuse(rw, "Inner", "b", "p", "q p")
    branch = values(model)["y"].producer().attributes["then_branch"].as_graph()
    assert ops(model) == ["Outer", "If"] and [node.op_type for node in branch] == ["Inner"]
    for c, outputs in zip(both, expected, strict=True):
        assert_same(model, outputs, c=c)
    unfuse(rw)
    assert [node.op_type for node in branch] == ["Abs", "Sqrt"]
    for c, outputs in zip(both, expected, strict=True):
        assert_same(model, outputs, c=c)


def test_what_is_no_input_must_be_a_small_constant():
    model = parse(CHAIN)
    rw = Rewriter(model)
    with pytest.raises(PassError, match="would need 'x'"):
        fuse(rw, "Thing", "none", "d", "a b d")
    with rw.at(model.graph[0], "test"):
        large = rw.constant(np.ones((20, 20), np.float32), "large")
    values(model)["a"].producer().replace_input_with(1, large)
    with pytest.raises(PassError, match="would need 'large'"):
        fuse(rw, "Thing", "x", "d", "a b d")


def test_inlining_functions_of_the_model():
    functions = """
        <domain: "my", opset_import: ["": 17]> scale <alpha: float = 2.0> (x, bias) => (y) {
            c = Constant<value_float: float = @alpha>() a = Mul(x, c) y = Add(a, bias) }
        <domain: "my", opset_import: ["": 17, "my": 1]> twice (x) => (y) { a = my.scale(x, x) y = my.scale(a, x) }"""
    header = '<ir_version: 10, opset_import: ["": 17, "my": 1]>'
    model = parse(
        "g (float[N, 4] x) => (float[N, 4] y) { a = my.twice(x) y = my.scale<alpha = 0.5>(a, x) }", functions, header
    )
    expected = run(model)
    rw = Rewriter(model)
    assert drop_unused_functions(model) == 0
    while calls := [node for node in model.graph if node.domain == "my"]:
        inline(rw, calls[0])
    assert_same(model, expected)
    assert drop_unused_functions(model) == 2
    assert_same(model, expected)


def test_functions_that_only_functions_call_are_kept():
    functions = """
        <domain: "my", opset_import: ["": 17]> inner (x) => (y) { y = Exp(x) }
        <domain: "my", opset_import: ["": 17, "my": 1]> outer (x) => (y) { y = my.inner(x) }
        <domain: "my", opset_import: ["": 17]> lonely (x) => (y) { y = Neg(x) }"""
    model = parse(
        "g (float[N, 4] x) => (float[N, 4] y) { y = my.outer(x) }",
        functions,
        '<ir_version: 10, opset_import: ["": 17, "my": 1]>',
    )
    assert drop_unused_functions(model) == 1
    assert {name for _, name, _ in model.functions} == {"inner", "outer"}
