"""Is a fused op faster than what ONNX Runtime makes of the unfused nodes by itself?

    python benchmarks/fused_ops.py [--threads 1] [--seconds 2] [--only NAME ...] [--store NAME]

For each row a small model of realistic size is run in three forms, all with every optimization of ONNX Runtime on: as
exporters write it, with the one fused kernel that there is (``fuse,emit{slow=true}``), and as optc emits it
(``fuse,emit``). They take turns within one process (:mod:`optc.backends.timing`). A kernel that is no faster than the
unfused nodes is marked so in ``passes/emit/claims.py``.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from harness import machine
from onnx import numpy_helper

from optc.backends import ort_kernels
from optc.backends.timing import compare
from optc.ir.model import load
from optc.ir.saving import to_proto
from optc.ir.targets import builtin_targets
from optc.passes.manager import PassManager
from optc.passes.pipeline import parse_pipeline
from optc.passes.registry import pass_registry

RESULTS = Path(__file__).resolve().parent / "results"

_ERF = "d = Div (b, root)  e = Erf (d)  f = Add (e, one)  g = Mul (b, f)  y = Mul (g, half)"
_TANH = (
    "c = Pow (b, three)  d = Mul (c, cubic)  e = Add (b, d)  f = Mul (e, slope)  g = Tanh (f)  h = Add (g, one)"
    "  i = Mul (b, half)  y = Mul (i, h)"
)
_CONSTANTS = (
    "float root = {1.4142135}, float one = {1}, float half = {0.5}, float three = {3}, float cubic = {0.044715},"
    " float slope = {0.7978846}, float two = {2}, float epsilon = {1e-05}, float six = {6}, float zero = {0},"
    " float alpha = {1.702}, float eighth = {0.125}"
)
_LAYER_NORM = (
    "c = ReduceMean <axes = [-1]> (s)  d = Sub (s, c)  e = Pow (d, two)  f = ReduceMean <axes = [-1]> (e)"
    "  g = Add (f, epsilon)  h = Sqrt (g)  i = Div (d, h)  j = Mul (i, w)  n = Add (j, v)"
)
_RMS_NORM = (
    "e = Pow (s, two)  f = ReduceMean <axes = [-1]> (e)  g = Add (f, epsilon)  h = Sqrt (g)  k = Reciprocal (h)"
    "  i = Mul (s, k)  n = Mul (i, w)"
)
_TOKENS = "float[1,128,768] x"
_NORM_WEIGHTS = "float[768] w, float[768] v"
_CONV = "Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"


def _filled(name: str, size: int, value: int) -> str:
    """The declaration of a vector of equal numbers."""
    return f"float[{size}] {name} = {{{', '.join([str(value)] * size)}}}"


_GROUP_WEIGHTS = (
    "int64[3] groups = {0, 32, -1}, "
    f"{_filled('ones', 32, 1)}, {_filled('zeros', 32, 0)}, float[320,1,1] w, float[320,1,1] v"
)
_GROUP_NORM = (
    "a = Reshape (x, groups)  b = InstanceNormalization (a, ones, zeros)  c = Shape (x)  d = Reshape (b, c)"
    "  t = Mul (d, w)  y = Add (t, v)"
)

# Heads of 80, the first 32 numbers of which are turned (Phi-2).
_PARTIAL_ROTARY = (
    "h = Reshape (q, split)  w = Transpose <perm = [0, 2, 1, 3]> (h)  x = Slice (w, first, part, last)"
    "  kept = Slice (w, part, past, last)  a = Slice (x, first, middle, last)  b = Slice (x, middle, past, last)"
    "  n = Neg (b)  r = Concat <axis = -1> (n, a)  t = Concat <axis = -1> (f, f)  u = Cos (t)  v = Sin (t)"
    "  c = Mul (x, u)  s = Mul (r, v)  z = Add (c, s)  y = Concat <axis = -1> (z, kept)"
)
_PARTIAL_BOUNDS = (
    "int64[4] split = {0, 0, 32, 80}, int64[1] first = {0}, int64[1] middle = {16}, int64[1] part = {32},"
    " int64[1] past = {9223372036854775807}, int64[1] last = {3}"
)
PIPELINES = {"kernel": "fuse,emit{slow=true}", "emitted": "fuse,emit"}

#: name -> (inputs, output, weights, nodes)
ROWS: dict[str, tuple[str, str, str, str]] = {
    "gelu": ("float[1,128,3072] b", "y", "", _ERF),
    "gelu, short": ("float[1,8,1024] b", "y", "", _ERF),
    "bias-gelu": ("float[1,128,3072] x", "y", "float[3072] w", "b = Add (x, w)  " + _ERF),
    "fast-gelu": ("float[1,128,3072] b", "y", "", _TANH),
    "bias-fast-gelu": ("float[1,128,3072] x", "y", "float[3072] w", "b = Add (x, w)  " + _TANH),
    "quick-gelu 1.702": ("float[1,128,3072] x", "y", "", "a = Mul (x, alpha)  b = Sigmoid (a)  y = Mul (x, b)"),
    "silu": ("float[1,128,3072] x", "y", "", "b = Sigmoid (x)  y = Mul (x, b)"),
    "silu, feature map": ("float[1,96,56,56] x", "y", "", "b = Sigmoid (x)  y = Mul (x, b)"),
    "hard-sigmoid": (
        "float[1,96,28,28] x",
        "y",
        "",
        "a = Add (x, three)  b = Clip (a, zero, six)  y = Div (b, six)",
    ),
    "hard-swish": (
        "float[1,96,28,28] x",
        "y",
        "",
        "a = Add (x, three)  b = Clip (a, zero, six)  c = Mul (x, b)  y = Div (c, six)",
    ),
    "mish": ("float[1,64,56,56] x", "y", "", "a = Softplus (x)  b = Tanh (a)  y = Mul (x, b)"),
    "leaky-relu": ("float[1,64,56,56] x", "y", "", "a = Mul (x, eighth)  y = Max (x, a)"),
    "group-norm": ("float[1,320,64,64] x", "y", _GROUP_WEIGHTS, _GROUP_NORM),
    "group-norm, small": ("float[1,320,16,16] x", "y", _GROUP_WEIGHTS, _GROUP_NORM),
    "group-norm, groups of one": (
        "float[1,64,56,56] x",
        "y",
        f"{_filled('ones', 64, 1)}, {_filled('zeros', 64, 0)}, float[64,1,1] w, float[64,1,1] v",
        "n = InstanceNormalization (x, ones, zeros)  t = Mul (n, w)  y = Add (t, v)",
    ),
    "layer-norm, channels first": (
        "float[1,96,56,56] s",
        "n",
        "float[96,1,1] w, float[96,1,1] v",
        _LAYER_NORM.replace("[-1]", "[1]"),
    ),
    "layer-norm": ("float[1,128,768] s", "n", _NORM_WEIGHTS, _LAYER_NORM),
    "rms-norm": ("float[1,128,768] s", "n", "float[768] w", _RMS_NORM),
    "skip-layer-norm, post": (
        f"{_TOKENS}, float[1,128,768] z",
        "n",
        _NORM_WEIGHTS,
        "s = Add (x, z)  n = LayerNormalization <epsilon = 1e-5> (s, w, v)",
    ),
    "skip-layer-norm, bias": (
        f"{_TOKENS}, float[1,128,768] z",
        "n",
        _NORM_WEIGHTS + ", float[768] u",
        "a = Add (x, u)  s = Add (a, z)  n = LayerNormalization <epsilon = 1e-5> (s, w, v)",
    ),
    "skip-layer-norm, pre": (
        f"{_TOKENS}, float[1,128,768] z",
        "n, s",
        _NORM_WEIGHTS,
        "s = Add (x, z)  n = LayerNormalization <epsilon = 1e-5> (s, w, v)",
    ),
    "skip-layer-norm, one token": (
        "float[1,1,768] x, float[1,1,768] z",
        "n, s",
        _NORM_WEIGHTS,
        "s = Add (x, z)  n = LayerNormalization <epsilon = 1e-5> (s, w, v)",
    ),
    **{
        f"skip-layer-norm, rows of {width}": (
            f"float[1,512,{width}] x, float[1,512,{width}] z",
            "n",
            f"float[{width}] w, float[{width}] v",
            "s = Add (x, z)  n = LayerNormalization <epsilon = 1e-5> (s, w, v)",
        )
        for width in (2, 4, 8)
    },
    "skip-rms-norm, pre": (f"{_TOKENS}, float[1,128,768] z", "n, s", "float[768] w", "s = Add (x, z)  " + _RMS_NORM),
    "conv-relu x 3": (
        "float[1,64,56,56] x",
        "y",
        "float[64,64,3,3] w1, float[64,64,3,3] w2, float[64,64,3,3] w3, float[64] b1, float[64] b2, float[64] b3",
        f"a = {_CONV} (x, w1, b1)  b = Relu (a)  c = {_CONV} (b, w2, b2)  d = Relu (c)  e = {_CONV} (d, w3, b3)"
        "  y = Relu (e)",
    ),
    "conv-clip, depthwise": (
        "float[1,96,56,56] x",
        "y",
        "float[96,1,3,3] w1, float[24,96,1,1] w2, float[96] b1, float[24] b2",
        "a = Conv <group = 96, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)  b = Clip (a, zero, six)"
        "  c = Conv <kernel_shape = [1, 1]> (b, w2, b2)  y = Clip (c, zero, six)",
    ),
    "conv-add-relu": (
        "float[1,64,56,56] x, float[1,256,56,56] z",
        "y",
        "float[64,64,3,3] w1, float[256,64,1,1] w2, float[64] b1, float[256] b2",
        f"a = {_CONV} (x, w1, b1)  b = Relu (a)  c = Conv <kernel_shape = [1, 1]> (b, w2, b2)  d = Add (c, z)"
        "  y = Relu (d)",
    ),
    "conv-sigmoid, 1-D": (
        "float[1,64,512] x",
        "y",
        "float[64,64,3] w1, float[64] b1",
        "a = Conv <kernel_shape = [3], pads = [1, 1]> (x, w1, b1)  y = Sigmoid (a)",
    ),
    "gemm-relu": (
        "float[32,1024] x",
        "y",
        "float[1024,1024] w1, float[1024] b1",
        "a = Gemm (x, w1, b1)  y = Relu (a)",
    ),
    "matmul-add": (
        "float[32,1024] x",
        "y",
        "float[1024,1024] w1, float[1024] b1",
        "a = MatMul (x, w1)  y = Add (a, b1)",
    ),
    "scaled-matmul, scores": (
        "float[1,12,128,64] q, float[1,12,128,64] k",
        "y",
        "",
        "t = Transpose <perm = [0, 1, 3, 2]> (k)  a = MatMul (q, t)  y = Mul (a, eighth)",
    ),
    "transposed-matmul, scores": (
        "float[1,12,128,64] q, float[1,12,128,64] k",
        "y",
        "",
        "t = Transpose <perm = [0, 1, 3, 2]> (k)  y = MatMul (q, t)",
    ),
    "transposed-matmul, decoding": (
        "float[1,12,1,64] q, float[1,12,512,64] k",
        "y",
        "",
        "t = Transpose <perm = [0, 1, 3, 2]> (k)  y = MatMul (q, t)",
    ),
    **{
        f"rotary, first 32 of 80, {tokens} tokens": (
            f"float[1,{tokens},2560] q, float[{tokens},16] f",
            "y",
            _PARTIAL_BOUNDS,
            _PARTIAL_ROTARY,
        )
        for tokens in (1, 8, 128, 512)
    },
    "scaled-matmul, weight": (
        "float[1,128,768] x",
        "y",
        "float[768,768] w1",
        "a = Mul (x, eighth)  y = MatMul (a, w1)",
    ),
}


def model_of(row: tuple[str, str, str, str]) -> onnx.ModelProto:
    """The row's unfused model."""
    inputs, outputs, weights, nodes = row
    declared = f"<{_CONSTANTS}{', ' + weights if weights else ''}>"
    results = ", ".join(f"float[] {name.strip()}" for name in outputs.split(","))
    head = '<ir_version: 8, opset_import: ["": 17]>'
    text = f"{head}\nrow ({inputs}) => ({results})\n{declared}\n{{ {nodes} }}"
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for value in list(model.graph.value_info):
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        scale = 1 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        array = (rng.standard_normal(shape) * scale).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        model.graph.value_info.remove(value)
    return model


