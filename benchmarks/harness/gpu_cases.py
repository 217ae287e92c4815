"""Kernels that the GPU benchmark measures by themselves: as ONNX models of one layer, with what they cost.

Sizes are those of layers that the whole models have, and large ones that reach a GPU's limits. Weights are
initializers, as in a model. Convolutions take and give NHWC, so that no change of layout is measured with them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Layers in ONNX's text form. Inputs whose names begin with "w" become weights.
TEXTS = {
    "gemm": "g ({t}[{m},{k}] x, {t}[{k},{n}] w) => ({t}[{m},{n}] y) {{ y = MatMul (x, w) }}",
    "gemm + bias + gelu": """g ({t}[{m},{k}] x, {t}[{k},{n}] w, {t}[{n}] wb) => ({t}[{m},{n}] y)
        {{ a = MatMul (x, w) b = Add (a, wb) y = Gelu (b) }}""",
    "batched gemm": "g ({t}[{b},{m},{k}] x, {t}[{b},{k},{n}] z) => ({t}[{b},{m},{n}] y) {{ y = MatMul (x, z) }}",
    "attention": """g ({t}[{b},{h},{q},{d}] x, {t}[{b},{h},{s},{d}] k, {t}[{b},{h},{s},{d}] v)
        => ({t}[{b},{h},{q},{d}] y)
        {{ kt = Transpose <perm = [0,1,3,2]> (k) a = MatMul (x, kt)
           f = Constant <value = float {{{scale}}}> () c = CastLike (f, a)
           e = Mul (a, c) p = Softmax <axis = -1> (e) y = MatMul (p, v) }}""",
    "conv": """g ({t}[{b},{h},{h},{c}] x, {t}[{o},{c},{r},{r}] w, {t}[{o}] wb) => ({t}[{b},{p},{p},{o}] y)
        {{ i = Transpose <perm = [0,3,1,2]> (x)
           a = Conv <pads = [{pad},{pad},{pad},{pad}], strides = [{st},{st}]> (i, w, wb)
           r = Relu (a) y = Transpose <perm = [0,2,3,1]> (r) }}""",
    "depthwise conv": """g ({t}[{b},{h},{h},{c}] x, {t}[{c},1,{r},{r}] w, {t}[{c}] wb) => ({t}[{b},{p},{p},{c}] y)
        {{ i = Transpose <perm = [0,3,1,2]> (x)
           a = Conv <pads = [{pad},{pad},{pad},{pad}], strides = [{st},{st}], group = {c}> (i, w, wb)
           r = Relu (a) y = Transpose <perm = [0,2,3,1]> (r) }}""",
    "layernorm": """g ({t}[{m},{n}] x, {t}[{n}] w, {t}[{n}] wb) => ({t}[{m},{n}] y)
        {{ y = LayerNormalization <axis = -1> (x, w, wb) }}""",
    "add + layernorm": """g ({t}[{m},{n}] x, {t}[{m},{n}] z, {t}[{n}] w, {t}[{n}] wb) => ({t}[{m},{n}] y)
        {{ a = Add (x, z) y = LayerNormalization <axis = -1> (a, w, wb) }}""",
    "softmax": "g ({t}[{m},{n}] x) => ({t}[{m},{n}] y) {{ y = Softmax <axis = -1> (x) }}",
    "gelu": "g ({t}[{m},{n}] x) => ({t}[{m},{n}] y) {{ y = Gelu (x) }}",
    "gather": "g (int64[{m}] i, {t}[{v},{n}] w) => ({t}[{m},{n}] y) {{ y = Gather (w, i) }}",
    "transpose": "g ({t}[{b},{m},{n}] x) => ({t}[{b},{n},{m}] y) {{ y = Transpose <perm = [0,2,1]> (x) }}",
}
_HALF = 2


@dataclass(frozen=True)
class Case:
    """One kernel at one size.

    Attributes:
        family: Which layer.
        sizes: Its sizes, by the letters of its text.
    """

    family: str
    sizes: Mapping[str, int]

    @property
    def name(self) -> str:
        """Layer and sizes."""
        return f"{self.family} " + " ".join(f"{key}{value}" for key, value in self.sizes.items())

    @property
    def slug(self) -> str:
        """The name as that of a folder."""
        return "".join(char if char.isalnum() else "_" for char in self.name)

    def values(self) -> dict[str, int]:
        """The sizes, with those that follow."""
        found = dict(self.sizes)
        if "conv" in self.family:
            found.setdefault("st", 1)
            found["pad"] = (found["r"] - 1) // 2
            found["p"] = (found["h"] + 2 * found["pad"] - found["r"]) // found["st"] + 1
        if self.family == "attention":
            found.setdefault("q", found["s"])
        return found

    @property
    def flops(self) -> int:
        """Multiplications and additions of products; 0 where only memory counts."""
        at = self.values()
        if "gemm" in self.family:
            return 2 * at.get("b", 1) * at["m"] * at["n"] * at["k"]
        if self.family == "attention":
            return 4 * at["b"] * at["h"] * at["q"] * at["s"] * at["d"]
        if self.family == "conv":
            return 2 * at["b"] * at["p"] ** 2 * at["o"] * at["c"] * at["r"] ** 2
        if self.family == "depthwise conv":
            return 2 * at["b"] * at["p"] ** 2 * at["c"] * at["r"] ** 2
        return 0

    @property
    def bytes(self) -> int:
        """What must be read and written at least: every input and output once; of a table, the rows that are taken."""
        graph = self._parsed("float16").graph
        counts = {value.name: math.prod(_shape(value)) for value in (*graph.input, *graph.output)}
        if self.family == "gather":
            counts["w"] = counts["y"]
        return sum(count * (8 if name == "i" else _HALF) for name, count in counts.items())

    def roofline_ms(self, peak: float, bandwidth: float) -> float:
        """The time that a GPU cannot beat, in milliseconds.

        Args:
            peak: Operations in 16 bits per second.
            bandwidth: Bytes per second.
        """
        return 1e3 * max(self.flops / peak, self.bytes / bandwidth)

    def model(self, dtype: str, seed: int = 0) -> Any:
        """The layer as an ONNX model, weights drawn.

        Args:
            dtype: "float16", or "float".
            seed: For the weights.
        """
        made, rng = self._parsed(dtype), np.random.default_rng(seed)
        for value in [value for value in made.graph.input if value.name.startswith("w")]:
            shape = _shape(value)
            fan = max(math.prod(shape) // max(shape), 1) if len(shape) > 1 else 1
            drawn = rng.standard_normal(shape, np.float32) * (fan**-0.5 if len(shape) > 1 else 0.1)
            array = drawn.astype(np.float16 if dtype == "float16" else np.float32)
            made.graph.input.remove(value)
            made.graph.initializer.append(importlib.import_module("onnx").numpy_helper.from_array(array, value.name))
        return made

    def _parsed(self, dtype: str) -> Any:
        at = self.values()
        text = TEXTS[self.family].format(t=dtype, scale=at.get("d", 1) ** -0.5, **at)
        head = '<ir_version: 10, opset_import: ["": 20]>'
        return importlib.import_module("onnx").parser.parse_model(f"{head} {text}")

    def feeds(self, model: Any, seed: int = 0) -> dict[str, np.ndarray]:
        """Inputs for it, drawn."""
        rng = np.random.default_rng(seed)
        found = {}
        for value in model.graph.input:
            shape = _shape(value)
            if value.name == "i":
                found["i"] = rng.integers(0, self.values()["v"], shape)
            else:
                kind = np.float16 if value.type.tensor_type.elem_type == 10 else np.float32
                found[value.name] = rng.standard_normal(shape, np.float32).astype(kind)
        return found


def _shape(value: Any) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _cases(family: str, keys: str, *rows: tuple[int, ...]) -> list[Case]:
    return [Case(family, dict(zip(keys.split(), row, strict=True))) for row in rows]


#: What is measured, the most telling first.
CASES = [
    *_cases("gemm", "m k n", (4096, 4096, 4096), (128, 768, 3072), (4096, 1024, 4096), (1, 4096, 4096)),
    *_cases("attention", "b h s d", (8, 12, 128, 64), (4, 32, 2048, 128)),
    *_cases("conv", "b h c o r st", (32, 56, 64, 64, 3, 1), (1, 14, 256, 256, 3, 1)),
    *_cases("layernorm", "m n", (16384, 1024)),
    *_cases("softmax", "m n", (16384, 1024)),
    *_cases("gelu", "m n", (8192, 4096)),
    *_cases("gemm", "m k n", (8192, 8192, 8192), (128, 768, 768), (128, 3072, 768), (16, 4096, 4096)),
    *_cases("gemm", "m k n", (16384, 768, 768)),
    *_cases("gemm + bias + gelu", "m k n", (4096, 768, 3072), (128, 768, 3072)),
    *_cases("attention", "b h s d q", (8, 32, 2048, 128, 1), (1, 12, 384, 64, 384)),
    *_cases("conv", "b h c o r st", (32, 224, 3, 64, 7, 2), (32, 56, 256, 64, 1, 1), (32, 7, 512, 512, 3, 1)),
    *_cases("depthwise conv", "b h c r st", (32, 112, 96, 3, 2), (32, 28, 384, 7, 1)),
    *_cases("add + layernorm", "m n", (4096, 768)),
    *_cases("batched gemm", "b m k n", (96, 128, 64, 128)),
    *_cases("gather", "m v n", (4096, 30522, 768)),
    *_cases("transpose", "b m n", (32, 1024, 1024)),
]  # fmt: skip
#: The same layers at sizes that an interpreter runs in moments, odd ones among them.
TINY = [
    *_cases("gemm", "m k n", (5, 33, 17), (1, 48, 32)),
    *_cases("gemm + bias + gelu", "m k n", (7, 16, 24)),
    *_cases("batched gemm", "b m k n", (3, 5, 16, 9)),
    *_cases("attention", "b h s d", (1, 2, 19, 16)),
    *_cases("attention", "b h s d q", (2, 1, 21, 16, 1)),
    *_cases("conv", "b h c o r st", (1, 9, 8, 12, 3, 2), (2, 5, 16, 8, 1, 1)),
    *_cases("depthwise conv", "b h c r st", (1, 7, 8, 3, 1)),
    *_cases("layernorm", "m n", (3, 40)),
    *_cases("add + layernorm", "m n", (4, 33)),
    *_cases("softmax", "m n", (3, 50)),
    *_cases("gelu", "m n", (3, 70)),
    *_cases("gather", "m v n", (6, 11, 20)),
    *_cases("transpose", "b m n", (2, 10, 12)),
]
