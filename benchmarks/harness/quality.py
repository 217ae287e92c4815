"""Error and time of several results, in one process:  python quality.py SPEC.json JSON_OUT

SPEC holds {"models": {name: {"path": ..., "open": ..., "precision": ...}}, "samples": file, "threads": n, "seconds": s,
"rounds": n}; the first model is the reference. "open" is "onnxruntime", "openvino" or "optc" (the runner that
``optc.load`` gives). JSON_OUT gets for each model its SQNR in dB over all samples, of the worst output, and with
"seconds" above 0 its time on the first sample, in turns with all others (see :mod:`latency`).
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from inputs import open_session
from latency import interleaved, summary
from quantizers import Samples, read_samples


class Session(Protocol):
    def run(self, outputs: None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]: ...


class OpenVinoSession:
    """A file compiled by OpenVINO for this CPU, for latency, with the call of an ONNX Runtime session."""

    def __init__(self, path: str, threads: int, precision: str | None) -> None:
        core = importlib.import_module("openvino").Core()
        # Threads tied to cores would slow down all models of a process but the one that was opened first.
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        if precision:
            config["INFERENCE_PRECISION_HINT"] = precision
        compiled = core.compile_model(core.read_model(path), "CPU", config)
        self._request, self._outputs = compiled.create_infer_request(), list(compiled.outputs)

    def run(self, outputs: None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        results = self._request.infer(dict(feeds), share_inputs=True)
        return [results[output] for output in self._outputs]


class OptcSession:
    """What ``optc.load`` gives, with the call of an ONNX Runtime session."""

    def __init__(self, path: str, threads: int) -> None:
        self._runner = importlib.import_module("optc").load(path, threads=threads or None)

    def run(self, outputs: None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return list(self._runner.run(feeds).values())


def open_result(entry: Mapping[str, Any], threads: int) -> Session:
    """A result, opened by what it was made for."""
    if entry["open"] == "openvino":
        return OpenVinoSession(entry["path"], threads, entry.get("precision"))
    if entry["open"] == "optc":
        return OptcSession(entry["path"], threads)
    return open_session(entry["path"], optimize=True, threads=threads)


def outputs_of(session: Session, samples: Samples) -> list[list[np.ndarray]]:
    """Copies of all outputs, sample by sample."""
    return [[np.array(value) for value in session.run(None, sample)] for sample in samples]


def sqnr(references: list[list[np.ndarray]], outputs: list[list[np.ndarray]]) -> float:
    """Signal to quantization noise in dB of the worst output, over all samples; infinite where they are equal."""
    worst = math.inf
    for expected, actual in zip(zip(*references, strict=True), zip(*outputs, strict=True), strict=True):
        pairs = list(zip(expected, actual, strict=True))
        if any(a.shape != b.shape or not np.isfinite(b).all() for a, b in pairs):
            return -math.inf
        signal = sum(float(np.sum(a.astype(np.float64) ** 2)) for a, _ in pairs)
        noise = sum(float(np.sum((a.astype(np.float64) - b) ** 2)) for a, b in pairs)
        if noise:
            worst = min(worst, 10 * math.log10(signal / noise) if signal else -math.inf)
    return worst


def main(spec_path: str, out: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    samples = read_samples(spec["samples"])
    report: dict[str, dict[str, Any]] = {}
    sessions: dict[str, Session] = {}
    references: list[list[np.ndarray]] = []
    for name, entry in spec["models"].items():
        try:
            session = open_result(entry, spec["threads"])
            outputs = outputs_of(session, samples)
            references = references or outputs
            report[name] = {"sqnr": sqnr(references, outputs)}
            if spec["seconds"]:
                sessions[name] = session
        except Exception as error:
            report[name] = {"problem": " ".join(str(error).split())[:120]}
    if sessions:
        times = interleaved(sessions, samples[0], spec["seconds"], spec["rounds"])
        base = times[next(iter(sessions))]
        for name, taken in times.items():
            report[name] |= summary(taken, base)
    Path(out).write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
