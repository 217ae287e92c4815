"""The worklist driver: everything that can fire fires, in a fixed order, and what fights is stopped."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optc.ir.functions import FUSED_DOMAIN
from optc.ir.model import load
from optc.ir.rewriter import Rewriter
from optc.ir.targets import builtin_targets
from optc.ir.verify import verify_structure
from optc.passes.base import PassContext
from optc.passes.driver import apply_rules
from optc.passes.rule import fusion, node_rule, rule

HEADER = '<ir_version: 10, opset_import: ["": 17]>'


def context(body: str) -> PassContext:
    model = load(onnx_ir.to_proto(onnx_ir.from_onnx_text(f"{HEADER} {body}")))
    return PassContext(Rewriter(model), builtin_targets()["cpu"])


def chain(*ops: str) -> PassContext:
    names = ["x", *(f"t{i}" for i in range(len(ops) - 1)), "y"]
    nodes = " ".join(f"{names[i + 1]} = {op}({names[i]})" for i, op in enumerate(ops))
    return context(f"g (float[N] x) => (float[N] y) {{ {nodes} }}")


def ops(ctx: PassContext) -> list[str]:
    return [node.op_type for graph in ctx.model.graphs() for node in graph]


@rule("double-neg")
def double_neg(p, x):
    return p.Neg(p.Neg(x))


@double_neg.build
def _double_neg(rw, m):
    return m.x


def renaming(source: str, target: str):
    @node_rule(f"{source}-to-{target}", source)
    def change(rw, node):
        return rw.op(target, node.inputs[0])

    return change


def test_rules_fire_until_none_does():
    ctx = chain(*["Neg"] * 9)
    assert apply_rules(ctx, [double_neg]) == 4
    assert ops(ctx) == ["Neg"] and ctx.hits == {"double-neg": 4}
    assert verify_structure(ctx.model) == []
    ctx = chain(*["Neg"] * 8)
    apply_rules(ctx, [double_neg])
    assert ops(ctx) == ["Identity"], "the output keeps its name"


def test_what_one_rule_makes_another_takes_up():
    ctx = chain("Exp", "Neg", "Abs")
    assert apply_rules(ctx, [renaming("Exp", "Neg"), renaming("Abs", "Neg"), double_neg]) == 3
    assert ops(ctx) == ["Neg"]


def test_a_match_that_waits_for_a_reader_to_go_is_found():
    @rule("drop-floor")
    def drop_floor(p, x):
        return p.Floor(x)

    @drop_floor.build
    def _(rw, m):
        return rw.constant(np.zeros(1, np.float32), "zero")

    ctx = context("g (float[1] x) => (float[1] y, float[1] z) { a = Neg(x) y = Neg(a) z = Floor(a) }")
    assert apply_rules(ctx, [double_neg, drop_floor]) == 2
    assert ctx.hits == {"drop-floor": 1, "double-neg": 1}


def test_rules_are_tried_in_order_and_nodes_in_topological_order():
    seen: list[tuple[str, str]] = []

    def watcher(name: str):
        @node_rule(name, "Exp", "Abs", "Neg")
        def watch(rw, node):
            seen.append((name, node.op_type))

        return watch

    ctx = chain("Exp", "Abs", "Neg")
    apply_rules(ctx, [watcher("first"), watcher("second")])
    assert seen == [(name, op) for op in ("Exp", "Abs", "Neg") for name in ("first", "second")]


def test_rules_apply_in_branches_too():
    ctx = context(
        """g (bool c, float[N] x) => (float[N] y) { y = If(c)
            <then_branch = t () => (float[N] p) { q = Neg(x) r = Neg(q) p = Abs(r) },
             else_branch = e () => (float[N] s) { s = Exp(x) }> }"""
    )
    assert apply_rules(ctx, [double_neg, renaming("Exp", "Sqrt")]) == 2
    assert ops(ctx) == ["If", "Abs", "Sqrt"] and verify_structure(ctx.model) == []


def test_nodes_of_a_branch_that_is_gone_are_left_alone():
    @node_rule("no-if", "If")
    def no_if(rw, node):
        return node.inputs[1] if len(node.inputs) > 1 else rw.op("Abs", rw.model.graph.inputs[1])

    touched: list[object] = []

    @node_rule("watch", "Neg")
    def watch(rw, node):
        touched.append(node.inputs[0])

    ctx = context(
        """g (bool c, float[N] x) => (float[N] y) { a = Exp(x) y = If(c)
            <then_branch = t () => (float[N] p) { p = Neg(a) },
             else_branch = e () => (float[N] s) { s = Neg(x) }> }"""
    )
    apply_rules(ctx, [no_if, watch])
    assert ops(ctx) == ["Abs"] and touched == []


def test_rules_that_fight_are_stopped_and_named():
    ctx = chain("Exp", "Abs")
    there, back = renaming("Exp", "Sqrt"), renaming("Sqrt", "Exp")
    apply_rules(ctx, [there, back])
    remark = ctx.remarks[0]
    assert remark.kind == "skipped" and len(ctx.remarks) <= 2
    assert remark.what in (there.name, back.name)
    assert there.name in remark.reason and back.name in remark.reason and "stopped after" in remark.reason
    assert verify_structure(ctx.model) == [] and len(ops(ctx)) == 2
    assert max(len(node.name) for node in ctx.model.graph) < 30


def test_a_rule_that_grows_the_graph_is_stopped():
    @node_rule("grow", "Exp")
    def grow(rw, node):
        return rw.op("Exp", rw.op("Exp", node.inputs[0]))

    ctx = chain("Exp", "Abs")
    apply_rules(ctx, [grow])
    assert "stopped after" in ctx.remarks[0].reason and len(ops(ctx)) < 200


def test_a_rule_that_fails_says_which_and_where():
    @node_rule("broken", "Abs")
    def broken(rw, node):
        raise KeyError("nothing")

    ctx = chain("Exp", "Abs")
    with pytest.raises(KeyError) as caught:
        apply_rules(ctx, [broken])
    assert any("broken" in note and "Abs" in note for note in caught.value.__notes__)
    assert ctx.rewriter.listeners == []


def test_misses_are_kept_nearest_first():
    @node_rule("picky", "Exp")
    def picky(rw, node):
        return "not today"

    @rule("deep")
    def deep(p, x):
        return p.Exp(p.Abs(p.Neg(x)))

    deep.build(lambda rw, m: None)
    ctx = context(
        "g (float[N] x) => (float[N] y, float[N] z) { a = Sqrt(x) b = Abs(a) y = Exp(b) c = Sqrt(x) z = Exp(c) }"
    )
    assert apply_rules(ctx, [picky, deep]) == 0
    assert [miss.matched for miss in ctx.misses["deep"]] == [2, 1]
    assert all("not today" in str(miss) for miss in ctx.misses["picky"])
    many = chain(*["Exp"] * 40)
    apply_rules(many, [picky])
    assert 0 < len(many.misses["picky"]) < 40


def test_a_builder_that_declines_changes_nothing():
    @rule("shy")
    def shy(p, x):
        return p.Exp(x)

    shy.build(lambda rw, m: None)
    ctx = chain("Exp")
    assert apply_rules(ctx, [shy]) == 0 and ctx.rewriter.changes == 0


def test_checks_refuse_with_a_reason():
    @rule("checked")
    def checked(p, x):
        return p.Exp(x)

    checked.build(lambda rw, m: m.x)
    checked.check(lambda m: "x is not good enough")
    ctx = chain("Exp")
    assert apply_rules(ctx, [checked]) == 0
    assert "x is not good enough" in str(ctx.misses["checked"][0])


def test_fusions_make_functions():
    @fusion("softplus", "Softplus2", attributes=lambda m: {"beta": m.scalar("one")})
    def softplus(p, x):
        return p.Log(p.scalar("one") + p.Exp(x))

    ctx = context(
        "g (float[N] x) => (float[N] y) { c = Constant<value = float {1.0}>() e = Exp(x) s = Add(e, c) y = Log(s) }"
    )
    assert apply_rules(ctx, [softplus]) == 1
    (call,) = [node for node in ctx.model.graph if node.domain == FUSED_DOMAIN]
    assert call.op_type == "Softplus2" and call.attributes["beta"].value == 1.0
    assert verify_structure(ctx.model) == []


def test_a_fusion_must_know_that_a_constant_does_not_raise_the_rank():
    @fusion("scaled", "Scaled", inputs=["x", "c"], same_shape_as="x")
    def scaled(p, x):
        return p.Exp(x) * p.scalar("c")

    body = "g (float[N] x) => ({} y) {{ c = Constant<value = float{} {{2.0}}>() e = Exp(x) y = Mul(e, c) }}"
    flat, raised = context(body.format("float[N]", "[1]")), context(body.format("float[1, N]", "[1, 1]"))
    assert apply_rules(flat, [scaled]) == 1
    assert apply_rules(raised, [scaled]) == 0 and "a constant that leaves the rank as it is" in str(
        raised.misses["scaled"][0]
    )
