"""Accuracy of a digits classifier in ONNX form; needs onnxruntime and numpy only.

    python evaluate.py MODEL.onnx [--data test.npz] [--batch 60]

:func:`accuracy` takes outputs and labels and gives one number that is better when higher, so it also serves as the
task metric of a compile (``--metric evaluate:accuracy``).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent


Arrays = Mapping[str, np.ndarray] | np.ndarray


def accuracy(outputs: Arrays, labels: Arrays) -> float:
    """Fraction of rows whose largest logit is at the label.

    Args:
        outputs: ``logits`` [n, classes], as an array or in a mapping by that name.
        labels: ``label`` [n] integers, likewise.
    """
    logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs
    label = labels["label"] if isinstance(labels, Mapping) else labels
    return float((np.asarray(logits).argmax(axis=-1) == label).mean())


def predict(model: str | Path, images: np.ndarray, batch: int = 60) -> np.ndarray:
    """Logits [n, 10] of ``images`` [n, 1, 8, 8] float32, computed in batches."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    chunks = [images[i : i + batch] for i in range(0, len(images), batch)]
    return np.concatenate([session.run(["logits"], {"image": chunk})[0] for chunk in chunks])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=HERE / "test.npz", help="npz with image and label")
    parser.add_argument("--batch", type=int, default=60)
    args = parser.parse_args()
    with np.load(args.data) as data:
        images, labels = data["image"], data["label"]
    result = accuracy(predict(args.model, images, args.batch), labels)
    print(f"{args.model.name}: accuracy {result:.2%} on {len(labels)} images ({round(result * len(labels))} right)")


if __name__ == "__main__":
    main()
