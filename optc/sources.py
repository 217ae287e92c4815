"""Where samples come from: files, folders, functions, and anything that gives dicts of arrays.

========================  ==========================================================================================
``file.npz``              arrays by input name, see :mod:`optc.samples`
``file.npy``              the same of a model with one input
a folder                  the samples of all ``.npz`` files in it, in the order of their names; or one ``.npy`` file per
                          input, named after it; or, for a model with one input, the samples of all ``.npy`` files
``module:function``       a function that returns any of what follows, or yields samples
a dict of arrays          what an ``.npz`` file holds
an iterable of dicts      a sample each (a list, a generator, a data set, a data loader); arrays that lack the batch dim
                          get one of size 1. What is no input is an error, or a label where those are wanted
========================  ==========================================================================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from optc.array_files import ArraySource, in_memory, open_npy, open_npz
from optc.backends.base import ValueSpec
from optc.callables import find_callable
from optc.ir.errors import DataError, OptcError
from optc.samples import Item, Sample, Samples, Source, check_sample, cut, is_input, joined

#: How a function is named; a file of that name goes first.
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_DATA = "calibration data"


def open_samples(given: Any, specs: Sequence[ValueSpec], *, labels: bool = False) -> Samples:
    """The user's samples, all of them checked.

    Args:
        given: See the table above.
        specs: The model's inputs, see :func:`optc.inputs.input_specs`.
        labels: Whether what is no input is taken for labels.

    Raises:
        DataError: Something cannot be read or does not fit; the message names it.
        UsageError: A function is named that there is not.
    """
    samples = Samples(source_of(given, specs, labels), specs, real=True)
    if not len(samples):
        raise DataError("there are no samples", where=described(given), hint="at least one is needed")
    return samples


def load_samples(path: str | Path, specs: Sequence[ValueSpec]) -> list[Sample]:
    """The samples of files, all in memory, whatever numbers they hold; see :func:`open_samples`."""
    samples = [check_sample(item.inputs, specs, item.where) for item in _files(Path(path), specs, False)]
    if not samples:
        raise DataError("the file holds no samples", where=str(path))
    return samples


def described(given: Any) -> str:
    """What reports and messages call the data."""
    return os.fspath(given) if isinstance(given, str | os.PathLike) else _DATA


def source_of(given: Any, specs: Sequence[ValueSpec], labels: bool = False) -> Source:
    """The source that is meant; arguments as for :func:`open_samples`."""
    if isinstance(given, str | os.PathLike):
        text = os.fspath(given)
        if not os.path.exists(text) and _FUNCTION.fullmatch(text):
            return _Called(find_callable(text, _DATA), text, specs, labels)
        return _files(Path(text), specs, labels)
    if isinstance(given, Mapping):
        return _Arrays({_DATA: in_memory(given)}, specs, labels)
    if isinstance(given, Iterable):
        return _Iterated(given, _DATA, specs, labels)
    if callable(given):
        return _Called(given, _DATA, specs, labels)
    raise DataError(
        f"data cannot be {type(given).__name__}", where=_DATA, hint="give a file, a dict of arrays or an iterable"
    )


def _files(path: Path, specs: Sequence[ValueSpec], labels: bool) -> _Arrays:
    if not path.is_dir():
        return _Arrays({str(path): _opened(path, specs)}, specs, labels)
    archives, arrays = sorted(path.glob("*.npz")), sorted(path.glob("*.npy"))
    if archives and arrays:
        raise DataError("the folder holds both .npz and .npy files", where=str(path), hint="keep one kind in it")
    if not archives and not arrays:
        raise DataError("the folder holds no .npz files, and no .npy files either", where=str(path))
    if archives or not any(is_input(file.stem, specs) for file in arrays):
        return _Arrays({str(file): _opened(file, specs) for file in archives or arrays}, specs, labels)
    return _Arrays({str(path): {file.stem: open_npy(file) for file in arrays}}, specs, labels)


def _opened(path: Path, specs: Sequence[ValueSpec]) -> dict[str, ArraySource]:
    if path.suffix != ".npy":
        return open_npz(path)
    if len(specs) != 1:
        raise DataError(
            "this is a single array without a name, and the model has several inputs",
            where=str(path),
            hint="write them with numpy.savez, or as one .npy file each, named after its input, into a folder",
        )
    return {specs[0].name: open_npy(path)}


@dataclass(frozen=True)
class _Arrays:
    """Arrays by name, in one or more places."""

    places: Mapping[str, Mapping[str, ArraySource]]
    specs: Sequence[ValueSpec]
    wants_labels: bool
    repeats: bool = True

    def __iter__(self) -> Iterator[Item]:
        for where, arrays in self.places.items():
            inputs = {key: each for key, each in arrays.items() if not self.wants_labels or is_input(key, self.specs)}
            for index, sample in enumerate(cut(inputs, self.specs, where)):
                yield Item(sample, f"{where}, sample {index}", {})

    @cached_property
    def labels(self) -> dict[str, Any]:
        if not self.wants_labels:
            return {}
        found: dict[str, list[np.ndarray]] = {}
        for arrays in self.places.values():
            for key, array in arrays.items():
                if not is_input(key, self.specs):
                    found.setdefault(key, []).append(array.whole())
        return {key: joined(parts) for key, parts in found.items()}


@dataclass(frozen=True)
class _Iterated:
    """Anything that gives a dict of arrays per sample."""

    given: Iterable[Any]
    where: str
    specs: Sequence[ValueSpec]
    wants_labels: bool
    labels: dict[str, Any] = field(default_factory=dict)

    @property
    def repeats(self) -> bool:
        return not isinstance(self.given, Iterator)

    def __iter__(self) -> Iterator[Item]:
        entries = _guarded(self.given, self.where)
        return (self._item(entry, f"{self.where}, sample {index}") for index, entry in enumerate(entries))

    def _item(self, entry: Any, where: str) -> Item:
        if not isinstance(entry, Mapping):
            if len(self.specs) != 1 or not hasattr(entry, "__array__"):
                raise DataError(
                    f"a sample is a dict of arrays by input name, not {type(entry).__name__}",
                    where=where,
                    hint=f"the model takes {'; '.join(map(str, self.specs))}",
                )
            entry = {self.specs[0].name: entry}
        names = {spec.name for spec in self.specs}
        wanted = {name: each for name, each in entry.items() if name in names or not self.wants_labels}
        labels = {name: np.asarray(each) for name, each in entry.items() if name not in wanted}
        inputs = {name: _array(each, name, where) for name, each in wanted.items()}
        if self._lacks_batch(inputs):
            inputs = {name: each[None] for name, each in inputs.items()}
            labels = {name: each[None] for name, each in labels.items()}
        return Item(inputs, where, {name: np.atleast_1d(each) for name, each in labels.items()})

    def _lacks_batch(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Whether every input has one dim less than the model takes, which in front may be 1."""
        ranks = {spec.name: spec.shape for spec in self.specs}
        return bool(inputs) and all(
            (shape := ranks.get(name))
            and each.ndim == len(shape) - 1
            and (shape[0] == 1 or not isinstance(shape[0], int))
            for name, each in inputs.items()
        )


