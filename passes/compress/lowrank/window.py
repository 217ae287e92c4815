"""The geometry of a convolution, and of the smaller ones that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optc.ir.facts import Facts
from optc.passes.compress.layers import Layer


@dataclass(frozen=True)
class Window:
    """The geometry of a convolution."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    auto_pad: str
    groups: int

    @classmethod
    def of(cls, layer: Layer, facts: Facts) -> Window:
        view = layer.view(facts)
        return cls(view.kernel, view.strides, view.pads, view.dilations, view.auto_pad, layer.groups)  # type: ignore[union-attr]

    @property
    def whole(self) -> dict[str, Any]:
        """The attributes of a convolution of this geometry."""
        return self._attributes(self.strides, self.pads, self.dilations)

    @property
    def plain(self) -> dict[str, Any]:
        """Those of a convolution of single pixels."""
        return {"group": self.groups}

    def along(self, axis: int) -> dict[str, Any]:
        """Those of a convolution that does what this one does along one of two axes."""
        strides, dilations, pads = [1, 1], [1, 1], [0, 0, 0, 0]
        strides[axis], dilations[axis] = self.strides[axis], self.dilations[axis]
        pads[axis], pads[axis + 2] = self.pads[axis], self.pads[axis + 2]
        return self._attributes(strides, pads, dilations)

    def _attributes(self, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]) -> dict[str, Any]:
        padding = {"pads": list(pads)} if self.auto_pad == "NOTSET" else {"auto_pad": self.auto_pad}
        return {"group": self.groups, "strides": list(strides), "dilations": list(dilations), **padding}
