"""Finding the rewrites of a pass that are to blame for what is wrong after it, so that only those are taken back.

The pass is run again on the graph before it, stopped after some of its applications: between none, which is right, and
all, which is wrong, a binary search finds the first application after which something is wrong. That rule is kept away
from that node and the pass is run whole; what is wrong still is looked for in the same way. A rule that was wrong at
several nodes is taken back everywhere. Where that does not help within some rounds, the whole pass has to go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from optc.ir.journal import Application
from optc.passes.veto import Veto

#: Rewrites that are taken back at most, and nodes at which a rule may be wrong before it is taken back everywhere.
_ROUNDS, _PLACES = 8, 3


class Ran(Protocol):
    """One run of a pass."""

    @property
    def applications(self) -> Sequence[Application]: ...

    @property
    def problem(self) -> str | None: ...


_A = TypeVar("_A", bound=Ran)


def isolate(
    attempt: Callable[[Sequence[Veto], int | None], _A], failed: _A, name: str
) -> tuple[_A, dict[Veto, str]] | None:
    """The pass without its guilty rewrites, each with what was wrong after it; None where they cannot be told.

    Args:
        attempt: Runs the pass on the graph before it, with vetoes and at most so many applications.
        failed: What the whole pass came to.
        name: The pass's own name: an application called so is not a rewrite that could be kept away by itself.
    """
    vetoes: dict[Veto, str] = {}
    places: Counter[str] = Counter()
    good = 0
    for _ in range(_ROUNDS):
        number, problem = _first_wrong(attempt, tuple(vetoes), failed, good)
        guilty = failed.applications[number - 1] if number else None
        if guilty is None or guilty.rule == name or not guilty.place:
            return None
        places[guilty.rule] += 1
        everywhere = places[guilty.rule] > _PLACES
        veto = Veto(guilty.step, guilty.rule, None if everywhere else frozenset(guilty.place))
        if everywhere:
            vetoes = {other: why for other, why in vetoes.items() if other.rule != guilty.rule}
        vetoes[veto] = problem
        # What came before the guilty application stays as it is, unless a rule is kept away from there now.
        good = 0 if everywhere else number - 1
        again = attempt(tuple(vetoes), None)
        if any(veto.forbids(one) for one in again.applications):
            return None  # the pass does not heed vetoes
        if again.problem is None:
            return again, vetoes
        failed = again
    return None


def _first_wrong(
    attempt: Callable[[Sequence[Veto], int | None], Ran], vetoes: Sequence[Veto], failed: Ran, good: int
) -> tuple[int, str]:
    """How many applications there are when something is wrong first, and what; ``good`` of them are known to be right.

    0 if there are none at all.
    """
    bad, reason = len(failed.applications), failed.problem or ""
    good, middle = min(good, bad - 1), bad - 1  # what raises is the last one
    while bad - good > 1:
        found = attempt(vetoes, middle).problem
        if found is None:
            good = middle
        else:
            bad, reason = middle, found
        middle = (good + bad) // 2
    return bad, reason
