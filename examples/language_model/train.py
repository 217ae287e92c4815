"""Train a small language model on the sources of Python's standard library and export it to ONNX.

    pip install torch onnx onnxscript
    python train.py OUT.onnx [--minutes 20] [--width 256] [--layers 2]

One thread is used, for as long as is asked: a faster machine comes further. The model reads ``input_ids``
[batch, tokens] and gives ``logits``.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from network import LanguageModel
from text import VOCABULARY, text
from torch import nn
from torch.nn import functional as F

TOKENS = 192
BATCH = 12
PEAK = 3e-3
WARM_UP = 0.05  # share of the time


def train(model: nn.Module, data: torch.Tensor, seconds: float) -> None:
    """AdamW for so many seconds: the learning rate rises to its peak and falls to zero by the clock."""
    optimizer = torch.optim.AdamW(model.parameters(), PEAK, betas=(0.9, 0.95), weight_decay=0.1)
    started, total, step, done = time.perf_counter(), 0.0, 0, 0.0
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min(done / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * done))
        starts = torch.randint(len(data) - TOKENS - 1, (BATCH,))
        batch = torch.stack([data[start : start + TOKENS + 1] for start in starts])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, total = step + 1, total + float(loss.detach())
        if step % 100 == 0:
            print(f"step {step}, {done:.0%} of the time, loss {total / 100:.4f}", flush=True)
            total = 0.0
        done = (time.perf_counter() - started) / seconds


def export(model: nn.Module, path: Path) -> None:
    """Write the model as torch.onnx's default exporter does, with batch and tokens dynamic."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    dims = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    ids = torch.randint(VOCABULARY, (2, 16))
    with torch.no_grad():
        torch.onnx.export(
            model.eval(),
            (ids,),
            path,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes=(dims,),
            opset_version=20,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = torch.from_numpy(np.frombuffer(text(held_out=False), np.uint8).astype(np.int64))
    model = LanguageModel(VOCABULARY, args.width, args.layers, inner=3 * args.width)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(data)} characters, {parameters} parameters", flush=True)
    train(model, data, 60 * args.minutes)
    export(model, args.out)


if __name__ == "__main__":
    main()
