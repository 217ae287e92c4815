"""Statistics of a model's values over calibration data: the service that lossy passes ask.

Passes see it as ``services["statistics"]``; how a sweep works is said in :mod:`optc.passes.calibration`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import onnx_ir

from optc.backends.ort import Session
from optc.measure import Measure
from optc.passes.calibration.store import Request, Statistics
from optc.passes.calibration.sweep import sweep
from optc.progress import Progress


class Collector:
    """Gathers statistics on one compile's calibration data, or on inputs drawn from the signature without any.

    Args:
        measure: Has the data.
        progress: Is told how far it is.
        seed: Of draws of rows and positions.
    """

    def __init__(self, measure: Measure, progress: Progress, seed: int = 0) -> None:
        self._measure, self._progress, self._seed = measure, progress, seed

    def collect(self, model: onnx_ir.Model, requests: Iterable[Request]) -> Statistics:
        """Statistics of a model that takes the inputs of the original, by the names of its values.

        Raises:
            OptcError: The data do not fit, the model does not run, or the state cannot be written.
        """
        stage = "calibrate"
        samples = self._measure.data_set
        self._progress.start(stage)

        told = 0

        def tell(done: int, total: int) -> None:
            nonlocal told
            if not told:
                self._progress.start(stage, total)
            self._progress.advance(stage, done - told)
            told = done

        try:
            return sweep(
                model,
                requests,
                samples,
                partial(Session, optimization="off", spinning=False),
                seed=self._seed,
                progress=tell,
            )
        finally:
            self._progress.finish(stage)
