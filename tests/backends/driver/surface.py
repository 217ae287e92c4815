"""What cuda-bindings offers of that which we use: functions, enums and structures, read from the package itself.

``cuda.bindings.driver`` can be imported without a GPU and without a driver; its functions tell their parameters and
results in their docstrings. ``PYTHON surface.py write``, run by an interpreter that has cuda-bindings, writes the
snapshot of the major version that is installed.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "backends"
MAJORS = (12, 13)
_NAME = re.compile(r"\b(cu[A-Z]\w+|CU[_a-z]\w+|CUDA_\w+_PARAMS)\b")


def used() -> set[str]:
    """The names of the driver's that our code says: functions, enums and their members, structures."""
    files = [SOURCES / "cuda.py", SOURCES / "device_arrays.py", *SOURCES.glob("triton/cuda_*.py")]
    files += SOURCES.glob("tensorrt/*.py")
    return {name for file in files for name in _NAME.findall(file.read_text("utf-8"))}


def snapshot(major: int) -> Path:
    """Where the surface of a major version is kept."""
    return HERE / f"surface-{major}.json"


def load(major: int) -> dict[str, Any]:
    """A stored surface."""
    return json.loads(snapshot(major).read_text("utf-8"))


def installed() -> int | None:
    """The major version of cuda-bindings here; None where there is none."""
    try:
        found = importlib.util.find_spec("cuda.bindings.driver")
    except ImportError:
        return None
    return None if found is None else int(importlib.import_module("cuda.bindings").__version__.split(".")[0])


def read() -> dict[str, Any]:
    """The surface of what is installed."""
    driver = importlib.import_module("cuda.bindings.driver")
    names = used()
    functions, enums, structures = {}, {}, {}
    for name in sorted(names):
        member = getattr(driver, name, None)
        if hasattr(member, "__members__"):
            members = {key: int(value) for key, value in member.__members__.items()}
            enums[name] = {key: value for key, value in members.items() if key in names}
        elif isinstance(member, type):
            structures[name] = sorted(key for key in dir(member) if not key.startswith("_") and key != "getPtr")
        elif callable(member):
            functions[name] = {"parameters": _parameters(member.__doc__), "results": _results(member.__doc__)}
    found = {"functions": functions, "enums": enums, "structures": structures}
    return {"major": installed(), **found}


def _parameters(doc: str) -> list[str]:
    """The names of a function's parameters; what stands before them are their types in C."""
    inside = doc.strip().splitlines()[0].partition("(")[2].rpartition(")")[0]
    parts, depth = [""], 0
    for char in inside:
        depth += (char in "[(") - (char in "])")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return [part.partition(":")[0].split()[-1].lstrip("*") for part in parts if part.strip()]


def _results(doc: str) -> int:
    """How many things a function returns besides the status."""
    lines = doc.partition("Returns\n")[2].splitlines()[1:]
    section = []
    for line in lines:
        if re.match(r"\s*(See Also|Notes|-{3,})", line):
            break
        section.append(line)
    return sum(bool(re.match(r"\s*\w+ : ", line)) for line in section)


def write(surface: dict[str, Any], path: Path) -> None:
    """Store a surface: one line for each name, so that changes can be read."""
    parts = []
    for section, content in sorted(surface.items()):
        if isinstance(content, dict):
            lines = [f" {json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(content.items())]
            parts.append(f"{json.dumps(section)}: {{\n" + ",\n".join(lines) + "\n}")
        else:
            parts.append(f"{json.dumps(section)}: {json.dumps(content)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", "utf-8")


if __name__ == "__main__" and sys.argv[1:] == ["write"]:
    made = read()
    write(made, snapshot(made["major"]))