def session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """A session with every optimization; threads do not spin while the other candidate runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def measure(name: str, threads: int, seconds: float) -> str:
    """One line of the table."""
    model = model_of(ROWS[name])
    forms = {"unfused": model, **{form: rewritten(model, text) for form, text in PIPELINES.items()}}
    sessions = {form: session(each, threads) for form, each in forms.items()}
    feeds = {}
    for entry in model.graph.input:
        rng = np.random.default_rng(zlib.crc32(entry.name.encode()))
        shape = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
        feeds[entry.name] = rng.standard_normal(shape).astype(np.float32)
    reference, *others = (each.run(None, feeds) for each in sessions.values())
    error = max(float(np.abs(a - b).max()) for other in others for a, b in zip(reference, other, strict=True))
    timing = compare({label: _caller(each, feeds) for label, each in sessions.items()}, budget=seconds)
    cells = [name, f"{timing['unfused'].seconds.median * 1e6:.0f}"]
    for form in PIPELINES:
        ratio = timing[form].ratio
        cells.append("+".join(dict.fromkeys(node.op_type for node in forms[form].graph.node)))
        cells.append(f"{1 / ratio.median:.2f} ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})")
    return f"| {' | '.join([*cells, f'{error:.0e}'])} |"


def rewritten(model: onnx.ModelProto, pipeline: str) -> onnx.ModelProto:
    """What a pipeline makes of the model."""
    manager = PassManager(builtin_targets()["cpu"], {"kernels": ort_kernels})
    return to_proto(manager.run(load(model), parse_pipeline(pipeline, pass_registry())).model)


def _caller(each: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]):
    return lambda: each.run(None, feeds)


def table(names: list[str], threads: int, seconds: float) -> Iterator[str]:
    yield "| row | unfused us | fused kernel | speed | emitted | speed | max difference |"
    yield "|---|---|---|---|---|---|---|"
    for name in names:
        yield measure(name, threads, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="at most this long for each row")
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    parser.add_argument("--store", help="write results/NAME.md")
    arguments = parser.parse_args()
    lines = []
    for line in table(arguments.only, arguments.threads, arguments.seconds):
        print(line, flush=True)
        lines.append(line)
    if arguments.store:
        where = {**machine.describe(), **machine.versions(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        head = [f"# Fused ops, {arguments.threads} thread(s)", "", *(f"- {k}: {v}" for k, v in where.items()), ""]
        (RESULTS / f"{arguments.store}.md").write_text("\n".join([*head, *lines, ""]), "utf-8")


if __name__ == "__main__":
    main()
