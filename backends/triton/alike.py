"""Generated kernels of the same size that do not need each other, as one launch: copies into two caches, say."""

from __future__ import annotations

from collections.abc import Sequence

from optc.backends.triton.groups import Group
from optc.ir.dims import equal

#: Writes of one kernel at most: what it computes for all of them is in registers at a time.
_MOST = 4


def joined(groups: Sequence[Group]) -> list[Group]:
    """Groups in the order in which they run, those that are alike and next to each other joined.

    A group moves up only past other generated kernels, so that what it writes does not live much longer.
    """
    found: list[Group] = []
    for group in groups:
        into = _partner(group, found)
        if into is None:
            found.append(group)
            continue
        into.stores += group.stores
        into.nodes += group.nodes
    return found


def _partner(group: Group, before: Sequence[Group]) -> Group | None:
    """The last group that another can be joined to."""
    if group.kernel != "pointwise":
        return None
    reads, writes = group.reads(), group.writes()
    for other in reversed(before):
        if other.kernel != "pointwise" or reads & other.writes():
            return None
        fits = len(other.stores) + len(group.stores) <= _MOST and equal(other.sizes["COUNT"], group.sizes["COUNT"])
        if fits and not writes & other.reads():
            return other
        if writes & other.reads():
            return None
    return None
