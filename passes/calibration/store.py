"""What is known of a model's values: what is asked for, how it is gathered, and how it is read.

A :class:`Request` names a value of the graph and what is wanted of it. A :class:`Record` gathers that from one array
per sample. :class:`Statistics` reads the records of a finished sweep from where they were written, one by one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from optc.ir.errors import DataError
from optc.passes.calibration.histogram import Histogram
from optc.passes.calibration.moments import ChannelMoments, Gram, Moments, Reservoir, State, Unfit
from optc.passes.calibration.views import COLUMNS, View

#: Rows kept for trying a layer's output.
ROWS = 512


@dataclass(frozen=True)
class Request:
    """What is wanted to be known of one value. Moments of the whole tensor are always kept.

    Attributes:
        value: Its name in the main graph: an input, or the output of a node.
        histogram: Keep a histogram.
        channels: Keep extremes and means along this axis.
        view: How the value is seen as rows, for ``gram`` and ``rows``.
        gram: Keep X^T X / n.
        rows: Keep a fair draw of so many rows.
    """

    value: str
    histogram: bool = False
    channels: int | None = None
    view: View = COLUMNS
    gram: bool = False
    rows: int = 0


@dataclass
class Wanted:
    """All that is wanted of one value: the union of its requests."""

    histogram: bool = False
    channels: set[int] = field(default_factory=set)
    grams: set[View] = field(default_factory=set)
    rows: dict[View, int] = field(default_factory=dict)

    def add(self, request: Request) -> None:
        self.histogram |= request.histogram
        if request.channels is not None:
            self.channels.add(request.channels)
        if request.gram:
            self.grams.add(request.view)
        if request.rows:
            self.rows[request.view] = max(self.rows.get(request.view, 0), request.rows)

    def text(self) -> str:
        """Equal for equal wishes, whatever their order."""
        views = {repr(view) for view in self.grams}
        rows = sorted((repr(view), count) for view, count in self.rows.items())
        return json.dumps([self.histogram, sorted(self.channels), sorted(views), rows])


def union(requests: Iterable[Request]) -> dict[str, Wanted]:
    """What is wanted of each value, in the order of the requests."""
    wanted: dict[str, Wanted] = {}
    for request in requests:
        wanted.setdefault(request.value, Wanted()).add(request)
    return wanted


class _Part(Protocol):
    def state(self) -> State: ...
    def restore(self, state: Mapping[str, np.ndarray]) -> None: ...


class Record:
    """The statistics of one value, while they are gathered.

    Args:
        name: The value's name.
        wanted: What to gather.
        seed: Of the draws.
    """

    def __init__(self, name: str, wanted: Wanted, seed: int = 0) -> None:
        self.name = name
        self.moments = Moments()
        self.parts: dict[str, Any] = {_key("moments"): self.moments}
        if wanted.histogram:
            self.parts[_key("histogram")] = Histogram()
        for axis in wanted.channels:
            self.parts[_key("channels", axis)] = ChannelMoments(axis)
        self._views = sorted({*wanted.grams, *wanted.rows}, key=repr)
        for view in self._views:
            if view in wanted.grams:
                self.parts[_key("gram", view)] = Gram(view.groups)
            if view in wanted.rows:
                self.parts[_key("rows", view)] = Reservoir(wanted.rows[view])
        self.problems: dict[str, str] = {}
        self._seed = [seed, zlib.crc32(name.encode())]

    def add(self, array: np.ndarray, sample: int) -> None:
        """Add the value's array in one sample.

        Args:
            array: Any shape, float.
            sample: The sample's number; draws depend on it alone, so that work can be taken up anywhere.
        """
        array = np.ascontiguousarray(array, dtype=np.float32)
        finite = self.moments.add(array.reshape(-1))
        whole = finite.size == array.size
        for key, part in self.parts.items():
            if key in self.problems:
                continue
            try:
                if isinstance(part, Histogram):
                    part.add(finite, self.moments.absmax)
                elif isinstance(part, ChannelMoments):
                    part.add(array, whole)
            except Unfit as problem:
                self.problems[key] = str(problem)
        for view in self._views:
            self._see(view, array, whole, sample)

    def _see(self, view: View, array: np.ndarray, whole: bool, sample: int) -> None:
        keys = [key for key in (_key("gram", view), _key("rows", view)) if key in self.parts]
        if all(key in self.problems for key in keys):
            return
        rng = np.random.default_rng([*self._seed, sample])
        try:
            rows = view.rows(array, rng)
            if not whole:
                rows = rows[np.isfinite(rows).all(axis=1)]
            for key in keys:
                part = self.parts[key]
                if isinstance(part, Gram):
                    part.add(rows)
                else:
                    part.add(rows, rng)
        except (Unfit, ValueError, IndexError) as problem:
            for key in keys:
                self.problems[key] = str(problem)

    def state(self) -> State:
        """Everything, as arrays by name."""
        state = {f"{key}|{name}": array for key, part in self.parts.items() for name, array in part.state().items()}
        for key, problem in self.problems.items():
            state[f"{key}|problem"] = np.array(problem)
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take up what :meth:`state` wrote."""
        for key, part in self.parts.items():
            inner = Inner(state, f"{key}|")
            if "problem" in inner:
                self.problems[key] = str(inner["problem"])
            else:
                part.restore(inner)


