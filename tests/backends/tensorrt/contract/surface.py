"""What TensorRT's Python bindings offer: classes, enums and signatures, read from the bindings themselves.

The bindings come as a small wheel (``tensorrt-cu12-bindings``) without the libraries behind them. They can be imported
once three shared libraries of the right names exist, so a few lines of C stand in for those: enough to look at every
class, not enough to run anything. ``python -m tests.backends.tensorrt.contract.surface [FOLDER]`` writes the snapshot
of the major version that is installed (in FOLDER, or in this environment).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

#: The functions that the bindings want of the libraries; ``nm -D --undefined-only tensorrt.so`` lists them.
WANTED = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SNAPSHOTS = Path(__file__).parent


def snapshot(major: int) -> Path:
    """Where the surface of a major version is kept."""
    return SNAPSHOTS / f"surface-{major}.json"


def load(major: int) -> dict[str, Any]:
    """A stored surface."""
    return json.loads(snapshot(major).read_text("utf-8"))


def installed() -> Path | None:
    """The folder that holds the bindings of this environment; None where they are not installed."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    return Path(spec.origin).parents[1] if spec is not None and spec.origin else None


def missing() -> str | None:
    """Why the bindings cannot be looked at here; None where they can."""
    if installed() is None:
        return "tensorrt-cu12-bindings is not installed"
    return None if shutil.which("gcc") else "gcc, which builds the stand-ins of TensorRT's libraries, is not installed"


def major_of(folder: Path) -> int:
    """The major version of the bindings in a folder, read without importing them."""
    text = (folder / "tensorrt_bindings" / "__init__.py").read_text("utf-8")
    found = re.search(r'^__version__ = "(\d+)\.', text, re.MULTILINE)
    assert found is not None, f"no version in {folder}"
    return int(found[1])


def run(script: str, folder: Path, *arguments: str) -> str:
    """Run Python code in a process in which ``tensorrt`` are the bindings; what it printed."""
    with tempfile.TemporaryDirectory(prefix="optc-stubs-") as stubs:
        source = Path(stubs) / "stubs.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in WANTED))
        for name in LIBRARIES:
            soname = f"lib{name}.so.{major_of(folder)}"
            command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", soname, source.name]
            subprocess.run(command, cwd=stubs, check=True)
        code = f"import sys\nsys.path.insert(0, {str(folder)!r})\n"
        code += "import tensorrt_bindings\nsys.modules['tensorrt'] = tensorrt_bindings\n" + script
        # The interpreter is started without the environment's own LD_LIBRARY_PATH, so that no real library is found.
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "LD_LIBRARY_PATH": stubs},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(folder: Path) -> dict[str, Any]:
    """The surface of the bindings in a folder."""
    return json.loads(run(_READER, folder))


#: Run in the other process. Docstrings that pybind11 writes begin with the signature, one for each overload.
_READER = r"""
import ctypes, inspect, json, re, tensorrt as trt

CALLED = ("instancemethod", "builtin_function_or_method", "staticmethod")
LINE = re.compile(r"^(?:\d+\. )?(\w+)\((.*)\) -> (.*)$")

def short(text):
    return re.sub(r"\b(?:tensorrt_bindings\.tensorrt|typing|typing_extensions|collections\.abc)\.", "", text)

def signatures(name, doc):
    found = [LINE.match(line) for line in (doc or "").splitlines()]
    return [short(f"({m[2]}) -> {m[3]}") for m in found if m and m[1] == name]

def accessor(function):
    lines = (function.__doc__ or "").strip().splitlines() if function else []
    return short(lines[0]) if lines and lines[0].startswith("(") else "(self) -> object"

def described(cls):
    methods, properties, constants = {}, {}, {}
    for name, member in vars(cls).items():
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, property) or type(member).__name__ == "pybind11_static_property":
            entry = {"get": accessor(member.fget)}
            if member.fset:
                entry["set"] = accessor(member.fset)
            properties[name] = entry
        elif callable(member) and type(member).__name__ in CALLED:
            found = signatures(name, member.__doc__)
            if found:
                methods[name] = found
        elif isinstance(member, int):
            constants[name] = int(member)
    bases = [b.__name__ for b in cls.__bases__ if hasattr(trt, b.__name__)]
    sequence = {"sequence": True} if "__getitem__" in vars(cls) or "__len__" in vars(cls) else {}
    # Python tells of the buffer protocol from 3.12 on only; until then it stands in the type's tp_as_buffer.
    slots = ctypes.c_void_p.from_address(id(cls) + 160).value
    buffer = {"buffer": True} if slots and ctypes.c_void_p.from_address(slots).value else {}
    return {"bases": bases, "methods": methods, "properties": properties, "constants": constants, **sequence, **buffer}

classes, enums, functions, values = {}, {}, {}, {}

def visit(name, cls):
    if hasattr(cls, "__members__"):
        enums[name] = {key: int(value) for key, value in cls.__members__.items()}
        return
    classes[name] = described(cls)
    for inner, member in vars(cls).items():
        if inspect.isclass(member) and member.__module__.startswith("tensorrt_bindings") and not inner.startswith("_"):
            visit(f"{name}.{inner}", member)

for name, member in vars(trt).items():
    if name.startswith("_"):
        continue
    if inspect.isclass(member) and member.__module__.startswith("tensorrt_bindings"):
        visit(name, member)
    elif callable(member) and signatures(name, getattr(member, "__doc__", "")):
        functions[name] = signatures(name, member.__doc__)
    elif type(member).__name__ == "DataType":
        values[name] = member.name
found = {"classes": classes, "enums": enums, "functions": functions, "values": values}
print(json.dumps({"version": trt.__version__, **found}))
"""


def write(surface: dict[str, Any], path: Path) -> None:
    """Store a surface: one line for each class, so that changes can be read."""
    parts = []
    for section, content in sorted(surface.items()):
        if isinstance(content, dict):
            lines = [
                f" {json.dumps(name)}: {json.dumps(entry, sort_keys=True)}" for name, entry in sorted(content.items())
            ]
            parts.append(f"{json.dumps(section)}: {{\n" + ",\n".join(lines) + "\n}")
        else:
            parts.append(f"{json.dumps(section)}: {json.dumps(content)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", "utf-8")


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else installed()
    assert place is not None, missing()
    write(read(place), snapshot(major_of(place)))
