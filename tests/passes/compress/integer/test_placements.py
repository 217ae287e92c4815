"""Placement for targets that are not here, and the static check that stands in for their compilers."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir
import pytest

from optc.ir.ops import made_by
from optc.ir.rewriter import Rewriter
from optc.ir.targets import builtin_targets
from optc.passes.compress.integer.absorb import take_back, unabsorbed, unsupported
from optc.passes.compress.integer.placement import (
    ARM,
    OPENVINO,
    TENSORRT,
    TRITON,
    X86,
    X86_VNNI,
    Placement,
    placement_for,
)
from tests.passes.compress.texts import parse

from .graphs import absorbed, draw, error, optimized, quantized, run

W, V = draw(16, 8, 3, 3) / 8, draw(16, 16, 1, 1) / 4
B = draw(16, seed=1) / 4
IMAGE = {"x": draw(1, 8, 10, 10)}
HEAD = "g (float[N, 8, H, W] x) => (float[N, C, P, Q] y)"
CONV = "Conv <pads = [1, 1, 1, 1]>"
BLOCK = f"a = {CONV} (x, w, b) c = Relu (a) d = Conv (c, v) e = Add (d, c) f = Relu (e) y = Conv (f, t)"
WEIGHTS = {"w": W, "b": B, "v": V, "t": V + 0.1}
TARGETS = builtin_targets()


def quantizers(model: onnx_ir.Model) -> list[str]:
    """Which values are quantized, in the order of the graph."""
    return [node.inputs[0].name for node in model.graph if node.op_type == "QuantizeLinear"]


@pytest.mark.parametrize("placement", [X86_VNNI, X86, ARM, OPENVINO, TENSORRT, TRITON], ids=lambda p: p.name)
def test_every_placement_keeps_the_function_and_its_own_rules(placement: Placement):
    model = parse(f"{HEAD} {{ {BLOCK} }}", WEIGHTS)
    pairs, plan = quantized(model, IMAGE, placement)
    assert len(plan.layers) == 3
    assert unsupported(pairs.graph, Rewriter(pairs).facts, placement) == {}
    assert error(run(pairs, IMAGE)[0], run(model, IMAGE)[0]) < 0.04


def test_tensorrt_leaves_the_edge_from_convolution_to_sum_in_floats():
    pairs, _ = quantized(parse(f"{HEAD} {{ {BLOCK} }}", WEIGHTS), IMAGE, TENSORRT)
    # Inputs of the three convolutions, and the other operand of the sum, which is one of them.
    assert quantizers(pairs) == ["x", "c", "f"]
    add = next(node for node in pairs.graph if node.op_type == "Add")
    assert made_by(add.inputs[0], "Conv") is not None and made_by(add.inputs[1], "DequantizeLinear") is not None
    for node in pairs.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = node.inputs[2].const_value.numpy()
            assert zero.dtype == np.int8 and not zero.any()
    bias = next(node for node in pairs.graph if node.op_type == "Conv").inputs[2]
    assert bias.name == "b", "biases stay floats"


def test_onnxruntime_quantizes_every_result():
    pairs, _ = quantized(parse(f"{HEAD} {{ {BLOCK} }}", WEIGHTS), IMAGE, X86_VNNI)
    assert quantizers(pairs) == ["x", "c", "d", "f", "y_replaced"]


def test_tensorrt_gives_a_concat_one_grid():
    model = parse(
        f"{HEAD} {{ a = {CONV} (x, w, b) c = {CONV} (x, t) d = Concat <axis = 1> (a, c) y = Conv (d, v) }}",
        {"w": W, "b": B, "t": 5 * W, "v": draw(4, 32, 1, 1)},
    )
    # The wider of the two operands has the range of the whole: with a grid for each there are two.
    for placement, count in ((TENSORRT, 1), (X86_VNNI, 2)):
        pairs, plan = quantized(model, IMAGE, placement)
        around = [value for value in plan.values if value.name in ("a", "c", "d")]
        assert len(around) == 3
        scales = {
            float(node.inputs[1].const_value.numpy())
            for node in pairs.graph
            if node.op_type == "QuantizeLinear" and node.inputs[0].name in ("a", "c", "d")
        }
        assert len(scales) == count


def test_seven_bits_without_vnni():
    """255 * 127 + 255 * 127 saturates 16 bits; 255 * 63 * 2 does not."""
    for placement, limit in ((X86, 63), (X86_VNNI, 127)):
        pairs, _ = quantized(parse(f"{HEAD} {{ {BLOCK} }}", WEIGHTS), IMAGE, placement)
        codes = [v.const_value.numpy() for v in pairs.graph.initializers.values() if v.name.endswith("_int8")]
        assert max(int(np.abs(one.astype(int)).max()) for one in codes) == limit


def test_arm_takes_signed_activations_with_a_zero_point():
    pairs, _ = quantized(parse(f"{HEAD} {{ {BLOCK} }}", WEIGHTS), IMAGE, ARM)
    zeros = {
        node.inputs[0].name: int(node.inputs[2].const_value.numpy())
        for node in pairs.graph
        if node.op_type == "QuantizeLinear"
    }
    assert zeros["c"] == -128, "the grid ends where the Relu clips"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, X86),
        ({"capabilities": frozenset({"int8", "vnni"})}, X86_VNNI),
        ({"capabilities": frozenset({"int8", "arm"})}, ARM),
        ({"provider": "OpenVINO"}, OPENVINO),
        ({"backend": "tensorrt"}, TENSORRT),
        ({"provider": "TensorrtExecutionProvider"}, TENSORRT),
    ],
)
def test_the_placement_is_a_matter_of_capabilities(changes, wanted):
    assert placement_for(dataclasses.replace(TARGETS["cpu"], **changes)) is wanted


def test_gpus():
    assert placement_for(TARGETS["a100"]) is TRITON
    reason = placement_for(TARGETS["cuda"])
    assert isinstance(reason, str) and "no integer kernels" in reason


def test_the_static_check_sees_what_does_not_fit():
    """What was placed for one target is refused for the other, with reasons."""
    model = parse(f"{HEAD} {{ {BLOCK} }}", WEIGHTS)
    for placed, asked in ((X86_VNNI, TENSORRT), (TENSORRT, X86_VNNI)):
        pairs, _ = quantized(model, IMAGE, placed)
        found = unsupported(pairs.graph, Rewriter(pairs).facts, asked)
        assert found and all(found.values())


def test_pairs_around_what_has_no_kernel_are_found_and_taken_back():
    """A pair in front of an operator without an integer kernel, and a weight that is dequantized in every run."""
    model = parse(
        """g (float[N, 32] x) => (float[N, 8] y, float[N, 32] z) {
            q = QuantizeLinear (x, s, o) d = DequantizeLinear (q, s, o) z = Erf (d)
            v = DequantizeLinear (w, t) u = Mul (x, v) r = ReduceSum (u, axes) y = Expand (r, to)
        }""",
        {
            "s": np.float32(0.03),
            "o": np.uint8(128),
            "w": np.arange(-16, 16, dtype=np.int8),
            "t": np.float32(0.1),
            "axes": np.array([1]),
            "to": np.array([1, 8]),
        },
    )
    feeds = {"x": draw(3, 32)}
    found = unabsorbed(optimized(model))
    assert set(found) == {"q", "w"} and "Erf" in found["q"] and "every run" in found["w"]
    removed = take_back(Rewriter(model), found, {})
    assert sorted(one.reason for one in removed) == sorted(found.values())
    left = {node.op_type for node in model.graph}
    assert not left & {"QuantizeLinear", "DequantizeLinear"} and unabsorbed(optimized(model)) == {}
    y, z = run(model, feeds)
    assert np.allclose(y[:, 0], (feeds["x"] * (np.arange(-16, 16) * 0.1)).sum(axis=1), atol=1e-4)
    assert error(z, run(parse("g (float[N, 32] x) => (float[N, 32] z) { z = Erf (x) }", {}), feeds)[0]) < 1e-6


def test_taking_back_restores_the_weights_as_they_were():
    model = parse("g (float[N, 32] x) => (float[N, 8] y) { y = MatMul (x, w) }", {"w": draw(32, 8)})
    original = model.graph.initializers["w"].const_value
    pairs, _ = quantized(model, {"x": draw(3, 32)})
    names = {"w_int8": "no kernel", "x_never": ""}
    take_back(Rewriter(pairs), names, {"w_int8": original})
    weight = next(node for node in pairs.graph if node.op_type == "MatMul").inputs[1].const_value.numpy()
    assert np.array_equal(weight, original.numpy())


def test_tensorrts_placement_stays_in_floats_on_the_cpu():
    """Why no file serves two kinds of targets: symmetric integers behind a Relu find no kernel."""
    pairs, _ = quantized(parse(f"{HEAD} {{ {BLOCK} }}", WEIGHTS), IMAGE, TENSORRT)
    assert unabsorbed(optimized(absorbed(pairs)))


def test_weights_in_blocks_are_no_pairs_of_its_own():
    text = """g (float[4, 64] x) => (float[4, 8] y) {
        w = DequantizeLinear <axis = 0, block_size = 32> (q, s)
        y = MatMul (x, w)
    }"""
    model = parse(text, {"q": np.zeros((64, 8), np.int8), "s": np.ones((2, 8), np.float32)}, opset=21)
    assert unsupported(model.graph, Rewriter(model).facts, TENSORRT) == {}
