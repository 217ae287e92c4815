"""The optimizers that are compared, each as the command a user would type."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

_LIBRARY = Path(__file__).with_name("libraries.py")


@dataclass(frozen=True)
class Contender:
    """``arguments`` follow the interpreter; ``{model}``, ``{out}`` and ``{type}`` stand for the paths and its kind."""

    name: str
    package: str
    arguments: tuple[str, ...]
    is_peer: bool = True

    def command(self, python: str, model: Path, out: Path, model_type: str) -> list[str]:
        return [python, *(part.format(model=model, out=out, type=model_type) for part in self.arguments)]


def contenders(optc_options: str) -> tuple[Contender, ...]:
    """optc with these options, and its peers with the options that they have by default."""
    return (
        Contender("optc", "optc", ("-m", "optc.tools.cli", "{model}", *optc_options.split(), "-o", "{out}"), False),
        # ENABLE_EXTENDED is the last level whose saved file runs on other machines of the same kind.
        Contender("onnxruntime", "onnxruntime", ("-P", str(_LIBRARY), "onnxruntime", "{model}", "{out}"), False),
        Contender("onnxsim", "onnxsim", ("-m", "onnxsim", "{model}", "{out}")),
        Contender("onnxslim", "onnxslim", ("-m", "onnxslim", "{model}", "{out}")),
        # It wants to be told what kind of model it has; "bert" is its default.
        Contender(
            "ort-transformers", "onnxruntime", ("-P", str(_LIBRARY), "transformers", "{model}", "{out}", "{type}")
        ),
        Contender("onnxscript", "onnxscript", ("-P", str(_LIBRARY), "onnxscript", "{model}", "{out}")),
    )


def interpreter(contender: Contender, peer_python: str) -> str:
    return peer_python if contender.is_peer else sys.executable
