"""What onnxsim's structured pruning makes of a model, for interpreters that have onnxsim.

    PYTHON onnxsim_pruned.py MODEL CALIBRATION.npz SHARE OUT

Simplified first; then channels and neurons are ranked by weights and activations (``apply_structured_wanda_pruning``),
heads likewise. Arrays of the archive are one sample, or samples that are numbered, as optc reads them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import onnxsim


def samples(path: Path, names: set[str]) -> list[dict[str, np.ndarray]]:
    """The samples of an archive; what is no input is left out."""
    found: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    with np.load(path) as arrays:
        for key in arrays.files:
            name, _, number = key.rpartition(".")
            if key in names:
                found[""][key] = arrays[key]
            elif name in names and number.isdecimal():
                found[number][name] = arrays[key]
    return list(found.values())


def main(model: Path, calibration: Path, share: float, out: Path) -> None:
    original = onnx.load(model)
    constant = {value.name for value in original.graph.initializer}
    data = samples(calibration, {value.name for value in original.graph.input} - constant)
    simplified, _ = onnxsim.simplify(original)
    pruned = onnxsim.apply_structured_wanda_pruning(simplified, calibration_data=data, sparsity=share)
    pruned = onnxsim.apply_attention_head_wanda_pruning(pruned, calibration_data=data, sparsity=share)
    onnx.save(pruned, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
