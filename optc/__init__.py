"""optc: a compiler-style optimizer for ONNX models. Right, fast, and it tells you why.

::

    import optc
    result = optc.compile("model.onnx", level=2, target="cpu", output="model.opt.onnx")
    print(result.report.summary())
    runner = optc.load("model.opt.onnx")
    outputs = runner.run({"x": array})
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optc.compiler import Result, compile, optimize
    from optc.compiler import open_artifact as load
    from optc.ir.errors import OptcError
    from optc.recovery.recover import recover

#: Public names and where they live; imported on first use, so that `optc --help` need not load onnxruntime.
_PUBLIC = {
    "OptcError": "optc.ir.errors:OptcError",
    "Result": "optc.compiler:Result",
    "compile": "optc.compiler:compile",
    "load": "optc.compiler:open_artifact",
    "optimize": "optc.compiler:optimize",
    "recover": "optc.recovery.recover:recover",
}

__all__ = ["OptcError", "Result", "compile", "load", "optimize", "recover"]

# In a checkout this folder may shadow the installed package; its sub-packages then lie beside it, not in it.
if (Path(__file__).parents[1] / "ir" / "errors.py").is_file():
    __path__.append(str(Path(__file__).parents[1]))


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'optc' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
