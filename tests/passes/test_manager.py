"""The pass manager: whatever a pass does wrong is undone, by name, and the rest goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir
import pytest

from optc.ir.errors import PassError, UsageError
from optc.ir.model import load
from optc.ir.rewriter import Rewriter
from optc.ir.saving import to_proto
from optc.ir.targets import builtin_targets
from optc.passes.base import Decision, Numerics, Pass, PassContext
from optc.passes.manager import PassManager, PipelineResult, skip_passes
from optc.passes.pipeline import Fixpoint

BODY = "g (float[N] x) => (float[N] y) { a = Exp(x) b = Neg(a) y = Abs(b) }"


def model() -> onnx_ir.Model:
    return load(onnx_ir.to_proto(onnx_ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 17]> {BODY}')))


def ops(result: PipelineResult) -> list[str]:
    return [node.op_type for node in result.model.graph]


def replace(ctx: PassContext, old: str, new: str) -> bool:
    """Let nodes of one operator be nodes of another."""
    nodes = [node for node in ctx.model.graph if node.op_type == old]
    for node in nodes:
        with ctx.rewriter.at(node, f"{old}-{new}"):
            ctx.rewriter.replace(node.outputs[0], ctx.rewriter.op(new, node.inputs[0]))
        ctx.rewriter.erase(node)
        ctx.hit(f"{old}-{new}")
    return bool(nodes)


@dataclass(frozen=True)
class Swap(Pass):
    """Replace an operator."""

    name: ClassVar[str] = "swap"

    old: str = "Exp"
    new: str = "Sqrt"

    def run(self, ctx: PassContext) -> None:
        replace(ctx, self.old, self.new)


@dataclass(frozen=True)
class RoundingSwap(Swap):
    """The same, of another class."""

    name: ClassVar[str] = "rounding-swap"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING


@dataclass(frozen=True)
class Bad(Pass):
    """Do something wrong, after something right."""

    name: ClassVar[str] = "bad"

    how: str = "raise"

    def run(self, ctx: PassContext) -> None:
        replace(ctx, "Abs", "Relu")
        ctx.decide(Decision("bad thing", [], True, "it seemed good"))
        getattr(self, f"_{self.how}")(ctx)

    def _raise(self, ctx: PassContext) -> None:
        raise RuntimeError("it went wrong")

    def _pass_error(self, ctx: PassContext) -> None:
        raise PassError("it cannot be done")

    def _structure(self, ctx: PassContext) -> None:
        node = ctx.model.graph[0]
        ctx.model.graph.remove(node)
        ctx.model.graph.append(node)

    def _interface(self, ctx: PassContext) -> None:
        ctx.model.graph.outputs[0].name = "other"

    def _dims(self, ctx: PassContext) -> None:
        ctx.model.graph.outputs[0].shape = onnx_ir.Shape([4])

    def _swapped(self, ctx: PassContext) -> None:
        other = ctx.model.clone()
        other.graph.inputs[0].name = "z"
        ctx.rewriter = Rewriter(other)

    def _usage(self, ctx: PassContext) -> None:
        raise UsageError("the user must know")


@dataclass(frozen=True)
class Count(Pass):
    """Take one node away per run."""

    name: ClassVar[str] = "count"

    def run(self, ctx: PassContext) -> None:
        node = ctx.model.graph[-1]
        if len(list(ctx.model.graph)) > 1:
            ctx.rewriter.set_input(node, 0, node.inputs[0].producer().inputs[0])
            for dead in [n for n in ctx.model.graph if not n.outputs[0].uses() and n is not node]:
                ctx.rewriter.erase(dead)


@dataclass(frozen=True)
class Never(Pass):
    """Count the runs."""

    name: ClassVar[str] = "never"
    runs: ClassVar[list[int]] = []

    def run(self, ctx: PassContext) -> None:
        self.runs.append(1)


def run(*items: Any, **options: Any) -> PipelineResult:
    return PassManager(builtin_targets()["cpu"], **options).run(model(), tuple(items))


@pytest.mark.parametrize(
    "how, words",
    [
        ("raise", "RuntimeError: it went wrong"),
        ("pass_error", "it cannot be done"),
        ("structure", "invalid graph"),
        ("interface", "outputs were ['y'], now ['other']"),
        ("dims", "had dims"),
        ("swapped", "inputs were ['x'], now ['z']"),
    ],
)
def test_a_pass_that_breaks_something_is_rolled_back_and_the_rest_goes_on(how, words):
    result = run(Swap(), Bad(how), Swap("Neg", "Floor"))
    assert ops(result) == ["Sqrt", "Floor", "Abs"]
    first, bad, last = result.records
    assert (first.status, bad.status, last.status) == ("changed", "rolled back", "changed")
    assert words in bad.reason and bad.name == "bad"
    assert bad.changes == 0 and bad.hits == {} and bad.decisions == []
    assert to_proto(result.model).graph.output[0].name == "y"
    assert result.numerics is Numerics.EXACT


def test_a_bad_pass_is_not_tried_again():
    result = run(Bad(), Fixpoint(3, (Bad(), Swap())), Bad("pass_error"))
    assert [(record.text, record.runs) for record in result.records] == [
        ("bad", 1),
        ("swap", 2),
        ("bad{how=pass_error}", 1),
    ]


def test_what_is_the_users_business_ends_the_run():
    with pytest.raises(UsageError, match="the user must know"):
        run(Bad("usage"))


def test_strict_raises_what_a_pass_raises():
    with pytest.raises(RuntimeError):
        run(Bad(), strict=True)
    with pytest.raises(PassError):
        run(Bad("pass_error"), strict=True)


def test_a_numeric_check_rolls_back_too():
    asked: list[tuple[list[str], Numerics]] = []

    def check(candidate: onnx_ir.Model, numerics: Numerics) -> str | None:
        names = [node.op_type for node in candidate.graph]
        asked.append((names, numerics))
        return "the numbers changed" if "Floor" in names else None

    result = run(RoundingSwap(), Swap("Neg", "Floor"), Swap("Abs", "Relu"), Never(), check=check)
    assert ops(result) == ["Sqrt", "Neg", "Relu"]
    assert [record.status for record in result.records] == ["changed", "rolled back", "changed", "unchanged"]
    assert result.records[1].reason == "the numbers changed"
    assert {numerics for _, numerics in asked} == {Numerics.ROUNDING}, "what came before counts"
    assert result.numerics is Numerics.ROUNDING


def test_a_fixpoint_ends_when_nothing_changes_and_at_its_bound():
    Never.runs.clear()
    result = run(Fixpoint(8, (Count(), Never())))
    assert ops(result) == ["Abs"]
    assert result.records[0].runs == 3 and result.records[0].changes == 4 and result.records[0].nodes == -2
    assert len(Never.runs) == 2, "after a round in which nothing changed it has nothing to look at"
    assert len(ops(run(Fixpoint(1, (Count(),))))) == 2
    swaps = Fixpoint(5, (Swap("Exp", "Sqrt"), Swap("Sqrt", "Exp")))
    assert [record.runs for record in run(swaps).records] == [5, 5]


def test_a_pass_rolled_back_in_a_later_round_keeps_what_it_did_before():
    def check(candidate: onnx_ir.Model, numerics: Numerics) -> str | None:
        return "too few" if len(list(candidate.graph)) < 2 else None

    result = run(Fixpoint(8, (Count(),)), check=check)
    (record,) = result.records
    assert len(ops(result)) == 2 and record.status == "rolled back" and record.reason == "too few"
    assert record.changes == 2 and record.nodes == -1


def test_listeners_are_told():
    before, after = [], []
    run(
        Swap(),
        Never(),
        Bad(),
        before=lambda item: before.append(item.name),
        after=lambda candidate, record: after.append((record.name, record.status)),
    )
    assert before == ["swap", "never", "bad"] and after == [("swap", "changed"), ("never", "unchanged")]


def test_the_given_services_and_target_reach_the_pass():
    seen: dict[str, Any] = {}

    @dataclass(frozen=True)
    class Look(Pass):
        name: ClassVar[str] = "look"

        def run(self, ctx: PassContext) -> None:
            seen.update(ctx.services, target=ctx.target.name)

    run(Look(), services={"thing": 3})
    assert seen == {"thing": 3, "target": "cpu"}


def test_undo_takes_back_what_was_decided():
    result = run(Swap())
    (record,) = result.records
    record.decisions.append(Decision("int8", ["a"], True, "fast"))
    record.undo("wrong as a whole")
    assert (record.status, record.changes, record.hits) == ("rolled back", 0, {})
    assert not record.decisions[0].kept and "wrong as a whole" in record.decisions[0].reason
    assert result.numerics is Numerics.EXACT


def test_skipping():
    pipeline = (Swap(), Fixpoint(3, (Never(), Count())))
    assert skip_passes(pipeline, ["never"]) == (Swap(), Fixpoint(3, (Count(),)))
    assert skip_passes(pipeline, []) == pipeline
    with pytest.raises(UsageError, match="no such pass") as caught:
        skip_passes(pipeline, ["cuont"])
    assert "did you mean count" in str(caught.value)


def test_rolling_back_brings_weights_back_as_they_were():
    given = model()
    weight = onnx_ir.Value(name="w", const_value=onnx_ir.tensor(np.arange(3, dtype=np.float32), name="w"))
    given.graph.register_initializer(weight)
    given.graph[0].replace_input_with(0, weight)
    expected = to_proto(given).SerializeToString(deterministic=True)

    @dataclass(frozen=True)
    class Rename(Pass):
        name: ClassVar[str] = "rename"

        def run(self, ctx: PassContext) -> None:
            ctx.model.graph.initializers["w"].name = "v"
            ctx.rewriter.changes += 1
            raise PassError("after all, no")

    result = PassManager(builtin_targets()["cpu"]).run(given, (Rename(),))
    assert to_proto(result.model).SerializeToString(deterministic=True) == expected
