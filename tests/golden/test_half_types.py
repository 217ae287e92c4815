"""Fused families in float16 and bfloat16 on the CPU: what they become, and that the numbers stay.

ONNX Runtime has few kernels for these types there, and a fused op goes back to its parts where it has none. It runs
parts in float16 between casts; of what is bfloat16 it runs the normalizations alone.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optc.ir.saving import to_proto

from .case import CASES, Outcome, read_case, run
from .numbers import evaluate, feeds_for

HALF, BRAIN = TensorProto.FLOAT16, TensorProto.BFLOAT16
#: Relative L2 error against single precision; about half as much was seen.
TOLERANCE = {HALF: 1e-3, BRAIN: 1.2e-2}
LAYER, RMS = {"LayerNormalization"}, {"SimplifiedLayerNormalization"}
ROTARY = {"com.microsoft::RotaryEmbedding"}
#: A case of each family -> the fused operators that it becomes in float16, and in bfloat16; none where it is in parts.
MADE: dict[str, tuple[set[str], set[str]]] = {
    "gelu_erf": (set(), set()),
    "bias_gelu": (set(), set()),
    "fast_gelu_pow": (set(), set()),
    "bias_fast_gelu_factored": (set(), set()),
    "quick_gelu": (set(), set()),
    "silu": (set(), set()),
    "mish": (set(), set()),
    "hard_swish": (set(), set()),
    "layer_norm": (LAYER, LAYER),
    "layer_norm_no_bias": (LAYER, LAYER),
    "rms_norm": (RMS, RMS),
    "skip_layer_norm": (LAYER, LAYER),
    "skip_rms_norm": (RMS, RMS),
    "axis_norm": (LAYER, LAYER),
    "group_norm": (set(), set()),
    "instance_norm_scaled": (set(), set()),
    "matmul_transposed_square": (set(), set()),
    "conv_add_relu": (set(), set()),
    "conv_clip": (set(), set()),
    "gemm_clip": (set(), set()),
    "attention_plain": (set(), set()),
    "attention_padding_mask": (set(), set()),
    "attention_past": (set(), set()),
    "rotary_half": (ROTARY, set()),
    "rotary_partial": (ROTARY, set()),
    "rotary_interleaved": (ROTARY, set()),
}
#: What stands around a fused operator.
_AROUND = {"Gather", "Reshape", "Slice", "Transpose"}

every_family = pytest.mark.parametrize("name", MADE)


@every_family
@pytest.mark.parametrize("kind", [HALF, BRAIN], ids=["float16", "bfloat16"])
def test_what_is_made(name, kind):
    """The fusion fires as in single precision; emission takes what has a kernel for the type, and parts elsewhere."""
    case = read_case(CASES / f"{name}.txt")
    model = narrowed(case.model(), kind)
    outcome = run(model, case.pipeline())
    assert outcome.fired == case.fires
    before, after = (Counter(map(_spelled, nodes)) for nodes in (model.graph.node, to_proto(outcome.model).graph.node))
    made = MADE[name][kind == BRAIN]
    assert set(after - before) - _AROUND == made
    assert made or before == after


@every_family
def test_numbers_in_float16(name):
    _check(name, HALF)


@pytest.mark.parametrize("name", ["layer_norm", "layer_norm_no_bias", "rms_norm", "axis_norm"])
def test_numbers_in_bfloat16(name):
    """The parts have no kernels there: only what was fused runs."""
    _check(name, BRAIN)


def _check(name: str, kind: int) -> None:
    case = read_case(CASES / f"{name}.txt")
    outcome: Outcome = run(narrowed(case.model(), kind), case.pipeline())
    for feeds in feeds_for(case.model(), case.dims, 2):
        want, got = evaluate(case.model(), feeds), evaluate(_widened(to_proto(outcome.model), kind), feeds)
        for output, expected in want.items():
            error = np.linalg.norm(got[output] - expected) / np.linalg.norm(expected)
            assert error <= TOLERANCE[kind], f"{output}: {error:.1e}"


def narrowed(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """The model with another type for single precision: inputs, outputs, constants, and what casts are to."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    tensors = [*result.graph.initializer]
    for node in result.graph.node:
        tensors += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*result.graph.input, *result.graph.output, *result.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    return result


def _widened(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """The model with single precision at its borders, which NumPy has."""
    graph = model.graph
    named = {value.name: f"{value.name} narrow" for value in (*graph.input, *graph.output) if _is(value, kind)}
    for node in graph.node:
        node.input[:] = [named.get(name, name) for name in node.input]
        node.output[:] = [named.get(name, name) for name in node.output]
    first, last = [
        [(value, named[value.name]) for value in values if value.name in named]
        for values in (graph.input, graph.output)
    ]
    nodes = [helper.make_node("Cast", [value.name], [name], to=kind) for value, name in first]
    nodes += graph.node
    nodes += [helper.make_node("Cast", [name], [value.name], to=TensorProto.FLOAT) for value, name in last]
    for value, _ in (*first, *last):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _is(value: onnx.ValueInfoProto, kind: int) -> bool:
    return value.type.tensor_type.elem_type == kind


def _spelled(node: onnx.NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type
