"""What is inside a compiled kernel: registers, spills, shared memory, and the instructions that matter.

Read with the ``cuobjdump`` and ``nvdisasm`` that Triton brings along; no GPU and no CUDA toolkit are needed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import triton

from optc.ir.errors import BackendError

#: What is counted -> the SASS mnemonics that do it.
_COUNTED = {
    "mma": ("HMMA", "IMMA", "QMMA", "BMMA", "DMMA", "HGMMA", "IGMMA", "QGMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA"),
    "ldmatrix": ("LDSM",),
    "async_copy": ("LDGSTS", "UTMALDG"),
    "load": ("LDG",),
    "store": ("STG",),
    "spill_load": ("LDL",),
    "spill_store": ("STL",),
}
_MNEMONIC = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", re.MULTILINE)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel needs of a multiprocessor.

    Attributes:
        registers: Registers of one thread.
        stack: Bytes of local memory of one thread: what did not fit into registers.
        instructions: How many instructions of each kind it has (static count): "mma", "ldmatrix", "async_copy",
            "load", "store", "spill_load", "spill_store", and "all".
    """

    registers: int
    stack: int
    instructions: Mapping[str, int]

    @property
    def spills(self) -> int:
        """Instructions that move registers to or from local memory."""
        return self.instructions["spill_load"] + self.instructions["spill_store"]


def inspect(cubin: bytes) -> Resources:
    """Read a cubin that holds one kernel."""
    tools = triton.knobs.nvidia
    with tempfile.TemporaryDirectory(prefix="optc-") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _USAGE.search(_run(tools.cuobjdump.path, "-res-usage", str(path)))
        listing = _run(tools.nvdisasm.path, "-c", str(path))
    if usage is None:
        raise BackendError("cuobjdump says nothing of the registers of a kernel", hint="reinstall triton")
    registers, stack, _ = map(int, usage.groups())
    return Resources(registers, stack, count_instructions(listing))


def count_instructions(listing: str) -> dict[str, int]:
    """Instructions of each kind in a SASS listing."""
    kinds = {mnemonic: kind for kind, mnemonics in _COUNTED.items() for mnemonic in mnemonics}
    counts = dict.fromkeys(("all", *_COUNTED), 0)
    for mnemonic in _MNEMONIC.findall(listing):
        counts["all"] += 1
        if mnemonic in kinds:
            counts[kinds[mnemonic]] += 1
    return counts


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(f"{Path(command[0]).name} failed: {done.stderr.strip()}", hint="reinstall triton")
    return done.stdout + done.stderr
