"""The algorithms by name, and quantizing a large matrix in pieces of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from optc.passes.compress.weights.awq import awq_clip
from optc.passes.compress.weights.codes import Codes, Grid
from optc.passes.compress.weights.fit import SEARCHED
from optc.passes.compress.weights.gptq import gptq
from optc.passes.compress.weights.hqq import hqq
from optc.passes.compress.weights.inputs import Inputs
from optc.passes.compress.weights.kquant import kquant
from optc.passes.compress.weights.rtn import rtn


@dataclass(frozen=True)
class Method:
    """One algorithm.

    Attributes:
        run: Quantizes rows (n, K) on a grid; the inputs are None unless ``needs_inputs``.
        needs_inputs: Whether it works with what is known of the input.
        needs_zeros: Whether its grid must have zero points.
        piece: Weights that it takes at once: enough for speed, little enough for its temporary arrays.
    """

    run: Callable[[np.ndarray, Grid, Inputs | None], Codes]
    needs_inputs: bool = False
    needs_zeros: bool = False
    piece: int = 1 << 18

    def why_not(self, grid: Grid, inputs: bool) -> str | None:
        """Why it cannot be used; None if it can."""
        if self.needs_inputs and not inputs:
            return "it needs calibration data"
        return "it needs zero points" if self.needs_zeros and grid.zeros == "none" else None


def _informed(run: Callable[[np.ndarray, Grid, Inputs], Codes]) -> Method:
    def checked(weight: np.ndarray, grid: Grid, inputs: Inputs | None) -> Codes:
        assert inputs is not None, "the method needs what is known of the input"
        return run(weight, grid, inputs)

    return Method(checked, needs_inputs=True, piece=1 << 22)


METHODS: dict[str, Method] = {
    "rtn": Method(lambda weight, grid, inputs: rtn(weight, grid)),
    "mse": Method(lambda weight, grid, inputs: rtn(weight, grid, shares=SEARCHED)),
    "hqq": Method(lambda weight, grid, inputs: hqq(weight, grid), needs_zeros=True),
    "k-quant": Method(lambda weight, grid, inputs: kquant(weight, grid), needs_zeros=True),
    # Of AWQ, the part that concerns one weight; channels are scaled in the graph, see awq_scale.
    "awq": _informed(lambda weight, grid, inputs: awq_clip(weight, inputs.single, grid)),
    "gptq": _informed(lambda weight, grid, inputs: gptq(weight, inputs.correlation, grid)),
}


def quantize(weight: np.ndarray, method: str, grid: Grid, inputs: Inputs | None = None) -> Codes:
    """Quantize ``weight`` (N, K), any real type, in pieces of rows: temporary arrays do not grow with it.

    Args:
        weight: May be a view of a file; it is read piece by piece.
        method: A key of :data:`METHODS`.
        grid: Bits, blocks and zero points.
        inputs: What is known of the input, where the method needs it.
    """
    algorithm = METHODS[method]
    count = max(1, algorithm.piece // max(1, weight.shape[1]))
    pieces = (weight[start : start + count] for start in range(0, len(weight), count))
    with np.errstate(invalid="ignore", over="ignore"):  # what comes of weights that are not finite, see Codes.finite
        return _joined(len(weight), pieces, lambda piece: algorithm.run(piece, grid, inputs))


def _joined(rows: int, pieces: Iterable[np.ndarray], run: Callable[[np.ndarray], Codes]) -> Codes:
    """The codes of all pieces in one set of arrays, which are made when the first is there."""
    result: Codes | None = None
    start = 0
    for piece in pieces:
        part = run(np.ascontiguousarray(piece, dtype=np.float32))
        if len(piece) == rows:
            return part
        if result is None:
            zeros = None if part.zeros is None else _room(part.zeros, rows)
            result = replace(part, codes=_room(part.codes, rows), scales=_room(part.scales, rows), zeros=zeros)
        for whole, array in zip(result.arrays, part.arrays, strict=True):
            if whole is not None and array is not None:
                whole[start : start + len(piece)] = array
        start += len(piece)
    assert result is not None, "there are no rows"
    return result


def _room(array: np.ndarray, rows: int) -> np.ndarray:
    return np.empty((rows, *array.shape[1:]), array.dtype)
