"""Running and compiling kernels in tests: no GPU, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import ml_dtypes
import numpy as np

from optc.ir.targets import builtin_targets
from optc.kernels.base import Specialization
from optc.kernels.compile import Compiled, compile_kernel
from optc.kernels.interpret import interpreter

#: Element types by their names in Triton.
DTYPES: dict[str, Any] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "i64": np.int64,
    "i32": np.int32,
    "i8": np.int8,
    "i1": np.bool_,
}
#: What "equal" means per type: relative to the largest element.
TOLERANCE = {"fp32": 2e-6, "fp16": 2e-3, "bf16": 1.6e-2}
#: The generations that every kernel is compiled for, with the target whose limits hold.
ARCHITECTURES = {80: "a100", 89: "l4", 90: "h100"}


def interpret(spec: Specialization, *args: np.ndarray | int, **sizes: int) -> None:
    """Run a kernel on arrays, in place."""
    with interpreter() as session:
        session.launch(spec, [a.ctypes.data if isinstance(a, np.ndarray) else a for a in args], sizes)


def unwritten(shape: Sequence[int], dtype: str) -> np.ndarray:
    """An output that shows where nothing was written."""
    made = np.empty(shape, DTYPES[dtype])
    made.view(np.uint8).fill(0xFF)
    return made


def drawn(shape: Sequence[int], dtype: str, seed: int = 0) -> np.ndarray:
    """Normally distributed values of a type."""
    return np.random.default_rng(seed).normal(size=shape).astype(DTYPES[dtype])


def assert_close(found: np.ndarray, wanted: np.ndarray, dtype: str, factor: float = 1.0) -> None:
    """Every element is there, and as near as the type allows."""
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    assert found.shape == wanted.shape
    assert np.array_equal(np.isfinite(found), np.isfinite(wanted)), "elements were not written, or are not finite"
    np.testing.assert_allclose(found, wanted, rtol=0, atol=factor * TOLERANCE[dtype] * np.abs(wanted).max(initial=1.0))


@cache
def _cache() -> Path:
    return Path(mkdtemp(prefix="optc-test-kernels-"))


def build(spec: Specialization, arch: int) -> Compiled:
    """Compile, and check what holds for every kernel: no spills, and shared memory within what the device has."""
    made = compile_kernel(spec, arch, _cache())
    assert made.resources.spills == 0, made.resources
    assert made.shared <= (builtin_targets()[ARCHITECTURES[arch]].shared_memory or 0)
    assert made.scratch == 0
    return made
