"""What removing units must come to: the model in which nothing reads them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir

from optc.backends.ort import Session
from optc.inputs import draw_inputs, usual_bindings
from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter
from optc.ir.verify import Interface, verify_structure
from optc.passes.compress.prune.axes import Group, Structure, structure_of
from optc.passes.compress.prune.cut import cut

SIZES = {"batch": 2, "sequence": 9, "past": 5, "space": 64, "other": 4}


def silenced(model: onnx_ir.Model, structure: Structure, removed: Collection[int]) -> onnx_ir.Model:
    """A copy in which all weights that read these units are zero; computed by another way than cutting.

    Experts are silenced by what their router gives: next to nothing is left of them by the kernel's softmax.
    """
    copy = model.clone()
    nodes = dict(zip(model.graph, copy.graph, strict=True))
    arrays: dict[tuple[onnx_ir.Node, int], np.ndarray] = {}
    routers: list[tuple[onnx_ir.Node, np.ndarray]] = []
    for weight in structure.state.readers:
        gone = np.isin(structure.units.roots[weight.ids], list(removed))
        if gone.any() and weight.node.op_type == "MoE" and weight.x == 1:
            routers.append((weight.node, np.where(gone, np.float32(-1e4), np.float32(0))))
        elif gone.any():
            array = arrays.setdefault((weight.node, weight.index), np.array(structure.facts.const(weight.value)))
            array[(slice(None),) * weight.axis + (gone,)] = 0
    rewriter = Rewriter(copy)
    for node, mask in routers:
        with rewriter.at(nodes[node], "silence"):
            masked = rewriter.op("Add", nodes[node].inputs[1], rewriter.constant(mask, "silenced"))
            rewriter.set_input(nodes[node], 1, masked)
    for (node, index), array in arrays.items():
        with rewriter.at(nodes[node], "silence"):
            rewriter.set_input(nodes[node], index, rewriter.constant(array, "silenced"))
    return copy


def draw(structure: Structure, rng: np.random.Generator, share: float = 0.5) -> tuple[list[int], list[Group]]:
    """Some units of every group, and the groups."""
    removed: list[int] = []
    for group in structure.groups:
        count = min(max(1, int(share * len(group))), len(group) - group.least)
        removed += rng.choice(group.roots, count, replace=False).tolist()
    return removed, list(structure.groups)


def check(model: onnx_ir.Model, share: float = 0.5, seed: int = 0, run: bool = True) -> list[Group]:
    """Cut some units out of every group, and hold the result against the silenced model; the groups."""
    structure = structure_of(model.graph, Facts(model))
    removed, groups = draw(structure, np.random.default_rng(seed), share)
    reference, pruned = silenced(model, structure, removed), model
    before = Interface.of(model)
    cut(Rewriter(pruned), structure, removed)
    assert verify_structure(pruned) == [] and not before.differences(Interface.of(pruned))
    if run and removed:
        feeds = draw_inputs(reference, usual_bindings(reference, SIZES), seed)
        expected = Session(reference, optimization="off").run(feeds)
        found = Session(pruned, optimization="off").run(feeds)
        for name, array in expected.items():
            assert found[name].shape == array.shape
            if array.dtype.kind == "f" and np.isfinite(array).all():
                scale = max(float(np.abs(array).max(initial=0)), 1e-6)
                assert float(np.abs(found[name] - array).max(initial=0)) <= 2e-4 * scale, name
    return groups
