"""Quantizers without a command line of their own:  python quantizers.py NAME MODEL OUT SAMPLES.npz

Each is called as its documentation tells its users to, on the same calibration samples. ``samples`` draws these:
``python quantizers.py samples MODEL OUT.npz COUNT SEED [DIM=SIZE ...]``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Usual sizes of dims by what they mean, for those that are not named.
SIZES = {"batch": 1, "sequence": 128, "past": 128, "space": 224}

Samples = list[dict[str, np.ndarray]]


def draw_samples(model: str, out: str, count: str, seed: str, *dims: str) -> None:
    """Write inputs that are valid for how the model uses them (token ids cover the vocabulary), one seed each."""
    inputs = importlib.import_module("optc.inputs")
    graph = importlib.import_module("optc.ir.model").load(model)
    sizes = {name: int(size) for name, size in (dim.split("=") for dim in dims)}
    known = inputs.symbols(graph)
    bindings = inputs.usual_bindings(graph, SIZES) | {name: size for name, size in sizes.items() if name in known}
    drawn = [inputs.draw_inputs(graph, bindings, int(seed) + index) for index in range(int(count))]
    arrays = {f"{name}.{index}": array for index, sample in enumerate(drawn) for name, array in sample.items()}
    with Path(out).open("wb") as stream:
        np.savez(stream, **arrays)


def read_samples(path: str) -> Samples:
    """The samples that :func:`draw_samples` wrote."""
    samples: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as archive:
        for key in archive.files:
            name, _, index = key.rpartition(".")
            samples.setdefault(int(index), {})[name] = archive[key]
    return [samples[index] for index in sorted(samples)]


def attends(model: str) -> bool:
    """Whether a Softmax feeds a product: what tells a transformer from other models, as NNCF wants to be told."""
    graph = importlib.import_module("onnx").load(model, load_external_data=False).graph
    weights = {name for node in graph.node if node.op_type in ("Softmax", "Attention") for name in node.output}
    while (
        grown := {
            name
            for node in graph.node
            if node.op_type in ("Dropout", "Cast", "Identity", "Where") and weights & set(node.input)
            for name in node.output
        }
        - weights
    ):
        weights |= grown
    return any(node.op_type == "MatMul" and weights & set(node.input) for node in graph.node)


def _prepared(model: str, out: str) -> str:
    """ONNX Runtime's own advice: optimize and infer shapes before quantizing, if need be without symbols."""
    prepare = importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    prepared = str(Path(out).with_suffix(".prepared.onnx"))
    try:
        prepare(model, prepared)
    except Exception:  # its symbolic shape inference gives up in many ways, and is what its message says to skip
        prepare(model, prepared, skip_symbolic_shape=True)
    return prepared


def _ort_dynamic(per_channel: bool) -> Callable[[str, str, str], None]:
    def quantize(model: str, out: str, samples: str) -> None:
        ort = importlib.import_module("onnxruntime.quantization")
        prepared = _prepared(model, out)
        ort.quantize_dynamic(prepared, out, weight_type=ort.QuantType.QInt8, per_channel=per_channel)
        Path(prepared).unlink()

    return quantize


def ort_static(model: str, out: str, samples: str) -> None:
    """QDQ, activations u8, weights s8 per channel, ranges by minimum and maximum."""
    ort = importlib.import_module("onnxruntime.quantization")

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = iter(read_samples(samples))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    prepared = _prepared(model, out)
    ort.quantize_static(
        prepared,
        out,
        Reader(),
        quant_format=ort.QuantFormat.QDQ,
        activation_type=ort.QuantType.QUInt8,
        weight_type=ort.QuantType.QInt8,
        per_channel=True,
        calibrate_method=ort.CalibrationMethod.MinMax,
    )
    Path(prepared).unlink()


def nncf_int8(model: str, out: str, samples: str) -> None:
    """NNCF's post-training quantization with its defaults; it is told of a transformer, as it wants to be."""
    nncf, openvino = importlib.import_module("nncf"), importlib.import_module("openvino")
    data = read_samples(samples)
    kind: Any = nncf.ModelType.TRANSFORMER if attends(model) else None
    quantized = nncf.quantize(
        openvino.Core().read_model(model), nncf.Dataset(data), subset_size=len(data), model_type=kind
    )
    openvino.save_model(quantized, out, compress_to_fp16=False)


def openvino_ir(model: str, out: str, samples: str) -> None:
    """The model as it is, in OpenVINO's own format."""
    openvino = importlib.import_module("openvino")
    openvino.save_model(openvino.Core().read_model(model), out, compress_to_fp16=False)


QUANTIZERS: dict[str, Callable[..., None]] = {
    "samples": draw_samples,
    "ort-dynamic": _ort_dynamic(per_channel=False),
    "ort-dynamic-channel": _ort_dynamic(per_channel=True),
    "ort-static": ort_static,
    "nncf": nncf_int8,
    "openvino": openvino_ir,
}

if __name__ == "__main__":
    chosen, *arguments = sys.argv[1:]
    QUANTIZERS[chosen](*arguments)
