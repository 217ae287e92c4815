"""Which of several ways to write the same thing does ONNX Runtime run fastest?

    python benchmarks/realisations.py [--seconds 2] [--only NAME ...] [--store NAME]

Each row holds models that compute the same and differ in their operators. They run in turns in one process with every
optimization of ONNX Runtime on and one thread, whose own processor time is taken: it does not count what other
processes do meanwhile. The lower quartile of all runs stands for a form; speeds are against the row's first form.
What emission prefers (``passes/emit/claims.py``), and what is not done, rests on these figures.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from harness import machine
from onnx import numpy_helper

RESULTS = Path(__file__).resolve().parent / "results"
_OPSET = 23


def _attention(seq: int, heads: int, masked: bool) -> dict[str, str]:
    """A layer from its input to the product behind the heads."""
    width = heads * 64
    inputs, sizes = f"float[B,S,{width}] x" + (", float[1,1,S,S] m" if masked else ""), f"B=1 S={seq}"
    weights = {f"float[{width},{width}]": "wq wk wv wo", f"float[{width}]": "bq bk bv"}
    weights |= {f"float[{width},{3 * width}]": "w", f"float[{3 * width}]": "b"}
    own, ms = f"q_num_heads = {heads}, kv_num_heads = {heads}, scale = 0.125", f"num_heads = {heads}, scale = 0.125"
    products = "p = MatMul (x, wq)  r = MatMul (x, wk)  t = MatMul (x, wv)"
    sums = "q = Add (p, bq)  k = Add (r, bk)  v = Add (t, bv)"
    split = "f = MatMul (x, w)  g = Add (f, b)  q, k, v = Split <axis = 2, num_outputs = 3> (g)"
    mask = ", m" if masked else ""
    bodies = {
        "3 products + Attention": f"{products} {sums} o = Attention <{own}> (q, k, v{mask})",
        "com.microsoft::Attention": f"o = com.microsoft.Attention <{ms}> (x, w, b"
        + (', "", "", m)' if masked else ")"),
        "1 product + Split + Attention": f"{split} o = Attention <{own}> (q, k, v{mask})",
        "3 products + MultiHeadAttention": f"{products} o = com.microsoft.MultiHeadAttention <{ms}> (p, r, t, b"
        + (', "", m)' if masked else ")"),
    }
    return {form: _text(inputs, sizes, weights, f"{body} y = MatMul (o, wo)") for form, body in bodies.items()}


def _text(
    inputs: str, sizes: str, weights: Mapping[str, str], nodes: str, constants: str = "", opset: int = _OPSET
) -> str:
    """A model; of the weights those that the nodes read are drawn, the dims are set to the sizes."""
    words = set(nodes.replace(",", " ").replace("(", " ").replace(")", " ").split())
    declared = [f"{kind} {name}" for kind, names in weights.items() for name in names.split() if name in words]
    body = f"<{', '.join([*filter(None, [constants]), *declared])}>" if declared or constants else ""
    head = f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1], metadata_props: ["sizes": "{sizes}"]>'
    return f"{head} g ({inputs}) => (float[] y) {body} {{ {nodes} }}"


def _scores(queries: int, heads: int, size: int, capped: bool) -> dict[str, str]:
    """Attention from heads to heads, and the kernel of opset 23; ``capped``: with a tanh behind the scale."""
    operand = f"float[B,{heads},S,{size}]"
    inputs, sizes = f"{operand} q, {operand} k, {operand} v, float[1,1,S,S] m", f"B=1 S={queries}"
    cap = "e = Div (d, fifty)  f = Tanh (e)  g = Mul (f, fifty)" if capped else "g = Identity (d)"
    return {
        "parts": _text(
            inputs,
            sizes,
            {},
            f"t = Transpose <perm = [0, 1, 3, 2]> (k)  s = MatMul (q, t)  d = Mul (s, eighth)  {cap}  h = Add (g, m)"
            "  p = Softmax <axis = -1> (h)  y = MatMul (p, v)",
            "float eighth = {0.125}" + (", float fifty = {50}" if capped else ""),
        ),
        "Attention": _text(
            inputs, sizes, {}, f"y = Attention <scale = 0.125{', softcap = 50.0' if capped else ''}> (q, k, v, m)"
        ),
    }


def _gated(seq: int, width: int, inner: int, activation: str) -> dict[str, str]:
    """A gated layer: activation(x @ gate) * (x @ up), and what follows."""
    inputs, tokens = f"float[B,S,{width}] x", f"B=1 S={seq}"
    weights = {f"float[{width},{inner}]": "wg wu", f"float[{inner},{width}]": "wd", f"float[{width},{2 * inner}]": "w"}
    rest = "h = Mul (a, u)  y = MatMul (h, wd)"
    act = f"a = com.microsoft.{activation} (g)"
    return {
        "2 products": _text(inputs, tokens, weights, f"g = MatMul (x, wg)  u = MatMul (x, wu)  {act}  {rest}"),
        "1 product + Split": _text(
            inputs, tokens, weights, f"f = MatMul (x, w)  g, u = Split <axis = 2, num_outputs = 2> (f)  {act}  {rest}"
        ),
    }


def _three_products(seq: int, width: int) -> dict[str, str]:
    inputs, tokens = f"float[B,S,{width}] x", f"B=1 S={seq}"
    weights = {f"float[{width},{width}]": "wq wk wv", f"float[{width},{3 * width}]": "w"}
    rest = "a = Add (q, k)  y = Add (a, v)"
    return {
        "3 products": _text(
            inputs, tokens, weights, f"q = MatMul (x, wq)  k = MatMul (x, wk)  v = MatMul (x, wv)  {rest}"
        ),
        "1 product + Split": _text(
            inputs, tokens, weights, f"f = MatMul (x, w)  q, k, v = Split <axis = 2, num_outputs = 3> (f)  {rest}"
        ),
    }


def _residual(rows: int, width: int) -> dict[str, str]:
    inputs, sizes = f"float[R,{width}] x, float[R,{width}] z", f"R={rows}"
    weights = {f"float[{width},{width}]": "w", f"float[{width}]": "b v"}
    norm = "y = LayerNormalization (s, v, b)"
    return {
        "Gemm + Add": _text(inputs, sizes, weights, f"p = Gemm (x, w, b)  s = Add (p, z)  {norm}"),
        "Gemm + Sum": _text(inputs, sizes, weights, f"p = Gemm (x, w, b)  s = Sum (p, z)  {norm}"),
        "Gemm of residual, bias before": _text(inputs, sizes, weights, f"q = Add (z, b)  s = Gemm (x, w, q)  {norm}"),
        "MatMul + Sum": _text(inputs, sizes, weights, f"p = MatMul (x, w)  s = Sum (p, z, b)  {norm}"),
        "SkipLayerNormalization": _text(
            inputs, sizes, weights, "p = MatMul (x, w)  y = com.microsoft.SkipLayerNormalization (p, z, v, b, b)"
        ),
    }


def _rotary(seq: int, heads: int, size: int) -> dict[str, str]:
    width, half, sizes = heads * size, size // 2, f"B=1 S={seq}"
    flat, four = f"float[B,S,{width}] x", f"float[B,{heads},S,{size}] x"
    tables, batched = f"float[S,{half}] c, float[S,{half}] d", f"float[B,S,{half}] c, float[B,S,{half}] d"
    first = "int64[1] first = {0}"
    return {
        "com.microsoft, flat": _text(
            f"{flat}, {tables}", sizes, {}, "y = com.microsoft.RotaryEmbedding (x, first, c, d)", first
        ),
        "com.microsoft, heads": _text(
            f"{four}, {tables}", sizes, {}, "y = com.microsoft.RotaryEmbedding (x, first, c, d)", first
        ),
        "opset 23, flat": _text(
            f"{flat}, {batched}", sizes, {}, f"y = RotaryEmbedding <num_heads = {heads}> (x, c, d)"
        ),
        "opset 23, heads": _text(f"{four}, {batched}", sizes, {}, "y = RotaryEmbedding (x, c, d)"),
    }


def _partial_rotary(seq: int, heads: int, size: int, turned: int) -> dict[str, str]:
    sizes, tables = f"B=1 S={seq}", f"float[S,{turned // 2}] c, float[S,{turned // 2}] d"
    first = f"int64[1] first = {{0}}, int64[2] parts = {{{turned}, {size - turned}}}"
    kernel = f"com.microsoft.RotaryEmbedding <num_heads = {heads}, rotary_embedding_dim = {turned}>"
    return {
        "flat": _text(f"float[B,S,{heads * size}] x, {tables}", sizes, {}, f"y = {kernel} (x, first, c, d)", first),
        "heads": _text(f"float[B,{heads},S,{size}] x, {tables}", sizes, {}, f"y = {kernel} (x, first, c, d)", first),
        "Split and Concat": _text(
            f"float[B,{heads},S,{size}] x, {tables}",
            sizes,
            {},
            "a, b = Split <axis = 3> (x, parts)  t = com.microsoft.RotaryEmbedding (a, first, c, d)"
            "  y = Concat <axis = 3> (t, b)",
            first,
        ),
    }


def _embedding(seq: int, width: int) -> dict[str, str]:
    sizes = f"B=1 S={seq}"
    weights = {f"float[1000,{width}]": "words", f"float[512,{width}]": "places", f"float[2,{width}]": "kinds"}
    weights |= {f"float[{width}]": "v b"}
    inputs = "int32[B,S] i, int32[B,S] j, int32[B,S] k"
    return {
        "3 Gathers + Sum + LayerNormalization": _text(
            inputs,
            sizes,
            weights,
            "e = Gather (words, i)  f = Gather (places, j)  g = Gather (kinds, k)  s = Sum (e, f, g)"
            "  y = LayerNormalization (s, v, b)",
        ),
        "EmbedLayerNormalization": _text(
            inputs,
            sizes,
            weights,
            'y, unused = com.microsoft.EmbedLayerNormalization (i, k, words, places, kinds, v, b, "", j)',
        ),
    }


def _rms(seq: int, width: int) -> dict[str, str]:
    inputs, sizes, weights = f"float[B,S,{width}] x", f"B=1 S={seq}", {f"float[{width}]": "v"}
    return {
        "SimplifiedLayerNormalization": _text(
            inputs, sizes, weights, "y = SimplifiedLayerNormalization <axis = -1> (x, v)"
        ),
        "RMSNormalization": _text(inputs, sizes, weights, "y = RMSNormalization <axis = -1> (x, v)"),
    }


def _group(channels: int, size: int, groups: int) -> dict[str, str]:
    """Normalization of groups of channels, as exporters write it, and the operator of opset 21."""
    inputs, sizes = f"float[B,{channels},{size},{size}] x", "B=1"
    weights = {f"float[{channels}]": "v b", f"float[{channels},1,1]": "v3 b3", f"float[{groups}]": "ones zeros"}
    shapes = f"int64[3] joined = {{0, {groups}, -1}}, int64[4] back = {{0, {channels}, {size}, {size}}}"
    return {
        "Reshape + InstanceNormalization": _text(
            inputs,
            sizes,
            weights,
            "a = Reshape (x, joined)  c = InstanceNormalization (a, ones, zeros)  d = Reshape (c, back)"
            "  e = Mul (d, v3)  y = Add (e, b3)",
            shapes,
        ),
        "GroupNormalization": _text(
            inputs, sizes, weights, f"y = GroupNormalization <num_groups = {groups}> (x, v, b)"
        ),
    }


ROWS: dict[str, dict[str, str]] = {
    **{
        f"attention layer, {heads}x64, {seq}{', mask' if masked else ''}": _attention(seq, heads, masked)
        for heads in (12, 6)
        for seq in (8, 128, 512)
        for masked in (False, True)
    },
    **{
        f"{'capped scores' if capped else 'heads left apart'}, {heads}x{size}, {seq}": _scores(seq, heads, size, capped)
        for capped in (True, False)
        for heads, size in ((4, 64), (8, 256))
        for seq in (1, 8, 64, 512)
    },
    **{
        f"{name}, {width} to {inner}, {seq}": _gated(seq, width, inner, op)
        for name, op in (("SwiGLU", "QuickGelu"), ("GeGLU", "Gelu"))
        for width, inner in ((768, 2048), (2048, 5632))
        for seq in (8, 128, 512)
        if (width, seq) != (2048, 512)
    },
    **{
        f"products of one value, {width}, {seq}": _three_products(seq, width)
        for width in (768, 2048)
        for seq in (8, 128)
    },
    **{f"residual and norm, {rows}x{width}": _residual(rows, width) for rows in (8, 128, 512) for width in (768,)},
    **{
        f"rotary, {heads}x{size}, {seq}": _rotary(seq, heads, size)
        for heads, size in ((12, 64), (32, 128))
        for seq in (1, 8, 128, 512)
    },
    **{f"rotary, 32x80, first 32, {seq}": _partial_rotary(seq, 32, 80, 32) for seq in (1, 8, 128, 512)},
    **{f"embeddings, {seq}x768": _embedding(seq, 768) for seq in (8, 128, 512)},
    **{f"RMS norm, {seq}x768": _rms(seq, 768) for seq in (8, 128, 512)},
    "group norm, 64x32x32": _group(64, 32, 8),
    "group norm, 320x64x64": _group(320, 64, 32),
}


def model_of(text: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model with drawn weights, and drawn inputs; values of one name are equal in all forms."""
    model = onnx.parser.parse_model(text)
    sizes = {name: int(size) for name, size in (p.split("=") for p in model.metadata_props[0].value.split())}

    def draw(value: onnx.ValueInfoProto) -> np.ndarray:
        kind = value.type.tensor_type
        shape = [dim.dim_value or sizes[dim.dim_param] for dim in kind.shape.dim]
        rng = np.random.default_rng(zlib.crc32(value.name.encode()))
        if kind.elem_type != onnx.TensorProto.FLOAT:
            return rng.integers(0, 2, shape).astype(np.int32)
        return (rng.standard_normal(shape) / np.sqrt(max(1, int(np.prod(shape[:-1]))))).astype(np.float32)

    for value in list(model.graph.value_info):
        model.graph.initializer.append(numpy_helper.from_array(draw(value), value.name))
        model.graph.value_info.remove(value)
    return model, {value.name: draw(value) for value in model.graph.input}


