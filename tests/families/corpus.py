"""Storing exported models without their weights, loading them again, and feeding them.

    python -m tests.families.corpus store FOLDER [NAME ...]    # what export.py wrote, into the repository
    python -m tests.families.corpus load NAME OUT.onnx         # a stored model with weights, to look at

A stored model is what the exporter wrote but for what no pass reads: documentation, metadata, stack traces, and the
numbers in float initializers that come from parameters. In their place stand a seed and the moments of the numbers,
from which :func:`load` draws others: the same ones in every run. What does not come from parameters keeps its numbers.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

MODELS = Path(__file__).parent / "models"
#: Keys of the model's metadata: how to draw each parameter, and what the dynamic axes of each input mean.
_WEIGHTS, _AXES = "weights", "axes"
#: Parameters with fewer elements keep their numbers: what is learned in one number decides what fits.
_SMALLEST = 2

#: Sizes at which models are run: usual ones, all 1, an empty cache, primes.
SIZES: Sequence[Mapping[str, int]] = (
    {"batch": 2, "seq": 7, "past": 3, "encoded": 5, "tokens": 4, "height": 32, "width": 40, "samples": 400},
    {"batch": 1, "seq": 1, "past": 6, "encoded": 1, "tokens": 1, "height": 16, "width": 16, "samples": 170},
    {"batch": 3, "seq": 5, "past": 0, "encoded": 11, "tokens": 7, "height": 48, "width": 16, "samples": 333},
)
#: Where an attention mask hides: nothing, the end of a row, its beginning, a whole row.
MASKS = ("full", "right", "left", "row")
_VOCABULARY = 101


def names() -> list[str]:
    """The stored models."""
    return sorted(path.name.removesuffix(".onnx.gz") for path in MODELS.glob("*.onnx.gz"))


def load(name: str) -> onnx.ModelProto:
    """A stored model with weights."""
    model = onnx.ModelProto.FromString(gzip.decompress((MODELS / f"{name}.onnx.gz").read_bytes()))
    recipes = json.loads(_metadata(model)[_WEIGHTS])
    for tensor in model.graph.initializer:
        if tensor.name in recipes:
            array = _draw(*recipes[tensor.name], tuple(tensor.dims))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def axes(model: onnx.ModelProto) -> dict[str, dict[int, str]]:
    """What the dynamic axes of each input mean: input -> axis -> a key of :data:`SIZES`."""
    stored = json.loads(_metadata(model)[_AXES])
    return {name: {int(axis): text for axis, text in of.items()} for name, of in stored.items()}


def feeds(model: onnx.ModelProto, sizes: Mapping[str, int], mask: str = "full") -> dict[str, np.ndarray]:
    """Seeded inputs of the given sizes; masks hide what ``mask`` says, see :data:`MASKS`."""
    meaning, rng = axes(model), np.random.default_rng(0)
    sizes = {**sizes, "total": sizes["past"] + sizes["seq"]}
    fed = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = [sizes[meaning[value.name][i]] if i in meaning[value.name] else d.dim_value for i, d in enumerate(dims)]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if "mask" in value.name:
            array = _mask(shape, mask)
        elif value.name == "position_ids":
            array = np.broadcast_to(np.arange(sizes["past"], sizes["past"] + shape[1]), shape)
        elif dtype.kind == "i":
            array = rng.integers(0, _VOCABULARY, shape)
        else:
            array = rng.standard_normal(shape)
        fed[value.name] = np.ascontiguousarray(array, dtype)
    return fed


def runs(model: onnx.ModelProto) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Inputs to compare models with: every size, and every mask at the first size."""
    for sizes in SIZES:
        used = {name: sizes[name] for of in axes(model).values() for name in of.values() if name in sizes}
        yield " ".join(f"{name}={size}" for name, size in used.items()), feeds(model, sizes)
    if any("mask" in value.name for value in model.graph.input):
        for mask in MASKS[1:]:
            yield f"mask {mask}", feeds(model, SIZES[0], mask)


def store(path: Path) -> Path:
    """Store what ``export.py`` wrote, without its weights."""
    model, notes = onnx.load(path), json.loads(path.with_suffix(".json").read_text("utf-8"))
    recipes, seeds = {}, {}
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.name in notes["buffers"]:
            continue
        array = numpy_helper.to_array(tensor)
        if array.size < _SMALLEST:
            continue
        # What is equal in the model stays equal.
        seed = seeds.setdefault(array.tobytes(), zlib.crc32(tensor.name.encode()))
        recipes[tensor.name] = _recipe(array, seed)
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
    _strip(model)
    onnx.helper.set_model_props(model, {_WEIGHTS: json.dumps(recipes), _AXES: json.dumps(notes["axes"])})
    MODELS.mkdir(exist_ok=True)
    out = MODELS / f"{path.stem}.onnx.gz"
    out.write_bytes(gzip.compress(model.SerializeToString(deterministic=True), mtime=0))
    return out


def _mask(shape: Sequence[int], kind: str) -> np.ndarray:
    """Ones, and zeros where something is hidden; the first row hides least, so that rows differ."""
    mask = np.ones(shape, np.int64)
    for row in range(len(mask)):
        hidden = min(row + 1, shape[1] - 1)
        if kind == "right":
            mask[row, shape[1] - hidden :] = 0
        elif kind == "left":
            mask[row, :hidden] = 0
    if kind == "row":
        mask[-1] = 0
    return mask


def _recipe(array: np.ndarray, seed: int) -> list[Any]:
    """Seed, mean, deviation, and the smallest number where none is negative (a variance)."""
    wide = array.astype(np.float64)
    positive = bool((array > 0).all()) and array.size > 8
    lowest = float(f"{wide.min():.3g}") if positive else None
    return [seed, float(f"{wide.mean():.3g}"), float(f"{wide.std():.3g}"), lowest]


def _draw(seed: int, mean: float, deviation: float, lowest: float | None, shape: tuple[int, ...]) -> np.ndarray:
    array = np.random.default_rng(seed).normal(mean, deviation, shape)
    return (array if lowest is None else np.maximum(array, lowest)).astype(np.float32)


def _strip(model: onnx.ModelProto) -> None:
    """Take away what no pass reads."""
    for owner in (model, model.graph, *model.functions):
        owner.ClearField("doc_string")
        owner.ClearField("metadata_props")
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
            item.ClearField("doc_string")
            item.ClearField("metadata_props")
        graphs += [attr.g for node in graph.node for attr in node.attribute if attr.HasField("g")]
    for function in model.functions:
        for node in function.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def main() -> None:
    what, where, *more = sys.argv[1:]
    if what == "load":
        onnx.save(load(where), more[0])
        return
    for path in sorted(Path(where).glob("*.onnx")):
        if path.with_suffix(".json").exists() and (not more or path.stem in more):
            out = store(path)
            print(f"{out.name}: {out.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