def _key(kind: str, detail: object = "") -> str:
    return f"{kind} {detail!r}" if detail != "" else kind


class Inner(Mapping[str, np.ndarray]):
    """The part of a mapping whose keys begin alike; arrays are read when asked for."""

    def __init__(self, outer: Mapping[str, np.ndarray], prefix: str) -> None:
        self._outer, self._prefix = outer, prefix

    def __getitem__(self, key: str) -> np.ndarray:
        return self._outer[self._prefix + key]

    def __contains__(self, key: object) -> bool:
        return f"{self._prefix}{key}" in self._outer

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix(self._prefix) for key in self._outer if key.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Statistics:
    """What a sweep found, by value name. Nothing is held in memory; every call reads what it returns.

    Args:
        records: The arrays of each value's record, as :meth:`Record.state` names them.
        missing: Values that were asked for and are not there, with the reason.
        samples: How many samples were looked at.
        real: Whether they are the user's; False for inputs drawn from the model's signature.
        keep: Whatever must live as long as the records.
    """

    def __init__(
        self,
        records: Mapping[str, Mapping[str, np.ndarray]],
        missing: Mapping[str, str],
        *,
        samples: int,
        real: bool,
        keep: object = None,
    ) -> None:
        self._records, self._missing, self._keep = records, missing, keep
        self.samples, self.real = samples, real

    def __contains__(self, name: object) -> bool:
        return name in self._records

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def why_not(self, request: Request) -> str | None:
        """Why something of a request is not there, in words; None if all of it is."""
        wanted = Wanted()
        wanted.add(request)
        return next(filter(None, (self._problem(request.value, key) for key in Record("", wanted).parts)), None)

    def moments(self, name: str) -> Moments:
        """Extremes, mean, mean square and oddities of all elements."""
        return self._read(name, "moments", Moments())

    def histogram(self, name: str) -> Histogram:
        """Counts of all finite elements."""
        return self._read(name, "histogram", Histogram())

    def channels(self, name: str, axis: int) -> ChannelMoments:
        """Extremes and means along an axis, which is named as in the request."""
        return self._read(name, _key("channels", axis), ChannelMoments(axis))

    def gram(self, name: str, view: View = COLUMNS) -> np.ndarray:
        """X^T X / n, (K, K) float64, or (groups, K, K) where the view has several groups."""
        return self._read(name, _key("gram", view), Gram(view.groups)).mean

    def gram_rows(self, name: str, view: View = COLUMNS) -> int:
        """How many rows :meth:`gram` is the mean of."""
        return int(self._inner(name, _key("gram", view))["rows"])

    def rows(self, name: str, view: View = COLUMNS) -> np.ndarray:
        """The rows drawn, (n, K) float32; for a convolution K counts all groups."""
        state = self._inner(name, _key("rows", view))
        return state["sample"]

    def odd(self) -> dict[str, tuple[int, int]]:
        """Values that were not finite everywhere: how many NaN and how many infinite elements they had."""
        found = {name: self.moments(name) for name in self}
        return {name: (each.nan, each.infinite) for name, each in found.items() if each.nan or each.infinite}

    def _read(self, name: str, key: str, part: Any) -> Any:
        part.restore(self._inner(name, key))
        return part

    def _inner(self, name: str, key: str) -> Inner:
        problem = self._problem(name, key)
        if problem is not None:
            raise DataError(problem, where=f"statistics of {name!r}")
        return Inner(self._records[name], f"{key}|")

    def _problem(self, name: str, key: str) -> str | None:
        if name not in self._records:
            return self._missing.get(name, "it was not asked for")
        inner = Inner(self._records[name], f"{key}|")
        if "problem" in inner:
            return str(inner["problem"])
        if not len(inner):
            return f"its {key.partition(' ')[0]} was not asked for, or no sample had elements of it"
        return None
