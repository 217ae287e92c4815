"""Sharing out one budget of weights over layers, so that their errors together are least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """One thing that a layer could become.

    Attributes:
        ranks: At which ranks; empty if it is left as it is.
        weights: How many it has then.
        error: Relative L2 error of its output.
    """

    ranks: tuple[int, ...]
    weights: int
    error: float


def share_out(ladders: Sequence[Sequence[Rung]], weights: float) -> list[Rung] | None:
    """One rung of each ladder, with at most so many weights in all and nearly the least sum of squared errors.

    One price per weight traces the frontier: at each price every layer takes the rung that is cheapest for it (Lagrange
    multipliers; Shoham and Gersho, 1988).

    Returns:
        None if even the smallest rungs have more weights.
    """
    smallest = [min(ladder, key=lambda rung: rung.weights) for ladder in ladders]
    if _weights(smallest) > weights:
        return None
    best = smallest
    free = _at(ladders, 0.0)
    if _weights(free) <= weights:
        return free
    low, high = 1e-18, 1.0
    while high / low > 1 + 1e-6:
        price = math.sqrt(low * high)
        found = _at(ladders, price)
        if _weights(found) <= weights:
            best, high = found, price
        else:
            low = price
    return best


def _at(ladders: Sequence[Sequence[Rung]], price: float) -> list[Rung]:
    return [min(ladder, key=lambda rung: rung.error**2 + price * rung.weights) for ladder in ladders]


def _weights(rungs: Sequence[Rung]) -> int:
    return sum(rung.weights for rung in rungs)
