"""Runs pipelines on small models and compares what the models compute before and after, bit by bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir

from optc.backends.ort import Session
from optc.backends.ort_eval import Evaluator
from optc.ir.model import load
from optc.ir.saving import to_proto
from optc.ir.targets import builtin_targets
from optc.ir.verify import Interface, verify_structure
from optc.passes.base import Remark
from optc.passes.manager import PassManager
from optc.passes.pipeline import parse_pipeline
from optc.passes.registry import pass_registry

CLEAN = "inline,fixpoint<8>(fold,control-flow,cse,dce),dedup"


class Done:
    """A model after a pipeline."""

    def __init__(self, model: onnx_ir.Model, remarks: list[Remark], hits: Mapping[str, Mapping[str, int]]) -> None:
        self.model, self.remarks, self.hits = model, remarks, hits

    @property
    def ops(self) -> Counter[str]:
        """How often each operator occurs, in sub-graphs too."""
        return Counter(node.op_type for node in self.model.graph.all_nodes())

    def constant(self, name: str) -> np.ndarray:
        """The contents of an initializer of the main graph."""
        return self.model.graph.initializers[name].const_value.numpy()


def parse(text: str) -> onnx.ModelProto:
    """A model from onnx's text form; a header is added where there is none."""
    if not text.lstrip().startswith("<"):
        text = '<ir_version: 10, opset_import: ["" : 21]>\n' + text
    return onnx.parser.parse_model(text)


def optimize(source: onnx.ModelProto | str, pipeline: str, evaluate: bool = True) -> Done:
    """Run a pipeline and check structure and interface; passes that raise, raise here."""
    proto = parse(source) if isinstance(source, str) else source
    model = load(proto)
    interface = Interface.of(model)
    services = {"evaluator": Evaluator()} if evaluate else {}
    manager = PassManager(builtin_targets()["cpu"], services, strict=True)
    result = manager.run(model, parse_pipeline(pipeline, pass_registry()))
    assert all(record.status in ("changed", "unchanged") for record in result.records), result.records
    assert not verify_structure(result.model)
    assert not interface.differences(Interface.of(result.model))
    remarks = [remark for record in result.records for remark in record.remarks]
    return Done(result.model, remarks, {record.name: record.hits for record in result.records})


def run(model: onnx.ModelProto | onnx_ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Outputs of a model as it stands; ONNX Runtime's own optimizations are off."""
    return Session(model, optimization="off", threads=1).run(feeds)


def check(
    source: onnx.ModelProto | str, pipeline: str, feeds: Mapping[str, np.ndarray] | None = None, evaluate: bool = True
) -> Done:
    """Run a pipeline and make sure that the result computes the same bits, as an object and once saved."""
    proto = parse(source) if isinstance(source, str) else source
    done = optimize(proto, pipeline, evaluate)
    expected = run(proto, feeds or {})
    for candidate in (done.model, to_proto(done.model)):
        outputs = run(candidate, feeds or {})
        assert list(outputs) == list(expected)
        for name, want in expected.items():
            assert_same(outputs[name], want, name)
    return done


def assert_same(got: Any, want: Any, name: str) -> None:
    """The same type, shape and bits; any NaN is as good as another."""
    if isinstance(want, list):
        assert len(got) == len(want), name
        for one, other in zip(got, want, strict=True):
            assert_same(one, other, name)
        return
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype and got.shape == want.shape, name
    assert np.array_equal(got, want, equal_nan=want.dtype.kind in "fc"), name


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """Random float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
