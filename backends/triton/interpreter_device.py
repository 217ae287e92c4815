"""The device "interpreter": the same plan and the same kernels, on the CPU. Slow; for proof, not for use."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from optc.backends.triton.artifact import NUMPY, Artifact
from optc.backends.triton.build import load_hooks, specialize
from optc.backends.triton.memory import ALIGNMENT, place
from optc.backends.triton.plan import nbytes, number
from optc.ir.errors import BackendError
from optc.kernels.base import Specialization
from optc.kernels.interpret import interpreter
from optc.kernels.tiles import Tile


class InterpreterDevice:
    """Runs a plan on the CPU.

    Args:
        artifact: What to run. Its generated sources are imported, so it must come from somebody you trust.
        arch: Whose tiles to use; the first by default.
        poison: What the arena is filled with before every run; results must not depend on it.
    """

    name = "interpreter"

    def __init__(self, artifact: Artifact, arch: str | None = None, poison: int = 0xFF) -> None:
        self._artifact, self._poison = artifact, poison
        self._kernels: dict[str, Specialization] = {}
        for name, entry in artifact.plan.kernels.items():
            if arch is None:
                arch = min(entry.variants)
            if arch not in entry.variants:
                raise BackendError(f"the artifact has no kernels for {arch}", where=str(artifact.path))
            artifact.read(entry.source)  # what is run is what was written
            variant = entry.variants[arch]
            tile = Tile(variant.constants, variant.num_warps, variant.num_stages)
            self._kernels[name] = specialize(entry, load_hooks(artifact.path / entry.source, name), tile)
        self._weights = {key: aligned(array) for key, array in artifact.weights().items()}

    def run(self, feeds: Mapping[str, np.ndarray], bindings: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Run once.

        Args:
            feeds: Inputs by name, of the right types and shapes.
            bindings: Values of the symbolic dims.
        """
        plan = self._artifact.plan
        layout = place(plan, bindings)
        arena = aligned(np.full(layout.size + ALIGNMENT, self._poison, np.uint8))
        memory: dict[int, np.ndarray] = {}
        for tensor in plan.inputs:
            memory[tensor.buffer] = aligned(feeds[tensor.name])
        for tensor in plan.outputs:
            shape = [number(dim, bindings) for dim in tensor.shape]
            kind = NUMPY[plan.buffers[tensor.buffer].type]
            memory[tensor.buffer] = aligned(np.full(shape, self._poison, np.uint8).astype(kind))
        addresses: dict[int, int] = {}
        for buffer, spec in enumerate(plan.buffers):
            nbytes(spec, bindings)
            if spec.role == "weight":
                addresses[buffer] = self._weights[spec.weight or ""].ctypes.data
            elif spec.role == "temporary":
                addresses[buffer] = arena.ctypes.data + layout.offsets[buffer]
            else:
                addresses[buffer] = memory[buffer].ctypes.data
        with interpreter() as session:
            for launch in plan.launches:
                args = [
                    addresses[a.buffer] if a.buffer is not None else number(a.value or "0", bindings)
                    for a in launch.args
                ]
                sizes = {name: number(value, bindings) for name, value in launch.sizes.items()}
                session.launch(self._kernels[launch.kernel], args, sizes)
        return {tensor.name: memory[tensor.buffer] for tensor in plan.outputs}


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy whose data starts where buffers start."""
    source = np.ascontiguousarray(array)
    raw = np.empty(source.nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    made = raw[start : start + source.nbytes].view(source.dtype).reshape(array.shape)
    made[...] = source
    return made
