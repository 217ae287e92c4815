"""Writing a plan into the graph: Q and DQ on its tensors, integers for its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir

from optc.ir.metadata import CALIBRATION_KEY
from optc.ir.ops import operand
from optc.ir.rewriter import Rewriter
from optc.passes.clean.rules_quantized import Grid
from optc.passes.compress.integer import grids as on_grid
from optc.passes.compress.integer.plan import Plan
from optc.passes.compress.integer.weights import Codes, to_nearest

RULE = "static-int8"

#: The lowest and the highest number of each value, by name.
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Parameters:
    """What takes the place of a layer's own weights and bias.

    Attributes:
        codes: The weights as integers; None to round the layer's own to nearest.
        bias: One float per output channel, for a layer that may have a bias; None for its own, if it has one.
    """

    codes: Codes | None = None
    bias: np.ndarray | None = None


def choose_grids(plan: Plan, ranges: Ranges) -> dict[onnx_ir.Value, Grid]:
    """A grid for every value of a plan: values of one group get one that holds all of their ranges.

    Raises:
        KeyError: A value has no range.
    """
    joined: dict[onnx_ir.Value, tuple[float, float]] = {}
    for value in plan.values:
        low, high = ranges[value.name or ""]
        least, most = plan.bounds.get(value, (-np.inf, np.inf))
        low, high = max(low, least), min(high, most)
        head = plan.group(value)
        known = joined.get(head, (low, high))
        joined[head] = (min(low, known[0]), max(high, known[1]))
    placement = plan.placement
    made = {
        head: on_grid.activation_grid(low, high, placement.activations, placement.symmetric)
        for head, (low, high) in joined.items()
    }
    return {value: made[plan.group(value)] for value in plan.values}


def insert(
    rw: Rewriter,
    plan: Plan,
    grids: Mapping[onnx_ir.Value, Grid],
    parameters: Mapping[onnx_ir.Node, Parameters] | None = None,
    evidence: Mapping[str, str] | None = None,
) -> dict[str, onnx_ir.TensorProtocol]:
    """Put the plan's tensors on their grids.

    Every value is quantized and dequantized once, right behind its producer; readers that compute with integers read
    what comes back, and so does everybody where the integers are all there is.

    Args:
        rw: The rewriter of the model that the plan was made for.
        plan: The plan.
        grids: A grid for each of its values.
        parameters: Other weights and biases than the layers' own.
        evidence: What the scales came from, by the values' names; it stays with what quantizes them.

    Returns:
        What the constants were that are integers now, by the names of the integers.
    """
    originals: dict[str, onnx_ir.TensorProtocol] = {}
    order = {node: index for index, node in enumerate(rw.model.graph)}
    nodes = list(order)
    reads = {
        node: [(index, node.inputs[index]) for index in plan.reads(node)] for node in (*plan.layers, *plan.passing)
    }
    for node in plan.layers:
        own = (parameters or {}).get(node, Parameters())
        originals |= _quantize_parameters(rw, plan, node, grids[node.inputs[0]], own)  # type: ignore[index]
    back: dict[onnx_ir.Value, onnx_ir.Value] = {}
    for value in plan.values:
        producer = value.producer()
        after = 0 if producer is None else order[producer] + 1
        anchor = nodes[min(after, len(nodes) - 1)]
        with rw.at(anchor, RULE, [] if producer is None else [producer]):
            back[value] = _quantize(rw, value, grids[value], (evidence or {}).get(value.name or ""))
    if any(value.producer() is nodes[-1] for value in plan.values):
        rw.restore_order(rw.model.graph)  # behind the last node there was nothing to insert before
    for value in plan.whole:
        quantizer = back[value].producer().inputs[0].producer()  # type: ignore[union-attr]
        with rw.at(quantizer, RULE):  # type: ignore[arg-type]
            rw.replace(value, back[value])
            rw.set_input(quantizer, 0, value)  # type: ignore[arg-type]
    for node, inputs in reads.items():
        for index, old in inputs:
            if old not in plan.whole:
                with rw.at(node, RULE):
                    rw.set_input(node, index, back[old])  # type: ignore[index]
    return originals


def _quantize(rw: Rewriter, value: onnx_ir.Value, grid: Grid, evidence: str | None) -> onnx_ir.Value:
    """``value``, rounded to a grid."""
    scale, zero = parameters_of(rw, grid, value.name or "value")
    codes = rw.op("QuantizeLinear", value, scale, zero)
    if evidence is not None:
        codes.producer().metadata_props[CALIBRATION_KEY] = evidence
    result = rw.op("DequantizeLinear", codes, scale, zero)
    rw.facts.assume(result, like=value)
    return result


def _quantize_parameters(
    rw: Rewriter, plan: Plan, node: onnx_ir.Node, x: Grid, own: Parameters
) -> dict[str, onnx_ir.TensorProtocol]:
    rule, placement = plan.placement.rules[node.op_type], plan.placement
    weight, bias = node.inputs[1], operand(node, rule.bias) if rule.bias is not None else None
    assert weight is not None
    addend = own.bias if own.bias is not None or bias is None else rw.facts.const(bias)
    codes = own.codes
    if codes is None:
        array = rw.facts.const(weight)
        assert array is not None
        room = addend if placement.integer_bias else None
        codes = to_nearest(array, rule.axis(node), placement.weight_limit, room, x.scale[0])
    originals: dict[str, onnx_ir.TensorProtocol] = {}
    name = bias.name if bias is not None else f"{weight.name}_bias"
    with rw.at(node, RULE):
        constants = [(1, weight, dequantized(rw, codes.codes, codes.grid, weight.name or "weight"))]
        if addend is not None and rule.bias is not None and placement.integer_bias:
            grid = on_grid.bias_grid(x.scale[0], codes.grid)
            made = dequantized(rw, on_grid.bias_codes(addend, grid), grid, name or "bias")
            constants.append((rule.bias, bias, made))
        elif own.bias is not None and rule.bias is not None:
            _set_input(rw, node, rule.bias, rw.constant(own.bias.astype(np.float32), name or "bias"))
        for index, old, new in constants:
            integers = new.producer().inputs[0]  # type: ignore[union-attr]
            before = rw.facts.tensor(old) if old is not None else None
            if before is not None and integers is not None:
                originals[integers.name or ""] = before
            _set_input(rw, node, index, new)
    for value in (weight, bias):
        if value is not None:
            rw.erase_initializer(value)
    return originals


def _set_input(rw: Rewriter, node: onnx_ir.Node, index: int, value: onnx_ir.Value) -> None:
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    rw.set_input(node, index, value)


def parameters_of(rw: Rewriter, grid: Grid, name: str) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """Scale and zero point of a grid with one scale."""
    zero = np.asarray(grid.zero[0], grid.dtype.numpy())
    return rw.constant(np.float32(grid.scale[0]), f"{name}_scale"), rw.constant(zero, f"{name}_zero")


def dequantized(rw: Rewriter, codes: np.ndarray, grid: Grid, name: str) -> onnx_ir.Value:
    """Integers that are dequantized when the model runs; every reader has its own."""
    single = grid.axis is None
    scale = np.float32(grid.scale[0]) if single else np.asarray(grid.scale, np.float32)
    zero = np.asarray(grid.zero[0] if single else grid.zero, codes.dtype)
    return rw.op(
        "DequantizeLinear",
        rw.constant(codes, f"{name}_{codes.dtype.name}"),
        rw.constant(scale, f"{name}_scale"),
        rw.constant(zero, f"{name}_zero"),
        axis=grid.axis,
    )
