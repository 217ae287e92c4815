"""In which order the weights of a layer lie for a sparse kernel: input channels side by side.

A product sums over K inputs. A convolution sums over channels and over the positions of its kernel; sparse kernels
read it as one product per position, so that groups lie along the channels and never across positions. The stored order
is the other way around (all positions of a channel, then the next channel).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optc.ir.facts import Facts
from optc.passes.compress.layers import Layer


@dataclass(frozen=True)
class Columns:
    """The columns of a weight matrix (N, K), K being all positions of channel 0, then of channel 1, and so on.

    Attributes:
        channels: Input channels (of one group of a convolution).
        taps: Positions of the kernel; 1 for products.
    """

    channels: int
    taps: int = 1

    @classmethod
    def of(cls, layer: Layer, facts: Facts) -> Columns:
        """The columns of a layer's :meth:`Layer.by_output`."""
        taps = int(np.prod((facts.shape(layer.weight) or ())[2:])) if layer.kind == "conv" else 1
        return cls(layer.rows // taps, taps)

    def channels_last(self, matrix: np.ndarray) -> np.ndarray:
        """(N, K) as (N, taps, channels)."""
        return matrix.reshape(len(matrix), self.channels, self.taps).swapaxes(1, 2)

    def stored(self, array: np.ndarray) -> np.ndarray:
        """(N, taps, channels) as (N, K)."""
        return np.ascontiguousarray(array.swapaxes(1, 2)).reshape(len(array), -1)

    @property
    def order(self) -> np.ndarray:
        """(K,): the columns in the order of a sparse kernel, all channels of position 0 first."""
        return np.arange(self.channels * self.taps).reshape(self.channels, self.taps).T.reshape(-1)

    def groups(self, size: int) -> list[slice]:
        """Groups of channels of one position each, as ranges of :attr:`order`; the last one of each may be shorter."""
        return [
            slice(start + first, start + min(first + size, self.channels))
            for start in range(0, self.channels * self.taps, self.channels)
            for first in range(0, self.channels, size)
        ]

    def moved(self, order: np.ndarray) -> np.ndarray:
        """(K,): where every column comes from if channel i is what channel ``order[i]`` was."""
        return (order[:, None] * self.taps + np.arange(self.taps)).reshape(-1)
