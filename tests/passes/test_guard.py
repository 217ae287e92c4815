"""The guard of fusions: what a clean-up would lose is kept, and only that is kept back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx.parser
import pytest

from optc.ir.model import load
from optc.ir.ops import made_by
from optc.ir.targets import builtin_targets
from optc.passes.base import Pass, PassContext
from optc.passes.manager import PassManager, PipelineResult
from optc.passes.pipeline import parse_pipeline
from optc.passes.registry import pass_registry
from optc.passes.rule import node_rule
from optc.passes.rule_pass import rule_pass

_GELU = "{x}d = Div({x}, root) {x}e = Erf({x}d) {x}a = Add({x}e, one) {x}m = Mul({x}, {x}a) {y} = Mul({x}m, half)"


@node_rule("odd-function", "Erf")
def odd_function(rw, node):
    """erf(x) is -erf(-x): right, of no use, and the end of every Gelu."""
    if made_by(node.inputs[0], "Neg") is not None:
        return None
    return rw.op("Neg", rw.op("Erf", rw.op("Neg", node.inputs[0])))


@node_rule("double-negation", "Neg")
def double_negation(rw, node):
    """A rule beside it that does what it should."""
    before = made_by(node.inputs[0], "Neg")
    return before.inputs[0] if before is not None else None


Spoil = rule_pass("spoil", [odd_function, double_negation])


@dataclass(frozen=True)
class SpoilAll(Pass):
    """The same as a pass that is not made of rules."""

    name: ClassVar[str] = "spoil-all"

    def run(self, ctx: PassContext) -> None:
        for node in list(ctx.model.graph):
            if node.op_type == "Erf" and made_by(node.inputs[0], "Neg") is None:
                with ctx.rewriter.at(node, "spoil-all"):
                    ctx.rewriter.replace(node.outputs[0], odd_function.function(ctx.rewriter, node))
                    ctx.rewriter.erase(node)


def optimize(body: str, pipeline: str, inputs: str = "float[N,8] x", outputs: str = "float[N,8] y") -> PipelineResult:
    registry = pass_registry()
    registry.add("spoil", f"{__name__}:Spoil", "tests")
    registry.add("spoil-all", f"{__name__}:SpoilAll", "tests")
    constants = "float root = {1.4142135}, float one = {1}, float half = {0.5}"
    text = f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => ({outputs}) <{constants}> {{ {body} }}'
    manager = PassManager(builtin_targets()["cpu"])
    return manager.run(load(onnx.parser.parse_model(text)), parse_pipeline(pipeline, registry))


def ops(result: PipelineResult) -> Counter[str]:
    return Counter(node.op_type for node in result.model.graph)


def kept_back(result: PipelineResult) -> list[str]:
    remarks = ((record, remark) for record in result.records for remark in record.remarks)
    return [f"{record.name}/{remark.what}: {remark.reason}" for record, remark in remarks if "guard" in remark.reason]


@pytest.mark.parametrize("pipeline", ["{},fuse", "fixpoint<4>({},simplify,cse,dce),dedup,fuse", "dce,{},cse,fuse,emit"])
@pytest.mark.parametrize("name", ["spoil", "spoil-all"])
def test_a_rewrite_that_would_lose_a_fusion_is_not_made(name, pipeline):
    body = _GELU.format(x="x", y="y")
    lost = optimize(body, pipeline.format(name).replace("fuse", "fuse{guard=false}"))
    assert "Gelu" not in ops(lost) and ops(lost)["Erf"] == 1
    kept = optimize(body, pipeline.format(name))
    assert ops(kept)["Gelu"] == 1 or "emit" in pipeline
    assert "Neg" not in ops(kept)
    what = "spoil/odd-function" if name == "spoil" else "spoil-all/all of it"
    assert kept_back(kept) == [f"{what}: kept back by the guard of fusions: it would have lost 1 x Gelu"]


def test_only_what_would_lose_the_fusion_is_kept_back():
    """Elsewhere, the same rule and the others of its pass do their work."""
    body = _GELU.format(x="x", y="y") + " f = Erf(z) g = Neg(f) w = Neg(g)"
    result = optimize(body, "spoil,fuse", "float[N,8] x, float[N,8] z", "float[N,8] y, float[N,8] w")
    (record, *_) = result.records
    assert ops(result)["Gelu"] == 1
    assert record.hits["odd-function"] == 1 and ops(result)["Neg"] >= 1
    assert len(kept_back(result)) == 1


def test_every_fusion_of_a_kind_is_kept():
    body = " ".join(_GELU.format(x=x, y=y) for x, y in (("x", "p"), ("p", "q"), ("q", "y")))
    result = optimize(body, "spoil,fuse")
    assert ops(result) == {"Gelu": 3}
    assert kept_back(result) == ["spoil/odd-function: kept back by the guard of fusions: it would have lost 3 x Gelu"]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (_GELU.format(x="x", y="u") + " y = Relu(x)", {"Relu": 1}),  # dead
        (_GELU.format(x="x", y="p") + " r = Div(x, root) s = Erf(r) t = Add(one, s) u = Mul(x, t) v = Mul(u, half) "
         "y = Add(p, v)", {"Gelu": 1, "Add": 1}),  # computed twice
        ("a = Transpose<perm=[1,0]>(x) b = Transpose<perm=[1,0]>(a) c = Transpose<perm=[1,0]>(x) "
         "d = Transpose<perm=[1,0]>(c) e = Transpose<perm=[1,0]>(d) y = MatMul(b, e)", None),  # undone
    ],
    ids=["dead", "twice", "undone"],
)  # fmt: skip
def test_what_is_not_needed_any_more_is_no_loss(body, left):
    outputs = "float[N,M] y" if left is None else "float[N,8] y"
    result = optimize(body, "fixpoint<4>(simplify,cse,dce),fuse", outputs=outputs)
    assert not kept_back(result)
    assert left is None or ops(result) == left
    assert all(record.runs <= 3 for record in result.records)


def test_replays_are_not_guarded(monkeypatch):
    """A replay must make the same rewrites as the run that it repeats, up to where it stops."""
    result = optimize(_GELU.format(x="x", y="y"), "fuse")
    assert ops(result) == {"Gelu": 1} and result.records[0].runs == 1
