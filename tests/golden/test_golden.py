"""Every golden case: its text, its numbers, and the variations that a rewrite must stand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import onnx
import onnx_ir
import pytest

from optc.ir.functions import FUSED_DOMAIN
from optc.ir.model import load
from optc.ir.pattern import COMMUTATIVE
from optc.ir.rewriter import RULE_KEY, sources
from optc.ir.verify import Interface

from .case import CASES, Case, Outcome, read_case, run, up_to_fuse, write_case
from .numbers import assert_close, evaluate, feeds_for

PATHS = sorted(CASES.glob("*.txt"))
every_case = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def _run(case: Case, model: onnx.ModelProto | onnx_ir.Model | None = None) -> Outcome:
    return run(case.model() if model is None else model, case.pipeline(), case.headers.get("target", "cpu"))


@every_case
def test_text(path, update_golden):
    """What fires is what the case says, and the result reads as it is stored."""
    case = read_case(path)
    outcome = _run(case)
    assert outcome.fired == case.fires
    found = {"output": outcome.text}
    if "near" in case.headers:
        rule = case.headers["near"]
        assert outcome.misses.get(rule), f"{rule} did not come near"
        found["miss"] = f"{outcome.misses[rule][0]}\n"
    if update_golden:
        write_case(case, found)
        case = read_case(path)
    assert {name: case.sections.get(name) for name in found} == found


@every_case
def test_numbers(path):
    """The result computes what the input does; so do the fused ops' own bodies, and the interface is the same."""
    case = read_case(path)
    model = case.model()
    fused = run(model, up_to_fuse(case.pipeline()))
    result = _run(case, model)
    assert not Interface.of(load(model)).differences(Interface.of(result.model))
    for feeds in feeds_for(model, case.dims):
        want = evaluate(model, feeds)
        assert_close(evaluate(fused.model, feeds), want, case.tolerance)
        assert_close(evaluate(result.model, feeds), want, case.tolerance)


@every_case
def test_second_run_changes_nothing(path):
    case = read_case(path)
    once = _run(case)
    text = once.text
    assert _run(case, once.model).text == text


@every_case
def test_provenance(path):
    """New nodes say which nodes of the input they stand for and which rule made them; the others are what they were."""
    case = read_case(path)
    given = {node.name: node for node in load(case.model()).graph}
    rules = set()
    for node in _run(case).model.graph:
        made = sources(node)
        assert made and set(made) <= set(given), node.name
        if node.name in given and RULE_KEY not in node.metadata_props:
            old = given[node.name]
            assert (node.op_type, [v.name for v in node.outputs]) == (old.op_type, [v.name for v in old.outputs])
        else:
            rules |= set(node.metadata_props[RULE_KEY].split(","))
    assert rules <= {*case.fires, "sum-of-sums"}  # the one rule of emission, which does not count as firing


@every_case
def test_commuted_operands(path):
    """Neither the fusions nor the numbers hang on the order of operands that may be swapped."""
    case = read_case(path)
    for swapped in _commuted(case.model()):
        outcome = _run(case, swapped)
        assert outcome.fired == case.fires
        feeds = next(feeds_for(swapped, case.dims))
        assert_close(evaluate(outcome.model, feeds), evaluate(swapped, feeds), case.tolerance)


@every_case
def test_shared_intermediates(path):
    """An inner value that somebody else needs stops its fusion, or is a second output of the fused op."""
    case = read_case(path)
    if not case.fires or case.headers.get("shared") == "skip":
        pytest.skip("nothing fires")
    fused = run(case.model(), up_to_fuse(case.pipeline()))
    # A first output keeps the name of what it stands for; any other one of a fused op is an inner value made known.
    left = {node.outputs[0].name for node in fused.model.graph} | {value.name for value in fused.model.graph.outputs}
    nodes = [node for node in case.model().graph.node if node.op_type != "Constant"]
    inner = [name for node in nodes for name in node.output if name and name not in left]
    assert inner, "no inner value: what was fused?"
    for name in inner:
        model = case.model()
        model.graph.output.append(onnx.ValueInfoProto(name=name))
        model = onnx.shape_inference.infer_shapes(model)
        outcome = _run(case, model)
        fused = run(model, up_to_fuse(case.pipeline()))
        value = next(v for v in fused.model.graph.outputs if v.name == name)
        exported = value.index() > 0 and value.producer().domain == FUSED_DOMAIN
        stays = exported or case.shared.get(name) == "stays"
        assert (outcome.fired == case.fires) == stays, f"{name}: {outcome.fired}"
        feeds = next(feeds_for(model, case.dims))
        assert_close(evaluate(outcome.model, feeds), evaluate(model, feeds), case.tolerance)


def _commuted(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """The model with the operands of each commutative node swapped, alone and all together."""
    places = [i for i, n in enumerate(model.graph.node) if n.op_type in COMMUTATIVE and len(n.input) == 2]
    for chosen in itertools.chain([places] if len(places) > 1 else [], ([place] for place in places)):
        swapped = onnx.ModelProto()
        swapped.CopyFrom(model)
        for place in chosen:
            node = swapped.graph.node[place]
            node.input[0], node.input[1] = node.input[1], node.input[0]
        yield swapped
