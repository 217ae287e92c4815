"""What a result has to say about where it was measured. Standard library only."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)
PACKAGES = ("optc", "onnx", "onnx-ir", "onnxruntime", "onnxsim", "onnxslim", "onnxscript", "openvino", "nncf", "numpy")
_VERSIONS = """
import importlib.metadata as metadata, sys
for name in sys.argv[1:]:
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        pass
"""


def describe() -> dict[str, str]:
    """CPU model, usable cores, the instruction sets that matter for inference, memory, system, Python."""
    cpuinfo = Path("/proc/cpuinfo")
    fields = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else str(os.cpu_count()),
        "flags": " ".join(flag for flag in CPU_FLAGS if flag in flags) or "none of note",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions(python: str | Path = sys.executable) -> dict[str, str]:
    """Installed versions of the packages that take part, in that interpreter."""
    done = subprocess.run(
        [python, "-c", _VERSIONS, *PACKAGES], capture_output=True, text=True, check=True, timeout=60, cwd="/"
    )
    return dict(line.split() for line in done.stdout.splitlines())
