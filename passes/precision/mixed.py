"""The pass of mixed precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir

from optc.ir.errors import OptcError
from optc.ir.functions import drop_unused_functions, runnable
from optc.ir.mapped import Spool
from optc.ir.opset import obstacle, raise_opset
from optc.ir.rewriter import Rewriter
from optc.passes.base import Decision, LedgerRow, Numerics, Pass, PassContext
from optc.passes.compress.policy import read_policy
from optc.passes.precision.chosen import kept_by
from optc.passes.precision.costs import Costs, bound_dims
from optc.passes.precision.emulate import emulate
from optc.passes.precision.masks import masking
from optc.passes.precision.narrow import Narrow, narrow_type
from optc.passes.precision.plan import Plan, Planner
from optc.passes.precision.ranges import Ranges, requests
from optc.passes.precision.sensitivity import ranked
from optc.passes.precision.slots import Supports
from optc.passes.precision.write import Keep, write

#: Constants up to this many bytes stay in memory, and so do all if they have no more than this together.
_SMALL, _MEMORY = 1 << 16, 1 << 28
#: The opsets from which on operators that a network lives on are defined for a narrow type.
_SINCE: dict[str, dict[str, int]] = {
    "fp16": {"QuantizeLinear": 19, "DequantizeLinear": 19},
    "bf16": {
        **{"QuantizeLinear": 19, "DequantizeLinear": 19},
        **dict.fromkeys(("Conv", "ConvTranspose", "AveragePool", "MaxPool", "GlobalAveragePool"), 22),
    },
}
_TOO_FAR = "it was among the first to go back: the error would leave the budget, and its own share is large"


@dataclass(frozen=True)
class MixedPrecision(Pass):
    """Compute in 16-bit floats wherever numbers are known to fit, with the fewest casts, inside the error budget.

    What stays in single precision has its reason in the ledger. The result is judged end to end; if its error is too
    large, what errs most goes back until it fits, or nothing is done.

    Attributes:
        dtype: "fp16", "bf16", or "auto" for the one that the target multiplies faster, fp16 where they are equal.
        always: Do it also for a target that computes no faster in it.
        min_gain: The share of time that the whole model must gain where it can be timed.
        policy: Which layers may become "fp16" or "bf16", see :mod:`optc.passes.compress.policy`.
    """

    name: ClassVar[str] = "mixed-precision"
    numerics: ClassVar[Numerics] = Numerics.APPROXIMATE

    dtype: str = "auto"
    always: bool = False
    min_gain: float = 0.03
    policy: str = ""

    def __post_init__(self) -> None:
        if self.dtype != "auto":
            narrow_type(self.dtype)
        _ = read_policy(self.policy)

    def run(self, ctx: PassContext) -> None:
        narrow = self._narrow(ctx)
        measure = ctx.services.get("measure")
        reason = self._why_not(ctx, narrow, measure)
        if reason is not None:
            # That most CPUs have no such products is nothing to tell of, unless somebody asked for it.
            if self.dtype != "auto" or ctx.target.kind != "cpu":
                ctx.decide(Decision(self._label(narrow), [], False, reason))
            return
        _Work(self, ctx, narrow, measure).run()

    def _narrow(self, ctx: PassContext) -> Narrow:
        if self.dtype != "auto":
            return narrow_type(self.dtype)
        peak = ctx.target.peak
        return narrow_type("bf16" if peak.get("bf16", 0.0) > peak.get("fp16", 0.0) else "fp16")

    def _label(self, narrow: Narrow) -> str:
        return f"{self.name}-{narrow.name}"

    def _why_not(self, ctx: PassContext, narrow: Narrow, measure: Any) -> str | None:
        """Why the pass is not for this target, or cannot do its work."""
        if measure is None or measure.why_not is not None:
            return "nothing can be measured in this compile" if measure is None else measure.why_not
        if self.always or computes_in(ctx, narrow):
            return None
        kernels = ctx.services.get("kernels")
        version, provider = ctx.facts.opset(), ctx.target.provider
        products = dict.fromkeys(
            node.op_type for node in ctx.model.graph if node.domain == "" and node.op_type in ("MatMul", "Gemm", "Conv")
        )
        if kernels is None or not any(
            kernels.supports("", op, version, narrow.dtype, provider=provider) for op in products
        ):
            return f"the target {ctx.target.name!r} has no products in {narrow.name}: it would compute between casts"
        return measure.why_not_timed  # what might be faster there has to be measured


def computes_in(ctx: PassContext, narrow: Narrow) -> bool:
    """Whether a target multiplies in a narrow type faster than in single precision, as far as its table says."""
    target = ctx.target
    if narrow.name in target.peak:
        return target.peak[narrow.name] > target.peak.get("fp32", 0.0)
    return target.has(narrow.name)


@dataclass
class _Work:
    """One run of the pass."""

    options: MixedPrecision
    ctx: PassContext
    narrow: Narrow
    measure: Any

    def run(self) -> None:
        self._raise_opset()
        planner = self._planner()
        policy = read_policy(self.options.policy)
        chosen = kept_by(policy, planner.graph, planner.facts, self.narrow, self.options.name)
        plan = planner.plan(chosen)
        if not plan.slots:
            self._tell(plan, None, "nothing can be narrow, or nothing that is worth the casts")
            return
        judged = self._judged(plan)
        if judged.reason is not None:
            found = self._bisected(planner, plan, chosen)
            if found is None:
                self._tell(plan, None, f"no part of it stays inside the budget: {judged.reason}", judged.error)
                return
            plan, judged = found
        reason = self._too_slow(plan)
        if reason is not None:
            self._tell(plan, None, reason, judged.error)
            return
        before = _weight_bytes(self.ctx.model)
        write(self.ctx.rewriter, plan, self._keep())
        drop_unused_functions(self.ctx.model)
        self._tell(plan, before - _weight_bytes(self.ctx.model), "", judged.error)

    def _raise_opset(self) -> None:
        """Raise the opset to one that defines the network's layers for the narrow type, if nothing is in the way.

        Else a cast would stand between every quantized layer and its pairs, and no runtime would fuse them.
        """
        ctx, since = self.ctx, _SINCE[self.narrow.name]
        version = max((since.get(node.op_type, 0) for node in ctx.model.graph if node.domain == ""), default=0)
        if ctx.facts.opset() < version:
            reason = obstacle(ctx.model, ctx.facts, version)
            if reason is None:
                raise_opset(ctx.rewriter, version)
            else:
                ctx.remark("skipped", f"layers that opset {version} defines for {self.narrow.name}", reason)

    # -- planning ---------------------------------------------------------------------------------------------------

    def _planner(self) -> Planner:
        ctx, graph = self.ctx, self.ctx.model.graph
        masks = masking(graph, ctx.facts)
        floats = [value for value in _values(graph) if ctx.facts.dtype(value) == onnx_ir.DataType.FLOAT]
        service = ctx.services.get("statistics")
        statistics = service.collect(runnable(ctx.model), requests(floats)) if service is not None else None
        ranges = Ranges(graph, ctx.facts, self.narrow, statistics, masks)
        if not ranges.real:
            ctx.remark(
                "skipped",
                "evidence of ranges",
                "there is no calibration data, so only what is proven or known to be harmless is narrow; "
                "--calib lets norms, exponentials and sums follow",
            )
        dims = bound_dims(graph, self.measure.latency_feeds)
        return Planner(graph, ctx.facts, ranges, Costs(ctx.facts, ctx.target, self.narrow, dims), self._supports())

    def _supports(self) -> Supports | None:
        """Asks the kernels of the target's runtime, where the target computes in the type."""
        kernels, ctx = self.ctx.services.get("kernels"), self.ctx
        if kernels is None or not computes_in(ctx, self.narrow):
            return None

        def supports(domain: str, op: str, version: int, variables: Collection[str] | None) -> bool:
            dtype = self.narrow.dtype
            types = dtype if variables is None else dict.fromkeys(variables, dtype)
            return bool(kernels.supports(domain, op, version, types, provider=ctx.target.provider))

        return supports

    # -- judging ----------------------------------------------------------------------------------------------------

    def _judged(self, plan: Plan) -> Any:
        """How far the outputs move; rounded in single precision where the model cannot be run as it is."""
        try:
            return self.measure.judge(self._candidate(plan))
        except OptcError:
            return self.measure.judge(self._candidate(plan, rounded=True))

    def _candidate(self, plan: Plan, rounded: bool = False) -> onnx_ir.Model:
        """A copy of the model with a plan carried out."""
        copy = self.ctx.model.clone()
        of = dict(zip(self.ctx.model.graph, copy.graph, strict=True))
        masks = {value.name for value in plan.masking}
        own = frozenset(value for value in _all_values(copy.graph) if value.name in masks)
        moved = Plan(
            plan.narrow,
            {of[node]: slots for node, slots in plan.slots.items()},
            {of[node]: reason for node, reason in plan.reasons.items()},
            own,
        )
        rewriter = Rewriter(copy)
        if rounded:
            emulate(rewriter, moved)
        else:
            write(rewriter, moved, self._keep())
        return copy

    def _bisected(self, planner: Planner, plan: Plan, chosen: Mapping[onnx_ir.Node, str]) -> tuple[Plan, Any] | None:
        """The plan with as few of the nodes that err most in single precision again as the budget needs."""
        order = ranked(self.measure, runnable(self.ctx.model), self._candidate(plan, rounded=True), plan)
        best: tuple[Plan, Any] | None = None
        low, high = 0, len(order)
        while high - low > 1:
            middle = (low + high) // 2
            tried = planner.plan({**chosen, **dict.fromkeys(order[:middle], _TOO_FAR)})
            judged = self._judged(tried) if tried.slots else None
            if judged is not None and judged.reason is None:
                best, high = (tried, judged), middle
            else:
                low = middle
        return best

    def _too_slow(self, plan: Plan) -> str | None:
        """Why the plan is not worth it, where that can be measured."""
        if self.options.always or computes_in(self.ctx, self.narrow):
            return None
        compared = self.measure.compare({"before": self.ctx.model, "after": self._candidate(plan)})
        ratio = compared["after"].ratio.median
        if ratio <= 1 - self.options.min_gain:
            return None
        return f"the model is not faster in it: {1 / ratio:.2f}x on this CPU"

    # -- telling ----------------------------------------------------------------------------------------------------

    def _tell(self, plan: Plan, saved: int | None, reason: str, error: float | None = None) -> None:
        ctx, label = self.ctx, self.options._label(self.narrow)
        kept = saved is not None
        names = [_name(node) for node in plan.slots]
        for node in ctx.model.graph if not kept else ():
            if node in plan.slots:
                ctx.ledger.append(LedgerRow(_name(node), self.options.name, self.narrow.name, False, reason, error))
        for name in names if kept else ():
            ctx.ledger.append(LedgerRow(name, self.options.name, self.narrow.name, True))
        for node, why in plan.reasons.items():
            ctx.ledger.append(LedgerRow(_name(node), self.options.name, "", False, why))
        if kept:
            casts = sum(node.op_type == "Cast" for node in ctx.model.graph)
            reason = (
                f"{len(names)} of {len(names) + len(plan.reasons)} nodes, {casts} casts in all; error {error:.3g} of "
                f"{self.measure.max_error:.3g} on {self.measure.data}; {self._faster()}"
            )
            ctx.hit(label, len(names))
        ctx.decide(Decision(label, names, kept, reason, error, None, saved))
        for why, count in Counter(why.partition(";")[0] for why in plan.reasons.values()).most_common():
            ctx.remark("skipped", f"{count} node{'s' * (count != 1)} in single precision", why)

    def _faster(self) -> str:
        if self.measure.why_not_timed is not None:
            peak = self.ctx.target.peak
            if self.narrow.name in peak and "fp32" in peak:
                times = peak[self.narrow.name] / peak["fp32"]
                return f"its products are {times:.0f}x as fast by the target's table, an estimate: it is not here"
            return "not timed: the target is not here"
        return "written as asked" if self.options.always else "faster on this CPU"

    def _keep(self) -> Keep:
        """Where constants go: to a file if they are many, so that memory does not grow with the model."""
        total = _weight_bytes(self.ctx.model)
        if total <= _MEMORY:
            return lambda tensor: tensor
        spool = Spool(total)
        return lambda tensor: spool.keep(tensor) if tensor.nbytes > _SMALL else tensor


def _values(graph: onnx_ir.Graph) -> list[onnx_ir.Value]:
    """What a graph takes and computes."""
    fed = [value for value in graph.inputs if not value.is_initializer()]
    return [*fed, *(value for node in graph for value in node.outputs)]


def _all_values(graph: onnx_ir.Graph) -> list[onnx_ir.Value]:
    return [*_values(graph), *graph.initializers.values()]


def _name(node: onnx_ir.Node) -> str:
    return node.name or node.outputs[0].name or node.op_type


def _weight_bytes(model: onnx_ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
