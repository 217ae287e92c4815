"""What single layers cost: measured where the target's runtime is here, estimated where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from optc.passes.compress.layers import Layer
from optc.passes.compress.techniques import Option, Study, Trial, as_it_is

#: Seconds spent on timing one option of one shape.
_TRIAL_SECONDS = 0.25


class Clock:
    """Seconds per call of layers and their options; once per shape, all options of it in turns."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._seconds: dict[tuple[Any, ...], float] = {}

    @property
    def measures(self) -> bool:
        """Whether times are measured, not estimated."""
        return self.study.measure.why_not_timed is None

    def seconds(self, layer: Layer, option: Option | None, options: Sequence[Option]) -> float:
        """Time of a layer with an option of it, or as it is (None); ``options`` are all those of the layer."""
        if not self.measures:
            return estimated_seconds(self.study, layer, option)
        attributes = tuple(sorted((name, str(attr.value)) for name, attr in layer.node.attributes.items()))
        shape = (layer.kind, layer.rows, layer.columns, layer.groups, self.study.sizes(layer), attributes)
        key = (*shape, option.label if option else None)
        if key not in self._seconds:
            trials: dict[str | None, Trial] = {None: as_it_is(self.study, layer)}
            trials |= {
                other.label: other.trial()
                for other in options
                if other.trial is not None and (*shape, other.label) not in self._seconds
            }
            runs = {str(label): (self.study.measure.open(trial.model), trial.feeds) for label, trial in trials.items()}
            calls = {label: partial(run.run, feeds) for label, (run, feeds) in runs.items()}
            measured = self.study.measure.time(calls, _TRIAL_SECONDS * len(calls))
            # What is timed later is held against what the layer as it is took then.
            base = self._seconds.setdefault((*shape, None), measured[str(None)])
            drift = base / measured[str(None)]
            self._seconds |= {(*shape, label): measured[str(label)] * drift for label in trials if label is not None}
            self._seconds.setdefault(key, base)
        return self._seconds[key]


def estimated_seconds(study: Study, layer: Layer, option: Option | None) -> float:
    """The roofline estimate of a layer's time: arithmetic at the peak rate or memory at full bandwidth, what is longer.

    See Williams, Waterman and Patterson, "Roofline" (2009). An estimate: launches, caches and how near a kernel comes
    to the peak are left out.
    """
    x = study.sizes(layer)
    count = int(np.prod(x)) // (layer.rows * layer.groups) if layer.kind == "conv" else int(np.prod(x[:-1]))
    rates = study.target.peak
    single, half = rates.get("fp32") or 1e12, max(rates.get("fp16", 0.0), rates.get("bf16", 0.0))
    # What stays in floats goes into 16 bits in the end, where these are faster.
    width, floats = (2, half) if half > single else (4, single)
    size = width * layer.rows * layer.columns if option is None else option.bytes
    work, inner = (1.0, 0.0) if option is None else (option.work, option.inner)
    moved = size + width * (int(np.prod(x)) + count * (layer.columns + 2 * inner))
    rate = floats if option is None or option.precision == "fp32" else rates.get(option.precision) or floats
    return max(2.0 * count * layer.rows * layer.columns * work / rate, moved / (study.target.bandwidth or 1e11))
