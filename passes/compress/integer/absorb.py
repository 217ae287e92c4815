"""Putting integer kernels in the place of Q/DQ pairs, and the proof that every pair has found one.

For ONNX Runtime's CPU provider the kernels are written out (QLinearConv, QGemm, MatMulIntegerToFloat, ...). Q/DQ pairs
that it fuses itself when it loads the file end in the same kernels and are as fast, so speed does not decide; but
written out, nothing hangs on the heuristics of the version that opens the file, and what is judged with its
optimizations off is what runs with them. Other targets keep the pairs: that is what their compilers read.

The proof looks for what is left over: a pair without a kernel, or constants that are dequantized in every run. For the
CPU it is looked for in the graph that ONNX Runtime has made of the model, ready to run; for targets that are not here
the placement table is asked, and that is all that can be said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import int_attr, is_op, made_by, operand
from optc.ir.rewriter import Rewriter, users
from optc.ir.targets import Target
from optc.passes.base import PassContext
from optc.passes.clean import rules_quantized
from optc.passes.compress.integer.placement import Placement, Result, Role
from optc.passes.compress.techniques import Leftover
from optc.passes.driver import apply_rules
from optc.passes.emit.emit import Emit
from optc.passes.fusion import qdq

_CLEANING = (rules_quantized.clip_quantized, rules_quantized.quantize_dequantized)


def absorb(rw: Rewriter, target: Target, kernels: Any) -> None:
    """Write integer kernels where Q/DQ pairs stand around an operator that the target's runtime has one for."""
    ctx = PassContext(rw, target, {"kernels": kernels})
    apply_rules(ctx, _CLEANING)
    for phase in qdq.PHASES:
        apply_rules(ctx, phase)
    Emit().run(ctx)
    # What became of a sum or a pool may move what is quantized again behind it.
    apply_rules(ctx, _CLEANING)


# -- the proof ------------------------------------------------------------------------------------------------------


def unabsorbed(model: onnx_ir.Model) -> dict[str, str]:
    """What ONNX Runtime could not use of a model's Q/DQ nodes.

    Args:
        model: The model as ONNX Runtime has optimized it, ready to run.

    Returns:
        Names of values that are dequantized for nothing: outputs of a QuantizeLinear that only a DequantizeLinear
        reads again, and constants that are dequantized in every run; and the reason.
    """
    found = {}
    for node in model.graph:
        if node.op_type != "DequantizeLinear":
            continue
        codes = node.inputs[0]
        assert codes is not None
        readers = ", ".join(sorted({user.op_type for user in users(node.outputs[0])})) or "an output"
        before = codes.producer()
        if before is None and codes.is_initializer():
            found[codes.name or ""] = f"{readers} would read constants that are dequantized in every run"
        elif before is not None and before.op_type == "QuantizeLinear":
            found[codes.name or ""] = f"{readers} found no integer kernel"
    return found


def unsupported(graph: onnx_ir.Graph, facts: Facts, placement: Placement) -> dict[str, str]:
    """What a target's placement table has no kernel for, of the Q/DQ pairs in a graph.

    Returns:
        Names of values as :func:`unabsorbed` gives them.
    """
    found = {}
    for node in graph:
        if not is_op(node, "DequantizeLinear") or int_attr(node, "block_size", 0):
            continue  # blocks are weights in 4 bits, which kernels of floats read
        codes = node.inputs[0]
        reasons = [_problem(user, node, facts, placement) for user in users(node.outputs[0])]
        reason = _bad_grid(node, facts, placement) or next(filter(None, reasons), None)
        if reason is not None:
            found[codes.name or ""] = reason
    return found


