"""What is known of the inputs of layers that are to be factored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optc.ir.facts import Facts
from optc.passes.calibration.store import Request, Statistics
from optc.passes.compress.layers import Layer

#: Gram matrices of more columns than this are not gathered: the time that it takes to use them grows with the cube.
_LARGEST = 8192
#: Few rows tell little of how inputs are correlated: a share of K / rows of the mean energy is added to that of each
#: input, within bounds. Of what was tried on a sentence embedder with 1 to 17 rows per input, about the best for
#: other sentences than those.
_DAMPING, _LEAST, _MOST = 0.3, 0.01, 1.0
#: Rows per input from which on errors foretold say something of other data: with fewer, any rank seems to be enough.
ENOUGH = 4


@dataclass(frozen=True)
class Seen:
    """What a layer's inputs look like.

    Attributes:
        gram: X^T X / n, (groups, K, K) float64; None if nothing is known.
        damping: What is added to it when directions are chosen, as a share of the mean energy.
    """

    gram: np.ndarray | None = None
    damping: float = 0.0


def gram_request(layer: Layer, facts: Facts) -> Request | None:
    """What is asked of the statistics for a layer; None if that would be too much."""
    if layer.rows > _LARGEST:
        return None
    return Request(layer.x.name or "", view=layer.view(facts), gram=True)


def why_unseen(layer: Layer, facts: Facts, statistics: Statistics | None) -> str | None:
    """Why nothing good can come of what there is on a layer's inputs; None if it can, or nothing was looked at."""
    request = gram_request(layer, facts)
    if statistics is None or request is None:
        return None
    problem = statistics.why_not(request)
    if problem is not None:
        return f"nothing is known of its input: {problem}"
    gram = statistics.gram(request.value, request.view)
    if not np.isfinite(gram).all():
        return "the energy of its inputs is not finite"
    return None if gram.any() else "its input was zero in every sample"


def too_few(layer: Layer, facts: Facts, statistics: Statistics | None) -> str | None:
    """Why what was seen of a layer's inputs says nothing of its error on others; None if it does."""
    request = gram_request(layer, facts)
    if statistics is None or request is None:
        return None
    rows = statistics.gram_rows(request.value, request.view)
    if rows >= ENOUGH * layer.rows:
        return None
    return f"its {layer.rows} inputs were seen in {rows} rows only: ranks would fit the samples, not other data"


def seen_by(layer: Layer, facts: Facts, statistics: Statistics | None) -> Seen:
    """What is known of a layer's inputs; arguments as for :func:`why_unseen`, which knows no reason against it."""
    request = gram_request(layer, facts)
    if statistics is None or request is None:
        return Seen()
    gram = statistics.gram(request.value, request.view)
    gram = gram if gram.ndim == 3 else gram[None]
    rows = statistics.gram_rows(request.value, request.view)
    return Seen(gram, float(np.clip(_DAMPING * gram.shape[-1] / max(rows, 1), _LEAST, _MOST)))
