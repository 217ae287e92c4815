"""Train a small language model on the sources of Python's standard library and export it to ONNX.

    pip install torch onnx onnxscript
    python train.py OUT.onnx [--steps 1500] [--width 256] [--layers 4]

The seed is fixed and one thread is used. The model reads ``input_ids`` [batch, tokens] and gives ``logits``.
"""

from __future__ import annotations

import argparse
import logging
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


def train(model: nn.Module, data: torch.Tensor, steps: int) -> None:
    """AdamW with a one-cycle learning rate, in bfloat16 where that does no harm."""
    optimizer = torch.optim.AdamW(model.parameters(), PEAK, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps, pct_start=0.1)
    started, total = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        starts = torch.randint(len(data) - TOKENS - 1, (BATCH,))
        batch = torch.stack([data[start : start + TOKENS + 1] for start in starts])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += float(loss.detach())
        if step % 50 == 0:
            print(f"step {step}/{steps}, loss {total / 50:.4f}, {time.perf_counter() - started:.0f} s", flush=True)
            total = 0.0


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
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = torch.from_numpy(np.frombuffer(text(held_out=False), np.uint8).astype(np.int64))
    model = LanguageModel(VOCABULARY, args.width, args.layers, inner=3 * args.width)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(data)} characters, {parameters} parameters", flush=True)
    train(model, data, args.steps)
    export(model, args.out)


if __name__ == "__main__":
    main()