@dataclass(frozen=True)
class _Called:
    """What a function gives, called again for every iteration."""

    function: Callable[[], Any]
    where: str
    specs: Sequence[ValueSpec]
    wants_labels: bool
    repeats: bool = True

    def __iter__(self) -> Iterator[Item]:
        return iter(self._source())

    @cached_property
    def labels(self) -> dict[str, Any]:
        source = self._source()
        return source.labels if isinstance(source, _Arrays) else {}

    def _source(self) -> Source:
        try:
            given = self.function()
        except Exception as error:  # it is the user's, and may fail in any way
            raise _failed(error, self.where) from error
        if isinstance(given, Mapping):
            return _Arrays({self.where: in_memory(given)}, self.specs, self.wants_labels)
        if isinstance(given, Iterable) and not isinstance(given, str):
            return _Iterated(given, self.where, self.specs, self.wants_labels)
        raise DataError(
            f"the function returned {type(given).__name__}",
            where=self.where,
            hint="it returns a dict of arrays or an iterable of them, or yields dicts",
        )


def _guarded(given: Iterable[Any], where: str) -> Iterator[Any]:
    try:
        yield from given
    except OptcError:
        raise
    except Exception as error:  # it is the user's, and may fail in any way
        raise _failed(error, where) from error


def _failed(error: Exception, where: str) -> DataError:
    return DataError(
        f"it raised {type(error).__name__}: {error}", where=where, hint="it must give samples without fail"
    )


def _array(given: Any, name: str, where: str) -> np.ndarray:
    try:
        return np.asarray(given)
    except Exception as error:  # a ragged list, a tensor on another device
        raise DataError(f"'{name}' is no array: {error}", where=where) from error
