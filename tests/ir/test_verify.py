"""The invariants: each is broken on purpose once, and found; what is fine is left alone."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optc.ir.names import label
from optc.ir.verify import Interface, verify_structure

HEADER = '<ir_version: 10, opset_import: ["": 17, "com.microsoft": 1]>'
BODY = """g (bool c, float[N, 4] x) => (float[N, 4] y, float[M] z) {
    a = Relu(x)
    b = If(c) <then_branch = t () => (float[N, 4] t1) { t1 = Add(a, x) },
               else_branch = e () => (float[N, 4] t1) { t1 = Neg(a) }>
    s, r = Split(b)
    d = com.microsoft.Anything(s, r, x)
    y = Add(d, a)
    k = Constant<value = float {1.0}>()
    z = Clip(k)
}"""


def parse(body: str = BODY) -> onnx_ir.Model:
    return onnx_ir.from_onnx_text(f"{HEADER} {body}")


def nodes(model: onnx_ir.Model) -> dict[str, onnx_ir.Node]:
    return {node.op_type: node for node in model.graph}


def test_a_sound_model_has_no_problems():
    assert verify_structure(parse()) == []


def break_order(model):
    node = nodes(model)["Relu"]
    model.graph.remove(node)
    model.graph.append(node)


def break_output(model):
    model.graph.outputs[0] = onnx_ir.Value(name="y")


def break_domain(model):
    del model.graph.opset_imports["com.microsoft"]


def break_inputs(model):
    nodes(model)["Relu"].resize_inputs(2)


def break_required_input(model):
    nodes(model)["Relu"].replace_input_with(0, None)


def break_outputs(model):
    nodes(model)["Relu"].resize_outputs(2)


def break_name(model):
    nodes(model)["Split"].outputs[0].name = "a"


def break_name_across_scopes(model):
    branch = nodes(model)["If"].attributes["then_branch"].as_graph()
    next(iter(branch)).outputs[0].name = "x"


def break_subgraph_output(model):
    branch = nodes(model)["If"].attributes["then_branch"].as_graph()
    branch.outputs[0] = nodes(model)["Relu"].outputs[0]


def break_scope(model):
    """Read outside of a branch what is defined in it."""
    branch = nodes(model)["If"].attributes["then_branch"].as_graph()
    nodes(model)["Add"].replace_input_with(1, next(iter(branch)).outputs[0])


def break_foreign(model):
    """Read a value of another model."""
    nodes(model)["Add"].replace_input_with(1, parse().graph.inputs[1])


@pytest.mark.parametrize(
    "breaking, words",
    [
        (break_order, "nothing before it defines"),
        (break_output, "'y' is not defined"),
        (break_domain, "no opset for domain 'com.microsoft'"),
        (break_inputs, "has 2 inputs"),
        (break_required_input, "leaves out the input 'X'"),
        (break_outputs, "has 2 outputs"),
        (break_name, "'a' is defined twice"),
        (break_name_across_scopes, "'x' is defined twice"),
        (break_subgraph_output, "'a' is not defined in its graph"),
        (break_scope, "nothing before it defines"),
        (break_foreign, "nothing before it defines"),
    ],
)
def test_what_is_broken_is_found(breaking, words):
    model = parse()
    breaking(model)
    problems = verify_structure(model)
    assert any(words in problem for problem in problems), problems


def test_functions_are_checked_too():
    text = f"""{HEADER} g (float[N] x) => (float[N] y) {{ y = com.microsoft.f(x) }}
        <domain: "com.microsoft", opset_import: ["": 17]> f (a) => (b) {{ b = Relu(a, a) }}"""
    assert any("has 2 inputs" in problem for problem in verify_structure(onnx_ir.from_onnx_text(text)))


def test_operators_that_onnx_does_not_know_are_not_second_guessed():
    body = "g (float[N] x) => (float[N] y) { a = SimplifiedLayerNormalization(x, x) y = SomePlugin(a, a, a) }"
    assert verify_structure(parse(body)) == []


def test_label():
    labels = [label(node) for node in parse().graph]
    assert labels[0].endswith("(Relu)") and labels[3].endswith("(com.microsoft::Anything)")


# the interface -------------------------------------------------------------------------------------------------------


def rename(model):
    model.graph.outputs[0].name = "other"


def reorder(model):
    model.graph.inputs.reverse()


def drop(model):
    del model.graph.outputs[1]


def retype(model):
    model.graph.outputs[0].dtype = onnx_ir.DataType.FLOAT16


def untype(model):
    model.graph.outputs[0].type = None


def fix_dim(model):
    model.graph.inputs[1].shape = onnx_ir.Shape([2, 4])


def rename_dim(model):
    model.graph.outputs[1].shape = onnx_ir.Shape(["K"])


def forget_shape(model):
    model.graph.outputs[0].shape = None


def change_rank(model):
    model.graph.outputs[0].shape = onnx_ir.Shape(["N", 4, 1])


@pytest.mark.parametrize(
    "change", [rename, reorder, drop, retype, untype, fix_dim, rename_dim, forget_shape, change_rank]
)
def test_changes_of_the_interface_are_found(change):
    model = parse()
    before = Interface.of(model)
    assert before.differences(Interface.of(model.clone())) == []
    change(model)
    assert len(before.differences(Interface.of(model))) == 1


def test_more_may_become_known():
    model = parse("g (float[N, 4] x) => (y) { y = Relu(x) }")
    model.graph.inputs[0].shape = onnx_ir.Shape([None, 4])
    before = Interface.of(model)
    model.graph.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    model.graph.outputs[0].shape = onnx_ir.Shape(["N", 4])
    model.graph.inputs[0].shape = onnx_ir.Shape(["batch", 4])
    assert before.differences(Interface.of(model)) == []
    assert Interface.of(model).differences(before) != []


def test_a_default_must_stay():
    model = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    model.graph.inputs[0].const_value = onnx_ir.tensor(np.zeros(2, np.float32), name="x")
    model.graph.register_initializer(model.graph.inputs[0])
    before = Interface.of(model)
    del model.graph.initializers["x"]
    assert before.differences(Interface.of(model)) == ["input 'x' has lost its default"]
