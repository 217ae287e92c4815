"""A case or more for every operator whose gradient is known: the node, its inputs, and which of them are constant."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

MS = "com.microsoft"
_RNG = np.random.default_rng(7)


@dataclass(frozen=True)
class Case:
    """One node.

    Attributes:
        op: Its operator.
        inputs: Arrays, None for inputs that are left out.
        attributes: Its attributes.
        outputs: How many outputs it has.
        compared: Which outputs are compared; None for all.
        domain: Its domain.
        opset: Version of the default domain.
        constant: Which inputs are constants.
        at: Relative error that is allowed.
    """

    op: str
    inputs: tuple[np.ndarray | None, ...]
    attributes: dict[str, Any]
    outputs: int = 1
    compared: tuple[int, ...] | None = None
    domain: str = ""
    opset: int = 21
    constant: Collection[int] = ()
    at: float = 1e-5

    @property
    def name(self) -> str:
        shown = ",".join(f"{key}={value}" for key, value in self.attributes.items())
        return f"{self.op}-{self.opset}-{shown}"[:80]


def f(*shape: int) -> np.ndarray:
    """Normal numbers."""
    return _RNG.standard_normal(shape).astype(np.float32)


def pos(*shape: int) -> np.ndarray:
    """Positive numbers."""
    return (np.abs(f(*shape)) + 0.5).astype(np.float32)


def i(*items: Any) -> np.ndarray:
    """Integers."""
    return np.array(items, np.int64)


def u8(*shape: int) -> np.ndarray:
    """Codes."""
    return _RNG.integers(0, 256, shape).astype(np.uint8)


def s8(*shape: int) -> np.ndarray:
    """Signed codes."""
    return _RNG.integers(-127, 128, shape).astype(np.int8)


def case(
    op: str,
    *inputs: np.ndarray | None,
    outputs: int = 1,
    compared: tuple[int, ...] | None = None,
    domain: str = "",
    opset: int = 21,
    constant: Collection[int] = (),
    at: float = 1e-5,
    **attributes: Any,
) -> Case:
    return Case(op, inputs, attributes, outputs, compared, domain, opset, constant, at)


def ms(op: str, *inputs: np.ndarray | None, **rest: Any) -> Case:
    return case(op, *inputs, domain=MS, **rest)


_PLAIN = (
    "Abs",
    "Ceil",
    "Cos",
    "Erf",
    "Exp",
    "Floor",
    "HardSwish",
    "Identity",
    "Mish",
    "Neg",
    "Relu",
    "Round",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Softsign",
    "Tanh",
)
SCALE, ZERO = np.array(0.05, np.float32), np.array(120, np.uint8)

ELEMENTWISE = [
    *(case(op, f(3, 4)) for op in _PLAIN),
    *(case(op, pos(3, 4)) for op in ("Log", "Sqrt", "Reciprocal")),
    *(case(op, f(3, 4), f(4)) for op in ("Add", "Mul", "Sub")),
    case("Div", f(3, 4), pos(4)),
    *(case(op, f(3, 4), f(4), f(3, 1)) for op in ("Max", "Min", "Sum", "Mean")),
    case("Pow", f(3, 4), np.array(2, np.float32), constant=[1]),
    case("Pow", pos(3, 4), f(4)),
    case("Where", f(3, 4) > 0, f(3, 4), f(4)),
    case("Clip", f(3, 4), np.array(-0.5, np.float32), np.array(0.5, np.float32)),
    case("Clip", f(3, 4), None, np.array(0.5, np.float32)),
    case("Clip", f(3, 4), opset=10, min=-0.3, max=0.2),
    case("Cast", u8(3, 4), to=int(onnx_ir.DataType.FLOAT)),
    case("CastLike", f(3, 4), f(1)),
    case("Dropout", f(3, 4)),
    case("PRelu", f(3, 4), f(4)),
    case("LeakyRelu", f(3, 4), alpha=0.2),
    case("Elu", f(3, 4), alpha=0.7),
    case("Selu", f(3, 4)),
    case("HardSigmoid", f(3, 4), alpha=0.3, beta=0.4),
    case("Gelu", f(3, 4)),
    case("Gelu", f(3, 4), approximate="tanh"),
    case("Swish", f(3, 4), opset=24, alpha=1.5),
    ms("QuickGelu", f(3, 4)),
    ms("Gelu", f(3, 4)),
    ms("BiasGelu", f(3, 4), f(4)),
    ms("FastGelu", f(3, 4), f(4)),
    ms("FastGelu", f(3, 4)),
]
MOVEMENT = [
    case("Reshape", f(2, 3, 4), i(0, -1)),
    case("Reshape", f(0, 3), i(3, 0), allowzero=1),
    case("Flatten", f(2, 3, 4), axis=2),
    case("Flatten", f(2, 3, 4), axis=-1),
    case("Transpose", f(2, 3, 4)),
    case("Transpose", f(2, 3, 4), perm=[1, 2, 0]),
    case("Squeeze", f(1, 3, 1), i(0, -1)),
    case("Squeeze", f(1, 3, 1)),
    case("Squeeze", f(1, 3, 1), opset=11, axes=[2]),
    case("Unsqueeze", f(3, 4), i(0, -1)),
    case("Unsqueeze", f(3, 4), opset=11, axes=[1, 3]),
    case("Expand", f(3, 1), i(2, 1, 4)),
    case("Concat", f(2, 3), f(2, 1), axis=-1),
    case("Split", f(2, 5), i(2, 3), outputs=2, axis=1),
    case("Split", f(2, 5), outputs=3, axis=1, num_outputs=3),
    case("Split", f(2, 5), opset=11, outputs=2, axis=1, split=[1, 4]),
    case("Slice", f(5, 6), i(1, 0), i(4, 2**31), i(0, 1), i(1, 2)),
    case("Slice", f(5, 6), i(-1), i(-(2**31)), i(0), i(-2)),
    case("Slice", f(5, 6), i(-2), i(9)),
    case("Slice", f(5, 6), opset=9, starts=[1], ends=[-1], axes=[1]),
    case("Gather", f(5, 6), i([0, -1], [2, 3]), axis=1),
    case("Gather", f(5, 6), np.array(2, np.int64)),
    case("GatherElements", f(2, 3), i([0, -1, 2], [1, 1, 0]), axis=1),
    case("Tile", f(2, 3), i(2, 1)),
    case("Pad", f(2, 3), i(0, 1, 2, 0), np.array(0.5, np.float32)),
    case("Pad", f(2, 3), i(1, 2), None, i(-1)),
    case("Pad", f(2, 3), opset=10, pads=[0, 1, 2, 0], value=1.5),
    case("DepthToSpace", f(2, 8, 3, 2), blocksize=2),
    case("DepthToSpace", f(2, 8, 3, 2), blocksize=2, mode="CRD"),
    case("SpaceToDepth", f(2, 3, 4, 6), blocksize=2),
]
LAYERS = [
    case("MatMul", f(2, 3, 4), f(4, 5)),
    ms("FusedMatMul", f(2, 4, 3), f(2, 5, 4), transA=1, transB=1, alpha=0.5),
    case("Gemm", f(4, 3), f(5, 4), f(5), transA=1, transB=1, alpha=0.5, beta=2.0),
    case("Gemm", f(3, 4), f(4, 5)),
    ms("FusedGemm", f(3, 4), f(4, 5), f(5), activation="Relu"),
    case("Einsum", f(2, 3, 4), f(2, 5, 4), equation="bij, bkj -> bik"),
    case("Conv", f(2, 4, 6, 7), f(6, 2, 3, 3), f(6), group=2, pads=[0, 1, 2, 1], strides=[2, 1], dilations=[1, 2]),
    case("Conv", f(2, 3, 8), f(4, 3, 3), auto_pad="SAME_LOWER", strides=[2]),
    case("Conv", f(2, 3, 8), f(4, 3, 3), auto_pad="VALID"),
    case("Conv", f(1, 2, 4, 4, 4), f(3, 2, 2, 2, 2)),
    ms("FusedConv", f(2, 3, 6, 6), f(4, 3, 3, 3), f(4), f(2, 4, 6, 6), pads=[1, 1, 1, 1], activation="Relu"),
    ms("FusedConv", f(2, 3, 6, 6), f(4, 3, 3, 3), f(4), activation="Clip", activation_params=[0.0, 1.0]),
    ms("FusedConv", f(2, 3, 6, 6), f(4, 3, 3, 3), None, activation="LeakyRelu", activation_params=[0.1]),
    ms("FusedConv", f(2, 3, 6, 6), f(4, 3, 3, 3), f(4), activation="HardSigmoid", activation_params=[0.2, 0.4]),
    case("ConvTranspose", f(2, 3, 5, 5), f(3, 4, 3, 3), f(4), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    case("MaxPool", f(2, 3, 7, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0]),
    case("AveragePool", f(2, 3, 7, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 1]),
    case("AveragePool", f(2, 3, 7), kernel_shape=[3], pads=[1, 1], count_include_pad=1),
    case("GlobalAveragePool", f(2, 3, 4, 5)),
    case("GlobalMaxPool", f(2, 3, 4, 5)),
    case("BatchNormalization", f(2, 3, 4), f(3), f(3), f(3), pos(3), epsilon=1e-3),
    case("InstanceNormalization", f(2, 3, 4), f(3), f(3)),
    case("GroupNormalization", f(2, 6, 4), f(6), f(6), num_groups=3),
    case("GroupNormalization", f(2, 6, 4), f(3), f(3), num_groups=3, opset=18),
    case("LayerNormalization", f(2, 3, 4), f(4), f(4)),
    case("LayerNormalization", f(2, 3, 4), f(3, 4), axis=1, epsilon=1e-2),
    case("RMSNormalization", f(2, 3, 4), f(4), opset=23),
    case("SimplifiedLayerNormalization", f(2, 3, 4), f(4), axis=-1, epsilon=1e-5),
    ms("SkipLayerNormalization", f(2, 3, 4), f(2, 3, 4), f(4), f(4), f(4), outputs=4, compared=(0, 3)),
    ms("SkipLayerNormalization", f(2, 3, 4), f(2, 3, 4), f(4)),
    ms("SkipSimplifiedLayerNormalization", f(2, 3, 4), f(2, 3, 4), f(4), f(4), outputs=4, compared=(0, 3)),
    case("LpNormalization", f(2, 3, 4), axis=1, p=2),
    *(case(f"Reduce{kind}", f(2, 3, 4), i(0, -1), keepdims=0) for kind in ("Mean", "Sum", "Max", "Min", "L1", "L2")),
    *(case(f"Reduce{kind}", f(2, 3, 4), i(1)) for kind in ("SumSquare", "LogSumExp")),
    case("ReduceMean", f(2, 3, 4)),
    case("ReduceMean", f(2, 3, 4), noop_with_empty_axes=1),
    case("ReduceMean", f(2, 3, 4), opset=13, axes=[1], keepdims=0),
    case("Softmax", f(2, 3, 4), axis=1),
    case("Softmax", f(2, 3, 4), opset=11, axis=1),
    case("LogSoftmax", f(2, 3, 4)),
]
_MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
ATTENTION = [
    ms("Attention", f(2, 5, 8), f(8, 24), f(24), num_heads=2),
    ms("Attention", f(2, 5, 8), f(8, 24), f(24), _MASK, num_heads=2),
    ms("Attention", f(2, 5, 8), f(8, 24), f(24), np.array([3, 5], np.int32), num_heads=2),
    ms("Attention", f(2, 5, 8), f(8, 24), f(24), num_heads=2, unidirectional=1, scale=0.3),
    ms("Attention", f(2, 5, 8), f(8, 20), f(20), None, None, f(1, 2, 5, 5), num_heads=2, qkv_hidden_sizes=[8, 8, 4]),
    ms("MultiHeadAttention", f(2, 5, 8), f(2, 4, 8), f(2, 4, 8), f(24), num_heads=2),
    ms("MultiHeadAttention", f(2, 5, 8), f(2, 5, 8), f(2, 5, 8), None, _MASK, num_heads=2, scale=0.2),
    ms("MultiHeadAttention", f(2, 5, 8), f(2, 2, 4, 4), f(2, 2, 4, 4), None, None, f(2, 2, 5, 4), num_heads=2),
    ms("MultiHeadAttention", f(2, 5, 8), f(2, 5, 8), f(2, 5, 8), num_heads=4, unidirectional=1),
    case("Attention", f(2, 4, 5, 8), f(2, 2, 6, 8), f(2, 2, 6, 8), f(5, 6), opset=23),
    case("Attention", f(2, 5, 16), f(2, 5, 8), f(2, 5, 8), opset=23, is_causal=1, q_num_heads=4, kv_num_heads=2),
    case("Attention", f(2, 2, 5, 8), f(2, 2, 5, 8), f(2, 2, 5, 8), f(5, 5) > -1, opset=23, scale=0.5),
    ms("RotaryEmbedding", f(2, 3, 5, 8), np.tile(np.arange(5), (2, 1)), f(6, 4), f(6, 4)),
    ms("RotaryEmbedding", f(2, 5, 24), i(1), f(6, 4), f(6, 4), interleaved=1),
]
QUANTIZED = [
    case("QuantizeLinear", f(3, 4), SCALE, ZERO, constant=[1, 2]),
    case("QuantizeLinear", f(3, 4), pos(4) / 20, s8(4), axis=1, constant=[1, 2]),
    case("QuantizeLinear", f(3, 8), pos(3, 2) / 20, s8(3, 2), axis=1, block_size=4, constant=[1, 2]),
    case("DequantizeLinear", u8(3, 4), SCALE, ZERO, constant=[1, 2]),
    case("DequantizeLinear", s8(3, 4), pos(3), s8(3), axis=0, constant=[1, 2]),
    case("DequantizeLinear", s8(3, 8), pos(3, 2), axis=1, block_size=4, constant=[1]),
    ms("QuantizeLinear", f(3, 4), SCALE, ZERO, constant=[1, 2]),
    ms("DequantizeLinear", u8(3, 4), SCALE, ZERO, constant=[1, 2]),
    case("DynamicQuantizeLinear", f(3, 4), outputs=3),
    case("MatMulInteger", u8(3, 4), s8(4, 5), ZERO, s8(1).reshape(()), constant=[2, 3]),
    ms("DynamicQuantizeMatMul", f(3, 16), s8(16, 5), pos(5) / 50, None, f(5), constant=[1, 2, 4], at=5e-3),
    ms("MatMulIntegerToFloat", u8(3, 16), s8(16, 5), SCALE, pos(5) / 50, ZERO, None, f(5), constant=[1, 2, 3, 4, 6]),
    case(
        "QLinearConv",
        u8(2, 3, 6, 6),
        SCALE,
        ZERO,
        s8(4, 3, 3, 3),
        pos(4) / 99,
        np.zeros(4, np.int8),
        np.array(1, np.float32),
        np.array(99, np.uint8),
        np.arange(4, dtype=np.int32) * 500,
        constant=range(1, 9),
        at=5e-3,
    ),
    ms("MatMulNBits", f(3, 40), u8(5, 3, 8), pos(15) / 9, constant=[1, 2], K=40, N=5, bits=4, block_size=16),
    ms(
        "MatMulNBits",
        f(3, 40),
        u8(5, 3, 8),
        pos(15) / 9,
        u8(5, 2),
        constant=[1, 2, 3],
        K=40,
        N=5,
        bits=4,
        block_size=16,
    ),
    ms(
        "MatMulNBits", f(3, 40), u8(5, 3, 8), pos(15) / 9, pos(15), constant=[1, 2, 3], K=40, N=5, bits=4, block_size=16
    ),
    ms(
        "MatMulNBits",
        f(3, 32),
        u8(5, 2, 16),
        pos(10) / 99,
        None,
        None,
        f(5),
        constant=[1, 2, 5],
        K=32,
        N=5,
        bits=8,
        block_size=16,
        at=1e-3,
    ),
]
CASES = [*ELEMENTWISE, *MOVEMENT, *LAYERS, *ATTENTION, *QUANTIZED]
