"""Train the two example classifiers on scikit-learn's digits and export them to ONNX.

    pip install torch scikit-learn onnx onnxscript
    python train.py [--only cnn|vit] [--out FOLDER]

Writes cnn.onnx (TorchScript-based exporter, batch normalization kept as its own nodes), vit.onnx
(torch.export-based exporter, nothing optimized), calib.npz (``image`` from the training split), calib_labelled.npz (the
same with ``label``) and test.npz (``image`` and ``label``, never seen in training). Seeds are fixed and one thread is
used, so one machine with one version of torch gives the same files again; other machines may differ in the last digits.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from networks import DigitsCNN, DigitsViT
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
TEST_IMAGES = 360
CALIBRATION_IMAGES = 256
BATCH = 64
MODELS = {
    # name: (class, epochs, peak learning rate, weight decay)
    "cnn": (DigitsCNN, 40, 4e-3, 5e-4),
    "vit": (DigitsViT, 150, 2e-3, 5e-2),
}


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(train images, test images, train labels, test labels); images [n, 1, 8, 8] float32 in [0, 1]."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    return tuple(
        train_test_split(images, labels.astype(np.int64), test_size=TEST_IMAGES, random_state=0, stratify=labels)
    )


def augment(images: Tensor) -> Tensor:
    """Shift the batch by up to one pixel each way, change its contrast, and add a little noise."""
    dy, dx = torch.randint(-1, 2, (2,)).tolist()
    shifted = torch.roll(F.pad(images, (1, 1, 1, 1)), (dy, dx), (2, 3))[:, :, 1:-1, 1:-1]
    contrast = 0.8 + 0.4 * torch.rand(len(images), 1, 1, 1)
    return (contrast * shifted + 0.05 * torch.randn_like(shifted)).clamp(0, 1)


def train(name: str, images: Tensor, labels: Tensor) -> nn.Module:
    """Train model ``name`` from a fixed seed: AdamW, one-cycle learning rate, label smoothing."""
    kind, epochs, peak, decay = MODELS[name]
    torch.manual_seed(0)
    model = kind()
    steps = -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, epochs=epochs, steps_per_epoch=steps)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for index in torch.randperm(len(images)).split(BATCH):
            loss = F.cross_entropy(model(augment(images[index])), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(index)
        if (epoch + 1) % 10 == 0:
            print(f"{name}: epoch {epoch + 1:3d}/{epochs}, loss {total / len(images):.4f}", flush=True)
    return model.eval()


def export(name: str, model: nn.Module, path: Path) -> None:
    """Export with the exporter that this example stands for; only the batch dimension is dynamic."""
    image = torch.zeros(2, 1, 8, 8)
    if name == "cnn":
        # PRESERVE keeps BatchNormalization: in EVAL mode this exporter folds it into the convolutions itself.
        options = dict(dynamo=False, dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}}, opset_version=17)
        options["training"] = torch.onnx.TrainingMode.PRESERVE
    else:
        options = dict(dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), opset_version=18)
        options |= dict(optimize=False, external_data=False, verbose=False)
    with torch.no_grad():
        torch.onnx.export(model, (image,), str(path), input_names=["image"], output_names=["logits"], **options)
    forget_stack_traces(path)


def forget_stack_traces(path: Path) -> None:
    """Drop the Python stack traces that the exporter hangs on every node: they name the folders of this machine."""
    model = onnx.load(path)
    for node in model.graph.node:
        kept = [p for p in node.metadata_props if p.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(MODELS))
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    args.out.mkdir(parents=True, exist_ok=True)
    train_images, test_images, train_labels, test_labels = digits()
    some = slice(CALIBRATION_IMAGES)
    np.savez_compressed(args.out / "calib.npz", image=train_images[some])
    np.savez_compressed(args.out / "calib_labelled.npz", image=train_images[some], label=train_labels[some])
    np.savez_compressed(args.out / "test.npz", image=test_images, label=test_labels)
    for name in [args.only] if args.only else MODELS:
        model = train(name, torch.from_numpy(train_images), torch.from_numpy(train_labels))
        with torch.no_grad():
            right = (model(torch.from_numpy(test_images)).argmax(1).numpy() == test_labels).mean()
        path = args.out / f"{name}.onnx"
        export(name, model, path)
        count = sum(p.numel() for p in model.parameters())
        print(f"{path.name}: {count} parameters, {path.stat().st_size} bytes, test accuracy {right:.2%}", flush=True)


if __name__ == "__main__":
    main()
