"""Fusions: patterns that become calls of fused ops, and layers whose weights take over what follows them.

A fused op is a model-local function ``optc::X`` whose body is the sub-graph that was matched. Inputs and attributes,
in this order, are those of the operator that usually realises it; an input that a match does not have is left out.

==================================  ===================================  ==========================================
op                                  inputs                               attributes
==================================  ===================================  ==========================================
Gelu, FastGelu                      x
QuickGelu                           x                                    alpha
BiasGelu, BiasFastGelu              x, bias
HardSigmoid                         x                                    alpha, beta
HardSwish                           x
Mish                                x
LayerNormalization                  x, scale, bias                       axis, epsilon
SimplifiedLayerNormalization        x, scale                             axis, epsilon
GroupNormalization                  x, scale, bias, grouped,             num_groups, epsilon
                                    joined
InstanceNormalization               x, scale, bias                       epsilon
AxisNormalization                   x, scale, bias                       axis, epsilon
SkipLayerNormalization              x, skip, gamma, beta, bias           epsilon
SkipSimplifiedLayerNormalization    x, skip, gamma, bias                 epsilon
FusedConv                           x, w, b, z                           Conv's, activation, activation_params
ConvAdd                             x, w, b, z                           Conv's
FusedGemm                           a, b, c                              Gemm's, activation, activation_params
FusedMatMul                         a, b                                 alpha, transA, transB, transBatchA/B
NarrowedMatMul                      a, b
ScaledIntegers                      x                                    offset, scale
DynamicQuantizeMatMul               x, b, b_scale, b_zero, bias
MatMulIntegerToFloat                a, b, a_scale, b_scale, a_zero,
                                    b_zero, bias
GemmIntegerToFloat                  a, b; c                              alpha, transA, transB
Attention                           q, k, v, mask, past_key,             num_heads, kv_num_heads, scale, fill, hidden,
                                    past_value                           guarded
QLinearConv                         x, w, y; bias                        Conv's
QLinearMatMul                       a, b, y
QGemm                               a, b; c; y                           alpha, transA, transB
QLinearAdd, QLinearMul              a, b, y
QLinearSigmoid, QLinearLeakyRelu    x, y                                 alpha
QLinear[Global]AveragePool          x, y                                 AveragePool's
QLinearConcat                       y; parts                             axis
QLinearWhere                        condition; x, y, z
QuantizedMaxPool                    x                                    MaxPool's
DepthToSpace                        x, split, join                       blocksize, mode
SpaceToDepth                        x, split, join                       blocksize, order
RotaryEmbedding                     x, position, cos, sin                interleaved, heads_axis
PartialRotaryEmbedding              x, position, cos, sin                RotaryEmbedding's, rotary_embedding_dim
==================================  ===================================  ==========================================

What Attention reads and returns is told in ``attention.py``.

In the quantized ops a letter between commas stands for three inputs, the integers (none for a result), their scale and
their zero point, and what lies between semicolons for itself. A bias has its scale and zero point at the end.

Scale and bias of GroupNormalization, InstanceNormalization and AxisNormalization are vectors, or constants with one
number per channel; the shapes of its groups and of its result are there where they were in the model.

The Skip ops have a second output, the residual sum, where it is read elsewhere.
"""