def _bad_grid(node: onnx_ir.Node, facts: Facts, placement: Placement) -> str | None:
    grid = rules_quantized.grid_of(node, facts)
    if facts.dtype(node.inputs[0]) == onnx_ir.DataType.INT32:
        return None if placement.integer_bias else "biases stay in floats"
    if grid is None:
        return "its scale and zero point are not constant"
    weights = facts.is_const(node.inputs[0])
    if grid.dtype != (onnx_ir.DataType.INT8 if weights else placement.activations):
        return f"{placement.name} takes no {grid.dtype.name.lower()} here"
    if placement.symmetric and any(grid.zero):
        return f"{placement.name} takes no zero points"
    return "activations have one scale" if not weights and not grid.single else None


def _problem(user: onnx_ir.Node, before: onnx_ir.Node, facts: Facts, placement: Placement) -> str | None:
    """Why a node that reads a dequantized value does not compute with integers; None if it does, or is no operator."""
    if is_op(user, "QuantizeLinear"):
        return None
    rule = placement.rules.get(user.op_type) if user.domain == "" else None
    inside = made_by(before.inputs[0], "QuantizeLinear") is None and not facts.is_const(before.inputs[0])
    if rule is None:
        # Behind a kernel that writes integers only, floats begin again somewhere.
        own = made_by(before.inputs[0], "QuantizeLinear")
        maker = own.inputs[0].producer() if own is not None else None
        return None if inside or _writes_integers(maker, placement) else f"{user.op_type} has no integer kernel"
    indices = set(range(len(user.inputs)) if rule.operands is None else rule.operands)
    if rule.role is Role.LAYER:
        indices.add(1)
        missing = [index for index in indices if made_by(operand(user, index), "DequantizeLinear") is None]
        if missing:
            return f"input {missing[0]} of {user.op_type} is not on a grid"
    return None


def _writes_integers(maker: onnx_ir.Node | None, placement: Placement) -> bool:
    """Whether a node, or the one whose activation it is, has a kernel that writes integers only."""
    if maker is not None and maker.op_type in placement.folds:
        maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    rule = placement.rules.get(maker.op_type) if maker is not None and maker.domain == "" else None
    return rule is not None and rule.result in (Result.GRID, Result.EITHER)


# -- taking back ----------------------------------------------------------------------------------------------------


def take_back(
    rw: Rewriter, names: Mapping[str, str], originals: Mapping[str, onnx_ir.TensorProtocol]
) -> list[Leftover]:
    """Remove Q/DQ pairs and dequantized constants.

    Args:
        rw: The rewriter of the model that they are in.
        names: The integer values concerned, with the reason; others are left alone.
        originals: What constants were before they became integers, by the name of the integers; the integers' meaning
            where it is not known.

    Returns:
        What was removed.
    """
    removed = []
    for node in list(rw.model.graph):
        if not is_op(node, "DequantizeLinear") or node.graph is None:
            continue
        codes = node.inputs[0]
        reason = names.get(codes.name or "") if codes is not None else None
        if codes is None or reason is None:
            continue
        before = made_by(codes, "QuantizeLinear")
        if before is None and not rw.facts.is_const(codes):
            continue
        readers = [user.name or user.op_type for user in users(node.outputs[0])]
        with rw.at(node, "take-back"):
            if before is not None:
                rw.replace(node.outputs[0], before.inputs[0])
            else:
                rw.replace(node.outputs[0], rw.constant(_floats(rw, node, originals), codes.name or "constant"))
        rw.erase(node)
        rw.erase_initializer(codes) if before is None else None
        removed.append(Leftover(", ".join(readers), reason))
    return removed


def _floats(
    rw: Rewriter, node: onnx_ir.Node, originals: Mapping[str, onnx_ir.TensorProtocol]
) -> np.ndarray | onnx_ir.TensorProtocol:
    known = originals.get(node.inputs[0].name or "")
    if known is not None:
        return known
    codes, scale, zero = (rw.facts.const(operand(node, index)) for index in range(3))
    assert codes is not None and scale is not None
    shape = [1] * codes.ndim
    if scale.size > 1:
        shape[int_attr(node, "axis", 1)] = -1
    offset = 0 if zero is None else zero.reshape(shape).astype(np.float32)
    return ((codes.astype(np.float32) - offset) * scale.reshape(shape)).astype(np.float32)
