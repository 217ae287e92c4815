"""One streaming pass over calibration data: requests in, :class:`~optc.passes.calibration.store.Statistics` out.

Values are made outputs of a copy of the model, in groups that fit into a budget of memory; all samples run once per
group, and only what the group's outputs depend on is run. The state is written down now and then, so that a sweep that
was killed goes on where it was, and one that is finished is not run again.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir

from optc.ir.errors import DataError
from optc.ir.facts import Facts
from optc.ir.printer import print_model
from optc.passes.calibration.folder import SweepFolder
from optc.passes.calibration.histogram import SIDE
from optc.passes.calibration.moments import ROWS_AT_ONCE
from optc.passes.calibration.store import Inner, Record, Request, Statistics, Wanted, union
from optc.passes.calibration.taps import Opener, keep_only, needed, shapes_of, values_of
from optc.passes.calibration.views import Patches

#: Part of every key: another format, another key.
_FORMAT = 1
#: Bytes of activations and accumulators that one run may hold.
BUDGET = 1 << 30
#: Samples whose shapes are looked at to size the groups.
_MEASURED = 3


class Samples(Protocol):
    """Calibration data that can be iterated over any number of times, one dict of arrays by input name at a time."""

    @property
    def real(self) -> bool:
        """Whether they are the user's; False for inputs drawn from the model's signature."""

    @property
    def digest(self) -> str:
        """A digest of all arrays in order."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]: ...


