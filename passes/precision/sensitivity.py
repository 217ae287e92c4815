"""Which nodes of a plan err most: those whose outputs are farther off than their inputs explain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir

from optc.passes.calibration.taps import keep_only, needed, values_of
from optc.passes.precision.plan import Plan

#: Samples that are looked at.
_SAMPLES = 2


def ranked(measure: Any, exact: onnx_ir.Model, rounded: onnx_ir.Model, plan: Plan) -> list[onnx_ir.Node]:
    """The nodes of a plan by their own share of error, the largest first.

    Args:
        measure: Has the data, and runs models.
        exact: The model.
        rounded: The same with what the plan makes narrow rounded; its values have the same names.
        plan: The plan.
    """
    names = {value.name: value for node in plan.slots for value in (*node.inputs, *node.outputs) if value is not None}
    errors = _errors(measure, exact, rounded, [name for name in names if name])

    def own(node: onnx_ir.Node) -> float:
        slots = plan.slots[node]
        after = max((errors.get(node.outputs[index].name or "", 0.0) for index in slots.outputs), default=0.0)
        read = [node.inputs[index] for index in slots.inputs]
        before = max((errors.get(value.name or "", 0.0) for value in read if value is not None), default=0.0)
        return after if not np.isfinite(after) else max(after**2 - before**2, 0.0)

    shares = {node: own(node) for node in plan.slots}
    return sorted(plan.slots, key=lambda node: shares[node], reverse=True)


def _errors(measure: Any, exact: onnx_ir.Model, rounded: onnx_ir.Model, names: list[str]) -> dict[str, float]:
    """The relative L2 error of values, by name; infinite where one of them is not finite alone."""
    shown = [name for name in names if name in values_of(exact.graph) and name in values_of(rounded.graph)]
    pairs = []
    for model in (exact, rounded):
        copy = model.clone()
        there = values_of(copy.graph)
        keep_only(copy.graph, [there[name] for name in shown if not there[name].is_graph_input()])
        pairs.append((copy, measure.host.runner(copy, plain=True)))
    squares: dict[str, list[float]] = {}
    for sample in measure.holdout.fitted.first(_SAMPLES):
        wanted, found = (_floats(run.run(needed(copy.graph, sample))) for copy, run in pairs)
        for name, array in wanted.items():
            difference, size = squares.setdefault(name, [0.0, 0.0])
            with np.errstate(invalid="ignore", over="ignore"):
                squares[name] = [
                    difference + float(np.sum((found[name] - array) ** 2)),
                    size + float(np.sum(array**2)),
                ]
    return {name: _relative(*pair) for name, pair in squares.items()}


def _floats(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, np.float64) for name, array in outputs.items()}


def _relative(difference: float, size: float) -> float:
    if not np.isfinite(difference):
        return float("inf")
    return float((difference / size) ** 0.5) if size else float(difference > 0)
