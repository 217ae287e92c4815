"""The pass that applies the fusions, and the order in which they are tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from optc.ir.errors import UsageError
from optc.ir.rewriter import sources
from optc.ir.targets import suggestion
from optc.passes.base import Find, Numerics, Pass, PassContext, all_graphs
from optc.passes.driver import apply_rules
from optc.passes.fusion import (
    activation,
    affine,
    affine_before,
    affine_moved,
    algebra,
    attention,
    attention_cache,
    attention_mask,
    attention_scores,
    casts,
    channel_norm,
    conv,
    einsum,
    gathers,
    gemm,
    matmul,
    norm,
    pad,
    pool,
    qdq,
    quantized,
    rotary,
    rows,
    space,
    views,
)
from optc.passes.rule import FusionRule, Rule

#: The opset from which on operators broadcast as NumPy does, which rules and facts take for granted.
_BROADCASTING_SINCE = 7
#: Rules in the order in which they are tried; a phase starts when nothing is left to do for the one before. What is
#: larger comes before what could take a part of it away.
PHASES: tuple[tuple[Rule, ...], ...] = (
    *quantized.PHASES,
    *qdq.PHASES,
    (
        *casts.RULES,
        *einsum.RULES,
        *pad.RULES,
        *pool.RULES,
        *affine.RULES,
        attention_cache.repeat_heads,
        affine_moved.batchnorm_across_move,
        affine_before.affine_into_next_conv,
        *activation.SPELLINGS,
        *attention_scores.RULES,
        *attention_mask.RULES,
        *rotary.RULES,
        *space.RULES,
    ),
    rows.RULES,
    (attention.attention, *activation.RULES, *conv.RULES, *gemm.RULES, *channel_norm.RULES, norm.layer_norm),
    (attention.attention_heads, *algebra.RULES),
    (
        *attention_cache.RULES,
        norm.layer_norm_no_bias,
        norm.rms_norm,
        gemm.gemm_activation,
        conv.conv_add,
        views.transpose_through_view,
        matmul.own_operands,
        matmul.scaled_matmul,
    ),
    (norm.layer_norm_plain, norm.rms_norm_plain, affine_before.affine_into_next_dense, matmul.transposed_matmul),
    (norm.skip_layer_norm, norm.skip_rms_norm),
    (*gathers.RULES, views.transpose_is_view, casts.scaled_integers),
)


def fusions() -> dict[str, Rule]:
    """All rules by name."""
    return {rule.name: rule for phase in PHASES for rule in phase}


@dataclass(frozen=True)
class Fuse(Pass):
    """Recognise what exporters took apart: activations, normalizations, layers with what follows them.

    A fused op is a call of a function that holds the original nodes; the pass ``emit`` decides what becomes of it.
    """

    name: ClassVar[str] = "fuse"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    #: Names of the only rules to apply; empty for all.
    only: tuple[str, ...] = ()
    #: Names of rules to leave out.
    skip: tuple[str, ...] = ()
    #: Whether a clean-up before it is undone where it would lose a fusion.
    guard: bool = True

    restructures: ClassVar[bool] = False

    @property
    def guards(self) -> bool:
        return self.guard

    def finds(self, ctx: PassContext) -> list[Find]:
        if ctx.rewriter.opset() < _BROADCASTING_SINCE:
            return []
        index: dict[tuple[str, str], list[FusionRule]] = {}
        for rule in (rule for phase in PHASES for rule in self._chosen(phase) if isinstance(rule, FusionRule)):
            for root in rule.roots:
                index.setdefault(root, []).append(rule)
        found = []
        for node in (node for graph in all_graphs(ctx.model) for node in graph):
            for rule in index.get((node.domain, node.op_type), ()):
                place = rule.find(ctx.facts, node)
                if place is not None:
                    parts = frozenset(name for part in place.nodes for name in sources(part))
                    found.append(Find(rule.op, frozenset(sources(node)), parts))
        return found

    def _chosen(self, rules: Sequence[Rule]) -> list[Rule]:
        return [r for r in rules if (not self.only or r.name in self.only) and r.name not in self.skip]

    def run(self, ctx: PassContext) -> None:
        known = fusions()
        for name in (*self.only, *self.skip):
            if name not in known:
                raise UsageError(
                    f"there is no fusion {name!r}", hint=suggestion(name, known, f"there are: {', '.join(known)}")
                )
        if ctx.rewriter.opset() < _BROADCASTING_SINCE:
            ctx.remark("skipped", "fuse", f"below opset {_BROADCASTING_SINCE} operators broadcast by other rules")
            return
        for phase in PHASES:
            apply_rules(ctx, self._chosen(phase))
