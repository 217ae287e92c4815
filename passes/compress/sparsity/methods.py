"""Choosing the zeros of a layer's weight, by methods that know more or less of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from optc.ir.sparsity import Pattern
from optc.passes.compress.lowrank.inputs import Seen
from optc.passes.compress.sparsity.columns import Columns
from optc.passes.compress.sparsity.obs import sparsegpt
from optc.passes.compress.sparsity.repair import repaired
from optc.passes.compress.weights.codes import energy
from optc.passes.compress.weights.gptq import Correlation


@dataclass(frozen=True)
class Problem:
    """One weight (of one group of a convolution), and what its inputs look like.

    Attributes:
        weight: (N, K) float32, as it is stored.
        columns: What its columns are.
        pattern: What is wanted.
        gram: X^T X / n of the inputs, (K, K), in the order of the columns; None if nothing is known.
        damping: What is added to it when weights are chosen, as a share of the mean energy.
    """

    weight: np.ndarray
    columns: Columns
    pattern: Pattern
    gram: np.ndarray | None = None
    damping: float = 0.01

    def masked(self, scores: np.ndarray) -> np.ndarray:
        """The weight where the scores, (N, K), are largest; zeros elsewhere."""
        keep = self.columns.stored(self.pattern.largest(self.columns.channels_last(scores)))
        return np.where(keep, self.weight, np.float32(0))

    @property
    def energy(self) -> np.ndarray:
        """The mean square of every input, (K,)."""
        assert self.gram is not None, "the method needs to know the inputs"
        return np.maximum(np.diagonal(self.gram), 0)


def _magnitude(problem: Problem) -> np.ndarray:
    return problem.masked(np.abs(problem.weight))


def _wanda(problem: Problem) -> np.ndarray:
    """Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (2023)."""
    return problem.masked(np.abs(problem.weight) * np.sqrt(problem.energy))


def _sparsegpt(problem: Problem) -> np.ndarray:
    assert problem.gram is not None, "the method needs to know the inputs"
    columns, order = problem.columns, problem.columns.order
    mean = float(np.diagonal(problem.gram).mean())
    scaled = problem.gram / mean if mean > 0 else problem.gram  # the inverse must not leave single precision
    correlation = Correlation.of(scaled[np.ix_(order, order)], problem.damping)
    found = np.empty_like(problem.weight)
    groups = columns.groups(problem.pattern.group)
    found[:, order] = sparsegpt(problem.weight[:, order], correlation, groups, problem.pattern)
    return found


@dataclass(frozen=True)
class Method:
    """A way to choose zeros.

    Attributes:
        run: The weight with zeros, (N, K).
        needs_inputs: Whether it needs the Gram matrix.
    """

    run: Callable[[Problem], np.ndarray]
    needs_inputs: bool = True


METHODS: dict[str, Method] = {
    "magnitude": Method(_magnitude, needs_inputs=False),
    "wanda": Method(_wanda),
    "sparsegpt": Method(_sparsegpt),
}


@dataclass(frozen=True)
class Sparse:
    """A weight with zeros.

    Attributes:
        weight: (N, K) float32, all groups of a convolution.
        error: Relative L2 error of the layer's output over the calibration data; None if nothing is known of them.
    """

    weight: np.ndarray
    error: float | None


def sparsify(weight: np.ndarray, columns: Columns, pattern: Pattern, method: str, seen: Seen, repair: bool) -> Sparse:
    """A weight with a pattern of zeros.

    Args:
        weight: (N, K), the outputs of one group of a convolution after those of the other.
        columns: What its columns are.
        pattern: What is wanted.
        method: A key of :data:`METHODS`; without a Gram matrix it must be one that needs none.
        seen: What is known of the inputs.
        repair: Whether the weights that are left are fitted anew, which takes a Gram matrix.
    """
    grams = [None] if seen.gram is None else list(seen.gram)
    parts, sparse = np.split(weight.astype(np.float32), len(grams)), []
    for part, gram in zip(parts, grams, strict=True):
        found = METHODS[method].run(Problem(part, columns, pattern, gram, seen.damping))
        sparse.append(repaired(part, found, gram, seen.damping) if repair and gram is not None else found)
    error = None if seen.gram is None else output_error(parts, sparse, seen.gram)
    return Sparse(np.concatenate(sparse), error)


def output_error(dense: Sequence[np.ndarray], sparse: Sequence[np.ndarray], grams: Iterable[np.ndarray]) -> float:
    """The relative L2 error of a layer's output: sqrt(tr(E G E^T) / tr(W G W^T)), summed over groups (N, K) each."""
    lost = whole = 0.0
    for one, other, gram in zip(dense, sparse, grams, strict=True):
        lost += max(energy((one - other).astype(np.float64), gram), 0.0)
        whole += max(energy(one.astype(np.float64), gram), 0.0)
    return float(np.sqrt(lost / whole)) if whole else 0.0
