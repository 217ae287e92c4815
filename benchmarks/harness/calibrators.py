"""Calibrators, each called as its documentation says:  python calibrators.py NAME MODEL SAMPLES

SAMPLES is a folder with a file per sample; every calibrator reads them one by one, when it asks for the next. Prints
how many tensors got a range. All look at the same tensors where they can be told which: float inputs and outputs of
Conv, MatMul and Gemm. ``python calibrators.py samples MODEL FOLDER COUNT [DIM=SIZE ...]`` draws samples.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

OPS = ("Conv", "MatMul", "Gemm")
#: Usual sizes of dims by what they mean, for those that are not named.
SIZES = {"batch": 1, "sequence": 128, "past": 128, "space": 224}


def draw_samples(model: str, folder: str, count: str, *dims: str) -> None:
    """Write inputs that are valid for how the model uses them, one seed each."""
    inputs = importlib.import_module("optc.inputs")
    graph = importlib.import_module("optc.ir.model").load(model)
    sizes = {name: int(size) for name, size in (dim.split("=") for dim in dims)}
    known = inputs.symbols(graph)
    bindings = inputs.usual_bindings(graph, SIZES) | {name: size for name, size in sizes.items() if name in known}
    for index in range(int(count)):
        np.savez(Path(folder) / f"{index:05d}.npz", **inputs.draw_inputs(graph, bindings, index))


def read(folder: str) -> Iterator[dict[str, np.ndarray]]:
    """One sample after the other."""
    for path in sorted(Path(folder).glob("*.npz")):
        with np.load(path) as archive:
            yield {name: archive[name] for name in archive.files}


def tensors(model: str) -> list[str]:
    """What ONNX Runtime's calibrators look at when they are told :data:`OPS`, in order."""
    graph = importlib.import_module("onnx").load(model, load_external_data=False).graph
    constant = {tensor.name for tensor in graph.initializer}
    constant |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    found = (name for node in graph.node if node.op_type in OPS for name in (*node.input, *node.output))
    return list(dict.fromkeys(name for name in found if name and name not in constant))


def optc(gram: bool) -> Callable[[str, str], int]:
    """One sweep with a histogram, moments per tensor and channel, and rows; then the ranges by KL."""

    def calibrate(model: str, folder: str) -> int:
        modules = ("ir.model", "ir.targets", "measure", "options", "progress", "statistics")
        load, targets, measure, options, progress, service = (importlib.import_module(f"optc.{m}") for m in modules)
        store = importlib.import_module("optc.passes.calibration.store")
        ranges = importlib.import_module("optc.passes.calibration.ranges")
        formats = importlib.import_module("optc.passes.calibration.formats").FORMATS
        graph = load.load(model)
        chosen = options.Options.of(calib=folder, calib_cache="off")
        data = measure.Measure(graph, targets.builtin_targets()["cpu"], chosen)
        images = {
            value.name for node in graph.graph if node.op_type == "Conv" for value in (*node.inputs, *node.outputs)
        }
        inner = {node.inputs[0].name for node in graph.graph if node.op_type == "MatMul"} if gram else set()
        requests = [
            store.Request(
                name,
                histogram=True,
                channels=1 if name in images else -1,
                gram=name in inner,
                rows=256 if name in inner else 0,
            )
            for name in tensors(model)
        ]
        found = service.Collector(data, chosen, progress.Silent()).collect(graph, requests)
        read = ((found.moments(name), found.histogram(name)) for name in found)
        return len([ranges.kl(*each, formats["u8"]) for each in read])

    return calibrate


def onnxruntime(method: str) -> Callable[[str, str], int]:
    def calibrate(model: str, folder: str) -> int:
        ort = importlib.import_module("onnxruntime.quantization")
        module = importlib.import_module("onnxruntime.quantization.calibrate")

        class Reader(ort.CalibrationDataReader):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                self.left = read(folder)

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.left, None)

        with tempfile.TemporaryDirectory() as scratch:
            calibrator = module.create_calibrator(
                model, list(OPS), str(Path(scratch) / "augmented.onnx"), ort.CalibrationMethod[method]
            )
            calibrator.collect_data(Reader())
            return len(calibrator.compute_data().keys())

    return calibrate


class Again:
    """A sequence of samples that are read when they are asked for."""

    def __init__(self, folder: str) -> None:
        self.folder, self.count = folder, len(list(Path(folder).glob("*.npz")))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return read(self.folder)


def onnxsim(method: str) -> Callable[[str, str], int]:
    def calibrate(model: str, folder: str) -> int:
        module = importlib.import_module("onnxsim")
        return len(module.calibrate(model, Again(folder), method=method, tensor_names=tensors(model)))

    return calibrate


def nncf(model: str, folder: str) -> int:
    """Its calibration is part of quantizing, which is all that it offers; the number is that of its FakeQuantize."""
    library, openvino = importlib.import_module("nncf"), importlib.import_module("openvino")
    data: Any = Again(folder)
    quantized = library.quantize(openvino.Core().read_model(model), library.Dataset(data), subset_size=len(data))
    return sum(op.get_type_name() == "FakeQuantize" for op in quantized.get_ops())


CALIBRATORS: dict[str, Callable[[str, str], int]] = {
    "optc": optc(gram=False),
    "optc-gram": optc(gram=True),
    "ort-minmax": onnxruntime("MinMax"),
    "ort-percentile": onnxruntime("Percentile"),
    "ort-entropy": onnxruntime("Entropy"),
    "onnxsim-minmax": onnxsim("minmax"),
    "onnxsim-entropy": onnxsim("entropy"),
    "nncf": nncf,
}

if __name__ == "__main__":
    chosen, *arguments = sys.argv[1:]
    if chosen == "samples":
        draw_samples(*arguments)
    else:
        print(f"tensors: {CALIBRATORS[chosen](*arguments)}")
