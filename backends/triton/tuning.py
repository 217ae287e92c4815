"""What a lowering is tuned for: usual sizes and devices. Any other size runs as well, only not as fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from optc.ir.dims import Dim, evaluate, symbols
from optc.ir.targets import Target


@dataclass(frozen=True)
class Tuning:
    """What to choose between kernels for.

    Attributes:
        sizes: Usual values of symbolic dims.
        targets: The devices; without any nothing is chosen that a device would have to be known for.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()

    def numbers(self, sizes: Mapping[str, Dim]) -> dict[str, int] | None:
        """The usual values of some sizes; None where one of their dims has none."""
        if not self.targets or any(not symbols(size) <= self.sizes.keys() for size in sizes.values()):
            return None
        return {name: evaluate(size, self.sizes) for name, size in sizes.items()}
