"""Operators beyond the first ones, each alone or in a small graph, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton")

import optc
from optc.backends.triton.artifact import open_artifact

from .models import agrees, model

#: Inputs, outputs, body. Dims are B = 2, T = 5, H = 6, W = 4; integers are drawn from 0 and 1.
CASES = {
    "transposed convolution": ("float[B,3,H,W] x, float[3,5,4,3] w_1, float[5] w_b", "float[B,5,HO,WO] y", """
        c = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 0]> (x, w_1, w_b)
        y = Relu (c)"""),
    "transposed convolution, uneven": ("float[1,4,5,3] x, float[4,2,3,3] w_1", "float[1,4,11,8] y", """
        y = ConvTranspose <strides = [2, 3], group = 2, dilations = [1, 1], pads = [0, 1, 0, 0]> (x, w_1)"""),
    "transposed convolution, gaps": ("float[1,4,5,3] x, float[4,2,3,2] w_1", "float[1,2,9,6] y", """
        y = ConvTranspose <dilations = [2, 1], strides = [1, 2]> (x, w_1)"""),
    "transposed convolution of a row": ("float[B,3,T] x, float[3,2,16] w_1", "float[B,2,TO] y", """
        y = ConvTranspose <strides = [8], pads = [4, 4]> (x, w_1)"""),
    "transposed convolution, given": ("float[1,2,5,4] x, float[2,3,3,3] w_1", "float[1,3,10,8] y", """
        y = ConvTranspose <strides = [2, 2], output_shape = [10, 8]> (x, w_1)"""),
    "resize, nearest": ("float[B,3,H,4] x", "float[B,3,HO,6] y", """
        none = Constant <value = float[0] {}> ()
        scales = Constant <value = float[4] {1, 1, 2, 1.5}> ()
        y = Resize <coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (x, none, scales)"""),
    "resize, linear": ("float[B,3,H,W] x", "float[B,3,9,3] y", """
        shape = Shape <start = 0, end = 2> (x)
        size = Constant <value = int64[2] {9, 3}> ()
        sizes = Concat <axis = 0> (shape, size)
        r = Resize <mode = "linear"> (x, , , sizes)
        y = Sigmoid (r)"""),
    "resize, cubic": ("float16[1,2,5,4] x", "float16[1,2,10,8] y", """
        scales = Constant <value = float[4] {1, 1, 2, 2}> ()
        y = Resize <mode = "cubic", coordinate_transformation_mode = "align_corners"> (x, , scales)"""),
    "resize of a row": ("float[B,2,T] x", "float[B,2,TO] y", """
        scales = Constant <value = float[3] {1, 1, 2}> ()
        y = Resize <mode = "linear"> (x, , scales)"""),
    "long windows": ("float[B,3,17,H] x, float[B,2,70] z", "float[B,3,6,4] y, float[B,2,3] u", """
        y = MaxPool <kernel_shape = [13, 5], pads = [2, 1, 0, 2], strides = [1, 1]> (x)
        n = Neg (z)
        u = AveragePool <kernel_shape = [66], strides = [2]> (n)"""),
    "averages over edges": ("float[B,3,7,8] x", "float[B,3,4,4] y", """
        y = AveragePool <kernel_shape = [3, 3], pads = [1, 0, 1, 1], strides = [2, 2], ceil_mode = 1,
            count_include_pad = 1> (x)"""),
    "places of the largest": ("float[B,T,300] x, int64[B,T] i", "int64[B,T,1] y, int64[B,300] z, int64[B] s", """
        e = Exp (x)
        y = ArgMax <axis = -1> (e)
        z = ArgMin <axis = 1, keepdims = 0> (e)
        s = ArgMax <axis = 1, keepdims = 0, select_last_index = 1> (i)"""),
    "running sums": ("int64[B,T] i, float[B,130,H] x", "int64[B,T] y, float[B,130,H] z, int64[B,T] u", """
        one = Constant <value = int64 {1}> ()
        c = CumSum (i, one)
        n = Mul (c, i)
        y = Sub (n, one)
        e = Neg (x)
        z = CumSum <exclusive = 1> (e, one)
        last = Constant <value = int64 {-1}> ()
        u = CumSum <exclusive = 1, reverse = 1> (i, last)"""),
    "instance norm": ("float[B,3,H,W] x, float[3] w_1, float[3] w_2", "float[B,3,H,W] y", """
        r = Neg (x)
        n = InstanceNormalization (r, w_1, w_2)
        y = Relu (n)"""),
    "batch norm": ("float[B,3,H] x, float[3] w_1, float[3] w_2, float[3] w_3, float[3] v", "float[B,3,H] y", """
        w = Abs (v)
        y = BatchNormalization (x, w_1, w_2, w_3, w)"""),
    "tile": ("float[B,3,H] x", "float[B2,3,H3] y", """
        n = Constant <value = int64[3] {2, 1, 3}> ()
        e = Exp (x)
        y = Tile (e, n)"""),
    "depth to space": ("float[B,8,H,W] x", "float[B,2,HO,WO] y, float[B,2,HO,WO] z", """
        y = DepthToSpace <blocksize = 2> (x)
        e = Neg (x)
        z = DepthToSpace <blocksize = 2, mode = "CRD"> (e)"""),
    "space to depth": ("float[B,3,6,4] x", "float[B,12,3,2] y", """
        e = Neg (x)
        y = SpaceToDepth <blocksize = 2> (e)"""),
    "triangles": ("float[B,T,H] x, int64[T,T] i", "float[B,T,H] y, int64[T,T] z", """
        k = Constant <value = int64 {-1}> ()
        y = Trilu <upper = 0> (x, k)
        z = Trilu (i)"""),
    "gather at": ("float[B,T,H] x, int64[B,4,1] i, int64[3,2] j", "float[B,4,H] y, float[3,H] z", """
        y = GatherND <batch_dims = 1> (x, i)
        m = Neg (j)
        z = GatherND (x, m)"""),
    "padding with what is inside": ("float[B,3,H,4] x", "float[B,3,HO,7] y, float[B,3,HR,5] z, float[B,4,H,3] u", """
        e = Neg (x)
        a = Constant <value = int64[4] {2, 1, 3, 2}> ()
        axes = Constant <value = int64[2] {2, 3}> ()
        y = Pad <mode = "reflect"> (e, a, , axes)
        b = Constant <value = int64[8] {0, 0, 0, 2, 0, 0, 3, -1}> ()
        z = Pad <mode = "edge"> (x, b)
        c = Constant <value = int64[8] {0, 1, 0, 0, 0, 0, 0, -1}> ()
        u = Pad (x, c)"""),
    "vectors": ("float[T] x, float[T,H] z, float[H] v", "float[H] y, float[T] u, float s", """
        y = MatMul (x, z)
        u = MatMul (z, v)
        s = MatMul (v, v)"""),
    "quantize": ("float[B,3,H] x", "uint8[B,3,H] y, int8[B,3,H] z, float[B,3,H] u, float[B,3,H] v", """
        s = Constant <value = float {0.01}> ()
        zero = Constant <value = uint8 {120}> ()
        y = QuantizeLinear (x, s, zero)
        u = DequantizeLinear (y, s, zero)
        scales = Constant <value = float[3] {0.02, 0.5, 0.013}> ()
        zeros = Constant <value = int8[3] {0, 3, -4}> ()
        z = QuantizeLinear <axis = 1> (x, scales, zeros)
        v = DequantizeLinear <axis = -2> (z, scales, zeros)"""),
}  # fmt: skip
#: The same of ONNX Runtime's operators; opset 1 of "com.microsoft".
CONTRIB = {
    "gelus": ("float[B,T,8] x, float[8] w_b", "float[B,T,8] y", """
        a = com.microsoft.BiasGelu (x, w_b)
        b = com.microsoft.FastGelu (a, w_b)
        c = com.microsoft.Gelu (b)
        d = com.microsoft.FastGelu (c)
        y = com.microsoft.QuickGelu <alpha = 1.5> (d)"""),
    "skip norm": ("float[B,T,8] x, float[B,T,8] r, float[8] w_g, float[8] w_b, float[8] w_c",
        "float[B,T,8] y, float[B,T,8] s, float[B,T,8] z", """
        y, m, d, s = com.microsoft.SkipLayerNormalization <epsilon = 0.001> (x, r, w_g, w_b, w_c)
        z = com.microsoft.SkipSimplifiedLayerNormalization (x, y, w_g)"""),
    "embedding": ("int32[B,T] ids, int32[B,T] kinds, int32[B,T] mask, float[9,8] w_1, float[7,8] w_2, float[2,8] w_3, "
        "float[8] w_g, float[8] w_b", "float[B,T,8] y, int32[B] n", """
        y, n = com.microsoft.EmbedLayerNormalization (ids, kinds, w_1, w_2, w_3, w_g, w_b, mask)"""),
    "fused product": ("float[2,3,T,4] x, float[3,2,T,5] z", "float[3,2,4,5] y", """
        y = com.microsoft.FusedMatMul <alpha = 0.25, transA = 1, transBatchA = 0> (t, z)
        t = Transpose <perm = [1, 0, 2, 3]> (x)"""),
    "attention": ("float[B,T,16] x, float[16,48] w_1, float[48] w_b, int32[B,T] mask", "float[B,T,16] y", """
        y = com.microsoft.Attention <num_heads = 2> (x, w_1, w_b, mask)"""),
    "attention with a past": ("float[B,T,16] x, float[16,48] w_1, float[48] w_b, float[2,B,2,3,8] p",
        "float[B,T,16] y, float[2,B,2,T3,8] q", """
        y, q = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, w_1, w_b, , p)"""),
    "heads with biases": ("float[B,T,16] q, float[B,H,16] k, float[B,H,16] v, float[48] w_b, float[B,1,T,H] m",
        "float[B,T,16] y", """
        y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, w_b, , m)"""),
    "heads of another sequence": ("float[B,T,16] q, float[B,2,H,8] k, float[B,2,H,8] v, float[48] w_b",
        "float[B,T,16] y", """
        y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, w_b)"""),
    "heads with a past": ("float[B,T,16] q, float[B,T,16] k, float[B,T,16] v, float[B,2,H,8] pk, float[B,2,H,8] pv",
        "float[B,T,16] y, float[B,2,TH,8] k2, float[B,2,TH,8] v2", """
        y, k2, v2 = com.microsoft.MultiHeadAttention <num_heads = 2, unidirectional = 1> (q, k, v, , , , pk, pv)"""),
}  # fmt: skip
DIMS = {"B": 2, "T": 5, "H": 6, "W": 4}


@pytest.mark.parametrize("name", [*CASES, *CONTRIB])
def test_operators(name, tmp_path):
    inputs, outputs, body = (CASES | CONTRIB)[name]
    if name == "fused product":
        body = "\n".join(reversed(body.strip().splitlines()))
    imports = '"": 18, "com.microsoft": 1' if name in CONTRIB else '"": 18'
    source = model(f"<ir_version: 9, opset_import: [{imports}]>\ng ({inputs}) => ({outputs}) {{{body}\n}}")
    artifact = optc.compile(source, target="a100", output=tmp_path / "m.optc", verify="off", level=1).artifact
    plan, rng = open_artifact(artifact).plan, np.random.default_rng(0)
    feeds = {}
    for spec in plan.specs():
        shape = [DIMS.get(dim, dim) for dim in spec.shape]
        kind = spec.dtype.numpy()
        drawn = rng.normal(size=shape) if np.issubdtype(kind, np.floating) else rng.integers(0, 2, shape)
        feeds[spec.name] = drawn.astype(kind)
    if "mask" in feeds:
        feeds["mask"] = np.sort(feeds["mask"], axis=1)[:, ::-1].copy()
    half = any(array.dtype == np.float16 for array in feeds.values())
    agrees(source, artifact, feeds, 3e-3 if half else 2e-5)
    for entry in plan.kernels.values():
        assert all(variant.spills == 0 for variant in entry.variants.values())
