"""The bridge to GraphSurgeon: what it would lose comes back, and its scripts run as passes."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_graphsurgeon as gs
import onnx_ir
import pytest
from onnx import TensorProto, helper

import optc
from optc.environment import Environment
from optc.ir.errors import PassError
from optc.ir.model import load
from optc.ir.saving import to_proto
from optc.ir.surgeon import fingerprint, from_gs, to_gs
from optc.ir.verify import Interface, verify_structure
from optc.passes.base import Numerics
from optc.passes.script_pass import script_pass

DIGITS = Path(__file__).parents[1] / "examples" / "digits"


def canonical(model: onnx_ir.Model) -> bytes:
    """The model's bytes, whatever the order of initializers, attributes and annotations."""
    proto = to_proto(model)
    for entries in (proto.graph.initializer, proto.graph.value_info, proto.functions):
        ordered = sorted(entries, key=lambda entry: (entry.name, getattr(entry, "overload", "")))
        del entries[:]
        entries.extend(ordered)
    for node in proto.graph.node:
        ordered = sorted(node.attribute, key=lambda attribute: attribute.name)
        for attribute in ordered:
            if attribute.HasField("t") and not attribute.t.name:
                attribute.t.ClearField("name")
        del node.attribute[:]
        node.attribute.extend(ordered)
    return proto.SerializeToString(deterministic=True)


def rich_model() -> onnx_ir.Model:
    """Everything that GraphSurgeon drops or mangles, in one model."""
    int4 = helper.make_tensor("w4", TensorProto.INT4, [3, 3], np.arange(-4, 5).astype(np.int8))
    strings = helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"\xff\x00"])
    text = """
    < ir_version: 10, opset_import: ["" : 21, "local" : 1],
      producer_name: "maker", producer_version: "7", model_version: 3, doc_string: "about the model" >
    g (float[batch, 3] x, bool flag, float[3] gain) => (float[batch, 3] y, float[batch, 3] z, string[2] words_out)
    < float[3] gain = {1, 2, 3} >
    {
      scale = Constant <value = float {0.5}> ()
      w = DequantizeLinear (w4, scale)
      h = MatMul (x, w)
      a = local.twice:left (h)
      b = local.twice:right (h)
      picked = If (flag) <
        then_branch = then () => (float[batch, 3] t) { t = Add (a, gain) },
        else_branch = other () => (float[batch, 3] e) { e = Relu (b) }
      >
      has = OptionalHasElement (nothing)
      words_out = Identity (words)
      z = Where (has, a, b)
      y = Identity (picked)
    }
    """
    model = _parse(text)
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n"])
    position = next(index for index, node in enumerate(model.graph.node) if node.op_type == "OptionalHasElement")
    model.graph.node.insert(position, helper.make_node("Optional", [], ["nothing"], type=kind))
    model.graph.initializer.extend([int4, strings])
    for overload, op in (("left", "Add"), ("right", "Mul")):
        function = helper.make_function(
            "local", "twice", ["i"], ["o"], [helper.make_node(op, ["i", "i"], ["o"])], [helper.make_opsetid("", 21)]
        )
        function.overload = overload
        model.functions.append(function)
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"
        node.doc_string = f"doc {index}"
        node.metadata_props.add(key="optc.source", value=f"origin {index}")
    model.metadata_props.add(key="licence", value="free")
    return load(model)


def _parse(text: str) -> onnx.ModelProto:
    """Parse text in which ``domain.op:overload`` names an overload, which the parser does not know."""
    model = onnx.parser.parse_model(text.replace(":left", "").replace(":right", ""))
    for node, overload in zip([n for n in model.graph.node if n.op_type == "twice"], ("left", "right"), strict=True):
        node.overload = overload
    return model


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_a_real_model_comes_back_as_it_went(name: str) -> None:
    model = load(DIGITS / f"{name}.onnx")
    before = canonical(model)
    assert canonical(from_gs(to_gs(model), model)) == before
    assert canonical(model) == before


def test_nothing_is_lost_that_graphsurgeon_does_not_keep() -> None:
    model = rich_model()
    back = from_gs(to_gs(model), model)
    assert verify_structure(back) == []
    assert not Interface.of(model).differences(Interface.of(back))
    assert canonical(back) == canonical(model)


def test_weights_are_shared_and_read_only_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(DIGITS / "vit.onnx")
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    with monkeypatch.context() as patch:
        for kind in {type(tensor) for tensor in weights.values()}:
            patch.setattr(kind, "numpy", lambda self: pytest.fail("a weight was read"))
        back = from_gs(to_gs(model), model)
    assert {name: value.const_value for name, value in back.graph.initializers.items()} == weights


