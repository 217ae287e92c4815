"""The cheapest way to divide things between two sides: a minimum cut."""

from __future__ import annotations

import math
from collections import deque

#: Capacities are added up as floats; what is smaller than this share of the largest one is none.
_TINY = 1e-12


class Cut:
    """Things that are put on one of two sides, "low" or "high", at the least cost (Greig, Porteous and Seheult, 1989).

    The cut is found by the largest flow (Dinic, 1970).
    """

    def __init__(self) -> None:
        self._heads: list[list[int]] = [[], []]  # of each vertex: its edges; the first two are the sides
        self._to: list[int] = []
        self._room: list[float] = []

    def thing(self, low: float = 0.0, high: float = 0.0) -> int:
        """A new thing, with what it costs on either side (``math.inf``: it must not be there)."""
        self._heads.append([])
        number = len(self._heads) - 1
        self._edge(_LOW, number, high)
        self._edge(number, _HIGH, low)
        return number

    def apart(self, low: int, high: int, cost: float) -> None:
        """What it costs that the first thing is low while the second is high."""
        self._edge(low, high, cost)

    def low(self) -> set[int]:
        """The things on the low side of the cheapest division; of several, the one with the fewest low things."""
        self._push_all()
        return self._reached() - {_LOW}

    def _edge(self, start: int, end: int, room: float) -> None:
        if room <= 0:
            return
        for a, b, capacity in ((start, end, room), (end, start, 0.0)):
            self._heads[a].append(len(self._to))
            self._to.append(b)
            self._room.append(capacity)

    def _reached(self) -> set[int]:
        tiny = self._tiny
        seen, queue = {_LOW}, deque([_LOW])
        while queue:
            for edge in self._heads[queue.popleft()]:
                if self._room[edge] > tiny and self._to[edge] not in seen:
                    seen.add(self._to[edge])
                    queue.append(self._to[edge])
        return seen

    def _push_all(self) -> None:
        finite = [room for room in self._room if room < math.inf]
        self._tiny = _TINY * max(finite, default=0.0)
        while (levels := self._levels())[_HIGH] is not None:
            left = [iter(edges) for edges in self._heads]
            edges = [next(each, None) for each in left]
            while self._push_one(levels, left, edges):
                pass

    def _levels(self) -> list[int | None]:
        levels: list[int | None] = [None] * len(self._heads)
        levels[_LOW] = 0
        queue = deque([_LOW])
        while queue:
            vertex = queue.popleft()
            for edge in self._heads[vertex]:
                if self._room[edge] > self._tiny and levels[self._to[edge]] is None:
                    levels[self._to[edge]] = (levels[vertex] or 0) + 1
                    queue.append(self._to[edge])
        return levels

    def _push_one(self, levels: list[int | None], left: list, edges: list[int | None]) -> bool:
        """Send flow along one path of growing levels; whether there was one."""
        path: list[int] = []
        vertex = _LOW
        while vertex != _HIGH:
            edge = edges[vertex]
            if edge is None:
                if not path:
                    return False
                vertex = self._to[path.pop() ^ 1]  # a dead end: the edge that led here leads nowhere
                edges[vertex] = next(left[vertex], None)
            elif self._room[edge] > self._tiny and levels[self._to[edge]] == (levels[vertex] or 0) + 1:
                path.append(edge)
                vertex = self._to[edge]
            else:
                edges[vertex] = next(left[vertex], None)
        amount = min(self._room[edge] for edge in path)
        if amount == math.inf:
            raise ValueError("something must be on both sides")
        for edge in path:
            self._room[edge] -= amount
            self._room[edge ^ 1] += amount
        return True


_LOW, _HIGH = 0, 1
