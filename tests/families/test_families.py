"""Families of models that people ship: what is fused in each, and that the answers stay the same.

``expected.toml`` says for every model how many nodes there are before and after, which fused operators there are
after, how many attentions there were and are, and what still shows that a fusion was missed. It is reviewed by hand, as
golden cases are: ``pytest tests/families --update-golden`` rewrites it. A number that gets worse is a question, not a
new expectation.

To add a family: put it into the table of ``recipes.py``; in an environment with torch and transformers run
``python tests/families/export.py OUT NAME``; then ``python -m tests.families.corpus store OUT`` and the update above.
"""

from __future__ import annotations

import functools
import itertools
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import optc

from . import corpus

EXPECTED = Path(__file__).parent / "expected.toml"
#: Relative L2 error in single precision; what was seen is below 1e-6.
TOLERANCE = 1e-5
#: Standard operators that exporters rarely write and fusions make; all of com.microsoft counts too.
FUSED = {"Gelu", "HardSigmoid", "HardSwish", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
FUSED |= {"Attention", "GroupNormalization", "InstanceNormalization", "Mish", "RotaryEmbedding", "Swish"}
#: Operators of which a fusion leaves none in these models.
TELLTALE = {
    "Erf",
    "IsNaN",
    "Pow",
    "ReduceMean",
    "Reciprocal",
    "Sigmoid",
    "Softmax",
    "Sqrt",
    "Tanh",
}
ATTENTION = {"Attention", "GroupQueryAttention", "MultiHeadAttention"}
#: What may stand between a Softmax and the product with the values.
_BETWEEN = {"Cast", "Dropout", "Identity", "IsNaN", "Reshape", "Where"}
#: Families whose attention is not fused in some of the models, and why.
OPEN: Mapping[str, str] = {
    "gemma2": "the scores go through a tanh (soft capping), for which the kernel is slower than the parts",
    "gemma2_prefill": "the scores go through a tanh (soft capping), for which the kernel is slower than the parts",
    "llama_unnamed": "nothing says that the batches of the inputs are equal",
    "segformer": "torch.export writes the number of pixels so that shapes are not proved equal",
    "wav2vec2": "torch.export writes the number of frames so that shapes are not proved equal",
    "wav2vec2_stable": "torch.export writes the number of frames so that shapes are not proved equal",
}

every_model = pytest.mark.parametrize("name", corpus.names())


@functools.cache
def _pair(name: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A model, and what optc makes of it."""
    model = corpus.load(name)
    return model, optc.optimize(model, level=2, target="cpu")


@every_model
def test_what_is_fused(name: str, update_golden: bool) -> None:
    found = _description(*_pair(name))
    if update_golden:
        _write({**_expected(), name: found})
    assert found == _expected().get(name)


@every_model
def test_numbers(name: str) -> None:
    """The same answers at several sizes, with several masks; NaN where and only where the original says NaN."""
    model, optimized = _pair(name)
    before, after = _session(model), _session(optimized)
    names = [output.name for output in before.get_outputs()]
    assert [output.name for output in after.get_outputs()] == names
    for label, feeds in corpus.runs(model):
        wanted, got = before.run(None, feeds), after.run(None, feeds)
        for output, want, have in zip(names, wanted, got, strict=True):
            what = f"{output} at {label}"
            assert (have.shape, have.dtype) == (want.shape, want.dtype), what
            np.testing.assert_array_equal(np.isnan(have), np.isnan(want), err_msg=what)
            error = np.linalg.norm(np.nan_to_num(have) - np.nan_to_num(want))
            assert error <= TOLERANCE * np.linalg.norm(np.nan_to_num(want)), f"{what}: {error:.1e}"


@every_model
def test_all_attention_is_fused(name: str) -> None:
    found, fused = _description(*_pair(name))["attention"]
    assert fused == found or _family(name) in OPEN


def test_the_tables_are_about_the_models_that_there_are() -> None:
    assert sorted(_expected()) == corpus.names()
    assert set(OPEN) <= set(map(_family, corpus.names()))


def test_what_is_open_is_still_so() -> None:
    missed = {_family(name) for name, entry in _expected().items() if entry["attention"][0] != entry["attention"][1]}
    assert missed == set(OPEN), "take what is fused now out of the table"


def _family(name: str) -> str:
    return name.partition(".")[0]


def _description(model: onnx.ModelProto, optimized: onnx.ModelProto) -> dict[str, Any]:
    operators = _operators(optimized)
    made = Counter(op for domain, op in operators if domain == "com.microsoft" or op in FUSED)
    left = Counter(op for _, op in operators if op in TELLTALE)
    attention = [_attentions(model), sum(made[op] for op in ATTENTION)]
    nodes = [len(_operators(model)), len(operators)]
    return {
        "nodes": nodes,
        "attention": attention,
        "fused": dict(sorted(made.items())),
        "left": dict(sorted(left.items())),
    }


def _operators(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Domain and name of every node in the graph, its sub-graphs and the functions; constants do not count."""
    graphs = (model.graph, *model.functions)
    nodes = itertools.chain.from_iterable(map(_nodes, graphs))
    return [(node.domain, node.op_type) for node in nodes if node.op_type != "Constant"]


def _nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _attentions(model: onnx.ModelProto) -> int:
    """How many Softmaxes weigh the rows of a matrix product."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def weighs(name: str) -> bool:
        found = readers.get(name, ())
        return any(n.op_type == "MatMul" or (n.op_type in _BETWEEN and weighs(n.output[0])) for n in found)

    return sum(node.op_type == "Softmax" and weighs(node.output[0]) for node in model.graph.node)


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _expected() -> dict[str, Any]:
    return tomllib.loads(EXPECTED.read_text("utf-8")) if EXPECTED.exists() else {}


def _write(expected: Mapping[str, Mapping[str, Any]]) -> None:
    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {item}" for key, item in value.items()) + " }" if value else "{}"
        return str(value)

    blocks = []
    for name in sorted(set(expected) & set(corpus.names())):
        blocks.append(f'["{name}"]\n' + "".join(f"{key} = {text(value)}\n" for key, value in expected[name].items()))
    EXPECTED.write_text("\n".join(blocks), "utf-8")
