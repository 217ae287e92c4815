"""Convolutions as chains of smaller ones: Tucker-2, and columns then rows of the kernel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from optc.passes.compress.lowrank.cuts import Cut, Look, Stage
from optc.passes.compress.lowrank.patches import Chain, Kernel
from optc.passes.compress.lowrank.spectrum import Spectrum
from optc.passes.compress.lowrank.window import Window


class _Chained:
    """What the two forms of convolutions with larger kernels have in common.

    Args:
        window: Their geometry.
        weight: (groups, N, C, T), see :mod:`optc.passes.compress.lowrank.patches`.
        look: Tells what is known of the patches; that is large, and so not held.
        prefix: Of labels.
    """

    kind = ""

    def __init__(self, window: Window, weight: np.ndarray, look: Look, prefix: str) -> None:
        self._window, self._weight, self._look, self._prefix = window, weight, look, prefix
        self._chains: dict[tuple[int, ...], Chain] = {}

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        """Groups, outputs of each, channels of each, taps."""
        groups, count, channels, taps = self._weight.shape
        return groups, count, channels, taps

    @property
    def _kernel(self) -> Kernel:
        seen = self._look()
        return Kernel(self._weight, seen.gram, seen.damping)

    @cached_property
    def _spectra(self) -> tuple[Spectrum, Spectrum]:
        """Energies of channels and outputs."""
        kernel = self._kernel
        return kernel.channels.kept(0), kernel.outputs.kept(0)

    def hopeless(self, rank: int, error: float) -> bool:
        return False

    def forget(self, rank: int) -> None:
        self._chains.clear()

    def work(self, *ranks: int) -> float:
        groups, count, channels, taps = self._sizes
        return sum(self._multiplications(*ranks)) / (groups * count * channels * taps)

    def ladder(self, step: int) -> list[tuple[int, ...]]:
        """The best ranks for what they cost, as the spectra of channels and outputs have it."""
        ranges = [range(step, limit + 1, step) for limit in self.limits]
        found = sorted((self.work(*ranks), self._expected(*ranks), ranks) for ranks in itertools.product(*ranges))
        best, frontier = math.inf, []
        for work, expected, ranks in found:
            if work < 1 and expected < best:
                best = expected
                frontier.append(ranks)
        return frontier

    def cut(self, *ranks: int) -> Cut:
        return Cut(
            ranks=ranks,
            label=f"{self._prefix}{self.kind}-r{'x'.join(map(str, ranks))}",
            weights=self._weights(*ranks),
            work=self.work(*ranks),
            inner=self._inner(*ranks),
            expected=self._expected(*ranks),
            stages=lambda: self._stages(self._chain(*ranks)),
            judge=lambda: self._chain(*ranks).error,
        )

    def _chain(self, *ranks: int) -> Chain:
        if ranks not in self._chains:
            self._chains[ranks] = self._kernel.chain(*ranks)
        return self._chains[ranks]

    @property
    def limits(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _expected(self, *ranks: int) -> float:
        raise NotImplementedError

    def _multiplications(self, *ranks: int) -> Sequence[float]:
        raise NotImplementedError

    def _weights(self, *ranks: int) -> int:
        raise NotImplementedError

    def _inner(self, *ranks: int) -> float:
        raise NotImplementedError

    def _stages(self, chain: Chain) -> list[Stage]:
        raise NotImplementedError


class Tucker(_Chained):
    """1x1, the kernel between fewer channels, 1x1."""

    kind = "tucker"

    @property
    def limits(self) -> tuple[int, ...]:
        _, count, channels, taps = self._sizes
        return min(channels, count * taps), min(count, channels * taps)

    def _expected(self, *ranks: int) -> float:
        mixed, outputs = ranks
        channels, made = self._spectra
        return math.hypot(channels.error(mixed), made.error(outputs))

    def _multiplications(self, *ranks: int) -> Sequence[float]:
        groups, count, channels, taps = self._sizes
        mixed, outputs = ranks
        places = math.prod(self._window.strides)
        return groups * mixed * channels * places, groups * outputs * mixed * taps, groups * count * outputs

    def _weights(self, *ranks: int) -> int:
        groups, count, channels, taps = self._sizes
        mixed, outputs = ranks
        return groups * (mixed * channels + outputs * mixed * taps + count * outputs)

    def _inner(self, *ranks: int) -> float:
        return self._sizes[0] * (ranks[0] * math.prod(self._window.strides) + ranks[1])

    def _stages(self, chain: Chain) -> list[Stage]:
        window, (groups, count, channels, _) = self._window, self._sizes
        assert chain.last is not None
        ones = (1,) * len(window.kernel)
        mixed, outputs = chain.mix.shape[1], chain.core.shape[1]
        return [
            _stage(chain.mix.reshape(groups * mixed, channels, *ones), window.plain),
            _stage(chain.core.reshape(groups * outputs, mixed, *window.kernel), window.whole),
            _stage(chain.last.reshape(groups * count, outputs, *ones), window.plain),
        ]


class Spatial(_Chained):
    """A column of the kernel, then a row of it."""

    kind = "spatial"

    @property
    def limits(self) -> tuple[int, ...]:
        _, count, channels, taps = self._sizes
        return (min(channels, count * taps),)

    def _expected(self, *ranks: int) -> float:
        return self._spectra[0].error(ranks[0])

    def _multiplications(self, *ranks: int) -> Sequence[float]:
        groups, count, channels, taps = self._sizes
        return groups * ranks[0] * channels * self._window.strides[1], groups * count * ranks[0] * taps

    def _weights(self, *ranks: int) -> int:
        groups, count, channels, taps = self._sizes
        return groups * ranks[0] * (channels + count * taps)

    def _inner(self, *ranks: int) -> float:
        return self._sizes[0] * ranks[0] * self._window.strides[1]

    def _stages(self, chain: Chain) -> list[Stage]:
        window, (groups, count, channels, taps) = self._window, self._sizes
        height, rank = window.kernel[0], chain.mix.shape[1]
        return [
            _stage(chain.mix.reshape(groups * rank, channels // height, height, 1), window.along(0)),
            _stage(chain.core.reshape(groups * count, rank, 1, taps), window.along(1)),
        ]


def _stage(weight: np.ndarray, attributes: Mapping[str, Any]) -> Stage:
    return Stage(np.ascontiguousarray(weight, np.float32), attributes)
