"""Every graph of the golden cases, narrowed: valid, with the interface that it had."""

from __future__ import annotations

import onnx
import pytest

from optc.ir.model import load
from optc.ir.rewriter import Rewriter
from optc.ir.saving import to_proto
from optc.ir.verify import Interface, verify_structure
from optc.passes.precision.write import write
from tests.golden.case import CASES, read_case
from tests.passes.precision.plans import planner

PATHS = sorted(CASES.glob("*.txt"))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_any_graph_stays_valid(dtype):
    narrowed = 0
    for path in PATHS:
        model = load(read_case(path).model())
        before, rewriter = Interface.of(model), Rewriter(model)
        plan = planner(model, dtype, rewriter=rewriter, sizes={}).plan()
        write(rewriter, plan)
        assert not verify_structure(model), path.stem
        assert not before.differences(Interface.of(model)), path.stem
        if set(model.graph.opset_imports) <= {"", "ai.onnx"}:
            onnx.checker.check_model(to_proto(model), full_check=True)
        narrowed += len(plan.slots)
    assert narrowed > len(PATHS)
