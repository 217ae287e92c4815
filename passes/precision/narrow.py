"""The narrow float types, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir

from optc.ir.errors import UsageError


@dataclass(frozen=True)
class Narrow:
    """A float type of 16 bits.

    Attributes:
        name: How options and reports call it; a key of :attr:`optc.ir.targets.Target.peak`.
        dtype: The type.
        largest: Its largest number.
        smallest: Its smallest normal number.
        unit: Its unit roundoff: the largest relative error of rounding to nearest.
        integers: Integers up to this are exact.
    """

    name: str
    dtype: onnx_ir.DataType
    largest: float
    smallest: float
    unit: float
    integers: int

    @property
    def text(self) -> str:
        """The type as operators' schemas write it."""
        return f"tensor({self.dtype.name.lower()})"

    @property
    def as_wide(self) -> bool:
        """Whether it reaches as far as single precision, so that whatever is finite there fits."""
        return self.largest > 1e38

    @property
    def step(self) -> float:
        """The largest error of rounding a number below ``smallest``."""
        return self.smallest * self.unit

    def rounded(self, array: np.ndarray) -> np.ndarray:
        """An array in this type. What is too large becomes the largest number of its sign, infinities stay."""
        if array.size and not -self.largest <= array.min() <= array.max() <= self.largest:
            clipped = np.clip(array, -self.largest, self.largest)
            array = np.where(np.isfinite(array), clipped, array)
        return array.astype(self.dtype.numpy())


FP16 = Narrow("fp16", onnx_ir.DataType.FLOAT16, 65504.0, 2.0**-14, 2.0**-11, 2**11)
BF16 = Narrow("bf16", onnx_ir.DataType.BFLOAT16, float.fromhex("0x1.fep127"), 2.0**-126, 2.0**-8, 2**8)
NARROW = {narrow.name: narrow for narrow in (FP16, BF16)}


def narrow_type(name: str) -> Narrow:
    """The type of a name.

    Raises:
        UsageError: There is none.
    """
    if name not in NARROW:
        raise UsageError(f"there is no narrow float type {name!r}", hint=f"there are: {', '.join(NARROW)}")
    return NARROW[name]
