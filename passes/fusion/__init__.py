"""Fusions: patterns that become calls of fused ops, and layers whose weights take over what follows them.

A fused op is a model-local function ``optc::X`` whose body is the sub-graph that was matched. Inputs and attributes,
in this order, are those of the operator that usually realises it; an input that a match does not have is left out.

==================================  ===================================  ====================================
op                                  inputs                               attributes
==================================  ===================================  ====================================
Gelu, FastGelu                      x
QuickGelu                           x                                    alpha
BiasGelu, BiasFastGelu              x, bias
HardSigmoid                         x                                    alpha, beta
HardSwish                           x
LayerNormalization                  x, scale, bias                       axis, epsilon
SimplifiedLayerNormalization        x, scale                             axis, epsilon
SkipLayerNormalization              x, skip, gamma, beta, bias           epsilon
SkipSimplifiedLayerNormalization    x, skip, gamma, bias                 epsilon
FusedConv                           x, w, b, z                           Conv's, activation, activation_params
ConvAdd                             x, w, b, z                           Conv's
FusedGemm                           a, b, c                              Gemm's, activation, activation_params
FusedMatMul                         a, b                                 alpha, transA, transB, transBatchA/B
DynamicQuantizeMatMul               x, b, b_scale, b_zero, bias
MatMulIntegerToFloat                a, b, a_scale, b_scale, a_zero,
                                    b_zero, bias
MultiHeadAttention                  q, k, v, bias, padding, mask         num_heads, scale, fill, hidden, guarded
RotaryEmbedding                     x, position, cos, sin                interleaved
==================================  ===================================  ====================================

MultiHeadAttention reads queries as (B, S, N * H) or as heads (B, N, S, H), keys and values both in the one or both in
the other form; it returns (B, S, N * V) or the same as a matrix. A boolean mask comes with the number that replaces the
scores that it hides, and with the truth value that hides them.

The Skip ops have a second output, the residual sum, where it is read elsewhere.
"""
