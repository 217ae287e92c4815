"""Whole kernels of convolutions, and runs of weights of products, that are zero.

Between single weights and whole channels: of a convolution's N * C kernels, one per pair of an output and an input
channel, those go that the outputs can spare; of products, runs of :data:`RUN` inputs of one output (Mao et al.,
"Exploring the Granularity of Sparsity in Convolutional Neural Networks", 2017). What a unit costs is what the layer
loses without it if the other weights of that output make good for it (the optimal brain surgeon for several weights at
once); all of an output's weights that are left are then fitted by least squares. The shape of the weight stays, so that
only runtimes that skip zeros gain time by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter
from optc.passes.compress.layers import Layer
from optc.passes.compress.lowrank.inputs import Seen, gram_request
from optc.passes.compress.sparsity.columns import Columns
from optc.passes.compress.sparsity.methods import Sparse, output_error
from optc.passes.compress.sparsity.repair import repaired
from optc.passes.compress.sparsity.writing import known, store
from optc.passes.compress.weights.gptq import Correlation

#: Inputs of a product that are one unit: as many as the narrowest vector units in use take of single precision.
RUN = 8
_RULE = "prune-kernels"


@dataclass(frozen=True)
class Thinned:
    """A layer some of whose kernels are zero.

    Attributes:
        layer: The layer.
        count: Kernels, or runs, that went.
        units: How many there were.
        what: What they are called.
        error: Relative L2 error of the layer's output over the calibration data; None if nothing is known of them.
    """

    layer: Layer
    count: int
    units: int
    what: str
    error: float | None


def why_not(layer: Layer, facts: Facts) -> str | None:
    """Why there are no kernels to take from a layer; None if there are."""
    if layer.kind == "conv" and Columns.of(layer, facts).channels == 1:
        return "each of its kernels is all that there is of a channel, which goes as a whole"
    weight = facts.const(layer.weight)
    return None if weight is not None and np.isfinite(weight).all() else "not all of its weights are finite"


def thin_out(rw: Rewriter, shares: Mapping[Layer, float], statistics: Any) -> list[Thinned]:
    """Set shares of the kernels of layers to zero, and fit the others.

    Args:
        rw: The rewriter of the layers' model.
        shares: Of every layer's kernels, from 0 to less than 1; for layers that :func:`why_not` knows nothing against.
        statistics: The service that gathers statistics; without any, or without calibration data, small ones go.
    """
    found = None
    if statistics is not None and statistics.real:
        requests = [request for layer in shares if (request := gram_request(layer, rw.facts)) is not None]
        found = statistics.collect(rw.model, list(dict.fromkeys(requests)))
    thinned = []
    for layer, share in shares.items():
        taps = Columns.of(layer, rw.facts).taps
        width, what = (taps, "kernels") if taps > 1 else (RUN, f"runs of {RUN} inputs")
        weight = layer.by_output(rw.facts).astype(np.float32)
        seen = known(layer, rw.facts, found)
        sparse = without_runs(weight, width, share, seen)
        units = len(weight) * -(-weight.shape[1] // width)
        store(rw, layer, sparse.weight, _RULE)
        thinned.append(Thinned(layer, round(share * units), units, what, sparse.error))
    return thinned


def without_runs(weight: np.ndarray, width: int, share: float, seen: Seen) -> Sparse:
    """A weight with a share of its runs of columns zero, those that cost least.

    Args:
        weight: (N, K) float32, the outputs of one group of a convolution after those of the other.
        width: Columns of a run; the last one of a row may be shorter.
        share: Of all runs of all rows.
        seen: What is known of the inputs.
    """
    grams = [None] if seen.gram is None else list(seen.gram)
    parts = np.split(weight, len(grams))
    costs = np.concatenate([_costs(part, width, gram, seen.damping) for part, gram in zip(parts, grams, strict=True)])
    going = np.zeros(costs.size, bool)
    going[np.argsort(costs, axis=None, kind="stable")[: round(share * costs.size)]] = True
    left = np.repeat(~going.reshape(costs.shape), width, axis=1)[:, : weight.shape[1]]
    found = np.where(left, weight, np.float32(0))
    if seen.gram is None:
        return Sparse(found, None)
    starts = np.split(found, len(grams))
    fitted = [
        repaired(part, start, gram, seen.damping) for part, start, gram in zip(parts, starts, seen.gram, strict=True)
    ]
    return Sparse(np.concatenate(fitted), output_error(parts, fitted, seen.gram))


def _costs(weight: np.ndarray, width: int, gram: np.ndarray | None, damping: float) -> np.ndarray:
    """What every run of every row is worth, (N, runs)."""
    starts = range(0, weight.shape[1], width)
    if gram is None:
        squares = np.square(weight, dtype=np.float64)
        return np.stack([squares[:, start : start + width].sum(axis=1) for start in starts], axis=1)
    mean = float(np.diagonal(gram).mean())
    factor = Correlation.of(gram / mean if mean > 0 else gram, damping).factor.astype(np.float64)
    costs = []
    for start in starts:
        end = min(start + width, weight.shape[1])
        reach = factor[:end, start:end]  # the inverse is U^T U, and U is upper triangular
        own = weight[:, start:end].astype(np.float64)
        costs.append(np.sum(own * np.linalg.solve(reach.T @ reach, own.T).T, axis=1))
    return np.stack(costs, axis=1)
