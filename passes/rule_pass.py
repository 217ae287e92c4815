"""A pass made of rules, for plugins that bring rules but no pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from optc.passes.base import Numerics, Pass, PassContext
from optc.passes.driver import apply_rules
from optc.passes.rule import Rule


def rule_pass(name: str, rules: Rule | Sequence[Rule]) -> type[Pass]:
    """The pass of a name that applies a rule, or several, until none fires; its numerics are the widest of theirs.

    Raises:
        TypeError: What was given is not a rule.
    """
    own: tuple[Rule, ...] = tuple(rules) if isinstance(rules, Sequence) else (rules,)
    for rule in own:
        if not (hasattr(rule, "apply") and hasattr(rule, "roots")):
            raise TypeError(f"{rule!r} is not a rule")

    def run(self: Pass, ctx: PassContext) -> None:
        apply_rules(ctx, own)

    lines = [str(getattr(rule, "doc", "")).strip().partition("\n")[0] for rule in own]
    members: dict[str, Any] = {
        "name": name,
        "numerics": max((rule.numerics for rule in own), default=Numerics.EXACT),
        "run": run,
        "__doc__": next(filter(None, lines), f"Rules: {', '.join(rule.name for rule in own)}."),
        "__module__": __name__,
    }
    return dataclasses.dataclass(frozen=True)(type(name, (Pass,), members))
