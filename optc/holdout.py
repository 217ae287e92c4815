"""The user's samples in two parts: statistics are gathered over one, and candidates are judged on the other.

What was fitted to samples is better on these than on any others, and the more there was to fit, the more so. So every
:data:`EVERY`-th sample is held out: nothing looks at it but the judge. Where there are fewer than :data:`FEWEST`
samples and they are batches (all inputs begin with one symbolic dim that stands nowhere else), they are cut along it,
and every :data:`EVERY`-th row is held out instead. With fewer than :data:`FEWEST` of either, both parts are all there
is, and who fits much has to decline.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from optc.samples import Sample, Samples

#: One of so many samples is held out.
EVERY = 4
#: With fewer samples than this nothing is: less than a handful would say little.
FEWEST = 16


@dataclass(frozen=True)
class Part:
    """Some of the samples; it can be iterated over like all of them.

    Attributes:
        samples: All of them.
        rows: By sample, which rows of its inputs are in this part; None for the sample as it is.
        labels: The labels of these.
    """

    samples: Samples
    rows: Mapping[int, np.ndarray | None]
    labels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def real(self) -> bool:
        """Whether they are the user's; False for inputs drawn from the model's signature."""
        return self.samples.real

    @cached_property
    def digest(self) -> str:
        """A digest of all arrays in order."""
        text = repr([(index, None if rows is None else rows.tolist()) for index, rows in self.rows.items()])
        return hashlib.sha256(f"{self.samples.digest}{text}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Sample]:
        for index, sample in enumerate(self.samples):
            if index in self.rows:
                rows = self.rows[index]
                yield sample if rows is None else {name: array[rows] for name, array in sample.items()}

    def first(self, count: int) -> list[Sample]:
        """The first few, in memory."""
        return list(itertools.islice(self, count))


@dataclass(frozen=True)
class Holdout:
    """The two parts.

    Attributes:
        fitted: What may be fitted to.
        judged: What candidates are judged on.
        why_not: Why they are the same; None if they are not.
        what: How many of what are held out, for reports; empty if there are none.
    """

    fitted: Samples | Part
    judged: Samples | Part
    why_not: str | None = None
    what: str = ""


def hold_out(samples: Samples, batched: bool) -> Holdout:
    """Divide samples.

    Args:
        samples: All samples.
        batched: Whether the first dim of all inputs is a batch of any size.
    """
    if not samples.real:
        return Holdout(samples, samples, "there is no calibration data")
    by_row = batched and len(samples) < FEWEST
    sizes = samples.batches if by_row else [1] * len(samples)
    count = sum(sizes)
    if count < FEWEST:
        what = f"{count} sample{'s are' if count > 1 else ' is'} too few to hold any out: {FEWEST} are needed"
        return Holdout(samples, samples, what)
    held = np.arange(count) % EVERY == EVERY - 1
    parts = []
    for mine in (~held, held):
        pieces = np.split(mine, np.cumsum(sizes)[:-1])
        rows = {index: np.flatnonzero(piece) if by_row else None for index, piece in enumerate(pieces) if piece.any()}
        # Of every row of every sample, whether it is in this part.
        flat = mine if by_row else np.repeat(mine, samples.batches)
        labels = {name: _chosen(given, flat, mine) for name, given in samples.labels.items()}
        parts.append(Part(samples, rows, labels))
    odd = [name for name, given in parts[0].labels.items() if given is None]
    if odd:
        return Holdout(samples, samples, f"the labels {odd[0]!r} do not tell which samples they are of")
    return Holdout(parts[0], parts[1], None, f"{held.sum()} of {count} {'rows' if by_row else 'samples'}, held out")


def _chosen(given: Any, rows: np.ndarray, samples: np.ndarray) -> Any:
    """Labels of one part, which there are one for each row or one for each sample; None if neither."""
    count = len(given) if isinstance(given, Sequence) or np.ndim(given) else 0
    for mine in (rows, samples):
        if count == len(mine):
            return given[mine] if isinstance(given, np.ndarray) else list(itertools.compress(given, mine))
    return None
