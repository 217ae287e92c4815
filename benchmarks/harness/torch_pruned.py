"""Write a ResNet-50 with random weights as ONNX, whole and pruned by Torch-Pruning (structure only):

    python torch_pruned.py FOLDER RATIO

FOLDER gets whole.onnx and pruned.onnx. Needs torch, transformers and torch-pruning in the interpreter that runs it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch_pruning
from transformers import ResNetConfig, ResNetForImageClassification


class Logits(torch.nn.Module):
    """The network as a function of one tensor."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.inner(pixels).logits


def main(folder: Path, ratio: float) -> None:
    torch.manual_seed(0)
    model = Logits(ResNetForImageClassification(ResNetConfig())).eval()
    pixels = torch.randn(1, 3, 224, 224)

    def export(name: str) -> None:
        names = {"input_names": ["pixel_values"], "output_names": ["logits"], "opset_version": 17, "dynamo": False}
        torch.onnx.export(model, (pixels,), str(folder / name), **names)

    export("whole.onnx")
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        pixels,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=head,
        round_to=8,
    )
    pruner.step()
    export("pruned.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
