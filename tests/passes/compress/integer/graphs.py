"""Small graphs, put on grids as a target wants it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir

from optc.backends import ort_kernels
from optc.backends.ort import Session, optimized
from optc.ir.rewriter import Rewriter
from optc.ir.targets import builtin_targets
from optc.passes.compress.integer.absorb import absorb
from optc.passes.compress.integer.insert import choose_grids, insert
from optc.passes.compress.integer.placement import X86_VNNI, Placement, Role
from optc.passes.compress.integer.plan import Plan, place

CPU = builtin_targets()["cpu"]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def run(model: onnx_ir.Model, feeds: Mapping[str, np.ndarray], optimization: str = "off") -> list[np.ndarray]:
    return list(Session(model, optimization=optimization).run(feeds).values())


def ranges_of(model: onnx_ir.Model, plan: Plan, feeds: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Min-max of a plan's values."""
    copy, names = model.clone(), [value.name or "" for value in plan.values]
    inner = {value.name: value for node in copy.graph for value in node.outputs}
    inner |= {value.name: value for value in copy.graph.inputs}
    if not names:
        return {}
    there = {value.name for value in copy.graph.outputs}
    copy.graph.outputs.extend(inner[name] for name in names if name not in there)
    found = Session(copy, optimization="off").run(feeds, outputs=names)
    return {name: (float(array.min()), float(array.max())) for name, array in found.items()}


def quantized(
    model: onnx_ir.Model,
    feeds: Mapping[str, np.ndarray],
    placement: Placement = X86_VNNI,
    chosen: Callable[[onnx_ir.Node], bool] = lambda node: True,
) -> tuple[onnx_ir.Model, Plan]:
    """A copy with Q/DQ for all layers (that are chosen)."""
    copy = model.clone()
    rewriter = Rewriter(copy)
    layers = [
        node
        for node in copy.graph
        if node.op_type in placement.rules and placement.rules[node.op_type].role is Role.LAYER and chosen(node)
    ]
    plan = place(copy.graph, rewriter.facts, placement, layers)
    insert(rewriter, plan, choose_grids(plan, ranges_of(model, plan, feeds)))
    return copy, plan


def absorbed(model: onnx_ir.Model) -> onnx_ir.Model:
    """The same with integer kernels written out."""
    copy = model.clone()
    absorb(Rewriter(copy), CPU, ort_kernels)
    return copy


def kernels(model: onnx_ir.Model, layouts: bool = False) -> Counter[str]:
    """The operators that ONNX Runtime runs for a model; what changes layouts is its own affair unless asked for."""
    left_out = () if layouts else ("Transpose", "Reshape")
    return Counter(node.op_type for node in optimized(model).graph if node.op_type not in left_out)


def ops(model: onnx_ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))
