"""The parameters of a kernel in PTX text: reading them, and putting them into the order that another caller passes.

Parameters are read by name in PTX, and their places are those of their declarations. So a kernel that was compiled for
one order of arguments takes another one when its declarations are sorted anew; its instructions stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from optc.ir.errors import BackendError

_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(([^)]*)\)", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)(?:\s+\.\w+(?:\s+\d+)?)*\s+(\w+)\s*$")
_TYPES = {"u64": 8, "b64": 8, "s64": 8, "f64": 8, "u32": 4, "b32": 4, "s32": 4, "f32": 4}


@dataclass(frozen=True)
class Parameter:
    """A parameter: its name, its bytes, and its declaration."""

    name: str
    bytes: int
    text: str


def entry(ptx: str) -> tuple[str, tuple[Parameter, ...]]:
    """The name of the function that PTX text defines, and its parameters.

    Raises:
        BackendError: It defines none, or one of its parameters is of a kind that kernels do not have.
    """
    found = _ENTRY.search(ptx)
    if found is None:
        raise BackendError("the compiler's output has no entry", hint="reinstall triton")
    parameters = []
    for text in filter(None, (part.strip() for part in found[2].split(","))):
        parameter = _PARAMETER.match(text)
        if parameter is None or parameter[1] not in _TYPES:
            raise BackendError(f"a kernel takes a parameter {text!r}", hint="install a triton that optc allows")
        parameters.append(Parameter(parameter[2], _TYPES[parameter[1]], text))
    return found[1], tuple(parameters)


def reordered(ptx: str, order: Sequence[int | None]) -> str:
    """The kernel with its parameters in another order.

    Args:
        ptx: The kernel.
        order: For each new parameter the place that it had, or None for an address that the kernel does not look at.
            A kernel must not read the parameters that are left out.

    Raises:
        BackendError: It reads one of them.
    """
    _, parameters = entry(ptx)
    found = _ENTRY.search(ptx)
    assert found is not None
    start, end = found.span(2)
    body = ptx[end:]
    for place, parameter in enumerate(parameters):
        if place not in order and re.search(rf"\b{parameter.name}\b", body):
            raise BackendError(
                f"kernel {found[1]!r} reads its parameter {place}, which nobody passes", hint="please report this"
            )
    lines = [
        f".param .u64 {found[1]}_unread_{place}" if old is None else parameters[old].text
        for place, old in enumerate(order)
    ]
    return f"{ptx[:start]}\n\t{f',{chr(10)}{chr(9)}'.join(lines)}\n{body}"
