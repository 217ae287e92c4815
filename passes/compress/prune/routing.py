"""Which experts of a mixture are needed least: those that the router gives the least weight.

What counts is what the kernel makes of the router's numbers: their softmax, of which the largest ``k`` are taken and,
if so told, scaled to a sum of one. An expert's worth is its mean weight over rows of calibration data.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir

from optc.passes.calibration.store import Request, Statistics
from optc.passes.compress.prune.axes import Group, Structure
from optc.passes.compress.prune.importance import Ranking

#: Rows of the router's result that are looked at.
_ROWS = 4096
_GUESS = "experts are ranked by the weight that the router gives them, which does not tell what the outputs lose"


def routed_by(group: Group) -> list[onnx_ir.Node]:
    """The mixtures of a group of experts."""
    return list(dict.fromkeys(weight.node for weight in group.readers))


def routing_requests(group: Group) -> list[Request]:
    """What is to be known of what routers give."""
    return [Request(node.inputs[1].name or "", rows=_ROWS) for node in routed_by(group)]


def by_routing(structure: Structure, group: Group, known: Statistics) -> Ranking | str:
    """Experts by the weight that routers give them, or why that is not known."""
    worth = np.zeros(len(group))
    for node, request in zip(routed_by(group), routing_requests(group), strict=True):
        why_not = known.why_not(request)
        if why_not is not None:
            return why_not
        router = node.inputs[1]
        axes = structure.state.axes[router] if router is not None else None
        assert axes is not None and axes[-1] is not None, "a group of experts has a router of a known size"
        positions = structure.positions(group, axes[-1])
        weights = routing_weights(known.rows(request.value), node.attributes)
        mine = positions >= 0
        worth += np.bincount(positions[mine], weights.mean(axis=0)[mine], len(group))
    return Ranking(group, np.argsort(worth, kind="stable"), None, _GUESS)


def routing_weights(logits: np.ndarray, attributes: Mapping[str, onnx_ir.Attr]) -> np.ndarray:
    """What a mixture makes of what its router gives.

    Args:
        logits: (rows, experts).
        attributes: Of the node: ``k``, ``normalize_routing_weights``.

    Returns:
        (rows, experts); zero for experts that a row does not take.
    """
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares = exponentials / exponentials.sum(axis=1, keepdims=True)
    count = attributes["k"].as_int() if "k" in attributes else 1
    taken = np.argsort(-shares, axis=1, kind="stable")[:, :count]
    weights = np.zeros_like(shares)
    np.put_along_axis(weights, taken, np.take_along_axis(shares, taken, axis=1), axis=1)
    if "normalize_routing_weights" in attributes and attributes["normalize_routing_weights"].as_int():
        weights /= weights.sum(axis=1, keepdims=True)
    return weights
