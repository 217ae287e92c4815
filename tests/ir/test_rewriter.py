"""The rewriter: what it promises to keep is kept, whatever is replaced by whatever."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optc.ir.errors import PassError
from optc.ir.model import load
from optc.ir.rewriter import RULE_KEY, SOURCE_KEY, Rewriter, is_dead, reads, sources, users
from optc.ir.saving import save
from optc.ir.verify import Interface, verify_structure

HEADER = '<ir_version: 10, opset_import: ["": 17]>'


def parse(body: str) -> onnx_ir.Model:
    model = load(onnx_ir.to_proto(onnx_ir.from_onnx_text(f"{HEADER} {body}")))
    for graph in model.graphs():
        for node in graph:
            node.name = node.name or f"{node.outputs[0].name}_node"
    return model


def rewriting(body: str) -> tuple[onnx_ir.Model, Rewriter, dict[str, onnx_ir.Value]]:
    model = parse(body)
    values = {value.name: value for value in model.graph.inputs}
    for graph in model.graphs():
        values.update({value.name: value for node in graph for value in node.outputs})
    return model, Rewriter(model), values


def ops(graph: onnx_ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


class Heard:
    """A listener that remembers."""

    def __init__(self, rewriter: Rewriter) -> None:
        self.nodes: list[onnx_ir.Node] = []
        rewriter.listeners.append(self)

    def changed(self, node: onnx_ir.Node) -> None:
        self.nodes.append(node)


# outputs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body, by",
    [
        ("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }", "x"),
        ("g (float[N, 4] x) => (float[N, 4] y) { a = Relu(x) y = Neg(a) }", "a"),
        ("g (float[N, 4] x) => (float[N, 4] y, float[N, 4] a) { a = Relu(x) y = Neg(a) }", "a"),
        ("g (float[N, 4] x) => (float[N, 4] y, float[N, 4] x) { y = Relu(x) }", "x"),
        ("g (float[N, 4] x) => (float[K, L] y, float[N, 4] b) { a = Relu(x) y = Neg(a) b = Abs(y) }", "a"),
    ],
)
def test_outputs_keep_name_type_and_dims(body, by):
    model, rw, values = rewriting(body)
    before = Interface.of(model)
    y = values["y"]
    node = y.producer()
    with rw.at(node, "test"):
        rw.replace(y, values[by])
    rw.erase(node)
    assert verify_structure(model) == []
    assert before.differences(Interface.of(model)) == []
    assert node.graph is None


def test_an_output_listed_twice_is_replaced_twice():
    model, rw, values = rewriting("g (float[N] x) => (float[N] y) { a = Relu(x) y = Neg(a) }")
    model.graph.outputs.append(values["y"])
    node = values["y"].producer()
    with rw.at(node, "test"):
        new = rw.replace(values["y"], values["a"])
    rw.erase(node)
    assert list(model.graph.outputs) == [new, new] and new.name == "y"
    assert ops(model.graph) == ["Relu"]


def test_an_input_that_is_an_output_cannot_be_replaced():
    _model, rw, values = rewriting("g (float[N] x) => (float[N] x, float[N] y) { y = Relu(x) }")
    with pytest.raises(PassError, match="input 'x' is an output"), rw.at(values["y"].producer(), "test"):
        rw.replace(values["x"], values["y"])


def test_an_output_replaced_by_a_constant_gets_a_node():
    model, rw, values = rewriting("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    before = Interface.of(model)
    node = values["y"].producer()
    with rw.at(node, "test"):
        rw.materialize(values["y"], onnx_ir.tensor(np.zeros(2, np.float32)))
    rw.erase(node)
    assert ops(model.graph) == ["Constant"] and verify_structure(model) == []
    assert before.differences(Interface.of(model)) == []


BRANCHES = """g (bool c, float[N] x) => (float[N] y) {
    a = Relu(x) u = Abs(x)
    b = If(c) <then_branch = t () => (float[N] t2) { t1 = Neg(a) t2 = Exp(t1) },
               else_branch = e () => (float[N] e1) { e1 = Neg(u) }>
    y = Sqrt(b)
}"""


def test_the_output_of_a_branch_replaced_by_an_outer_value_gets_a_node():
    model, rw, values = rewriting(BRANCHES)
    node = values["t2"].producer()
    with rw.at(node, "test"):
        rw.replace(values["t2"], values["a"])
    rw.erase(node)
    assert verify_structure(model) == []
    branch = values["b"].producer().attributes["then_branch"].as_graph()
    assert ops(branch) == ["Identity"]


def test_a_constant_takes_over_a_name_only_at_the_top():
    model, rw, values = rewriting(BRANCHES)
    for name, kept in (("a", True), ("t1", False)):
        node = values[name].producer()
        with rw.at(node, "test"):
            new = rw.materialize(values[name], onnx_ir.tensor(np.ones(1, np.float32)))
        rw.erase(node)
        assert (new.name == name) is kept
        assert model.graph.initializers[new.name] is new
    assert verify_structure(model) == []


def test_what_provably_differs_is_refused():
    _model, rw, values = rewriting(
        "g (float[N] x) => (float[N] y) { i = Cast<to = 7>(x) u = Unsqueeze(x, s) s = Constant<value = int64[1] {0}>() "
        "y = Relu(x) }"
    )
    node = values["y"].producer()
    with rw.at(node, "bad-rule"):
        with pytest.raises(PassError, match=r"bad-rule would replace 'y' \(dtype"):
            rw.replace(values["y"], values["i"])
        with pytest.raises(PassError, match=r"rank 1\) by 'u' \(rank 2"):
            rw.replace(values["y"], values["u"])
        with pytest.raises(PassError, match="dtype"):
            rw.set_input(node, 0, values["i"])


# names and provenance ------------------------------------------------------------------------------------------------


def test_names_are_unique_in_all_scopes():
    model, rw, values = rewriting(BRANCHES)
    taken = {"x", "c", "a", "u", "b", "y", "t1", "t2", "e1", "a_node", "t1_node"}
    made = [rw.fresh_name(base) for base in sorted(taken) * 2] + [rw.fresh_name("new")]
    assert len(set(made)) == len(made) and not taken & set(made) and made[-1] == "new"
    for anchor in ("y", "t2", "e1"):
        with rw.at(values[anchor].producer(), "test"):
            for _ in range(3):
                rw.op("Neg", values["x"])
                rw.constant(np.arange(100), "t1")
    assert verify_structure(model) == []


def test_names_do_not_pile_up():
    _model, rw, values = rewriting("g (float[N] x) => (float[N] y) { a = Relu(x) y = Neg(a) }")
    value = values["a"]
    for turn in range(200):
        node = value.producer()
        with rw.at(node, "turn"):
            new = rw.op("Abs" if turn % 2 else "Relu", values["x"])
            rw.replace(value, new)
        rw.erase(node)
        value = new
    assert len(value.name) < 20 and len(value.producer().name) < 20


def test_provenance_is_stamped_adds_up_and_survives_saving(tmp_path):
    model, rw, values = rewriting("g (float[N] x) => (float[N] y) { a = Relu(x) b = Neg(a) y = Abs(b) }")
    with rw.at(values["b"].producer(), "first", [values["a"].producer()]):
        made = rw.op("Exp", values["x"])
        rw.replace(values["b"], made)
    rw.erase(values["b"].producer())
    assert sources(made.producer()) == ("a_node", "b_node")
    with rw.at(values["y"].producer(), "second", [made.producer()]):
        final = rw.op("Log", values["x"])
        rw.replace(values["y"], final)
    rw.erase(values["y"].producer())
    node = next(iter(load(save(model, tmp_path / "m.onnx")[0]).graph))
    assert node.op_type == "Log"
    assert sources(node) == ("a_node", "b_node", "y_node")
    assert node.metadata_props[RULE_KEY] == "second"


def test_changing_a_node_adds_the_rule_to_those_that_made_it():
    _model, rw, values = rewriting("g (float[N] x) => (float[N] y) { a = Relu(x) y = LeakyRelu(a) }")
    node = values["y"].producer()
    with rw.at(node, "one"):
        rw.set_attribute(node, "alpha", 0.5)
    with rw.at(node, "two", [values["a"].producer()]):
        rw.set_input(node, 0, values["x"])
        rw.set_input(node, 0, values["x"])
    assert node.metadata_props[RULE_KEY] == "one,two"
    assert set(node.metadata_props[SOURCE_KEY].split(",")) == {"y_node", "a_node"}
    assert rw.changes == 2
    rw.set_attribute(node, "alpha", None)
    assert "alpha" not in node.attributes


def test_nodes_without_names_have_no_sources():
    node = onnx_ir.node("Relu", [onnx_ir.Value(name="x")])
    assert sources(node) == ()
    node.metadata_props[SOURCE_KEY] = ""
    assert sources(node) == ()


# erasing -------------------------------------------------------------------------------------------------------------


def test_erasing_takes_the_dead_producers_and_nothing_else():
    model, rw, values = rewriting(
        "g (float[N] x) => (float[N] y) { a = Relu(x) b = Neg(a) d = Add(a, b) e = Abs(d) y = Exp(a) }"
    )
    assert is_dead(values["e"].producer()) and not is_dead(values["d"].producer())
    rw.erase(values["d"].producer())
    assert len(ops(model.graph)) == 5
    rw.erase(values["e"].producer())
    assert ops(model.graph) == ["Relu", "Exp"]
    assert users(values["a"]) == [values["y"].producer()]
    rw.erase(values["y"].producer())
    assert ops(model.graph) == ["Relu", "Exp"]


def test_erasing_a_node_lets_go_of_what_its_branches_captured():
    model, rw, values = rewriting(BRANCHES)
    node = values["b"].producer()
    inner = [n for g in model.graphs() for n in g if n.graph is not model.graph]
    assert {v.name for v in reads(node) if v is not None} == {"c", "a", "t1", "u"}
    with rw.at(values["y"].producer(), "test"):
        rw.set_input(values["y"].producer(), 0, values["x"])
    rw.erase(node)
    assert ops(model.graph) == ["Sqrt"]
    assert all(n.graph is None for n in inner), "nobody may find work in a graph that is gone"


def test_initializers_go_only_when_nobody_needs_them():
    model, rw, values = rewriting("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    used, unused = rw.constant(np.ones(2, np.float32), "used"), rw.constant(np.ones(3, np.float32), "unused")
    rw.set_input(values["y"].producer(), 0, used)
    for value in (used, unused, values["x"]):
        rw.erase_initializer(value)
    assert list(model.graph.initializers) == ["used"]


def test_dropping_outputs():
    _model, rw, values = rewriting("g (float[4] x) => (float[2] q) { p, q, r, s = Split<num_outputs = 4>(x) }")
    node = values["q"].producer()
    with pytest.raises(PassError, match="is used"):
        rw.drop_output(node, 1)
    rw.drop_output(node, 2)
    assert [value.name for value in node.outputs] == ["p", "q", "", "s"]
    rw.drop_output(node, 3)
    assert [value.name for value in node.outputs] == ["p", "q"]


# constants, insertion, events ----------------------------------------------------------------------------------------


def test_small_equal_constants_are_shared():
    _model, rw, _ = rewriting("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    one = rw.constant(np.array(1.0, np.float32), "one")
    assert rw.constant(1.0, "other", np.float32) is one
    assert rw.constant(np.array([1.0], np.float32)) is not one
    assert rw.constant(1.0) is not one and rw.facts.dtype(rw.constant(1.0)) == onnx_ir.DataType.DOUBLE
    assert rw.facts.dtype(rw.constant([1, 2])) == onnx_ir.DataType.INT64
    assert rw.constant(np.zeros(100)) is not rw.constant(np.zeros(100))
    assert rw.constant(np.float32(-0.0)) is not rw.constant(np.float32(0.0))
    rw.erase_initializer(one)
    again = rw.constant(1.0, "one", np.float32)
    assert again is not one and again.is_initializer()
    assert again.shape == () and rw.facts.scalar(again) == 1.0


def test_insertion_needs_a_place():
    model, rw, values = rewriting("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    with pytest.raises(RuntimeError):
        rw.op("Relu", values["x"])
    node = values["y"].producer()
    with rw.at(node, "test"):
        a, b = rw.op("Split", values["x"], outputs=2, axis=0, num_outputs=None)
        assert "num_outputs" not in a.producer().attributes
        rw.op("Gelu", a, domain="com.microsoft")
        rw.op("Thing", b, domain="my", version=3)
    assert model.graph.opset_imports == {"": 17, "com.microsoft": 1, "my": 3}
    assert (rw.opset(), rw.opset("my"), rw.opset("other")) == (17, 3, 0)
    assert rw.facts.rank(a) == 1
    assert ops(model.graph) == ["Split", "Gelu", "Thing", "Relu"]


def test_listeners_hear_of_all_that_may_match_anew():
    _model, rw, values = rewriting(
        "g (float[N] x) => (float[N] y, float[N] z) { a = Relu(x) b = Neg(a) y = Abs(b) z = Exp(a) }"
    )
    node = {name: value.producer() for name, value in values.items()}
    heard = Heard(rw)
    with rw.at(node["b"], "test"):
        new = rw.op("Sqrt", values["a"])
        rw.replace(values["b"], new)
    assert heard.nodes == [new.producer(), node["y"]]
    heard.nodes.clear()
    rw.erase(node["b"])
    assert heard.nodes == [node["a"]], "it lost a reader"
    heard.nodes.clear()
    rw.set_input(node["z"], 0, values["x"])
    assert heard.nodes == [node["z"], node["a"]]


def test_order_is_restored():
    model, rw, values = rewriting("g (float[N] x) => (float[N] y) { a = Relu(x) y = Neg(a) }")
    node = values["a"].producer()
    model.graph.remove(node)
    model.graph.append(node)
    rw.restore_order(model.graph)
    assert ops(model.graph) == ["Relu", "Neg"]
    node.replace_input_with(0, values["y"])
    with pytest.raises(PassError, match="cycle"):
        rw.restore_order(model.graph)


def test_inputs_left_out_at_the_end_are_dropped():
    model, rw, values = rewriting("g (float[N] x) => (float[N] y) { y = Neg(x) }")
    with rw.at(values["y"].producer(), "rule"):
        new = rw.op("Clip", values["x"], None, rw.constant(np.float32(1), "high"))
        open_ended = rw.op("Clip", new, None, None)
        rw.replace(values["y"], open_ended)
    assert len(new.producer().inputs) == 3 and len(open_ended.producer().inputs) == 1
    assert not verify_structure(model)
