"""The table of operators: how each ties the axes of what it reads and makes.

An operator that is not in it freezes whatever it touches. A new one is one more row.
"""

from __future__ import annotations

from optc.passes.compress.prune import rules_attention as attention
from optc.passes.compress.prune import rules_layers as layers
from optc.passes.compress.prune import rules_movement as movement
from optc.passes.compress.prune.scope import Rule

_UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Bernoulli", "BitwiseNot", "Cast", "Ceil", "Celu"),
    *("Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN"),
    *("LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign"),
    *("Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
)
_BINARY = (
    *("Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift", "Div", "Equal", "Greater", "GreaterOrEqual"),
    *("Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor"),
)
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_POOLS = (*("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"),)
_MICROSOFT = "com.microsoft"

RULES: dict[tuple[str, str], Rule] = {
    **{("", name): layers.elementwise for name in (*_UNARY, *_BINARY)},
    **{("", name): layers.first_alone for name in ("Clip", "Dropout")},
    **{("", f"Reduce{name}"): movement.reduction for name in _REDUCTIONS},
    **{("", name): layers.pooling for name in _POOLS},
    ("", "Conv"): layers.convolution,
    ("", "ConvTranspose"): layers.transposed_convolution,
    ("", "Gemm"): layers.gemm,
    ("", "MatMul"): layers.matmul,
    ("", "BatchNormalization"): layers.per_channel,
    ("", "InstanceNormalization"): layers.per_channel,
    ("", "GroupNormalization"): layers.group_norm,
    ("", "LayerNormalization"): layers.normalization(-1),
    ("", "RMSNormalization"): layers.normalization(-1),
    ("", "SimplifiedLayerNormalization"): layers.normalization(-1),
    ("", "LpNormalization"): layers.mixing(-1),
    ("", "LRN"): layers.mixing(1),
    ("", "Softmax"): layers.mixing(-1, since=13, before=1),
    ("", "LogSoftmax"): layers.mixing(-1, since=13, before=1),
    ("", "Hardmax"): layers.mixing(-1, since=13, before=1),
    ("", "QuantizeLinear"): layers.quantized,
    ("", "DequantizeLinear"): layers.quantized,
    ("", "Concat"): movement.concat,
    ("", "Split"): movement.split,
    ("", "Slice"): movement.slice_,
    ("", "Gather"): movement.gather,
    ("", "Transpose"): movement.transpose,
    **{("", name): movement.reshape for name in ("Reshape", "Flatten", "Squeeze", "Unsqueeze")},
    ("", "Expand"): movement.expand,
    ("", "Tile"): movement.tile,
    ("", "Pad"): movement.pad,
    ("", "Resize"): movement.resize,
    ("", "Upsample"): movement.resize,
    ("", "DepthToSpace"): movement.depth_to_space,
    ("", "SpaceToDepth"): movement.space_to_depth,
    ("", "ArgMax"): movement.selection,
    ("", "ArgMin"): movement.selection,
    ("", "TopK"): movement.largest,
    ("", "Shape"): movement.shape_of,
    ("", "Size"): movement.shape_of,
    ("", "Attention"): attention.attention,
    ("", "RotaryEmbedding"): attention.rotary,
    **{(_MICROSOFT, name): layers.elementwise for name in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "BiasAdd")},
    (_MICROSOFT, "FusedConv"): layers.convolution,
    (_MICROSOFT, "FusedMatMul"): layers.matmul,
    (_MICROSOFT, "FusedGemm"): layers.gemm,
    (_MICROSOFT, "GroupNorm"): layers.group_norm,
    (_MICROSOFT, "SkipLayerNormalization"): layers.normalization(-1, inputs=2),
    (_MICROSOFT, "SkipSimplifiedLayerNormalization"): layers.normalization(-1, inputs=2),
    (_MICROSOFT, "QuantizeLinear"): layers.quantized,
    (_MICROSOFT, "DequantizeLinear"): layers.quantized,
    (_MICROSOFT, "Attention"): attention.packed_attention,
    (_MICROSOFT, "MultiHeadAttention"): attention.multi_head,
    (_MICROSOFT, "GroupQueryAttention"): attention.grouped_query,
    (_MICROSOFT, "RotaryEmbedding"): attention.rotary,
    (_MICROSOFT, "MoE"): attention.experts,
}
