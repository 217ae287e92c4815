"""The pass that applies the fusions, and the order in which they are tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from optc.ir.errors import UsageError
from optc.ir.targets import suggestion
from optc.passes.base import Numerics, Pass, PassContext
from optc.passes.driver import apply_rules
from optc.passes.fusion import (
    activation,
    affine,
    affine_before,
    attention,
    attention_cache,
    attention_mask,
    casts,
    conv,
    gathers,
    gemm,
    matmul,
    norm,
    pad,
    qdq,
    quantized,
    rotary,
    rows,
)
from optc.passes.rule import Rule

#: The opset from which on operators broadcast as NumPy does, which rules and facts take for granted.
_BROADCASTING_SINCE = 7
#: Rules in the order in which they are tried; a phase starts when nothing is left to do for the one before. What is
#: larger comes before what could take a part of it away.
PHASES: tuple[tuple[Rule, ...], ...] = (
    *quantized.PHASES,
    *qdq.PHASES,
    (
        *casts.RULES,
        *pad.RULES,
        *affine.RULES,
        attention_cache.repeat_heads,
        affine_before.affine_into_next_conv,
        attention.matrix_transpose,
        *attention_mask.RULES,
        *rotary.RULES,
    ),
    rows.RULES,
    (attention.attention, *activation.RULES, *conv.RULES, *gemm.RULES, norm.layer_norm),
    (
        *attention_cache.RULES,
        norm.layer_norm_no_bias,
        norm.rms_norm,
        gemm.gemm_activation,
        conv.conv_add,
        matmul.own_operands,
        matmul.scaled_matmul,
    ),
    (norm.layer_norm_plain, norm.rms_norm_plain, affine_before.affine_into_next_dense, matmul.transposed_matmul),
    (norm.skip_layer_norm, norm.skip_rms_norm),
    gathers.RULES,
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
            chosen = [r for r in phase if (not self.only or r.name in self.only) and r.name not in self.skip]
            apply_rules(ctx, chosen)
