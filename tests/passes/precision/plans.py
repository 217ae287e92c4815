"""Plans of small graphs, without a runtime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter
from optc.ir.targets import builtin_targets
from optc.passes.calibration.store import Record, Statistics, Wanted
from optc.passes.precision.costs import Costs
from optc.passes.precision.masks import masking
from optc.passes.precision.narrow import NARROW
from optc.passes.precision.plan import Plan, Planner
from optc.passes.precision.ranges import Ranges
from optc.passes.precision.write import write


def statistics(arrays: Mapping[str, np.ndarray], real: bool = True) -> Statistics:
    """What a sweep would have found of values that were these arrays."""
    records = {}
    for name, array in arrays.items():
        record = Record(name, Wanted())
        record.add(array, 1)
        records[name] = record.state()
    return Statistics(records, {}, samples=1, real=real)


def planner(
    model: onnx_ir.Model,
    dtype: str = "fp16",
    known: Statistics | None = None,
    rewriter: Rewriter | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Planner:
    """The planner of a model's main graph for an A100."""
    facts = rewriter.facts if rewriter is not None else Facts(model)
    narrow = NARROW[dtype]
    ranges = Ranges(model.graph, facts, narrow, known, masking(model.graph, facts))
    return Planner(model.graph, facts, ranges, Costs(facts, builtin_targets()["a100"], narrow, sizes or {"B": 4096}))


def planned(model: onnx_ir.Model, dtype: str = "fp16", known: Statistics | None = None) -> Plan:
    """The plan of a model's main graph."""
    return planner(model, dtype, known).plan()


def written(model: onnx_ir.Model, dtype: str = "fp16", known: Statistics | None = None) -> onnx_ir.Model:
    """The model with its plan carried out, in place."""
    rewriter = Rewriter(model)
    write(rewriter, planner(model, dtype, known, rewriter).plan())
    return model


def narrow_ops(plan: Plan) -> list[str]:
    """Operators of the nodes that become narrow, in order."""
    return [node.op_type for node in plan.slots]


def reason(plan: Plan, op: str) -> str:
    """Why the node of an operator stays."""
    (found,) = [why for node, why in plan.reasons.items() if node.op_type == op]
    return found


def casts(model: onnx_ir.Model) -> int:
    """How many casts a graph has."""
    return sum(node.op_type == "Cast" for node in model.graph)
