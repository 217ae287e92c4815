"""Python's standard library as a text: what the example's language model is trained and judged on.

Standard library only. One byte is one token; what is not ASCII is left out, so a vocabulary of 128 is enough.
"""

from __future__ import annotations

import sysconfig
import zlib
from pathlib import Path

VOCABULARY = 128
#: One file in this many is kept from training, chosen by its name.
_HELD_OUT = 16
_LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__", "encodings", "pydoc_data"}


def sources() -> list[Path]:
    """The modules of the running interpreter's standard library, in order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = (path for path in root.rglob("*.py") if not _LEFT_OUT & set(path.relative_to(root).parts))
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def text(held_out: bool) -> bytes:
    """All modules in one piece: those to train on, or those that training does not see."""
    root = Path(sysconfig.get_paths()["stdlib"])
    parts = []
    for path in sources():
        name = path.relative_to(root).as_posix()
        if (zlib.crc32(name.encode()) % _HELD_OUT == 0) == held_out:
            parts.append(bytes(byte for byte in path.read_bytes() if byte < VOCABULARY))
    return b"\n".join(parts)
