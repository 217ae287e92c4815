"""Per operator, how it is lowered; pointwise operators are in a table of their own (:mod:`.pointwise`)."""

from __future__ import annotations

from collections.abc import Mapping

from optc.backends.triton import (
    attention,
    movement,
    pooling,
    products,
    rearranging,
    resizing,
    rounding,
    rows,
    transposed,
)
from optc.backends.triton.lower import Rule

RULES: Mapping[str, Rule] = {
    **movement.RULES,
    **products.RULES,
    **rows.RULES,
    **attention.RULES,
    **pooling.RULES,
    **rounding.RULES,
    **rearranging.RULES,
    **resizing.RULES,
    **transposed.RULES,
}