def sweep(
    model: onnx_ir.Model,
    requests: Iterable[Request],
    samples: Samples,
    opener: Opener,
    *,
    folder: Path | None = None,
    budget: int = BUDGET,
    seed: int = 0,
    save_every: float = 30.0,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Gather statistics of a model's values.

    Args:
        model: The model; it is not changed.
        requests: What is wanted. What cannot be had is left out, with a reason (:meth:`Statistics.why_not`).
        samples: The data.
        opener: Opens the copies that are run.
        folder: Where sweeps are kept, each under a digest of all that goes into it. None keeps nothing.
        budget: Bytes that one run may hold, about: activations that are looked at, and what is gathered of them.
        seed: Of draws of rows and positions.
        save_every: Seconds between writing the state down, more where that takes long; 0 for after every sample.
        progress: Is told after every sample: (samples done, samples in all), every group counted.

    Raises:
        DataError: There are no samples, or another number of them than at first.
        OutputError: The folder cannot be written to.
    """
    if len(samples) == 0:
        raise DataError("there are no samples to calibrate with", hint="give at least one")
    return _Sweep(model, union(requests), samples, opener, budget, seed, save_every, progress).run(folder)


def key_of(model: onnx_ir.Model, wanted: Mapping[str, Wanted], samples: Samples, budget: int, seed: int) -> str:
    """A digest of all that decides what a sweep finds."""
    digest = hashlib.sha256(repr((_FORMAT, samples.digest, len(samples), budget, seed)).encode())
    digest.update(print_model(model).encode())
    for name in sorted(wanted):
        digest.update(f"{name}\0{wanted[name].text()}\0".encode())
    return digest.hexdigest()[:32]


class _Sweep:
    """One sweep."""

    def __init__(
        self,
        model: onnx_ir.Model,
        wanted: Mapping[str, Wanted],
        samples: Samples,
        opener: Opener,
        budget: int,
        seed: int,
        save_every: float,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.wanted, self.samples, self.opener = model, wanted, samples, opener
        self.budget, self.seed, self.save_every = budget, seed, save_every
        self.progress = progress or (lambda done, total: None)

    def run(self, folder: Path | None) -> Statistics:
        keep = (
            tempfile.TemporaryDirectory(prefix="optc-statistics-", ignore_cleanup_errors=True)
            if folder is None
            else None
        )
        root = Path(keep.name) if keep is not None else folder
        assert root is not None
        name = key_of(self.model, self.wanted, self.samples, self.budget, self.seed) if keep is None else "sweep"
        place = SweepFolder(root / name)
        plan = place.plan()
        if plan is None:
            plan = self._plan()
        place.write_plan(plan)  # also tells when it was last used
        groups: list[list[str]] = plan["groups"]
        total = len(groups) * len(self.samples)
        records: dict[str, Mapping[str, np.ndarray]] = {}
        for number, names in enumerate(groups):
            found = place.finished(number)
            if found is None:
                self._gather(place, number, names, total)
                found = place.finished(number)
                assert found is not None
            self.progress((number + 1) * len(self.samples), total)
            for index, value in enumerate(names):
                records[value] = Inner(found, f"{index}|")
        return Statistics(records, plan["missing"], samples=len(self.samples), real=self.samples.real, keep=keep)

    # -- planning ---------------------------------------------------------------------------------------------------

    def _plan(self) -> dict[str, Any]:
        """Which values can be had, in groups by memory, in the graph's order."""
        there = values_of(self.model.graph)
        facts = Facts(self.model)
        missing = {name: reason for name in self.wanted if (reason := _why_not(there.get(name), facts)) is not None}
        names = [name for name in there if name in self.wanted and name not in missing]
        if not names:
            return {"groups": [], "missing": missing}
        sizes = shapes_of(self.model, names, itertools.islice(self.samples, _MEASURED), self.opener)
        groups: list[list[str]] = []
        used = self.budget
        for name in names:
            size = _bytes(sizes[name], self.wanted[name])
            if used + size > self.budget:
                groups.append([])
                used = 0
            groups[-1].append(name)
            used += size
        return {"groups": groups, "missing": missing}

    # -- gathering --------------------------------------------------------------------------------------------------

    def _gather(self, place: SweepFolder, number: int, names: Sequence[str], total: int) -> None:
        records = [Record(name, self.wanted[name], self.seed) for name in names]
        done = 0
        state = place.partial(number)
        if state is not None:
            done, arrays = state
            for index, record in enumerate(records):
                record.restore(Inner(arrays, f"{index}|"))
        copy = self.model.clone()
        there = values_of(copy.graph)
        keep_only(copy.graph, [there[name] for name in names if not there[name].is_graph_input()])
        run = self.opener(copy) if len(copy.graph.outputs) else None
        due = time.monotonic() + self.save_every
        count = 0
        for count, sample in enumerate(self.samples, 1):
            if count <= done:
                continue
            found = run.run(needed(copy.graph, sample)) if run is not None else {}
            for record in records:
                record.add(found.pop(record.name) if record.name in found else sample[record.name], count)
            self.progress(number * len(self.samples) + count, total)
            if time.monotonic() >= due and count < len(self.samples):
                start = time.monotonic()
                place.write(number, _written(records), count)
                end = time.monotonic()
                due = end + (max(self.save_every, 10 * (end - start)) if self.save_every else 0)
        if count != len(self.samples):
            raise DataError(
                f"the calibration data gave {len(self.samples)} samples at first and {count} later",
                hint="it must give the same samples every time it is iterated over",
            )
        place.write(number, _written(records))


def _written(records: Sequence[Record]) -> dict[str, np.ndarray]:
    return {f"{index}|{key}": array for index, record in enumerate(records) for key, array in record.state().items()}


def _bytes(shape: tuple[int, ...], wanted: Wanted) -> int:
    """About how many bytes it takes to look at a value: its array twice (the runtime's and ours), and what is kept."""
    size = 2 * 4 * math.prod(shape) + (2 * SIDE * 8 if wanted.histogram else 0)
    for view in {*wanted.grams, *wanted.rows}:
        if isinstance(view, Patches):
            width = (shape[1] if len(shape) > 1 else 1) * math.prod(view.kernel)
        else:
            width = shape[view.axis] if -len(shape) <= view.axis < len(shape) else 1
        size += 4 * width * wanted.rows.get(view, 0)
        if view in wanted.grams:
            size += 4 * width * width // view.groups + 4 * ROWS_AT_ONCE * width
    return size


def _why_not(value: onnx_ir.Value | None, facts: Facts) -> str | None:
    if value is None or facts.is_const(value):
        return "the main graph has no such value, or it is constant"
    if value.type is not None and not isinstance(value.type, onnx_ir.TensorType):
        return "it is no tensor"
    dtype = facts.dtype(value)
    if dtype is None or not dtype.is_floating_point():
        return f"it holds {dtype.name.lower() if dtype is not None else 'an unknown type'}, no floats"
    return None
