"""Statistics of a model's values over calibration data: the service that lossy passes ask.

Passes see it as ``services["statistics"]``; how a sweep works is said in :mod:`optc.passes.calibration`. Sweeps over
the user's data are kept in a folder, so that one that was interrupted goes on, and a finished one is not run again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path

import onnx_ir

from optc.backends.ort import OnnxRuntimeBackend
from optc.ir.errors import OutputError
from optc.measure import Measure
from optc.options import Options
from optc.passes.calibration.folder import make_room
from optc.passes.calibration.store import Request, Statistics
from optc.passes.calibration.sweep import sweep
from optc.progress import Progress

#: Bytes that all sweeps kept in one folder may take; those used longest ago go first.
_KEPT_BYTES = 4 << 30
_STAGE = "calibrate"


class Collector:
    """Gathers statistics on one compile's calibration data, or on inputs drawn from the signature without any.

    Args:
        measure: Has the data.
        options: Seed of draws, and where to keep sweeps.
        progress: Is told how far it is.
    """

    def __init__(self, measure: Measure, options: Options, progress: Progress) -> None:
        self._measure, self._options, self._progress = measure, options, progress
        self._found: list[Statistics] = []

    @property
    def real(self) -> bool:
        """Whether the data are the user's, so that ranges of activations mean something."""
        return self._measure.samples.real

    def collect(self, model: onnx_ir.Model, requests: Iterable[Request]) -> Statistics:
        """Statistics of a model that takes the inputs of the original, by the names of its values.

        Raises:
            OptcError: The data do not fit, the model does not run, or the state cannot be written.
        """
        samples = self._measure.holdout.fitted
        folder = self._folder if samples.real else None
        told = 0

        def tell(done: int, total: int) -> None:
            nonlocal told
            if not told:
                self._progress.start(_STAGE, total)
            self._progress.advance(_STAGE, done - told, "samples")
            told = done

        self._progress.start(_STAGE)
        try:
            found = sweep(
                model,
                requests,
                samples,
                partial(OnnxRuntimeBackend().runner, plain=True, few_runs=True),
                folder=folder,
                seed=self._options.seed,
                progress=tell,
            )
        finally:
            self._progress.finish(_STAGE)
        if folder is not None:
            make_room(folder, _KEPT_BYTES)
        self._found.append(found)
        return found

    def notes(self) -> list[str]:
        """What the user should know of the activations: which were not finite."""
        odd = {name: counts for found in self._found for name, counts in found.odd().items()}
        return [
            f"the activations {name!r} hold {nan} NaN and {infinite} infinite values on {self._measure.source}; "
            "they were left out of all statistics"
            for name, (nan, infinite) in odd.items()
        ]

    @cached_property
    def _folder(self) -> Path | None:
        """Where sweeps are kept; None for nowhere."""
        chosen = self._options.calib_cache
        if chosen == "off":
            return None
        folder = Path(chosen) if chosen is not None else user_cache(sys.platform, os.environ) / "statistics"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if chosen is not None:
                raise OutputError.of(error, folder) from error
            return None
        return folder if chosen is not None or os.access(folder, os.W_OK) else None


def user_cache(platform: str, environ: Mapping[str, str]) -> Path:
    """Where a user's caches belong: XDG Base Directory on Linux, and what other systems have in its place."""
    if platform == "win32" and "LOCALAPPDATA" in environ:
        return Path(environ["LOCALAPPDATA"]) / "optc" / "Cache"
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "optc"
    # The specification has relative paths ignored.
    given = environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "optc"
