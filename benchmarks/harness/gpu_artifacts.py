"""Artifacts of the GPU benchmark: built where optc and Triton are, carried, and opened where the GPU is.

A folder with ``build.json`` (what there is), ``onnx/`` (exported models, not to be carried), ``check/`` (small models
and layers, whole, with inputs and the outputs that ONNX Runtime's CPU kernels give for them) and ``speed/`` (the large
ones). The weights of the latter are not carried: where they are opened, arrays of the same shapes are drawn, with the
same mean and deviation, which takes the same time to compute with. What is not a large array of floats is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

BUILD, FILL, WEIGHTS, MANIFEST = "build.json", "fill.json", "weights.safetensors", "manifest.json"
#: Arrays with fewer elements are carried.
_KEPT = 4096
_FLOATS = {"F16": np.float16, "F32": np.float32, "BF16": ml_dtypes.bfloat16}
_PATTERN = 1 << 20


def _header(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Header and contents of a file with weights."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    return header, np.memmap(path, np.uint8, "r")[8 + length :] if path.stat().st_size > 8 + length else np.empty(0)


def strip(artifact: Path) -> None:
    """Take the large weights out of an artifact, and write down what they were like."""
    header, data = _header(artifact / WEIGHTS)
    kept, drawn = {}, {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        count = int(np.prod(entry["shape"], dtype=np.int64))
        if entry["dtype"] in _FLOATS and count >= _KEPT:
            values = data[start:stop].view(_FLOATS[entry["dtype"]])[:_PATTERN].astype(np.float32)
            drawn[name] = [float(values.mean()), float(values.std())]
        else:
            kept[name] = bytes(data[start:stop]).hex()
    del data
    (artifact / FILL).write_text(json.dumps({"header": header, "kept": kept, "drawn": drawn}))
    (artifact / WEIGHTS).unlink()


@contextlib.contextmanager
def filled(artifact: Path) -> Iterator[Path]:
    """A whole artifact, for as long as the block lasts: with weights drawn where they were taken out."""
    if not (artifact / FILL).is_file():
        yield artifact
        return
    told = json.loads((artifact / FILL).read_text())
    with tempfile.TemporaryDirectory(prefix="optc-gpu-") as folder:
        whole = Path(folder) / "model.optc"
        shutil.copytree(artifact, whole, ignore=shutil.ignore_patterns(FILL))
        text = json.dumps(told["header"]).encode()
        text += b" " * (-(8 + len(text)) % 256)
        digest = hashlib.sha256()
        with (whole / WEIGHTS).open("wb") as stream:
            for part in (len(text).to_bytes(8, "little"), text, *_contents(told)):
                stream.write(part)
                digest.update(part)
        manifest = json.loads((whole / MANIFEST).read_text())
        size = (whole / WEIGHTS).stat().st_size
        manifest["files"][WEIGHTS] = {"bytes": size, "sha256": digest.hexdigest()}
        (whole / MANIFEST).write_text(json.dumps(manifest))
        yield whole


def _contents(told: Mapping[str, Any]) -> Iterator[bytes]:
    pattern = np.random.default_rng(0).standard_normal(_PATTERN, np.float32)
    for name, entry in told["header"].items():
        if name == "__metadata__":
            continue
        if name in told["kept"]:
            yield bytes.fromhex(told["kept"][name])
            continue
        mean, deviation = told["drawn"][name]
        block = (pattern * deviation + mean).astype(_FLOATS[entry["dtype"]]).tobytes()
        start, stop = entry["data_offsets"]
        for begin in range(0, stop - start, len(block)):
            yield block[: min(len(block), stop - start - begin)]


def compiled(model: Any, targets: str, out: Path) -> dict[str, Any]:
    """Compile a model; seconds, launches and kernels."""
    import optc  # noqa: PLC0415

    start = time.perf_counter()
    optc.compile(model, level=2, target=targets, output=out, verify="off")
    plan = json.loads((out / "plan.json").read_text())
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "launches": len(plan["launches"]),
        "kernels": len(plan["kernels"]),
    }


def fixed(path: Path, batch: int) -> Any:
    """A model from a file whose inputs have this batch size and no other."""
    from optc.ir.model import load  # noqa: PLC0415

    model = load(path)
    for value in model.graph.inputs:
        assert value.shape is not None
        value.shape = type(value.shape)([dim if isinstance(dim, int) else batch for dim in value.shape])
    for value in model.graph.outputs:
        value.shape = None
    for node in model.graph:
        for output in node.outputs:
            output.shape = None
    return model


def expected(model: Any, feeds: Mapping[str, np.ndarray], out: Path) -> None:
    """Store inputs, and the outputs that ONNX Runtime's CPU kernels give for them."""
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = model if isinstance(model, str | bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    feeds = {name: array for name, array in feeds.items() if name in known}
    outputs = dict(zip((value.name for value in session.get_outputs()), session.run(None, feeds), strict=True))
    np.savez(out, **{f"in:{k}": v for k, v in feeds.items()}, **{f"out:{k}": v for k, v in outputs.items()})


def stored(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and outputs that :func:`expected` wrote."""
    with np.load(path) as found:
        sides: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
        for key in found.files:
            side, _, name = key.partition(":")
            sides[side == "out"][name] = found[key]
    return sides
