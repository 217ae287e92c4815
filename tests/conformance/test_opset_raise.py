"""The node cases of the ONNX standard, written for older opsets and raised again: ONNX Runtime must answer the same.

A case is put back to every version in which one of its operators was another one, as far as it can be written so;
what were attributes then become attributes. Both models run without ONNX Runtime's own optimizations.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import onnx_ir
import pytest

from optc.ir.model import load
from optc.ir.opset import CHANGED, KEPT, NEWEST, OLDEST, obstacle, raise_opset, steps
from optc.ir.rewriter import Rewriter
from optc.ir.saving import to_proto

from .cases import Case, load_cases
from .judge import Unrunnable, run

#: (operator, version) -> input that was an attribute before that version.
_ATTRIBUTES = {
    **{(op, step): {1: "axes"} for op, step in CHANGED if step in (13, 18) and op not in ("Split", "Resize")},
    ("Split", 13): {1: "split"},
    ("Clip", 11): {1: "min", 2: "max"},
    ("Pad", 11): {1: "pads", 2: "value"},
    ("Slice", 10): {1: "starts", 2: "ends", 3: "axes"},
    ("TopK", 10): {1: "k"},
}
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
CASES = [case for case in load_cases() if len(case.model.graph.node) <= 3 and len(case.datasets) == 1]


def older(case: Case) -> list[tuple[int, onnx.ModelProto, dict]]:
    """(opset, model, inputs) for the versions before each step that an operator of the case took."""
    model = case.model
    standard = [node for node in model.graph.node if node.domain == ""]
    if len(standard) != len(model.graph.node) or _RANDOM & {node.op_type for node in standard}:
        return []
    opset = min({entry.version for entry in model.opset_import if entry.domain == ""}, default=0)
    versions = {step - 1 for node in standard for step in steps(node.op_type, OLDEST, min(opset, NEWEST))}
    found = ((version, _written_for(version, case, opset)) for version in sorted(versions))
    return [(version, *written) for version, written in found if written is not None]


def _written_for(version: int, case: Case, opset: int) -> tuple[onnx.ModelProto, dict] | None:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    feeds = dict(case.datasets[0][0])
    for node in model.graph.node:
        for step in steps(node.op_type, version, opset):
            for index, name in sorted(_ATTRIBUTES.get((node.op_type, step), {}).items(), reverse=True):
                if index < len(node.input):
                    given = feeds.pop(node.input.pop(index), None)
                    if given is not None:
                        single = name in ("min", "max", "value", "k")
                        kind = onnx.AttributeProto.INTS if not single else None
                        value = given.item() if single else given.tolist()
                        node.attribute.append(onnx.helper.make_attribute(name, value, attr_type=kind))
        if node.op_type == "Split" and version < 18:
            kept = [attr for attr in node.attribute if attr.name != "num_outputs"]
            del node.attribute[:]
            node.attribute.extend(kept)
    left = [info for info in model.graph.input if info.name in feeds]
    del model.graph.input[:]
    model.graph.input.extend(left)
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = version
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError):
        return None
    return model, feeds


def _rounds(value) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.dtype.itemsize >= 4


def _equal(a, b) -> None:
    np.testing.assert_equal(np.asarray(a, object) if isinstance(a, list) else a, b)


def judged_steps(case: Case) -> set[tuple[str, int]]:
    """The steps of operators over which older forms of a case were raised and gave the same.

    Raises:
        AssertionError: One gave something else.
    """
    found: set[tuple[str, int]] = set()
    for version, model, feeds in older(case):
        loaded = onnx_ir.from_proto(model) if not model.graph.node else load(model)
        rewriter = Rewriter(loaded)
        if obstacle(loaded, rewriter.facts, NEWEST) is not None:
            continue
        try:
            wanted = run(model, feeds)
        except Unrunnable:
            continue
        raise_opset(rewriter, NEWEST)
        try:
            given = run(to_proto(loaded), feeds)
        except Unrunnable as reason:
            assert "NOT_IMPLEMENTED" in str(reason), version  # it has no kernel of the new version for these types
            continue
        for a, b in zip(wanted, given, strict=True):
            check = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6) if _rounds(a) else _equal
            check(b, a)
        found |= {(node.op_type, step) for node in model.graph.node for step in steps(node.op_type, version, NEWEST)}
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_raised_models_answer_the_same(case):
    if not judged_steps(case):
        pytest.skip("there is no older form that ONNX Runtime runs")


def test_most_steps_can_be_judged():
    """Guards against a harness that quietly skips, by itself: the cases may run in several processes."""
    known = {(op, step) for op, versions in KEPT.items() for step in versions} | set(CHANGED)
    judged: set[tuple[str, int]] = set()
    for case in CASES:
        left = known - judged
        if any(op == node.op_type for node in case.model.graph.node for op, _ in left):
            judged |= judged_steps(case)
    missing = {op for op, _ in known} - {op for op, _ in judged}
    assert len(judged) >= 0.75 * len(known), sorted(known - judged)
    assert {"ReduceMean", "Split", "Unsqueeze", "Pad", "Clip", "Softmax"}.isdisjoint(missing)
