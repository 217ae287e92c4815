"""Fitting layers anew to the inputs that are left, so that their outputs stay near to what they were.

Least squares with a ridge: of all weights on the channels that are left, those whose output is nearest to the original
layer's. First in closed form from Gram matrices of the model as it was; then from the first layer to the last with new
statistics of the model as it has become, against the original model's inputs, so that errors do not pile up (He et
al., "Channel Pruning for Accelerating Very Deep Neural Networks", 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from optc.ir.ops import operand
from optc.ir.rewriter import Rewriter
from optc.passes.calibration.store import Request, Statistics
from optc.passes.compress.prune.importance import Reader, Second

#: Times that statistics are gathered anew on the way from the first layer to the last.
STAGES = 8
#: Rows per column that a layer is fitted to, and bounds of their number.
_ROWS_PER_COLUMN, _FEWEST, _MOST = 4, 512, 8192

#: Ridges that are tried, as shares of the mean of the diagonal.
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)

#: Gathers statistics of a model.
Collect = Callable[[onnx_ir.Model, Sequence[Request]], Statistics]


def fitted(weight: np.ndarray, second: Second, keep: np.ndarray) -> np.ndarray:
    """The weights on the columns that are kept whose output is nearest to that of all.

    Args:
        weight: (K, N).
        second: What is known of the rows.
        keep: (K,) bool.

    Returns:
        (kept, N).
    """
    gram = second.gram
    inner = gram[np.ix_(keep, keep)]
    ridge = np.eye(len(inner)) * second.ridge
    # The ridge pulls towards the weights as they were: what the data do not tell stays.
    return weight[keep] + np.linalg.solve(inner + ridge, gram[np.ix_(keep, ~keep)] @ weight[~keep])


@dataclass(frozen=True, eq=False)
class Fit:
    """A reader of removed units.

    Attributes:
        reader: The reader, in the graph as it was.
        keep: Of every channel of it, whether it is left.
        weight: The weight as it was, (K, N) float64, less the outputs that are gone.
    """

    reader: Reader
    keep: np.ndarray
    weight: np.ndarray

    @property
    def request(self) -> Request:
        """Rows to fit to."""
        rows = int(np.clip(_ROWS_PER_COLUMN * len(self.weight), _FEWEST, _MOST))
        return Request(self.reader.x.name or "", view=self.reader.view, rows=rows)


def fit_from_grams(
    rw: Rewriter, fits: Sequence[Fit], nodes: Mapping[onnx_ir.Node, onnx_ir.Node], grams: Sequence[Second]
) -> None:
    """Write weights in closed form into a graph that was cut.

    Args:
        rw: The rewriter of the graph that was cut.
        fits: The readers.
        nodes: Nodes of it by the nodes of the graph as it was.
        grams: What is known of each reader's input, before anything was cut.
    """
    for fit, gram in zip(fits, grams, strict=True):
        matrix = fitted(fit.weight, gram, fit.reader.columns(fit.keep))
        _store(rw, fit, nodes[fit.reader.weight.node], matrix)


def fit_in_order(
    rw: Rewriter,
    original: onnx_ir.Model,
    fits: Sequence[Fit],
    nodes: Mapping[onnx_ir.Node, onnx_ir.Node],
    collect: Collect,
) -> int:
    """Fit readers from the first to the last, each part to what those before it have become.

    Args:
        rw: The rewriter of the graph that was cut.
        original: The model before.
        fits: The readers, in the graph's order.
        nodes: See :func:`fit_from_grams`.
        collect: Gathers statistics.

    Returns:
        How many layers were fitted.
    """
    count = 0
    stages = min(STAGES, len(fits))
    for number in range(stages):
        part = fits[number * len(fits) // stages : (number + 1) * len(fits) // stages]
        requests = [fit.request for fit in part]
        before, now = collect(original, requests), collect(rw.model, requests)
        for fit, request in zip(part, requests, strict=True):
            if before.why_not(request) is not None or now.why_not(request) is not None:
                continue
            wanted = before.rows(request.value, request.view)
            given = now.rows(request.value, request.view)
            if len(wanted) == len(given) and given.shape[1] == fit.reader.columns(fit.keep).sum():
                count += _fit(rw, fit, nodes[fit.reader.weight.node], wanted, given)
    return count


def _fit(rw: Rewriter, fit: Fit, node: onnx_ir.Node, wanted: np.ndarray, given: np.ndarray) -> bool:
    """Fit one reader to rows of its input in the original model and in the one that was cut."""
    array = rw.facts.const(node.inputs[fit.reader.weight.index])
    if array is None:
        return False
    current = _matrix(fit.reader, array)
    target, rows = wanted.astype(np.float64) @ fit.weight, given.astype(np.float64)
    bias = _bias(rw, node)
    if bias is not None:
        shift, middle = target.mean(axis=0), rows.mean(axis=0)
        target, rows = target - shift, rows - middle
    correction = _correction(rows, target - rows @ current)
    if correction is None:
        return False
    matrix = current + correction
    _store(rw, fit, node, matrix)
    if bias is not None:
        # The bias takes up what the means of inputs no longer make.
        old = node.inputs[2]
        with rw.at(node, "prune-repair"):
            rw.set_input(node, 2, rw.constant((bias + shift - middle @ matrix).astype(np.float32), "bias_fitted"))
        rw.erase_initializer(old)
    return True


def _correction(rows: np.ndarray, missing: np.ndarray) -> np.ndarray | None:
    """What to add to weights so that rows make up for what is missing; None if that does not help rows not seen.

    The ridge is the one with which the last rows, which come of other samples, are met best by a fit to the first.
    """
    told = len(rows) * 3 // 4
    (seen, wanted), (unseen, tested) = (rows[:told], missing[:told]), (rows[told:], missing[told:])
    if not len(seen) or not len(unseen):
        return None
    values, vectors = np.linalg.eigh(seen.T @ seen / told)
    sides, turned, mean = vectors.T @ (seen.T @ wanted / told), unseen @ vectors, max(float(values.mean()), 1e-30)
    losses = {
        share: float(np.square(tested - turned @ (sides / (np.maximum(values, 0) + share * mean)[:, None])).sum())
        for share in _RIDGES
    }
    best = min(_RIDGES, key=lambda share: losses[share])
    if losses[best] >= float(np.square(tested).sum()):
        return None
    gram = rows.T @ rows / len(rows)
    return np.linalg.solve(gram + np.eye(len(gram)) * (best * mean), rows.T @ missing / len(rows))


def _matrix(reader: Reader, array: np.ndarray) -> np.ndarray:
    if reader.taps > 1:
        return array.reshape(len(array), -1).T.astype(np.float64)
    axis = reader.weight.axis
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)


def _bias(rw: Rewriter, node: onnx_ir.Node) -> np.ndarray | None:
    """The bias of a Conv or Gemm with one number per output; None where it has none of that kind."""
    value = operand(node, 2)
    if node.op_type not in ("Conv", "FusedConv", "Gemm") or value is None or rw.facts.rank(value) != 1:
        return None
    beta = node.attributes.get("beta")
    alpha = node.attributes.get("alpha")
    if any(attr is not None and attr.value != 1.0 for attr in (alpha, beta)) and node.op_type == "Gemm":
        return None
    array = rw.facts.const(value)
    return None if array is None or array.size == 1 else array.astype(np.float64)


def _store(rw: Rewriter, fit: Fit, node: onnx_ir.Node, matrix: np.ndarray) -> None:
    old = node.inputs[fit.reader.weight.index]
    array = rw.facts.const(old)
    assert array is not None
    with rw.at(node, "prune-repair"):
        stored = fit.reader.stored(matrix, array)
        rw.set_input(node, fit.reader.weight.index, rw.constant(stored, f"{old.name}_fitted"))
    rw.erase_initializer(old)
