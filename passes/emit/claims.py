"""What a fused op may become: for each, the realisations in order of preference.

A realisation is taken if the target's ONNX Runtime provider has a kernel for it at the types in question, and if it is
not known to be slower than what ONNX Runtime makes of the unfused nodes by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import gather
from optc.ir.rewriter import Rewriter
from optc.passes.emit import attention, tensorrt
from optc.passes.emit.activation import mish
from optc.passes.emit.channel_norm import axis_norm, group_norm, instance_norm
from optc.passes.emit.rotary import rotary_embedding

CPU = "CPUExecutionProvider"
TENSORRT = "TensorRT"
MS = "com.microsoft"

#: Why a call of a fused op cannot become an operator; None if it can.
Problem = Callable[[Facts, onnx_ir.Node], str | None]


def _none(facts: Facts, call: onnx_ir.Node) -> None:
    """There is never a problem."""


def _as_they_are(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    return dict(attributes)


_PRODUCT_DEFAULTS = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, "transBatchA": 0, "transBatchB": 0}


def _product_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the operator's defaults."""
    return {name: value for name, value in attributes.items() if value != _PRODUCT_DEFAULTS.get(name)}


def _gemm_attributes(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    """FusedGemm names the parameters of its activation one by one, and knows no Clip."""
    own = _product_attributes(attributes)
    if own["activation"] == "Clip":
        return None
    parameters = own.pop("activation_params", [])
    return {**own, **dict(zip(("activation_alpha", "activation_beta"), parameters, strict=False))}


def _hard_swish(rw: Rewriter, call: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """x * HardSigmoid(x)."""
    (x,) = call.inputs
    return (rw.op("Mul", x, rw.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)),)


def _wide_product(rw: Rewriter, call: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """The product in the operands' own type, narrowed once."""
    product = rw.op("MatMul", *call.inputs)
    return (rw.op("Cast", product, to=int(onnx_ir.DataType.FLOAT16)),)


def _space_to_depth(rw: Rewriter, call: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """ONNX's order of channels, then another one where it is wanted."""
    deep = rw.op("SpaceToDepth", call.inputs[0], blocksize=call.attributes["blocksize"].as_int())
    order = list(call.attributes["order"].as_ints())
    return (deep if order == sorted(order) else gather(rw, deep, order, 1),)


def _sum_then_norm(rw: Rewriter, call: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """The sum as a Sum, which ONNX Runtime's own SkipLayerNormFusion leaves alone."""
    x, skip, gamma, beta, bias = (*call.inputs, None, None, None)[:5]
    total = rw.op("Sum", x, skip, *(() if bias is None else (bias,)))
    epsilon = call.attributes["epsilon"].as_float()
    return rw.op("LayerNormalization", total, gamma, beta, axis=-1, epsilon=epsilon), total


#: Longest rows for which SkipLayerNormalization is the faster kernel on the CPU.
_NARROW = 4


def _wide_rows(facts: Facts, call: onnx_ir.Node) -> str | None:
    """On longer rows, or where it has to write the sum as well, the CPU's SkipLayerNormalization is no faster."""
    x = call.inputs[0]
    width = (facts.shape(x) or (None,))[-1]
    if facts.dtype(x) != onnx_ir.DataType.FLOAT or not isinstance(width, int) or width > _NARROW:
        return f"it pays for single precision rows of at most {_NARROW} numbers only"
    if len(call.outputs) > 1 and (call.outputs[1].uses() or call.outputs[1].is_graph_output()):
        return "it does not pay where the sum is read, too"
    return None


#: Most integers for which Scaler, which takes one at a time, is the faster kernel on the CPU.
_FEW = 256


def _many(facts: Facts, call: onnx_ir.Node) -> str | None:
    dims = facts.shape(call.inputs[0])
    if dims is None or not all(isinstance(dim, int) for dim in dims) or math.prod(dims) > _FEW:  # type: ignore[arg-type]
        return f"it pays for at most {_FEW} numbers only"
    return None


@dataclass(frozen=True)
class Realisation:
    """One operator that computes what a fused op computes.

    Attributes:
        op: The operator's name.
        domain: Its domain.
        since: The opset version of the domain from which on it may be used.
        attributes: Makes its attributes of those of the call; None if it cannot serve this call.
        outputs: Position in the operator's outputs of each of the call's outputs.
        types: Type variable of the operator -> input of the call that says what it is.
        takes: How many of the call's inputs it takes; those behind only serve the call's body. All by default.
        ones: Input that becomes ones of the shape of the normalized axes, where the call leaves it out.
        slow_on: Execution providers on which the unfused nodes are as fast or faster.
        only_on: Execution providers that have the operator; empty for all that the kernel census names.
        problem: Why a call cannot become this, or should not; None if it can.
    """

    op: str
    domain: str = ""
    since: int = 1
    attributes: Callable[[Mapping[str, Any]], dict[str, Any] | None] = _as_they_are
    outputs: tuple[int, ...] = (0,)
    types: Mapping[str, int] = field(default_factory=lambda: {"T": 0})
    takes: int | None = None
    ones: int | None = None
    slow_on: frozenset[str] = frozenset()
    only_on: frozenset[str] = frozenset()
    problem: Problem = _none


@dataclass(frozen=True)
class Recipe:
    """A few operators that compute what a fused op computes, where no single one does it as well.

    Attributes:
        name: What the report calls it.
        ops: The operators that it takes, with the domain as in ``"com.microsoft::Gelu"``.
        build: Builds them before the call and returns a value for each of the call's outputs, and maybe more.
        inputs: Inputs of the call, from the first on, that it cannot do without.
        only_on: Execution providers it was made for; empty for all.
        since: The opset of the default domain that it needs; the model is raised to it if nothing is in the way.
        problem: Why a call cannot become this; None if it can.
    """

    name: str
    ops: tuple[str, ...]
    build: Callable[[Rewriter, onnx_ir.Node], tuple[onnx_ir.Value, ...]]
    inputs: int = 1
    only_on: frozenset[str] = frozenset()
    since: int = 1
    problem: Problem = _none


_ON_CPU = frozenset({CPU})


def _single(
    op: str,
    build: Callable[[Rewriter, onnx_ir.Node], tuple[onnx_ir.Value, ...]],
    since: int,
    inputs: int = 1,
    problem: Problem = _none,
) -> Recipe:
    """An operator that TensorRT's parser turns into one layer; none of them was timed."""
    return Recipe(op, (op,), build, inputs, only_on=frozenset({TENSORRT}), since=since, problem=problem)


def _integers(op: str, domain: str = "", takes: int | None = None, **types: int) -> tuple[Realisation, ...]:
    """A kernel that works on quantized integers, which only the CPU provider has."""
    return (Realisation(op, domain, types=types, takes=takes, only_on=_ON_CPU),)


#: Figures are speeds against the unfused nodes under ORT_ENABLE_ALL, onnxruntime 1.31, AMD EPYC, 1 thread, from
#: ``benchmarks/fused_ops.py``; providers that are not mentioned were not measured.
CLAIMS: Mapping[str, tuple[Realisation | Recipe, ...]] = {
    # CPU: 1.00, ONNX Runtime fuses these three itself when it loads the file.
    "Gelu": (Realisation("Gelu", MS), _single("Gelu", tensorrt.gelu, 20), Realisation("Gelu", since=20)),
    "BiasGelu": (Realisation("BiasGelu", MS), _single("Gelu", tensorrt.bias_gelu, 20, inputs=2)),
    "QuickGelu": (Realisation("QuickGelu", MS),),
    # CPU: 2.8; it does not find GPT-2's form.
    "FastGelu": (
        Realisation("FastGelu", MS),
        _single("Gelu", tensorrt.tanh_gelu, 20),
        Realisation("Gelu", since=20, attributes=lambda given: {"approximate": "tanh"}),
    ),
    "BiasFastGelu": (Realisation("FastGelu", MS), _single("Gelu", tensorrt.bias_tanh_gelu, 20, inputs=2)),
    # CPU: 2.3 and 1.7.
    "HardSigmoid": (Realisation("HardSigmoid", since=6),),
    "HardSwish": (Realisation("HardSwish", since=14), Recipe("Mul + HardSigmoid", ("HardSigmoid", "Mul"), _hard_swish)),
    # CPU: 34, as the kernel of Softplus is not vectorized.
    "Mish": (
        Recipe("Exp + Div", ("Add", "Div", "Exp", "Min", "Mul"), mish, only_on=_ON_CPU, since=8),
        _single("Mish", tensorrt.mish, 18),
    ),
    # CPU: 1.00. ONNX Runtime registers LayerNormalization in the default domain from opset 1 on, ONNX from 17 on.
    "LayerNormalization": (
        _single("LayerNormalization", tensorrt.layer_norm, 17, problem=tensorrt.no_scale),
        Realisation("LayerNormalization", ones=1),
    ),
    # CPU: 2.9 for the forms that it does not find.
    "SimplifiedLayerNormalization": (
        Realisation("SimplifiedLayerNormalization", ones=1),
        _single("RMSNormalization", tensorrt.rms_norm, 23, problem=tensorrt.no_scale),
        Realisation("RMSNormalization", since=23, ones=1),
    ),
    # CPU: the kernel runs at 0.14 of the speed of Add and LayerNormalization, which are vectorized. ONNX Runtime makes
    # it of them all the same where the sum is not read elsewhere; with Sum in place of Add it does not: 5 to 7. Rows of
    # 1 to 4 numbers, 1 to 512 of them: 1.05 to 1.3 (1.3 to 1.7 with a bias), and the same numbers to the last bit; 8
    # numbers: 1.2 to 0.3; where the sum is read, too: 0.96 to 1.06.
    "SkipLayerNormalization": (
        Realisation("SkipLayerNormalization", MS, ones=2, only_on=_ON_CPU, problem=_wide_rows),
        Recipe("Sum + LayerNormalization", ("Sum", "LayerNormalization"), _sum_then_norm, inputs=3, only_on=_ON_CPU),
        _single("LayerNormalization", tensorrt.skip_layer_norm, 17, inputs=2, problem=tensorrt.no_scale),
        Realisation("SkipLayerNormalization", MS, outputs=(0, 3), ones=2, slow_on=_ON_CPU),
    ),
    # CPU: 0.4 against Add and SimplifiedLayerNormalization.
    "SkipSimplifiedLayerNormalization": (
        _single("RMSNormalization", tensorrt.skip_rms_norm, 23, inputs=2, problem=tensorrt.no_scale),
        Realisation("SkipSimplifiedLayerNormalization", MS, outputs=(0, 3), ones=2, slow_on=_ON_CPU),
    ),
    # CPU: 1.3, one pass over memory less.
    "GroupNormalization": (
        Recipe(
            "InstanceNormalization + BatchNormalization",
            ("InstanceNormalization", "BatchNormalization"),
            group_norm,
            inputs=3,
            only_on=_ON_CPU,
            since=9,
        ),
        _single("GroupNormalization", tensorrt.group_norm, 21, inputs=3),
    ),
    # CPU: 2.1 to 2.7.
    "AxisNormalization": (
        Recipe(
            "Transpose + LayerNormalization",
            ("Transpose", "LayerNormalization"),
            axis_norm,
            inputs=3,
            only_on=_ON_CPU | {TENSORRT},
        ),
    ),
    # CPU: 1.6, two passes over memory less.
    "InstanceNormalization": (
        Recipe("InstanceNormalization", ("InstanceNormalization",), instance_norm, inputs=3, since=6),
    ),
    # CPU: 1.00, as ONNX Runtime fuses them itself; a residual block 1.05. Claimed here, they need no time at load.
    # The CUDA kernel refuses any activation but Relu (contrib_ops/cuda/fused_conv.cc, MapMode; not run here).
    "FusedConv": (
        Realisation("FusedConv", MS, only_on=_ON_CPU),
        Realisation("FusedConv", MS, attributes=lambda given: dict(given) if given["activation"] == "Relu" else None),
    ),
    # CPU: 1.00. What CUDA's kernel does without an activation was not tried.
    "ConvAdd": (Realisation("FusedConv", MS, slow_on=frozenset({"CUDAExecutionProvider"})),),
    # CPU: 1.00, ONNX Runtime fuses these two itself.
    "DynamicQuantizeMatMul": (Realisation("DynamicQuantizeMatMul", MS, types={"T1": 0, "T2": 1}),),
    "MatMulIntegerToFloat": (Realisation("MatMulIntegerToFloat", MS, types={"T1": 0, "T2": 1, "T3": 2}),),
    # CPU: 2.0 to 4.5 and 8 to 17 against six axes transposed, 3 to 64 channels of 32 to 448 pixels.
    "DepthToSpace": (Realisation("DepthToSpace", since=11, takes=1),),
    "SpaceToDepth": (Recipe("SpaceToDepth", ("SpaceToDepth",), _space_to_depth),),
    # CPU: 1.00, ONNX Runtime drops the casts itself, as it has no product of half floats there.
    "NarrowedMatMul": (Recipe("MatMul + Cast", ("MatMul",), _wide_product, inputs=2, only_on=_ON_CPU),),
    # CPU: 1.18, 1.13, 1.01 (3, 128, 512 numbers), 0.72 (2048): one node for three, which are vectorized.
    "ScaledIntegers": (Realisation("Scaler", "ai.onnx.ml", only_on=_ON_CPU, problem=_many),),
    # CPU: 1.00, ONNX Runtime fuses all of these itself.
    "QLinearConv": _integers("QLinearConv", takes=9, T1=0, T2=3, T3=7),
    "QLinearMatMul": _integers("QLinearMatMul", T1=0, T2=3, T3=7),
    "QGemm": _integers("QGemm", MS, takes=9, TA=0, TB=3, TYZ=8),
    "GemmIntegerToFloat": _integers("QGemm", MS, takes=7, TA=0, TB=3),
    **{f"QLinear{op}": _integers(f"QLinear{op}", MS, T=0) for op in ("Add", "Mul", "Sigmoid", "LeakyRelu")},
    **{f"QLinear{op}": _integers(f"QLinear{op}", MS, T=0) for op in ("AveragePool", "GlobalAveragePool")},
    "QLinearConcat": _integers("QLinearConcat", MS, T8=1),
    "QLinearWhere": _integers("QLinearWhere", MS, T=1),
    "QuantizedMaxPool": (Realisation("MaxPool", since=12),),
    "FusedGemm": (Realisation("FusedGemm", MS, attributes=_gemm_attributes, slow_on=_ON_CPU),),
    "FusedMatMul": (Realisation("FusedMatMul", MS, attributes=_product_attributes),),
    # CPU, 12 and 6 heads of 64, sequence 8, 128, 512, with and without a mask (`benchmarks/realisations.py`): a layer
    # with its projections is as fast in all forms (against 3 products and Attention of opset 23: 0.98 to 1.09 in the
    # first form here, 0.96 to 1.18 with 1 product and a Split, 0.93 to 1.06 with MultiHeadAttention), so that the form
    # with the fewest operators is the best, 1 for 7. Attention of opset 23 alone takes 0.54, 0.76, 0.93 of the time of
    # MultiHeadAttention, and needs no repeated heads. GroupQueryAttention is slower than it and always causal.
    # In float16 the kernel of opset 23 runs at 0.69, 0.76, 1.07 of the speed of the parts. With capped scores it runs
    # at 1.06 to 1.16 (1 query), 0.89 to 1.00 (8), 0.40 to 0.68 (64), 0.30 to 0.57 (512): 4x64, 8x256, 16x128. Heads
    # that stay apart: 0.98 to 1.15 against the parts, 12x64, 4x32, 1x16, 1 to 512 queries.
    "Attention": (
        Recipe(
            f"{MS}::Attention",
            (f"{MS}::Attention",),
            attention.projected,
            3,
            only_on=_ON_CPU,
            problem=attention.projected_problem,
        ),
        Recipe(
            "ai.onnx::Attention",
            ("Attention",),
            attention.standard,
            3,
            only_on=_ON_CPU,
            since=23,
            problem=attention.standard_problem,
        ),
        Recipe(
            f"{MS}::MultiHeadAttention",
            (f"{MS}::MultiHeadAttention",),
            attention.multi_head,
            3,
            problem=attention.multi_head_problem,
        ),
    ),
    # CPU, 12 heads of 64, sequence 1, 8, 128, 512: 1.12, 1.26, 1.83, 2.13; with 2 threads 1.14, 1.05, 1.78, 2.41. The
    # kernel of opset 23 is the same (0.95 to 1.10) but wants tables for every batch. On flat heads both are faster than
    # on split ones: 1.0, 1.0, 1.1, 1.8, and with 32 heads of 128 1.0, 1.0, 2.6, 2.9.
    "RotaryEmbedding": (
        Recipe("com.microsoft::RotaryEmbedding", ("com.microsoft::RotaryEmbedding",), rotary_embedding),
    ),
    # CPU, the first 32 numbers of 32 heads of 80, sequence 1, 8, 128, 512: 1.36, 1.50, 1.71, 1.96. The kernel on flat
    # heads against the one on a part of split heads between Split and Concat: 1.2, 1.4, 1.9, 3.7.
    "PartialRotaryEmbedding": (
        Recipe("com.microsoft::RotaryEmbedding", ("com.microsoft::RotaryEmbedding",), rotary_embedding),
    ),
}

# What is not done on the CPU, with the speed against what is (`benchmarks/realisations.py`, 1 thread):
#
# * EmbedLayerNormalization for 3 Gathers, a Sum and a LayerNormalization: 0.79, 0.54, 0.56 (8, 128, 512 tokens of 768).
# * GroupNormalization for Reshape, InstanceNormalization and what follows: 0.48 (64x32x32), 0.46 (320x64x64).
# * The gate and the other half of a gated layer (SwiGLU, GeGLU) as one product and a Split: 0.96 to 1.06, and no
#   operator fewer. Queries, keys and values behind which no attention was found: 0.98 to 1.04, one operator fewer.
# * A residual sum as the summand of a Gemm: 0.94, 1.01, 0.99 (8, 128, 512 rows of 768), and no operator fewer, as the
#   bias is added elsewhere then. SkipLayerNormalization, bias included: 0.83, 0.83, 0.80.
# * RMSNormalization of opset 23 for SimplifiedLayerNormalization: 1.00 to 1.02, and the model would have to be raised.
