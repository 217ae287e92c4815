"""How a value is seen as rows of a matrix: one row per product that a weighted layer computes with it.

A layer ``y = x @ W`` sees the rows of ``x`` along its last axis; a convolution sees one patch per position of its
window (im2col). Rows are what Gram matrices are sums over and what outputs are tried on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

#: Positions of a convolution's window that are looked at per image.
POSITIONS = 512


@dataclass(frozen=True)
class Columns:
    """Every index of an axis is a column: what MatMul and Gemm multiply.

    Attributes:
        axis: The axis that is summed over.
    """

    axis: int = -1

    #: Independent blocks of columns.
    groups = 1

    def rows(self, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The array as (n, K), in its own element type."""
        moved = np.moveaxis(array, self.axis, -1)
        return moved.reshape(-1, moved.shape[-1])


@dataclass(frozen=True)
class Patches:
    """Every position of a convolution's window is a row of C * prod(kernel) columns, in the order of Conv's weight.

    Group ``g`` owns the columns ``g * K`` to ``(g + 1) * K``, where ``K = C / groups * prod(kernel)``. Padding is zero.

    Attributes:
        kernel, strides, dilations: Of the convolution, one number per spatial dim.
        pads: At the begin of every spatial dim, then at the end of every.
        auto_pad: "NOTSET", "VALID", "SAME_UPPER" or "SAME_LOWER"; anything but the first replaces ``pads``.
        groups: Of the convolution.
        positions: At most so many positions per image, drawn at random where there are more.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    auto_pad: str = "NOTSET"
    groups: int = 1
    positions: int = POSITIONS

    @classmethod
    def of(cls, node: onnx_ir.Node, kernel: Sequence[int], positions: int = POSITIONS) -> Patches:
        """What a Conv (or FusedConv) sees of its input.

        Args:
            node: The node.
            kernel: The weight's spatial shape.
            positions: See the class.
        """
        rank = len(kernel)

        def given(name: str, default: Any) -> Any:
            attr = node.attributes.get(name)
            return default if attr is None else attr.value

        return cls(
            kernel=tuple(kernel),
            strides=tuple(given("strides", (1,) * rank)),
            pads=tuple(given("pads", (0,) * (2 * rank))),
            dilations=tuple(given("dilations", (1,) * rank)),
            auto_pad=given("auto_pad", "NOTSET"),
            groups=given("group", 1),
            positions=positions,
        )

    def rows(self, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The array (N, C, ...) as (n, C * prod(kernel)), in its own element type."""
        images, channels, *sizes = array.shape
        begins, counts = self._windows(sizes)
        total, taps = math.prod(counts), math.prod(self.kernel)
        if not total or not images:
            return np.zeros((0, channels * taps), array.dtype)
        flat = array.reshape(images, channels, -1)
        rows = []
        for image in flat:
            places = np.arange(total)
            if total > self.positions:
                places = np.sort(rng.choice(total, self.positions, replace=False))
            index, inside = self._taps(places, begins, counts, sizes)
            patch = image[:, index]  # (C, positions, taps)
            patch *= inside
            rows.append(patch.transpose(1, 0, 2).reshape(len(places), channels * taps))
        return np.concatenate(rows)

    def _windows(self, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
        """Per spatial dim: the padding at its begin, and how many positions the window has (ONNX, Conv)."""
        begins, counts = [], []
        for axis, size in enumerate(sizes):
            extent = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            before, after = self.pads[axis], self.pads[axis + len(sizes)]
            if self.auto_pad.startswith("SAME"):
                wanted = -(-size // self.strides[axis])
                padding = max((wanted - 1) * self.strides[axis] + extent - size, 0)
                before = padding // 2 if self.auto_pad == "SAME_UPPER" else padding - padding // 2
                after = padding - before
            elif self.auto_pad == "VALID":
                before = after = 0
            begins.append(before)
            counts.append(max((size + before + after - extent) // self.strides[axis] + 1, 0))
        return begins, counts

    def _taps(
        self, places: np.ndarray, begins: Sequence[int], counts: Sequence[int], sizes: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Flat indices into the spatial dims, (positions, taps), and which of them lie inside of the image."""
        index = np.zeros((len(places), 1), np.intp)
        inside = np.ones((len(places), 1), bool)
        for axis, place in enumerate(np.unravel_index(places, counts)):
            reach = np.arange(self.kernel[axis]) * self.dilations[axis] - begins[axis]
            at = place[:, None] * self.strides[axis] + reach
            within = (at >= 0) & (at < sizes[axis])
            at = np.clip(at, 0, sizes[axis] - 1)
            index = (index[:, :, None] * sizes[axis] + at[:, None, :]).reshape(len(places), -1)
            inside = (inside[:, :, None] & within[:, None, :]).reshape(len(places), -1)
        return index, inside


View = Columns | Patches
#: How MatMul sees its first input.
COLUMNS = Columns()
