"""How long work tells how far it is; the command line draws bars from it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A listener of a compile's stages."""

    def start(self, stage: str, total: int | None = None) -> None:
        """A stage begins; ``total`` steps are expected, None if nobody knows."""

    def advance(self, stage: str, steps: int = 1, text: str = "") -> None:
        """Steps were done; ``text`` says what comes next."""

    def finish(self, stage: str) -> None:
        """The stage is over."""


class Silent:
    """A listener that ignores everything."""

    def start(self, stage: str, total: int | None = None) -> None:
        pass

    def advance(self, stage: str, steps: int = 1, text: str = "") -> None:
        pass

    def finish(self, stage: str) -> None:
        pass
