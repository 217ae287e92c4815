"""Data in batches, in memory as long as they fit and on disk beyond that."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir

from optc.backends.base import ValueSpec
from optc.ir.errors import DataError
from optc.measure import squared_error
from optc.passes.calibration.taps import Opener, keep_only, needed, values_of
from optc.samples import Sample

#: Bytes of one shelf that may stay in memory.
IN_MEMORY = 1 << 28
Arrays = dict[str, np.ndarray]


class Shelf:
    """Batches by number, each of them arrays by name.

    Args:
        in_memory: Bytes that stay in memory; what comes later goes into a temporary folder.
    """

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._left = in_memory
        self._entries: list[Arrays | Path] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, arrays: Arrays) -> None:
        """Put a batch behind the others."""
        size = sum(array.nbytes for array in arrays.values())
        if size <= self._left:
            self._left -= size
            self._entries.append(arrays)
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="optc-recovery-", ignore_cleanup_errors=True)
        path = Path(self._folder.name) / f"{len(self._entries)}.npz"
        # What NumPy does not know of itself (bfloat16) would come back as raw bytes.
        with path.open("wb") as stream:
            known = {name: array.astype(np.float32) if _foreign(array) else array for name, array in arrays.items()}
            np.savez(stream, **known)  # type: ignore[arg-type]
        self._entries.append(path)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Arrays:
        entry = self._entries[index]
        if not isinstance(entry, Path):
            return entry
        with np.load(entry) as found:
            return {name: found[name] for name in found.files}

    def __iter__(self) -> Iterator[Arrays]:
        return (self[index] for index in range(len(self)))


def _foreign(array: np.ndarray) -> bool:
    return array.dtype.kind == "V" or array.dtype.name not in np.sctypeDict


def split(
    samples: Iterable[Sample], specs: Sequence[ValueSpec], batch: int, held: float, seed: int
) -> tuple[Shelf, Shelf]:
    """Samples as batches to learn from, and batches held out to judge by.

    Where all inputs have one symbolic dim in front, samples are cut along it and put together anew, so that a batch has
    ``batch`` rows of equal shapes; else every sample is a batch.

    Args:
        samples: The data.
        specs: The model's inputs.
        batch: Rows of a batch.
        held: The share that is held out.
        seed: Of the draw of what is held out.

    Raises:
        DataError: There are fewer than two samples.
    """
    by_row = _one_batch_dim(specs)
    rng = np.random.default_rng(seed)
    shelves = (Shelf(), Shelf())
    groups: dict[tuple[object, ...], list[Sample]] = {}
    count = 0

    def emit(which: int, rows: list[Sample]) -> None:
        joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]} if by_row else rows[0]
        shelves[which].add(joined)

    for row in _rows(samples, by_row):
        # The second one is held out whatever is drawn, so that there is something in both as soon as there can be.
        which = int(rng.random() < held or count == 1) if count else 0
        count += 1
        key = (which, *sorted((name, array.shape[1:]) for name, array in row.items())) if by_row else (which,)
        group = groups.setdefault(key, [])
        group.append(row)
        if len(group) == (batch if by_row else 1):
            emit(which, groups.pop(key))
    for key, group in groups.items():
        emit(int(key[0] == 1), group)
    if count < 2:
        raise DataError(
            "there is one sample only, and recovery holds some out to judge by", hint="give at least two, best hundreds"
        )
    return shelves


def _one_batch_dim(specs: Sequence[ValueSpec]) -> bool:
    """Whether all inputs have one and the same dim of any size in front."""
    fronts = {spec.shape[0] if spec.shape else 0 for spec in specs}
    front = fronts.pop() if len(fronts) == 1 else 0
    return isinstance(front, str) or (front is None and len(specs) == 1)


def _rows(samples: Iterable[Sample], by_row: bool) -> Iterator[Sample]:
    for sample in samples:
        if not by_row:
            yield sample
            continue
        for index in range(min(len(array) for array in sample.values())):
            yield {name: array[index : index + 1] for name, array in sample.items()}


def capture(
    model: onnx_ir.Model,
    names: Collection[str],
    inputs: Shelf,
    opener: Opener,
    told: Callable[[], None] = lambda: None,
) -> Shelf:
    """Values of a model on every batch of inputs.

    Args:
        model: The model; it is not changed.
        names: Values of its main graph, inputs included.
        inputs: What to feed.
        opener: Opens the copy that is run.
        told: Is called after every batch.
    """
    copy = model.clone()
    there = values_of(copy.graph)
    computed = [name for name in names if not there[name].is_graph_input()]
    keep_only(copy.graph, [there[name] for name in computed])
    runner = opener(copy) if computed else None
    shelf = Shelf()
    for feeds in inputs:
        found: Mapping[str, np.ndarray] = runner.run(needed(copy.graph, feeds)) if runner is not None else {}
        shelf.add({name: np.asarray(found[name] if name in found else feeds[name]) for name in names})
        told()
    return shelf


def relative_errors(expected: Shelf, actual: Shelf, pairs: Mapping[str, str]) -> dict[str, float]:
    """Relative L2 error of values over all batches.

    Args:
        expected: The original's values.
        actual: The compressed model's.
        pairs: Name in ``actual`` -> name in ``expected``.

    Returns:
        The error by name in ``actual``; inf where a number is not finite or shapes differ.
    """
    sums = {name: np.zeros(2) for name in pairs}
    for right, got in zip(expected, actual, strict=True):
        for name, other in pairs.items():
            fits = got[name].shape == right[other].shape
            sums[name] += squared_error(right[other], got[name]) if fits else np.inf
    return {name: _ratio(*totals) for name, totals in sums.items()}


def _ratio(error: float, norm: float) -> float:
    if not np.isfinite(error) or not np.isfinite(norm):
        return float("inf")
    return float(np.sqrt(error / norm)) if norm else (float("inf") if error else 0.0)
