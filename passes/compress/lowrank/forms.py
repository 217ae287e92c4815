"""The forms in which a layer can be written as smaller ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from optc.ir.facts import Facts
from optc.passes.calibration.store import Statistics
from optc.passes.compress.layers import Layer
from optc.passes.compress.lowrank.chains import Spatial, Tucker
from optc.passes.compress.lowrank.cuts import Form
from optc.passes.compress.lowrank.inputs import seen_by, why_unseen
from optc.passes.compress.lowrank.products import Product, SharedProducts
from optc.passes.compress.lowrank.window import Window


def forms_of(layer: Layer, facts: Facts, statistics: Statistics | None) -> list[Form] | str:
    """The forms that a layer has, or why it has none.

    Args:
        layer: A product or convolution.
        facts: What is known of its graph.
        statistics: Of the user's data; None where there are none, and weights have to speak for themselves.
    """
    problem = why_unseen(layer, facts, statistics)
    if problem is not None:
        return problem
    look = partial(seen_by, layer, facts, statistics)
    weight = layer.by_output(facts)
    if not np.isfinite(weight).all():
        return "not all of its weights are finite"
    prefix = "" if look().gram is not None else "plain-"
    if layer.kind == "matmul":
        return [Product(weight[None], look, prefix)]
    if layer.kind != "conv":
        return f"{layer.node.op_type} is no product with a matrix"
    window = Window.of(layer, facts)
    channels, taps = layer.rows // math.prod(window.kernel), math.prod(window.kernel)
    if channels == 1:
        return "each of its outputs is made of one channel (depthwise)"
    if layer.columns == layer.groups:
        return "each of its groups makes one output"
    grouped = weight.reshape(layer.groups, -1, layer.rows)
    if taps == 1:
        return [Product(grouped, look, prefix, window)]
    found: list[Form] = [Tucker(window, grouped.reshape(*grouped.shape[:2], channels, taps), look, prefix)]
    if len(window.kernel) == 2 and min(window.kernel) > 1:
        height, width = window.kernel
        found.append(Spatial(window, grouped.reshape(*grouped.shape[:2], channels * height, width), look, prefix))
    return found


def shared_form(layers: Sequence[Layer], facts: Facts, statistics: Statistics | None) -> list[Form] | str:
    """The form in which products of one input share their first factor; arguments as for :func:`forms_of`.

    Its error is the root of the mean square of those of the layers.
    """
    problem = why_unseen(layers[0], facts, statistics)
    if problem is not None:
        return problem
    weights = [layer.by_output(facts)[None] for layer in layers]
    if not all(np.isfinite(weight).all() for weight in weights):
        return "not all of its weights are finite"
    look = partial(seen_by, layers[0], facts, statistics)
    return [SharedProducts(weights, look, "" if look().gram is not None else "plain-")]
