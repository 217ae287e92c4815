"""Seeds of the clean-up: for every rule a graph at which it fires.

A new rule of ``simplify`` needs one line here; its mutants are then checked for exactly equal numbers.
"""

from __future__ import annotations

import onnx
import onnx.parser

#: What a graph may name.
_CONSTANTS = (
    "float f0 = {0}, float f1 = {1}, float fm2 = {-2}, float f6 = {6}, float[1,1] f11 = {1}, bool no = {0}, "
    "bool yes = {1}, bool[2] nos = {0,0}, int32 j1 = {1}, int32 j3 = {3}, int8 low = {-128}, int8 high = {127}, "
    "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4}, int64[1] last = {-1}, "
    "int64[1] far = {9223372036854775807}, int64 s1 = {1}, int64 s2 = {2}, int64[3] i012 = {0,1,2}, "
    "int64[2] to3 = {-1,3}, int64[3] to031 = {0,3,1}, int64[2] e43 = {4,3}, int64[3] e241 = {2,4,1}, "
    "int64[4] none4 = {0,0,0,0}, float[4] ones4 = {1,1,1,1}, float qs = {0.5}, uint8 qz = {3}, "
    "int64[2] s01 = {0,1}, int64[2] e92 = {9223372036854775807,2}, uint8 q0 = {0}, uint8 q9 = {9}, "
    "int64[8] pads8 = {0,0,1,0,0,0,1,0}, "
    "int64[4] doubled = {1,1,2,2}, float[1,1,3] state = {0,0,0}"
)
#: rule -> graph, of opset 17
SEEDS: dict[str, str] = {
    "integer-sums": "(int32[N,3] x) => (int32[A,B] y) { a = Add(x, j1) y = Sub(a, j3) }",
    "integer-products": "(int32[N,3] x) => (int32[A,B] y) { a = Mul(x, j3) y = Mul(j3, a) }",
    "cast-to-same": "(float[N,3] x) => (float[A,B] y) { a = Cast <to = 1> (x) y = Neg(a) }",
    "cast-like": "(int32[N] x, float[M] z) => (float[A] y) { a = Exp(z) y = CastLike(x, a) }",
    "cast-chain": "(int32[N] x) => (float[A] y) { a = Cast <to = 7> (x) y = Cast <to = 1> (a) }",
    "identity": "(float[N,3] x) => (float[A,B] y) { a = Identity(x) y = Neg(a) }",
    "dropout": "(float[N,3] x) => (float[A,B] y) { a = Dropout(x) y = Neg(a) }",
    "neutral-operand": "(float[N,3] x) => (float[A,B] y) { a = Add(x, f0) b = Mul(f11, a) y = Neg(b) }",
    "absorbing-operand": "(bool[2] x) => (bool[A] y) { a = And(x, nos) y = Not(a) }",
    "same-operands": ("(bool[N] c, float[N] x) => (float[A] y) { a = Where(c, x, x) b = Max(a, a) y = Neg(b) }"),
    "single-operand": "(float[N] x) => (float[A] y) { a = Sum(x) y = Neg(a) }",
    "involution": "(float[N] x) => (float[A] y) { a = Neg(x) b = Neg(a) y = Abs(b) }",
    "idempotent": "(float[N] x) => (float[A] y) { a = Floor(x) b = Ceil(a) c = Relu(b) y = Relu(c) }",
    "negated-operand": "(float[N] x, float[M] z) => (float[A] y) { a = Neg(z) y = Add(x, a) }",
    "boolean-comparison": "(bool[N] x) => (bool[A] y) { a = Equal(x, yes) y = Not(a) }",
    "flipped-xor": "(bool[N] x) => (bool[A] y) { a = Xor(x, yes) y = Not(a) }",
    "negated-comparison": "(int32[N] x, int32[N] z) => (bool[A] y) { a = Less(x, z) y = Not(a) }",
    "where-constant": "(float[N] a, float[N] b) => (float[A] y) { y = Where(yes, a, b) }",
    "where-not": "(bool[N] c, float[N] a, float[M] b) => (float[A] y) { d = Not(c) y = Where(d, a, b) }",
    "trivial-reduction": "(float[N,1] x) => (float[A,B] y) { a = ReduceSum(x, one) y = Neg(a) }",
    "clip-integers": "(int8[N] x) => (int8[A] y) { a = Clip(x, low, high) y = Abs(a) }",
    "clip-chain": "(float[N] x) => (float[A] y) { a = Clip(x, fm2, f6) b = Relu(a) y = Clip(b, , f1) }",
    "concat-parts": (
        "(float[N,2] x, float[M,2] z) => (float[A,B] y) "
        "{ a = Concat <axis = -2> (x, z) y = Concat <axis = 0> (z, a, x) }"
    ),
    "split-in-one": "(float[N] x) => (float[A] y) { a = Split <axis = 0> (x) y = Neg(a) }",
    "split-sequence": (
        "(float[N,4] x) => (float[A,B] y) { s = SplitToSequence <axis = 1> (x, s2) a = SequenceAt(s, s1) y = Neg(a) }"
    ),
    "member-of-sequence": "(float[N,4] x, float[N,4] z) => (float[A,B] y) "
    "{ s = SequenceConstruct(x, z) a = SequenceAt(s, s1) y = Neg(a) }",
    "concat-of-sequence": (
        "(float[N,4] x, float[N,4] z) => (float[A,B] y) "
        "{ s = SequenceConstruct(x, z) y = ConcatFromSequence <axis = -1> (s) }"
    ),
    "reshape-target": (
        "(float[N,4] x) => (float[A,B,C] y) "
        "{ s = Shape <start = 0, end = 1> (x) t = Concat <axis = 0> (s, two, two) y = Reshape(x, t) }"
    ),
    "no-op-view": "(float[N,3] x) => (float[A,B] y) { a = Reshape(x, to3) y = Neg(a) }",
    "no-op-slice": "(float[N,3] x) => (float[A,B] y) { a = Slice(x, zero, far, one) y = Neg(a) }",
    "full-axes-of-slice": ("(float[N,3] x) => (float[A,B] y) { y = Slice(x, s01, e92, s01) }"),
    "no-op-pad": "(float[N,3] x) => (float[A,B] y) { a = Pad(x, none4) y = Neg(a) }",
    "no-op-resize": "(float[1,2,M,3] x) => (float[A,B,C,D] y) { a = Resize(x, , ones4) y = Neg(a) }",
    "absorbed-expand": (
        "(float[N,3] x, float[1,3] z) => (float[A,B] y) { s = Shape(x) a = Expand(z, s) y = Add(x, a) }"
    ),
    "slice-chain": ("(float[N,M] x) => (float[A,B] y) { a = Slice(x, one, four, one) y = Slice(a, one, two, one) }"),
    "piece-of-concat": (
        "(float[N,2] p, float[N,3] q) => (float[A,B] y) "
        "{ a = Concat <axis = 1> (p, q) b = Slice(a, zero, two, one) y = Neg(b) }"
    ),
    "concat-of-pieces": (
        "(float[N,4] w) => (float[A,B] y) { a, b = Split <axis = 1> (w) c = Concat <axis = -1> (a, b) y = Neg(c) }"
    ),
    "slices-to-split": (
        "(float[N,4] x) => (float[A,B] y) "
        "{ a = Slice(x, zero, two, one) b = Slice(x, two, far, one) c = Neg(b) y = Mul(a, c) }"
    ),
    "split-of-concat": (
        "(float[N,2] p, float[N,2] q) => (float[A,B] y) "
        "{ c = Concat <axis = 1> (p, q) a, b = Split <axis = 1> (c) d = Neg(b) y = Sub(a, d) }"
    ),
    "piece-of-split": "(float[N,4] x) => (float[A,B] y) { a, b = Split <axis = 1> (x) y = Neg(b) }",
    "slice-of-pad": ("(float[1,1,N,3] x) => (float[A,B,C,D] y) { a = Pad(x, pads8) y = Slice(a, one, far, two) }"),
    "resize-identity": "(float[1,2,M,3] x) => (float[A,B,C,D] y) { a = Resize(x, , ones4) y = Neg(a) }",
    "resize-scales": (
        "(float[1,2,M,N] x) => (float[A,B,C,D] y) "
        "{ s = Shape(x) t = Mul(s, doubled) "
        'y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric"> (x, , , t) }'
    ),
    "zero-state": (
        "(float[L,N,2] x, float[1,12,2] w, float[1,12,3] r) => (float[A,B,C,D] y) "
        "{ y = LSTM <hidden_size = 3> (x, w, r, , , state, state) }"
    ),
    "transpose-identity": "(float[N,3] x) => (float[A,B] y) { a = Transpose <perm = [0,1]> (x) y = Neg(a) }",
    "transpose-pair": (
        "(float[N,M,3] x) => (float[A,B,C] y) { a = Transpose <perm = [1,2,0]> (x) y = Transpose <perm = [1,2,0]> (a) }"
    ),
    "transpose-cancels": (
        "(float[N,M,3] x) => (float[A,B,C] y) "
        "{ a = Transpose <perm = [0,2,1]> (x) b = Neg(a) c = Abs(b) y = Transpose <perm = [0,2,1]> (c) }"
    ),
    "transpose-sinks": (
        "(float[N,M,3] x, float[N,M,3] z) => (float[A,B,C] y) "
        "{ a = Transpose <perm = [0,2,1]> (x) b = Transpose <perm = [0,2,1]> (z) y = Add(a, b) }"
    ),
    "view-chain": "(float[N,6] x) => (float[A,B,C] y) { a = Reshape(x, to3) y = Reshape(a, to031) }",
    "reduce-squeeze": (
        "(float[N,M,3] x) => (float[A,B] y) { a = ReduceMean <axes = [1], keepdims = 1> (x) y = Squeeze(a, one) }"
    ),
    "reduce-unsqueeze": (
        "(float[N,3] x) => (float[A,B] y) { a = ReduceSum <keepdims = 0> (x, one) y = Unsqueeze(a, last) }"
    ),
    "gather-unsqueeze": ("(float[N,3] x) => (float[A,B] y) { a = Gather <axis = 1> (x, s2) y = Unsqueeze(a, one) }"),
    "gather-squeeze": ("(float[N,3] x) => (float[A] y) { a = Gather <axis = -1> (x, two) y = Squeeze(a, one) }"),
    "expand-chain": "(float[1,3] x) => (float[A,B,C] y) { a = Expand(x, e43) y = Expand(a, e241) }",
    "identity-gather": "(float[N,3] x) => (float[A,B] y) { a = Gather <axis = 1> (x, i012) y = Neg(a) }",
    "quantize-dequantized": (
        "(uint8[N,3] x) => (uint8[A,B] y) { a = DequantizeLinear(x, qs, qz) b = QuantizeLinear(a, qs, qz) "
        "y = Max(b, q9) }"
    ),
    "standard-quantizer": "(float[N,3] x) => (uint8[A,B] y) { y = com.microsoft.QuantizeLinear(x, qs, qz) }",
    "clip-quantized": "(float[N,3] x) => (uint8[A,B] y) { a = Relu(x) y = QuantizeLinear(a, qs, q0) }",
}


def seed(rule: str) -> onnx.ModelProto:
    """The model at which a rule fires."""
    signature, _, body = SEEDS[rule].partition(" {")
    header = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>'
    model = onnx.parser.parse_model(f"{header} g {signature} <{_CONSTANTS}> {{{body}")
    read = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in read]:
        model.graph.initializer.remove(tensor)
    return model
