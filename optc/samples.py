"""Samples: sets of a model's inputs, read one at a time and checked against what the model takes.

Where they come from is said in :mod:`optc.sources`. An array of a file, or of a dict of arrays, holds

* **one sample**, if it has the input's own rank;
* **a stack**, if it has one axis more, in front: sample ``i`` is ``array[i]``. Where the input's first dim is fixed (a
  batch of 1, say), an array of the input's own rank whose first dim is a multiple of it is a stack too: it is cut into
  pieces of that size;
* **one of several ragged samples**, if it is named ``name.0``, ``name.1``, ...: then shapes may differ.

All inputs must have the same number of samples; arrays with other names are an error, or labels where those are wanted.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from optc.array_files import ArraySource
from optc.backends.base import ValueSpec
from optc.ir.errors import DataError

Sample = dict[str, np.ndarray]


@dataclass(frozen=True)
class Item:
    """What a source gives: the arrays of one sample, its labels, and where it is from, as messages say it."""

    inputs: Mapping[str, np.ndarray]
    where: str
    labels: Mapping[str, Any]


class Source(Protocol):
    """Where samples come from."""

    @property
    def repeats(self) -> bool:
        """Whether it can be iterated over more than once."""

    @property
    def labels(self) -> dict[str, Any]:
        """Labels that belong to all samples together."""

    def __iter__(self) -> Iterator[Item]: ...


class Samples:
    """Checked samples that can be iterated over any number of times; only one of them is in memory.

    The source is read through once at the start: samples are checked and counted and get a digest, and what a source
    can give only once is kept in a temporary folder.

    Attributes:
        real: Whether they are the user's; False for inputs drawn from the model's signature.
        digest: A digest of all arrays in order.
        batches: The first dim of each sample's first input; 1 for a scalar.
        labels: What the source has beside the inputs: an array by name, or a list where shapes do not let them join.

    Raises:
        DataError: There are no samples, or one does not fit or is not finite: the message names the file (or what else
            it is from), the sample and the input.
    """

    def __init__(self, source: Source, specs: Sequence[ValueSpec], *, real: bool) -> None:
        self._source, self._specs, self.real = source, specs, real
        self._kept = None if source.repeats else _Kept()
        self.batches: list[int] = []
        labels: dict[str, list[Any]] = {}
        digest = hashlib.sha256()
        for item in source:
            sample = check_sample(item.inputs, specs, item.where)
            _check_finite(sample, item.where)
            _digest(sample, digest)
            for name, label in item.labels.items():
                labels.setdefault(name, []).append(np.asarray(label))
            if self._kept is not None:
                self._kept.add(sample)
            self.batches.append(next((len(array) for array in sample.values() if array.ndim), 1))
        self.digest = digest.hexdigest()
        self.labels: dict[str, Any] = {**source.labels, **{name: joined(parts) for name, parts in labels.items()}}

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Sample]:
        if self._kept is not None:
            return iter(self._kept)
        return (check_sample(item.inputs, self._specs, item.where) for item in self._source)

    def first(self, count: int) -> list[Sample]:
        """The first few, in memory."""
        return list(itertools.islice(self, count))


def check_sample(sample: Mapping[str, np.ndarray], specs: Sequence[ValueSpec], where: str | None = None) -> Sample:
    """The sample with every array converted to its input's element type where that loses nothing but precision.

    Raises:
        DataError: Names, element types, ranks, fixed dims, or two dims of the same name do not agree.
    """
    known = {spec.name: spec for spec in specs}
    wrong = [f"'{name}' is missing" for name in known if name not in sample]
    wrong += [f"'{name}' is not an input" for name in sample if name not in known]
    if wrong:
        raise DataError(
            "; ".join(wrong), where=where, hint=f"the model takes {'; '.join(map(str, specs)) or 'no inputs'}"
        )
    checked: Sample = {}
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        array = _convert(sample[spec.name], spec, where)
        _check_shape(array, spec, sizes, where)
        checked[spec.name] = array
    return checked


def cut(arrays: Mapping[str, ArraySource], specs: Sequence[ValueSpec], where: str) -> Iterator[Sample]:
    """The samples in a set of arrays, one after the other.

    Raises:
        DataError: A name is unknown, or the inputs differ in their number of samples.
    """
    known = {spec.name: spec for spec in specs}
    ragged: dict[int, dict[str, ArraySource]] = {}
    stacked: dict[str, ArraySource] = {}
    for key, array in arrays.items():
        base, _, number = key.rpartition(".")
        if key in known:
            stacked[key] = array
        elif base in known and number.isdecimal():
            ragged.setdefault(int(number), {})[base] = array
        else:
            hint = f"the model takes {', '.join(sorted(known)) or 'no inputs'}"
            raise DataError(f"'{key}' is not an input of the model", where=where, hint=hint)
    if ragged and stacked:
        raise DataError(
            f"some inputs are numbered and others are not ({', '.join(stacked)})",
            where=where,
            hint="number all of them: name.0, name.1, ...",
        )
    if ragged:
        return ({name: array.whole() for name, array in ragged[number].items()} for number in sorted(ragged))
    pieces = {name: _pieces(array, known[name]) for name, array in stacked.items()}
    counts = {name: count for name, (count, _) in pieces.items()}
    if len(set(counts.values())) > 1:
        text = ", ".join(f"'{name}' has {count}" for name, count in counts.items())
        raise DataError(f"the inputs differ in their number of samples: {text}", where=where)
    if not stacked and not known:
        return iter([{}])
    return (dict(zip(pieces, row, strict=True)) for row in zip(*(each for _, each in pieces.values()), strict=True))


def is_input(key: str, specs: Sequence[ValueSpec]) -> bool:
    """Whether a name in a file is that of an input, or of one of its ragged samples."""
    base, _, number = key.rpartition(".")
    names = {spec.name for spec in specs}
    return key in names or (base in names and number.isdecimal())


def joined(arrays: Sequence[Any]) -> Any:
    """Arrays of all samples as one along the first axis, or as a list where their shapes do not allow it."""
    if len(arrays) == 1:
        return arrays[0]
    if all(isinstance(a, np.ndarray) and a.ndim and a.shape[1:] == arrays[0].shape[1:] for a in arrays):
        return np.concatenate(arrays)
    return list(arrays)


# inside ------------------------------------------------------------------------------------------------------------


class _Kept:
    """Samples in a temporary folder, which goes when this does."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="optc-samples-", ignore_cleanup_errors=True)
        self._forms: list[dict[str, np.dtype]] = []

    def add(self, sample: Sample) -> None:
        texts = {name: array.astype(str) if array.dtype.hasobject else array for name, array in sample.items()}
        np.savez(self._file(len(self._forms)), *texts.values())
        self._forms.append({name: array.dtype for name, array in sample.items()})

    def __iter__(self) -> Iterator[Sample]:
        for index, forms in enumerate(self._forms):
            with np.load(self._file(index)) as found:
                arrays = [found[name] for name in found.files]
            # What NumPy does not know of itself (bfloat16) comes back as raw bytes.
            yield {
                name: array.view(dtype) if array.dtype.kind == "V" else array.astype(dtype, copy=False)
                for (name, dtype), array in zip(forms.items(), arrays, strict=True)
            }

    def _file(self, index: int) -> Path:
        return Path(self._folder.name) / f"{index}.npz"


