"""What operators do with a narrower float type: a table with a reason per row.

The table says what an operator is like; whether numbers fit is another question (:mod:`optc.passes.precision.ranges`).
What is not in it stays as it is.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir

from optc.ir.functions import FUSED_DOMAIN
from optc.ir.names import join_op

_MS = "com.microsoft"


class Kind(enum.Enum):
    """How an operator takes a narrower type."""

    MOVES = "moves"  # hands numbers on, or picks among them: it costs nothing by itself
    NARROW = "narrow"  # sums are kept in single precision by every kernel, or errors do not grow
    CAREFUL = "careful"  # right where all that it reads and makes is known to fit, by proof or from the user's data
    WIDE = "wide"  # never


@dataclass(frozen=True)
class Row:
    """What is known of one operator.

    Attributes:
        kind: How it takes a narrower type.
        reason: Why it is not narrowed, or not without knowledge; empty where nothing is in the way.
        also: Type variables of its schema that have to change with that of its data.
        away_from_zero: The input that must be known to stay away from zero, or to be a constant; None for none.
        up_to: The largest magnitude of its inputs at which it is right, where that is less than what the type holds.
    """

    kind: Kind
    reason: str = ""
    also: tuple[str, ...] = ()
    away_from_zero: int | None = None
    up_to: float | None = None


_MOVES = Row(Kind.MOVES)
_NARROW = Row(Kind.NARROW)
_UNKNOWN = Row(Kind.WIDE, "what it does in a narrower type is not known")

_NORM = "a norm squares and sums its input, which overflows or vanishes first"
_EXPONENTIAL = "an exponential leaves the range of the type for small inputs already"
_REDUCTION = "sums of many elements leave the range of the type, or drown the small ones"
_RATIO = "a small divisor is rounded coarsely, or becomes zero"
_ANGLE = "the error of an angle grows with the angle"
_STEP = "a rounding error before it moves its result by a whole step"
_COMPARE = "it compares: numbers that are rounded first compare otherwise"
_POSITIONS = "it counts: integers above 2048 (fp16) or 256 (bf16) are rounded"
_SUBGRAPHS = "it has sub-graphs, which stay as they are"
_QUANTIZED = "it computes in integers, with scales of single precision"
_RANDOM = "what it draws would be other numbers"
_RECURRENT = "its state adds up over all steps"

#: Operators by what they are like; "DOMAIN::OP" for those of other domains.
_ROWS: Mapping[Row, str] = {
    _MOVES: """Identity Reshape Flatten Squeeze Unsqueeze Transpose Slice Split Concat Gather GatherElements GatherND
        Expand Tile DepthToSpace SpaceToDepth Shape Size Pad Compress Dropout ScatterElements ScatterND Trilu Where Max
        Min MaxPool GlobalMaxPool ReduceMax ReduceMin Relu Neg Abs Clip Cast ConstantOfShape CenterCropPad
        ReverseSequence optc::DepthToSpace optc::SpaceToDepth""",
    _NARROW: """MatMul Gemm Conv ConvTranspose Add Sub Mul Sum LeakyRelu PRelu Elu Selu Celu Sigmoid Tanh Gelu
        HardSigmoid HardSwish Swish Mish Softplus Softsign ThresholdedRelu Erf AveragePool GlobalAveragePool Resize
        GridSample Einsum Attention RotaryEmbedding QuantizeLinear DequantizeLinear
        com.microsoft::FusedMatMul com.microsoft::FusedConv com.microsoft::FusedGemm com.microsoft::NhwcFusedConv
        com.microsoft::Gelu com.microsoft::FastGelu com.microsoft::BiasGelu com.microsoft::QuickGelu
        com.microsoft::Attention com.microsoft::MultiHeadAttention com.microsoft::GroupQueryAttention
        com.microsoft::RotaryEmbedding com.microsoft::MatMulNBits
        optc::FusedMatMul optc::FusedConv optc::ConvAdd optc::FusedGemm optc::Gelu optc::FastGelu optc::BiasGelu
        optc::BiasFastGelu optc::QuickGelu optc::HardSigmoid optc::HardSwish optc::Mish
        optc::Attention optc::RotaryEmbedding""",
    Row(Kind.CAREFUL, _NORM): """LayerNormalization SimplifiedLayerNormalization
        InstanceNormalization GroupNormalization MeanVarianceNormalization LpNormalization LRN
        com.microsoft::SkipLayerNormalization com.microsoft::SkipSimplifiedLayerNormalization
        com.microsoft::SimplifiedLayerNormalization com.microsoft::GroupNorm com.microsoft::SkipGroupNorm
        com.microsoft::EmbedLayerNormalization
        optc::LayerNormalization optc::SimplifiedLayerNormalization optc::SkipLayerNormalization
        optc::SkipSimplifiedLayerNormalization optc::InstanceNormalization optc::AxisNormalization
        optc::GroupNormalization""",
    Row(Kind.CAREFUL, _NORM, also=("T",)): "RMSNormalization",
    Row(Kind.CAREFUL, _NORM, also=("T1", "T2")): "BatchNormalization",
    Row(Kind.CAREFUL, _EXPONENTIAL): "Exp Softmax LogSoftmax Sinh Cosh Pow",
    Row(Kind.CAREFUL, _REDUCTION): """ReduceMean ReduceSum ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum
        ReduceLogSumExp ReduceProd GlobalLpPool LpPool Mean""",
    Row(Kind.CAREFUL, _RATIO, away_from_zero=1): "Div",
    Row(Kind.CAREFUL, _RATIO, away_from_zero=0): "Reciprocal Log Sqrt",
    Row(Kind.CAREFUL, _ANGLE, up_to=6.3): "Sin Cos Tan",
    Row(Kind.CAREFUL, _RECURRENT): "LSTM GRU RNN",
    Row(Kind.WIDE, _STEP): "Floor Ceil Round Mod Sign Hardmax",
    Row(Kind.WIDE, _COMPARE): """Less LessOrEqual Greater GreaterOrEqual Equal ArgMax ArgMin TopK NonZero IsNaN IsInf
        Unique NonMaxSuppression RoiAlign MaxRoiPool""",
    Row(Kind.WIDE, _POSITIONS): "Range CumSum CumProd OneHot EyeLike",
    Row(Kind.WIDE, _SUBGRAPHS): "If Loop Scan SequenceMap",
    Row(Kind.WIDE, _QUANTIZED): """DynamicQuantizeLinear QLinearConv QLinearMatMul
        MatMulInteger ConvInteger com.microsoft::DynamicQuantizeMatMul com.microsoft::MatMulIntegerToFloat
        com.microsoft::QLinearAdd com.microsoft::QLinearMul com.microsoft::QGemm com.microsoft::QAttention""",
    Row(Kind.WIDE, _RANDOM): "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial",
}


def _table() -> Iterator[tuple[str, Row]]:
    for row, names in _ROWS.items():
        for name in names.split():
            yield name, row


#: What is known, by operator.
KINDS: Mapping[str, Row] = dict(_table())

#: Operators that multiply matrices, with the place of the second operand.
PRODUCTS: Mapping[str, int] = {
    **dict.fromkeys(("MatMul", "Gemm", "Conv", "ConvTranspose", "FusedMatMul", "FusedConv", "ConvAdd", "FusedGemm"), 1),
    "NhwcFusedConv": 1,
    "MatMulNBits": 1,
}
#: Operators that are many products at once.
ATTENTIONS = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention"})


def row_of(node: onnx_ir.Node) -> Row:
    """What is known of a node's operator."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return KINDS.get(join_op(domain, node.op_type), _UNKNOWN)


def is_product(node: onnx_ir.Node) -> bool:
    """Whether a node multiplies matrices, which is what narrow types are fast at."""
    known = node.domain in ("", "ai.onnx", _MS, FUSED_DOMAIN)
    return known and (node.op_type in PRODUCTS or node.op_type in ATTENTIONS)
