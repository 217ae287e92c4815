"""What every algorithm here gives: integer codes in blocks along K, with a scale (and a zero point) for each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Zeros = Literal["none", "integer", "float"]


@dataclass(frozen=True)
class Grid:
    """Which numbers a block of weights can become: (code - zero) * scale with codes 0 .. 2^bits - 1.

    Attributes:
        bits: Of one code, 2 to 8.
        block: Weights along K that share a scale; 0 for all of a row.
        zeros: "none": the zero point is 2^(bits - 1), so codes mean [-2^(bits-1), 2^(bits-1) - 1] and all of that is
            used; "integer": a zero point among the codes for each block; "float": any zero point.
        positive: Whether scales must be above zero, as TensorRT wants. Otherwise the scale of a block without zero
            points takes the sign with which its extreme weight lands on the side that has one code more.
    """

    bits: int = 4
    block: int = 128
    zeros: Zeros = "none"
    positive: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8 or self.block < 0:
            raise ValueError(f"no such grid: {self.bits} bits in blocks of {self.block}")

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of blocks that have none of their own."""
        return 1 << (self.bits - 1)

    def width(self, rows: int) -> int:
        """Weights in a block of a row with K = ``rows``."""
        return min(self.block or rows, rows)


@dataclass(frozen=True)
class Codes:
    """A quantized weight matrix of N rows (outputs) and K columns (inputs).

    Attributes:
        codes: (N, blocks, width) uint8. Where width does not divide K, the last block ends with codes that mean 0.
        scales: (N, blocks) float32. A scale of 0 makes its block zero.
        zeros: (N, blocks), uint8 or float32, in units of codes; None for the middle, 2^(bits - 1).
        bits: Of one code.
        columns: K.
    """

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    bits: int
    columns: int

    @property
    def rows(self) -> int:
        """N."""
        return int(self.codes.shape[0])

    @property
    def block(self) -> int:
        """Weights of one block."""
        return int(self.codes.shape[2])

    def dequantize(self) -> np.ndarray:
        """The weights that the codes stand for, (N, K) float32."""
        zeros = np.float32(1 << (self.bits - 1)) if self.zeros is None else self.zeros.astype(np.float32)[..., None]
        blocks = (self.codes.astype(np.float32) - zeros) * self.scales[..., None]
        return blocks.reshape(self.rows, -1)[:, : self.columns]

    @property
    def finite(self) -> bool:
        """Whether all weights that were quantized were finite: what is not makes the scale of its block so."""
        return bool(np.isfinite(self.scales).all())

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Codes, scales and zero points: what differs from row to row."""
        return self.codes, self.scales, self.zeros


def in_blocks(weight: np.ndarray, block: int) -> np.ndarray:
    """(N, K) as (N, blocks, width) float32; the last block is filled up with zeros."""
    rows, columns = weight.shape
    width = min(block or columns, columns)
    missing = -columns % width
    if missing:
        weight = np.pad(weight, ((0, 0), (0, missing)))
    return np.ascontiguousarray(weight, np.float32).reshape(rows, (columns + missing) // width, width)


def vector_in_blocks(vector: np.ndarray | None, block: int) -> np.ndarray | None:
    """A weight per column, (K,), laid out as (blocks, width)."""
    return None if vector is None else in_blocks(vector[None], block)[0]


def relative_error(weight: np.ndarray, codes: Codes | np.ndarray, gram: np.ndarray | None = None) -> float:
    """The relative L2 error of ``x @ W.T``: sqrt(tr(E G E^T) / tr(W G W^T)) with E = W - dequantized.

    Args:
        weight: (N, K).
        codes: What stands for it, or the matrix (N, K) that it stands for.
        gram: G = X^T X of the inputs up to a factor, (K, K); None for inputs that are not correlated.
    """
    actual = codes.dequantize() if isinstance(codes, Codes) else codes
    whole = energy(weight, gram)
    return float(np.sqrt(max(energy(weight - actual, gram), 0.0) / whole)) if whole > 0 else 0.0


def energy(matrix: np.ndarray, gram: np.ndarray | None = None) -> float:
    """tr(M G M^T): the energy of ``x @ M.T`` over inputs with X^T X = G; G is the identity where it is None."""
    image = matrix if gram is None else matrix @ gram.astype(matrix.dtype, copy=False)
    return float(np.vdot(image, matrix))