def measure(name: str, seconds: float) -> str:
    """One line of the table."""
    calls, nodes = {}, {}
    for form, text in ROWS[name].items():
        model, feeds = model_of(text)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        calls[form], nodes[form] = (session, feeds), len(model.graph.node)
    times: dict[str, list[float]] = {form: [] for form in calls}
    forms, start, turn = list(calls), time.perf_counter(), 0
    while time.perf_counter() - start < seconds or turn < 6:
        for place in range(len(forms)):
            form = forms[(place + turn) % len(forms)]
            session, feeds = calls[form]
            before = time.thread_time()
            session.run(None, feeds)
            times[form].append(time.thread_time() - before)
        turn += 1
    quartile = {form: float(np.percentile(spent[1:], 25)) for form, spent in times.items()}
    first = quartile[forms[0]]
    cells = [f"{form} ({nodes[form]}): {first / quartile[form]:.2f}" for form in forms[1:]]
    return f"| {name} | {forms[0]} ({nodes[forms[0]]}) | {first * 1e6:.0f} | {'; '.join(cells)} |"


def table(names: list[str], seconds: float) -> Iterator[str]:
    yield "| row | first form (nodes) | us | speed of the others against it |"
    yield "|---|---|---|---|"
    for name in names:
        yield measure(name, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long for each row")
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    parser.add_argument("--store", help="write results/NAME.md")
    arguments = parser.parse_args()
    lines = []
    for line in table(arguments.only, arguments.seconds):
        print(line, flush=True)
        lines.append(line)
    if arguments.store:
        where = {**machine.describe(), **machine.versions(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        head = ["# Ways to write the same", "", *(f"- {k}: {v}" for k, v in where.items()), ""]
        (RESULTS / f"{arguments.store}.md").write_text("\n".join([*head, *lines, ""]), "utf-8")


if __name__ == "__main__":
    main()
