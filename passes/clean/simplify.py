"""The simplify pass: small rules that leave fewer nodes and the same numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from optc.ir.errors import UsageError
from optc.ir.targets import suggestion
from optc.passes.base import Numerics, Pass, PassContext
from optc.passes.clean import (
    rules_algebra,
    rules_casts,
    rules_identities,
    rules_quantized,
    rules_recurrent,
    rules_resize,
    rules_sequences,
    rules_slicing,
    rules_transposes,
    rules_views,
)
from optc.passes.driver import apply_rules
from optc.passes.rule import Rule

#: All rules by name, in the order in which they are tried at a node.
RULES: dict[str, Rule] = {
    rule.name: rule
    for module in (
        rules_identities,
        rules_casts,
        rules_quantized,
        rules_recurrent,
        rules_resize,
        rules_transposes,
        rules_views,
        rules_slicing,
        rules_sequences,
        rules_algebra,
    )
    for rule in module.RULES
}


def select(rules: dict[str, Rule], only: tuple[str, ...], skip: tuple[str, ...]) -> list[Rule]:
    """The rules that the options of a pass leave.

    Raises:
        UsageError: An option names a rule that there is not.
    """
    for name in (*only, *skip):
        if name not in rules:
            raise UsageError(f"there is no rule {name!r}", hint=suggestion(name, rules, f"rules: {', '.join(rules)}"))
    return [rule for name, rule in rules.items() if (not only or name in only) and name not in skip]


@dataclass(frozen=True)
class Simplify(Pass):
    """Identities, casts, quantizers, views, transposes, slices, sequences and integer algebra, simplified exactly.

    Attributes:
        only: Names of the rules to apply; all if empty.
        skip: Names of rules to leave out.
    """

    name: ClassVar[str] = "simplify"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def run(self, ctx: PassContext) -> None:
        apply_rules(ctx, select(RULES, self.only, self.skip))