def _pieces(array: ArraySource, spec: ValueSpec) -> tuple[int, Iterator[np.ndarray]]:
    """How many samples an array holds, and the samples."""
    shape = array.shape
    rank = None if spec.shape is None else len(spec.shape)
    if rank is not None and len(shape) == rank + 1:
        return shape[0], (piece[0] for piece in (array.slices(1) if shape[0] else ()))
    if spec.shape and len(shape) == rank:
        first = spec.shape[0]
        if isinstance(first, int) and first > 0 and shape[0] > first and shape[0] % first == 0:
            return shape[0] // first, array.slices(first)
    return 1, (array.whole() for _ in range(1))


def _digest(sample: Sample, digest: Any) -> None:
    for name in sorted(sample):
        array = np.ascontiguousarray(sample[name])
        data = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
        digest.update(f"{name}|{array.dtype}|{array.shape}|{len(data)}|".encode())
        digest.update(data)


def _check_finite(sample: Sample, where: str) -> None:
    for name, array in sample.items():
        if _class(array.dtype) != "float":
            continue
        values = array if array.dtype.kind == "f" else array.astype(np.float32)
        if not np.isfinite(values).all():
            nan = int(np.isnan(values).sum())
            infinite = int((~np.isfinite(values)).sum()) - nan
            counts = [f"{count} {word}" for count, word in ((nan, "NaN"), (infinite, "infinite")) if count]
            raise DataError(
                f"'{name}' holds {' and '.join(counts)} of {values.size} values",
                where=where,
                hint="leave such samples out; a mask can use the most negative finite number",
            )


def _convert(array: np.ndarray, spec: ValueSpec, where: str | None) -> np.ndarray:
    array = np.asarray(array)
    if spec.dtype is None or spec.kind != "tensor":
        return array
    wanted = np.dtype(spec.dtype.numpy())
    if array.dtype == wanted:
        return array
    if spec.dtype.name == "STRING" and array.dtype.kind in "US":
        return np.array([str(text) for text in array.reshape(-1)], object).reshape(array.shape)
    if _class(array.dtype) == _class(wanted):
        converted = array.astype(wanted)
        if _class(wanted) != "integer" or (converted == array).all():
            return converted
        raise DataError(f"'{spec.name}' holds values that {wanted} cannot hold", where=where)
    raise DataError(
        f"'{spec.name}' is {array.dtype}, but the model takes {wanted}", where=where, hint=f"save it as {wanted}"
    )


def _class(dtype: np.dtype) -> str:
    """ "integer", "float" or another kind; bfloat16, float8 and 4-bit types are told by their names."""
    if dtype.kind in "iu" or dtype.name.startswith(("int", "uint")):
        return "integer"
    return "float" if dtype.kind == "f" or "float" in dtype.name else dtype.kind


def _check_shape(array: np.ndarray, spec: ValueSpec, sizes: dict[str, tuple[int, str]], where: str | None) -> None:
    if spec.shape is None:
        return
    if array.ndim != len(spec.shape):
        raise DataError(
            f"'{spec.name}' has {array.ndim} dims {list(array.shape)}, but the model takes {len(spec.shape)}",
            where=where,
            hint=f"the model takes {spec}; a stack of samples has one dim more, in front",
        )
    for axis, (size, dim) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(dim, int):
            if dim >= 0 and size != dim:
                raise DataError(
                    f"dim {axis} of '{spec.name}' is {size}, but the model takes {dim}",
                    where=where,
                    hint=f"the model takes {spec}",
                )
        elif dim is not None:
            expected, place = sizes.setdefault(dim, (size, f"dim {axis} of '{spec.name}'"))
            if size != expected:
                raise DataError(
                    f"dim {axis} of '{spec.name}' is {size} and {place} is {expected}, but both are '{dim}'",
                    where=where,
                )