def test_a_weight_that_a_script_changed_is_taken_over() -> None:
    model = rich_model()
    graph = to_gs(model)
    weight = graph.tensors()["w4"]
    assert weight.values.tolist() == [[-4, -3, -2], [-1, 0, 1], [2, 3, 4]]
    weight.values = weight.values[::-1].copy()
    back = from_gs(graph, model)
    tensor = back.graph.initializers["w4"].const_value
    assert tensor is not None and tensor.dtype == onnx_ir.DataType.INT4
    assert tensor.numpy().tolist() == [[2, 3, 4], [-1, 0, 1], [-4, -3, -2]]
    assert len(tensor.tobytes()) == 5  # two values per byte
    assert fingerprint(graph) != fingerprint(to_gs(model))


def test_nodes_need_not_be_sorted_and_copies_keep_their_metadata() -> None:
    model = load(DIGITS / "vit.onnx")
    graph = to_gs(model).copy()
    graph.nodes.reverse()
    back = from_gs(graph, model)
    assert verify_structure(back) == []
    kept = {node.name: dict(node.metadata_props) for node in back.graph}
    assert kept == {node.name: dict(node.metadata_props) for node in model.graph}


def test_a_new_call_of_an_overloaded_function_is_refused() -> None:
    model = rich_model()
    graph = to_gs(model)
    call = next(node for node in graph.nodes if node.op == "twice")
    graph.nodes.append(gs.Node("twice", "new", inputs=call.inputs, outputs=[gs.Variable("more")], domain="local"))
    with pytest.raises(PassError, match="2 overloads"):
        from_gs(graph, model)


# -- scripts as passes -----------------------------------------------------------------------------------------------


def double(graph: gs.Graph) -> None:
    """Computes everything twice as large."""
    output = graph.outputs[0]
    half = gs.Variable("before_doubling", output.dtype, output.shape)
    output.inputs[0].outputs[0] = half
    two = gs.Constant("two", np.array(2, np.float32))
    graph.nodes.append(gs.Node("Mul", "doubling", inputs=[half, two], outputs=[output]))


def rename_input(graph: gs.Graph) -> None:
    graph.inputs[0].name = "renamed"


def fail(graph: gs.Graph) -> None:
    raise KeyError("a script's own bug")


def look(graph: gs.Graph) -> gs.Graph:
    assert graph.tensors()
    return graph


def swap(graph: gs.Graph) -> gs.Graph:
    """Writes the operands of sums the other way round."""
    for node in graph.nodes:
        if node.op == "Add":
            node.inputs = list(reversed(node.inputs))
    return graph


swap.numerics = Numerics.EXACT  # type: ignore[attr-defined]


def compiled(script, monkeypatch: pytest.MonkeyPatch, **options) -> optc.Result:
    module = types.ModuleType("scripts_of_a_test")
    module.script = script  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    environment = Environment()
    environment.passes.add("script", "scripts_of_a_test:script", "a test", "optc.passes.script_pass:script_pass")
    return optc.compile(DIGITS / "vit.onnx", passes="script", environment=environment, **options)


def test_a_script_runs_as_a_pass_and_its_nodes_know_where_they_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    result = compiled(swap, monkeypatch)
    (record,) = result.report.passes
    assert (record.status, record.numerics) == ("changed", "exact")
    assert result.report.verification.status == "passed"
    before = load(DIGITS / "vit.onnx")
    for old, new in zip(before.graph, result.model.graph, strict=True):
        if old.op_type == "Add":
            assert [v.name for v in new.inputs if v] == [v.name for v in reversed(old.inputs) if v]


def test_a_script_that_changes_nothing_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = compiled(look, monkeypatch).report.passes
    assert record.status == "unchanged"


@pytest.mark.parametrize(
    ("script", "reason"), [(double, "logits"), (rename_input, "inputs were ['image']"), (fail, "a script's own bug")]
)
def test_a_script_that_breaks_something_is_rolled_back(script, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = compiled(script, monkeypatch)
    (record,) = result.report.passes
    assert record.status == "rolled back" and reason in record.reason
    assert result.report.verification.status == "passed"
    assert [item.what for item in result.report.skipped] == ["script"]
    assert "doubling" not in {node.name for node in result.model.graph}


def test_new_nodes_of_a_script_are_stamped(monkeypatch: pytest.MonkeyPatch) -> None:
    result = compiled(double, monkeypatch, verify="off")
    new = next(node for node in result.model.graph if node.name == "doubling")
    assert new.metadata_props["optc.rule"] == "script"
    assert new.metadata_props["optc.source"] == "node_linear_24"


def test_what_is_no_function_is_no_script() -> None:
    with pytest.raises(TypeError, match="not a function"):
        script_pass("script", 7)  # type: ignore[arg-type]
