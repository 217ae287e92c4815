"""What all forms of layers at low rank have in common: ranks, what they cost, and what is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from optc.passes.compress.lowrank.inputs import Seen

#: Tells what is known of a layer's inputs.
Look = Callable[[], Seen]


@dataclass(frozen=True)
class Stage:
    """One of the smaller layers.

    Attributes:
        weight: (N, K) of a product, the kernel of a convolution; float32.
        attributes: Of the convolution.
    """

    weight: np.ndarray
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """A layer at certain ranks.

    Attributes:
        ranks: One or two.
        label: What reports call it ("low-rank-r64", "tucker-r32x48"); "plain-" before it says that nothing was known
            of the layer's inputs.
        weights: How many there are in all stages.
        work: Share of the layer's multiplications that is left.
        inner: Numbers that pass between the stages for each row or pixel of the result.
        expected: Relative L2 error of the layer's output: exact for products, about so for chains of convolutions.
        judge: Finds the exact error, where ``expected`` is not, which may take a while.
        stages: What to write, first to last.
    """

    ranks: tuple[int, ...]
    label: str
    weights: int
    work: float
    inner: float
    expected: float
    stages: Callable[[], list[Stage]] = field(compare=False, repr=False)
    judge: Callable[[], float] | None = field(default=None, compare=False, repr=False)

    @property
    def error(self) -> float:
        """Relative L2 error of the layer's output, exact for what is known of its inputs."""
        return self.expected if self.judge is None else self.judge()


class Form(Protocol):
    """One way to write a layer as smaller ones.

    Attributes:
        kind: Its name.
    """

    kind: str

    @property
    def limits(self) -> tuple[int, ...]:
        """The largest ranks."""

    def cut(self, *ranks: int) -> Cut:
        """The layer at ranks from 1 to :attr:`limits`."""

    def work(self, *ranks: int) -> float:
        """Share of the layer's multiplications that is left at ranks."""

    def ladder(self, step: int) -> list[tuple[int, ...]]:
        """Ranks worth looking at, multiples of ``step``, by growing work; all do less work than the layer itself."""

    def hopeless(self, rank: int, error: float) -> bool:
        """Whether it is certain without much work that no smaller error than this is had at a rank."""

    def forget(self, rank: int) -> None:
        """Let go of what ranks above this would need; nothing holds more than the layer's own weights after that."""
