"""Rules: a pattern, and what to build instead."""

from optc.passes.base import Numerics
from optc.passes.rule import rule


@rule("softsign", Numerics.ROUNDING)
def softsign(p, x):
    """x / (1 + |x|) as one operator."""
    return x / (1.0 + p.Abs(x))


@softsign.build
def _(rewriter, found):
    return rewriter.op("Softsign", found.x)
