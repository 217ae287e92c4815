"""What is known of a layer that is to be made sparse, and its weight written anew."""

from __future__ import annotations

import numpy as np

from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter
from optc.passes.calibration.store import Statistics
from optc.passes.compress.layers import Layer
from optc.passes.compress.lowrank.inputs import Seen, seen_by, why_unseen


def known(layer: Layer, facts: Facts, statistics: Statistics | None) -> Seen:
    """What is known of a layer's input; nothing where what there is would lead astray."""
    if statistics is None or why_unseen(layer, facts, statistics) is not None:
        return Seen()
    return seen_by(layer, facts, statistics)


def store(rw: Rewriter, layer: Layer, weight: np.ndarray, rule: str) -> None:
    """Let a layer have another weight, (N, K); whatever else reads the old one keeps it.

    Args:
        rw: The rewriter of the layer's model.
        layer: A product or convolution.
        weight: As :meth:`Layer.by_output` has it.
        rule: What the node is stamped with.
    """
    old = layer.weight
    with rw.at(layer.node, rule):
        rw.set_input(layer.node, 1, rw.constant(layer.stored(weight, rw.facts), f"{old.name}_sparse"))
    rw.erase_initializer(old)
