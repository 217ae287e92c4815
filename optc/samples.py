"""Inputs from files: calibration and test data.

An ``.npz`` file holds arrays by input name (``numpy.savez(file, input_ids=..., attention_mask=...)``), in one of three
ways, told apart by shape alone:

* **one sample**: each array has the input's own rank;
* **a stack**: each array has one axis more, in front: sample ``i`` is ``array[i]``. Where the input's first dim is
  fixed (a batch of 1, say), an array of the input's own rank whose first dim is a multiple of it is a stack too: it
  is cut into pieces of that size;
* **ragged**: ``name.0``, ``name.1``, ... are the samples one by one, so that shapes may differ.

All inputs of a file must have the same number of samples; arrays with other names are an error. A folder stands for
the samples of all ``.npz`` files in it, in order of their names.
"""

from __future__ import annotations

import hashlib
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from optc.backends.base import ValueSpec
from optc.ir.errors import DataError

Sample = dict[str, np.ndarray]

#: What NumPy and zipfile raise at damaged files; a header may be no Python, or promise more than memory holds.
_UNREADABLE = (
    *(OSError, ValueError, EOFError, SyntaxError, TypeError, KeyError, NotImplementedError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


class DataSet:
    """Samples that can be iterated over any number of times.

    Attributes:
        real: Whether they are the user's; False for inputs drawn from the model's signature.
    """

    def __init__(self, samples: Sequence[Sample], *, real: bool) -> None:
        self._samples, self.real = samples, real

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    @cached_property
    def digest(self) -> str:
        """A digest of all arrays in order."""
        digest = hashlib.sha256()
        for sample in self:
            for name in sorted(sample):
                array = np.ascontiguousarray(sample[name])
                data = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
                digest.update(f"{name}|{array.dtype}|{array.shape}|{len(data)}|".encode())
                digest.update(data)
        return digest.hexdigest()


def load_samples(path: str | Path, specs: Sequence[ValueSpec]) -> list[Sample]:
    """Read samples and check them against a model's inputs.

    Args:
        path: An ``.npz`` file, or a folder of them.
        specs: The model's inputs, see :func:`optc.inputs.input_specs`.

    Returns:
        At least one sample: an array per input, of the input's element type.

    Raises:
        DataError: A file cannot be read, or an array does not fit; the message names it.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if not files:
            raise DataError("the folder holds no .npz files", where=str(path))
        return [sample for file in files for sample in load_samples(file, specs)]
    samples = _cut(_read(path), specs, str(path))
    if not samples:
        raise DataError("the file holds no samples", where=str(path))
    return [check_sample(sample, specs, f"{path}, sample {index}") for index, sample in enumerate(samples)]


def load_labelled(
    path: str | Path, specs: Sequence[ValueSpec], *, labels: bool = True
) -> tuple[list[Sample], dict[str, np.ndarray]]:
    """Read samples, and with ``labels`` take the arrays of a file that are no inputs as labels.

    Raises:
        DataError: As for :func:`load_samples`; a folder has no labels.
    """
    path = Path(path)
    if not labels or path.is_dir():
        return load_samples(path, specs), {}
    names = {spec.name for spec in specs}
    arrays = _read(path)
    inputs = {key: array for key, array in arrays.items() if key in names or key.rpartition(".")[0] in names}
    samples = _cut(inputs, specs, str(path))
    if not samples:
        raise DataError("the file holds no samples", where=str(path))
    checked = [check_sample(sample, specs, f"{path}, sample {index}") for index, sample in enumerate(samples)]
    return checked, {key: array for key, array in arrays.items() if key not in inputs}


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


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise DataError(
                "this is a single array without a name", where=str(path), hint="write it with numpy.savez instead"
            )
        with archive:
            return {name: _array(archive, name) for name in archive.files}
    except _UNREADABLE as error:
        if isinstance(error, FileNotFoundError):
            raise DataError("no such file", where=str(path), hint="check the path") from error
        raise DataError(
            f"not an .npz file that can be read: {error}",
            where=str(path),
            hint="write it with numpy.savez; objects and pickles are refused",
        ) from error


def _array(archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """A member, if it is an array."""
    array = archive[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name!r} is no array")
    return array


def _cut(arrays: Mapping[str, np.ndarray], specs: Sequence[ValueSpec], where: str) -> list[Sample]:
    names = {spec.name for spec in specs}
    ragged: dict[int, Sample] = {}
    stacked: dict[str, list[np.ndarray]] = {}
    ranked = {spec.name: spec for spec in specs}
    for key, array in arrays.items():
        base, _, number = key.rpartition(".")
        if key in names:
            stacked[key] = _unstack(array, ranked[key])
        elif base in names and number.isdecimal():
            ragged.setdefault(int(number), {})[base] = array
        else:
            hint = f"the model takes {', '.join(sorted(names)) or 'no inputs'}"
            raise DataError(f"'{key}' is not an input of the model", where=where, hint=hint)
    if ragged and stacked:
        raise DataError(
            f"some inputs are numbered and others are not ({', '.join(stacked)})",
            where=where,
            hint="number all of them: name.0, name.1, ...",
        )
    if ragged:
        return [ragged[number] for number in sorted(ragged)]
    counts = {name: len(pieces) for name, pieces in stacked.items()}
    if len(set(counts.values())) > 1:
        text = ", ".join(f"'{name}' has {count}" for name, count in counts.items())
        raise DataError(f"the inputs differ in their number of samples: {text}", where=where)
    return [dict(zip(stacked, pieces, strict=True)) for pieces in zip(*stacked.values(), strict=True)]


def _unstack(array: np.ndarray, spec: ValueSpec) -> list[np.ndarray]:
    if spec.shape is None:
        return [array]
    if array.ndim == len(spec.shape) + 1:
        return list(array)
    if array.ndim == len(spec.shape) > 0:
        first = spec.shape[0]
        if isinstance(first, int) and first > 0 and array.shape[0] > first and array.shape[0] % first == 0:
            return np.split(array, array.shape[0] // first)
    return [array]


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
