"""Make matrices 2:4 by magnitude, as torch.ao.pruning does it:

    python torch_sparse.py IN.npz OUT.npz

IN.npz has matrices (N, K); groups of four lie along K. Needs torch in the interpreter that runs it.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch.ao.pruning import WeightNormSparsifier


def main(source: str, out: str) -> None:
    with np.load(source) as arrays:
        matrices = {name: arrays[name] for name in arrays.files}
    model = torch.nn.ModuleDict(
        {name: torch.nn.Linear(*array.shape[::-1], bias=False) for name, array in matrices.items()}
    )
    with torch.no_grad():
        for name, array in matrices.items():
            model[name].weight.copy_(torch.from_numpy(array))
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(model, [{"tensor_fqn": f"{name}.weight"} for name in matrices])
    sparsifier.step()
    sparsifier.squash_mask()
    np.savez(out, **{name: model[name].weight.detach().numpy() for name in matrices})


if __name__ == "__main__":
    main(*sys.argv[1:])
