"""What a compressed model gets back by learning from its original.

    python benchmarks/recover.py [--steps N] [--seed N] [--store]

The classifiers in examples/digits are compressed in several ways, too hard on purpose, with calib.npz, and recovered
without labels: with the same images, and with all that are not in test.npz. Accuracy and error are those on test.npz,
which nobody has seen. Needs optc[recover] and scikit-learn.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from harness import machine
from harness.inputs import open_session
from harness.process import run_measured
from harness.tables import markdown, public
from sklearn.datasets import load_digits

from optc.recovery.recover import recover

HERE = Path(__file__).resolve().parent
STORED = HERE / "results" / "recover.md"
DIGITS = HERE.parent / "examples" / "digits"
_BEFORE = "inline,fixpoint(fold,shapes,simplify,cse,dce),fuse,emit"
#: (network, what was done, passes).
_WAYS = (
    ("cnn", "60 % of channels pruned", "prune{ratio=0.6}"),
    ("cnn", "75 % of channels pruned", "prune{ratio=0.75}"),
    ("cnn", "low rank, 0.2 of the weights", "low-rank{ratio=0.2}"),
    ("vit", "50 % pruned", "prune{ratio=0.5}"),
    ("vit", "INT4 weights", "quantize-weights{bits=4,block=32}"),
    ("vit", "static INT8", "quantize{techniques=[static-int8],min_gain=-9}"),
)


def compress(network: str, passes: str, out: Path) -> str | None:
    """Compress a network; why it failed, if it did."""
    options = [f"--calib={DIGITS / 'calib.npz'}", "--max-error=0.99", "--verify=off", "--no-measure", "-o", str(out)]
    command = [sys.executable, "-m", "optc.tools.cli", str(DIGITS / f"{network}.onnx"), "--passes"]
    return run_measured([*command, f"{_BEFORE},{passes}", *options], 600).failure


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    """What a model makes of images."""
    return open_session(str(path), optimize=True, threads=1).run(None, {"image": images})[0]


def judged(path: Path, original: Path) -> tuple[str, str]:
    """Accuracy, and relative L2 error of the outputs, on images that nobody has seen."""
    with np.load(DIGITS / "test.npz") as test:
        images, labels = test["image"], test["label"]
    right, got = logits(original, images), logits(path, images)
    error = np.linalg.norm(got - right) / np.linalg.norm(right)
    return f"{100 * float((got.argmax(-1) == labels).mean()):.2f} %", f"{error:.4f}"


def sources() -> dict[str, np.ndarray]:
    """Images to learn from, none of them in test.npz."""
    with np.load(DIGITS / "calib.npz") as some, np.load(DIGITS / "test.npz") as test:
        few, unseen = some["image"], {image.tobytes() for image in test["image"]}
    every = (load_digits().images / 16).astype(np.float32)[:, None]
    return {"the same": few, "all": np.stack([image for image in every if image.tobytes() not in unseen])}


def rows(steps: int, seed: int, folder: Path) -> list[list[str]]:
    """Rows per network and way: compressed, and recovered with either data."""
    found = [["model", "compression", "images", "accuracy", "error", "seconds"]]
    for number, (network, name, passes) in enumerate(_WAYS):
        original, out = DIGITS / f"{network}.onnx", folder / f"{number}.onnx"
        if failure := compress(network, passes, out):
            found.append([network, name, failure])
            continue
        found.append([network, name, "-", *judged(out, original), "-"])
        for label, images in sources().items():
            path = folder / f"{number}.recovered.onnx"
            data = {"image": images}
            result = recover(out, original, data, output=path, steps=steps, seed=seed, device="cpu")
            found.append(
                ["", "recovered", f"{label} ({len(images)})", *judged(path, original), f"{result.seconds:.0f}"]
            )
        for row in found[-3:]:
            print("  " + " | ".join(row), file=sys.stderr, flush=True)
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="recover-") as name:
        table = markdown(rows(options.steps, options.seed, Path(name)))
    print(table)
    if options.store:
        known = machine.describe()
        versions = ", ".join(f"{name} {version}" for name, version in sorted(machine.versions().items()))
        command = " ".join(["python", "benchmarks/recover.py", *public(list(arguments))])
        where = f"{known['cpu']}, {known['cores']} cores, {known['flags']}; Python {known['python']}, {versions}"
        STORED.write_text(
            f"# Recovery: digits\n\n{where}; `{command}`.\n\n"
            f"Accuracy and relative L2 error of the outputs on test.npz.\n\n{table}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
