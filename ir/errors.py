"""The errors a user may meet: what is wrong, where, and what to do about it.

Every error that optc raises on purpose is an :class:`OptcError`. The command line prints it as one plain
message without a traceback and exits with its ``exit_code``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class OptcError(Exception):
    """An error addressed to the user.

    Args:
        what: What is wrong, one sentence without a trailing full stop.
        where: The file, node and op concerned, as far as they are known.
        hint: What the reader can do about it.
    """

    exit_code = 1
    #: The same piece by piece, for reports, where what is wrong is a list.
    details: Sequence[Mapping[str, str]] = ()

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class ModelError(OptcError):
    """The model cannot be read, or is not a valid ONNX model."""


class UsageError(OptcError):
    """An option, pass, target, level or pipeline text is not known or not well formed."""

    exit_code = 2


class DataError(OptcError):
    """Calibration or input data do not fit the model."""


class OutputError(OptcError):
    """The result cannot be written."""

    @classmethod
    def of(cls, error: OSError, path: object) -> OutputError:
        """What the operating system said about a file that was to be written."""
        return cls(
            f"cannot write the file: {error.strerror}",
            where=str(path),
            hint="check that the folder exists, is writable and has room",
        )


class BackendError(OptcError):
    """A backend is not there, or cannot do what was asked of it."""


class PassError(OptcError):
    """A pass broke an invariant; the pass manager rolls it back and reports it."""


def printable(text: str) -> str:
    """A text without the control characters by which a name in a file could take over a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)
