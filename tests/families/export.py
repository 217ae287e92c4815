"""Write small models of the families that people ship, as today's exporters write them.

    python tests/families/export.py OUT [NAME ...] [--exporter torchscript|dynamo] [--list]

Run it as a script in an environment with ``torch`` and ``transformers``, which the tests do not need; no weights are
downloaded. Each model is built from a configuration of two layers, filled with random numbers, exported with dynamic
batch, sequence and cache lengths at the exporter's own opset, run once under ONNX Runtime against PyTorch, and written
to ``OUT/FAMILY.EXPORTER[.eager].onnx``. An export that fails is named with its error, and the others go on.

Beside each model stands a ``.json`` with what ``corpus.py`` needs in order to store it: the names of the float
initializers that do not change when the parameters do (tables of frequencies, masks), and what the dynamic axes mean.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from recipes import FAMILIES, CachedCall, Call, Example
from torch import nn


def randomize(module: nn.Module, seed: int) -> None:
    """Fill all parameters and statistics with numbers of a size that keeps signals alive, zero and one nowhere."""
    generator = torch.Generator().manual_seed(seed)
    seen = set()
    with torch.no_grad():
        for parameter in module.parameters():
            if id(parameter) in seen or not parameter.is_floating_point():
                continue
            seen.add(id(parameter))
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2 and parameter.numel() > max(parameter.shape):
                parameter.copy_(drawn * math.prod(parameter.shape[1:]) ** -0.5)
            else:
                # A vector: norms start from one, biases from zero, LayerScale from something small.
                centre = 1.0 if bool((parameter == 1).all()) else 0.0
                parameter.copy_(centre + 0.1 * drawn)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


def export(example: Example, path: Path, exporter: str, named: bool) -> None:
    names, args = list(example.inputs), tuple(example.inputs.values())
    common: dict[str, Any] = {"input_names": names, "output_names": example.outputs}
    with torch.no_grad():
        if exporter == "torchscript":
            torch.onnx.export(example.module, args, path, dynamic_axes=example.axes, dynamo=False, **common)
            return
        variadic = isinstance(example.module, (Call, CachedCall))
        # Names are what most callers give; where the exporter finds the axes bound to each other it must be told less.
        for kind in (None if named else torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO):
            dims = tuple({axis: kind or text for axis, text in example.axes[name].items()} for name in names)
            shapes = (dims,) if variadic else dims
            try:
                torch.onnx.export(
                    example.module,
                    args,
                    path,
                    dynamic_shapes=shapes,
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                    **common,
                )
                return
            except Exception:
                if kind is torch.export.Dim.AUTO:
                    raise


def check(example: Example, path: Path) -> float:
    """The largest error of the exported model against PyTorch, relative to the output's norm."""
    with torch.no_grad():
        wanted = example.module(*example.inputs.values())
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    known = {info.name for info in session.get_inputs()}
    found = session.run(None, {name: x.numpy() for name, x in example.inputs.items() if name in known})
    pairs = zip(wanted, found, strict=True)
    return max(float(np.linalg.norm(w.numpy() - f) / max(np.linalg.norm(w.numpy()), 1e-9)) for w, f in pairs)


def floats_of(path: Path) -> dict[str, np.ndarray]:
    model = onnx.load(path)
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}


def make(name: str, attention: str, exporter: str, out: Path) -> str:
    """Export one model twice, with other parameters, and say how it went."""
    family = FAMILIES[name]
    path = out / f"{name}.{exporter}{'.eager' if len(family.attention) > 1 and attention == 'eager' else ''}.onnx"
    started = time.time()
    floats = []
    for seed, place in ((1, path.with_suffix(".other.onnx")), (0, path)):
        torch.manual_seed(0)
        example = family.build(attention)
        example.module.eval()
        randomize(example.module, seed)
        export(example, place, exporter, family.named)
        floats.append(floats_of(place))
    error = check(example, path)
    path.with_suffix(".other.onnx").unlink()
    other, own = floats
    same = sorted(
        key for key, array in own.items() if key in other and np.array_equal(array, other[key], equal_nan=True)
    )
    axes = {name: {str(axis): text for axis, text in of.items()} for name, of in example.axes.items()}
    path.with_suffix(".json").write_text(json.dumps({"buffers": same, "axes": axes}), "utf-8")
    opset = next(o.version for o in onnx.load(path).opset_import if not o.domain)
    return (
        f"{path.name}: opset {opset}, {path.stat().st_size >> 10} KiB, error {error:.1e}, {time.time() - started:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--exporter", choices=("torchscript", "dynamo"), action="append")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    if given.list:
        print("\n".join(FAMILIES))
        return
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.names or FAMILIES:
        for attention in FAMILIES[name].attention:
            for exporter in given.exporter or ("torchscript", "dynamo"):
                if exporter == "torchscript" and not FAMILIES[name].named:
                    continue  # its axes have names in any case
                try:
                    print(make(name, attention, exporter, given.out), flush=True)
                except Exception as error:
                    text = " ".join(str(error).split())[:240]
                    print(f"{name}.{exporter}.{attention}: FAILED {type(error).__name__}: {text}", flush=True)
                    if os.environ.get("VERBOSE"):
                        traceback.print_exc(file=sys.stdout)


if __name__ == "__main__":
    main()
