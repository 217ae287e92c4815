"""The numbered applications of rewrites, and a limit on them: any prefix of a compile can be replayed.

The idea is that of optimization fuel (Whalley, "Automatic Isolation of Compiler Errors", TOPLAS 1994), which LLVM knows
as ``-opt-bisect-limit``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Application:
    """One change of the graph.

    Attributes:
        number: Counted from 1 over the whole pipeline.
        step: The pass, as it stands in the pipeline text.
        rule: The rule; the pass's name for what a pass changes beside its rules.
        sources: Names of the nodes of the original model that it concerned.
        place: Those that the node stands for at which the rule was tried.
    """

    number: int
    step: str
    rule: str
    sources: tuple[str, ...] = ()
    place: tuple[str, ...] = ()


class LimitReached(Exception):
    """The next application would be one too many."""


@dataclass
class Journal:
    """Counts applications and stops before there are too many.

    Attributes:
        limit: How many may be made; None for all.
        step: The pass that is running.
        applications: Those made so far.
    """

    limit: int | None = None
    step: str = ""
    applications: list[Application] = field(default_factory=list)

    @property
    def exhausted(self) -> bool:
        """Whether no further application may be made."""
        return self.limit is not None and len(self.applications) >= self.limit

    def begin(self) -> None:
        """Ask to change the graph.

        Raises:
            LimitReached: The limit allows no more; the graph is as the last application left it.
        """
        if self.exhausted:
            raise LimitReached

    def end(self, rule: str, sources: tuple[str, ...] = (), place: tuple[str, ...] = ()) -> None:
        """Note that the graph was changed."""
        self.applications.append(Application(len(self.applications) + 1, self.step, rule, sources, place))

    def resume(self, numbered: int, applications: Iterable[Application]) -> None:
        """Keep the first ``numbered`` applications, and let others come behind them, numbered on."""
        del self.applications[numbered:]
        self.applications.extend(replace(one, number=number) for number, one in enumerate(applications, numbered + 1))
