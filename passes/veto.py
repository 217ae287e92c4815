"""What a pipeline must not do: a rule at some nodes, a rule anywhere, or a whole pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from optc.ir.journal import Application


@dataclass(frozen=True)
class Veto:
    """What a pipeline must not do.

    Attributes:
        step: The pass, as it stands in the pipeline text.
        rule: The rule of it; None for the whole pass.
        names: The nodes of the original model that it must leave alone; None for all.
    """

    step: str
    rule: str | None = None
    names: frozenset[str] | None = None

    def forbids(self, made: Application) -> bool:
        """Whether an application is one that must not be made."""
        same = made.step == self.step and self.rule in (None, made.rule)
        return same and (self.names is None or not self.names.isdisjoint(made.place))

    def __str__(self) -> str:
        """The rule and the nodes, for reports."""
        where = "" if self.names is None else f" at {', '.join(repr(name) for name in sorted(self.names)[:3])}"
        return f"{self.rule or 'all of it'}{where}{', ...' if self.names and len(self.names) > 3 else ''}"


def kept_away(vetoes: Iterable[Veto]) -> Mapping[str, frozenset[str] | None]:
    """Rules and the nodes that they must leave alone (None for all), as a pass's context holds them."""
    found: dict[str, frozenset[str] | None] = {}
    for veto in vetoes:
        if veto.rule is None:
            continue
        before = found.get(veto.rule, frozenset())
        found[veto.rule] = None if before is None or veto.names is None else before | veto.names
    return found
