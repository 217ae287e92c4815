"""Models that nobody wrote for optc: other optimizers' regression models, and real networks where a folder has them.

The first test grades optc with a script that lies beside this repository, where one does; the second one optimizes
the models in the folder named by the environment variable OPTC_ZOO.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import optc

EXAMS = Path(__file__).resolve().parents[3] / "shared" / "exams"
ZOO = os.environ.get("OPTC_ZOO")
FAILING_GRADES = ("crash", "invalid", "interface", "mismatch")
MAX_ZOO_BYTES = 2**30  # larger ones need more memory than a test may ask for
DIMS = {"batch": 2, "batch_size": 2, "seq": 12, "sequence_length": 12, "seq_len": 12}


@pytest.mark.skipif(not (EXAMS / "exam.py").exists(), reason="no exams beside this repository")
def test_no_exam_model_crashes_or_changes_its_answer(tmp_path: Path) -> None:
    grades = tmp_path / "grades.json"
    command = [sys.executable, EXAMS / "exam.py", EXAMS / "models", "--optimizer", "optc", "--json", grades]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(grades.read_text())
    assert rows
    failures = [
        f"{row['grade']}: {Path(row['model']).relative_to(EXAMS / 'models')}: {row.get('why', row.get('worst', ''))}"
        for row in rows
        if row["grade"] in FAILING_GRADES
    ]
    assert not failures, f"{len(failures)} of {len(rows)} models:\n" + "\n".join(failures)


def _zoo_models() -> list[Path]:
    paths = sorted(Path(ZOO).glob("*.onnx")) if ZOO else []
    return [
        path for path in paths if path.stat().st_size <= MAX_ZOO_BYTES and not path.with_suffix(".onnx.data").exists()
    ]


def _feeds(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    """Seeded inputs; integers are 0 or 1, which is valid as token id, mask and type id alike."""
    rng = np.random.default_rng(0)
    feeds = {}
    for info in session.get_inputs():
        shape = [dim if isinstance(dim, int) else DIMS.get(dim, 4) for dim in info.shape]
        if "float" in info.type:
            dtype = {"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(info.type, np.float32)
            feeds[info.name] = rng.standard_normal(shape).astype(dtype)
        else:
            dtype = {"tensor(int32)": np.int32, "tensor(bool)": np.bool_}.get(info.type, np.int64)
            feeds[info.name] = rng.integers(0, 2, shape).astype(dtype)
    return feeds


def _unoptimized_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.skipif(not ZOO, reason="OPTC_ZOO names no folder of models")
@pytest.mark.parametrize("path", _zoo_models(), ids=lambda path: path.stem)
def test_zoo_model_keeps_its_answer(path: Path, tmp_path: Path) -> None:
    """Level 2 moves outputs by rounding only: relative L2 error below 1e-4 in float32."""
    session = _unoptimized_session(path)
    feeds = _feeds(session)
    expected = session.run(None, feeds)
    names = [info.name for info in session.get_outputs()]
    del session
    optimized = tmp_path / path.name
    onnx.save(optc.optimize(str(path), level=2, target="cpu"), optimized)
    session = _unoptimized_session(optimized)
    assert [info.name for info in session.get_outputs()] == names
    for name, want, got in zip(names, expected, session.run(None, feeds), strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype), name
        error = np.linalg.norm((got - want).ravel().astype(np.float64)) / max(np.linalg.norm(want.ravel()), 1e-12)
        assert error < 1e-4, f"{name}: relative L2 error {error:.2e}"
