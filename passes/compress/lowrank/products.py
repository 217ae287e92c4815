"""Products at low rank, and what computes as products do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optc.passes.compress.lowrank.cuts import Cut, Look, Stage
from optc.passes.compress.lowrank.spectrum import Spectrum, evened, least_error, spectrum
from optc.passes.compress.lowrank.window import Window

#: A spectrum of more than this many components takes long: a bound is looked at first.
_LARGE = 1536
#: The bound takes less time than the spectrum if its blocks have at most this share of the components.
_CHEAPER = 0.7


class Product:
    """``x @ W^T`` as two products; a convolution of single pixels as two."""

    kind = "low-rank"

    def __init__(self, weight: np.ndarray, look: Look, prefix: str, window: Window | None = None) -> None:
        self._weight, self._look, self._prefix, self._window = weight, look, prefix, window
        self._known: Spectrum | None = None

    @property
    def spectrum(self) -> Spectrum:
        if self._known is None:
            seen = self._look()
            self._known = spectrum(self._weight, seen.gram, seen.damping)
        return self._known

    def forget(self, rank: int) -> None:
        if self._known is not None:
            self._known = self._known.kept(rank)

    @property
    def limits(self) -> tuple[int, ...]:
        return (min(self._weight.shape[1:]),)

    def work(self, *ranks: int) -> float:
        _, count, width = self._weight.shape
        return ranks[0] * (count + width) / (count * width)

    def ladder(self, step: int) -> list[tuple[int, ...]]:
        return [(rank,) for rank in range(step, self.limits[0] + 1, step) if self.work(rank) < 1]

    def hopeless(self, rank: int, error: float) -> bool:
        rows = 3 * rank // 2
        if self.limits[0] <= _LARGE or len(self._weight) > 1 or rows > _CHEAPER * self.limits[0]:
            return False
        return least_error(self._weight, rank, rows, self._look().gram) > error

    def cut(self, *ranks: int) -> Cut:
        (rank,) = ranks
        groups, count, width = self._weight.shape
        return Cut(
            ranks=ranks,
            label=f"{self._prefix}{self.kind}-r{rank}",
            weights=groups * rank * (count + width),
            work=self.work(rank),
            inner=groups * rank,
            expected=self.spectrum.error(rank),
            stages=lambda: self._stages(rank),
        )

    def _stages(self, rank: int) -> list[Stage]:
        up, down = self.spectrum.factors(self._weight, rank)
        arrays = [down.reshape(-1, down.shape[2]), up.reshape(-1, up.shape[2])]
        if self._window is None:
            return [Stage(array) for array in arrays]
        ones = (1,) * len(self._window.kernel)
        return [
            Stage(array.reshape(*array.shape, *ones), attributes)
            for array, attributes in zip(arrays, (self._window.whole, self._window.plain), strict=True)
        ]


class SharedProducts(Product):
    """Products of one input with a first factor that they share; ``weights`` are (1, N_i, K) each."""

    kind = "low-rank"

    def __init__(self, weights: Sequence[np.ndarray], look: Look, prefix: str) -> None:
        stack, self._norms = evened(weights, look().gram)
        super().__init__(stack, look, f"{prefix}shared-")
        self._ends = np.cumsum([one.shape[1] for one in weights])[:-1]

    def _stages(self, rank: int) -> list[Stage]:
        """The shared factor, and those of each layer."""
        down, ups = super()._stages(rank)
        parts = np.split(ups.weight, self._ends)
        return [down, *(Stage((up * norm).astype(np.float32)) for up, norm in zip(parts, self._norms, strict=True))]
