"""What is known of the inputs of layers, as the algorithms want it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from optc.passes.calibration.store import Request, Statistics
from optc.passes.calibration.views import COLUMNS, Columns
from optc.passes.compress.layers import Layer
from optc.passes.compress.weights.gptq import Correlation


@dataclass(frozen=True)
class Inputs:
    """What is known of a layer's input: shared by all layers that read it.

    Attributes:
        gram: X^T X / n, (K, K).
    """

    gram: np.ndarray

    @cached_property
    def correlation(self) -> Correlation:
        """What GPTQ needs, columns of the largest energy first."""
        return Correlation.of(self.gram, act_order=True)

    @cached_property
    def energy(self) -> np.ndarray:
        """The mean square of each channel, (K,) float32."""
        return np.diagonal(self.gram).astype(np.float32)

    @cached_property
    def single(self) -> np.ndarray:
        """The Gram matrix in float32."""
        return self.gram.astype(np.float32)


class KnownInputs:
    """The inputs of layers, read from statistics when they are needed; only the last one is held.

    Args:
        statistics: Holds what :func:`gram_request` asks for; None where nothing is known or wanted.
    """

    def __init__(self, statistics: Statistics | None) -> None:
        self._statistics = statistics
        self._last: tuple[Request, Inputs] | None = None
        self._scales: dict[str, np.ndarray] = {}

    def scaled(self, name: str, scale: np.ndarray) -> None:
        """Take note that an input is divided by ``scale``, one factor per channel, since the statistics were made."""
        self._scales[name], self._last = scale, None

    def of(self, layer: Layer) -> Inputs | str | None:
        """What is known of a layer's input, or why nothing is; None where there are no statistics at all."""
        if self._statistics is None:
            return None
        request = gram_request(layer)
        if request is None:
            return "its input is not rows of numbers"
        if self._last is None or self._last[0] != request:
            problem = self._statistics.why_not(request)
            if problem is not None:
                return problem
            gram, scale = self._statistics.gram(request.value, request.view), self._scales.get(request.value)
            self._last = request, Inputs(gram if scale is None else gram / np.outer(scale, scale))
        return self._last[1]


def gram_request(layer: Layer) -> Request | None:
    """What is asked of the statistics for a product, or for a convolution of single pixels; None for other layers."""
    if layer.kind == "lookup":
        return None
    view = Columns(axis=1) if layer.kind == "conv" else COLUMNS
    return Request(layer.x.name or "", gram=True, view=view)
