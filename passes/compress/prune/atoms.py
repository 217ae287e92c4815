"""Positions along axes, and which of them can only be removed together.

Every position of an axis that could be shortened is an atom, a number. Operators tie atoms (the output channel of one
layer is the input channel of the next) or freeze them (what the caller reads has to stay). What is tied together is a
unit: it is removed as a whole or not at all. The idea is that of DepGraph (Fang et al., "DepGraph: Towards Any
Structural Pruning", 2023), kept per position instead of per layer, so that concatenations, heads and groups need no
special case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

#: Atoms of one axis, in its order: (size,) int64.
Ids = np.ndarray
#: Atoms of all axes of a value; None for an axis whose size is no number that is known.
Axes = tuple["Ids | None", ...]


@dataclass
class Atoms:
    """All atoms of one model, while they are being tied."""

    count: int = 0
    _pairs: list[tuple[Ids, Ids]] = field(default_factory=list)
    _frozen: list[tuple[Ids, str]] = field(default_factory=list)
    _marks: dict[str, list[Ids]] = field(default_factory=dict)

    def fresh(self, size: int) -> Ids:
        """New atoms, tied to nothing."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def tie(self, first: Ids, second: Ids) -> None:
        """Position by position, these go together; shapes are broadcast."""
        a, b = np.broadcast_arrays(first, second)
        if a.size and not np.array_equal(a, b):
            self._pairs.append((a.reshape(-1), b.reshape(-1)))

    def freeze(self, ids: Ids, reason: str) -> None:
        """These stay."""
        if ids.size:
            self._frozen.append((ids.reshape(-1), reason))

    def mark(self, ids: Ids, kind: str) -> None:
        """Say what these are."""
        self._marks.setdefault(kind, []).append(ids.reshape(-1))

    def solve(self) -> Units:
        """What follows from all ties."""
        roots = _components(self.count, self._pairs)
        reasons: list[str] = []
        frozen = np.full(self.count, -1, np.int32)
        for ids, reason in self._frozen:
            mine = roots[ids]
            frozen[mine] = np.where(frozen[mine] < 0, len(reasons), frozen[mine])
            reasons.append(reason)
        marks = {kind: _flags(self.count, (roots[ids] for ids in parts)) for kind, parts in self._marks.items()}
        return Units(roots, frozen, reasons, marks)


@dataclass(frozen=True)
class Units:
    """Which atoms are one unit.

    Attributes:
        roots: Of every atom, the smallest atom of its unit.
        frozen: Of every root, the index of the first reason why the unit stays; -1 if it may go.
        reasons: The reasons.
        marks: By kind, of every root whether an atom of the unit was marked so.
    """

    roots: np.ndarray
    frozen: np.ndarray
    reasons: list[str]
    marks: dict[str, np.ndarray]

    def free(self, ids: Ids) -> np.ndarray:
        """Of every atom, whether it may go."""
        return self.frozen[self.roots[ids]] < 0

    def why(self, ids: Ids) -> list[str]:
        """The reasons why some of these atoms stay, each once."""
        found = self.frozen[self.roots[ids]]
        return [self.reasons[index] for index in dict.fromkeys(found[found >= 0].tolist())]

    def is_marked(self, root: int, kind: str) -> bool:
        """Whether a unit was marked as of a kind."""
        return kind in self.marks and bool(self.marks[kind][root])


def _flags(count: int, parts: Iterable[np.ndarray]) -> np.ndarray:
    flags = np.zeros(count, bool)
    for part in parts:
        flags[part] = True
    return flags


def _components(count: int, pairs: list[tuple[Ids, Ids]]) -> np.ndarray:
    """The smallest member of every number's component: hooking and pointer jumping over all pairs at once."""
    parent = np.arange(count)
    if not pairs:
        return parent
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    while True:
        a, b = parent[first], parent[second]
        apart = a != b
        if not apart.any():
            return parent
        a, b = a[apart], b[apart]
        first, second = first[apart], second[apart]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(shorter := parent[parent], parent):
            parent = shorter
