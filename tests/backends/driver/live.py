"""Runs an artifact by way of the real cuda-bindings, on the driver of libcuda.c; prints what that driver was told.

    PYTHON tests/backends/driver/live.py ARTIFACT

PYTHON needs cuda-bindings, NumPy and ml_dtypes. Nothing is computed: what is shown is that handles, addresses, sizes
and arguments arrive at the driver as they were meant, which a double in Python cannot show.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent


def started() -> None:
    """Build the driver, and start again where it is found."""
    folder = tempfile.mkdtemp(prefix="optc-libcuda-")
    target = Path(folder) / "libcuda.so.1"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", "-o", str(target), str(HERE / "libcuda.c")]
    subprocess.run(command, check=True)
    paths = os.pathsep.join(filter(None, (str(HERE.parents[2]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "LD_LIBRARY_PATH": folder, "OPTC_LIVE": folder, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=environment)
    target.unlink()
    Path(folder).rmdir()
    sys.exit(done.returncode)


def main(artifact: Path) -> dict[str, object]:
    import numpy as np  # noqa: PLC0415

    from optc.backends.triton.runtime import TritonRunner  # noqa: PLC0415
    from optc.ir.errors import BackendError  # noqa: PLC0415

    stub = ctypes.CDLL("libcuda.so.1")
    stub.stub_log.restype = ctypes.c_char_p
    plan = json.loads((artifact / "plan.json").read_text())
    for entry in plan["kernels"].values():
        variant = entry["variants"]["sm_80"]
        sizes = variant["parameters"]
        stub.stub_kernel(variant["symbol"].encode(), len(sizes), (ctypes.c_int * len(sizes))(*sizes))
    found: dict[str, object] = {}

    def told() -> list[str]:
        text = stub.stub_log().decode().splitlines()
        stub.stub_clear()
        return text

    def expected() -> list[str]:
        (session, _) = next(reversed(runner._device._sessions.values()))
        names = {int(function): name for name, function in runner._device._functions.items()}
        lines = []
        for launch in session._launches:
            symbol = plan["kernels"][names[int(launch.function)]]["variants"]["sm_80"]["symbol"]
            values, kinds = launch.parameters(session._addresses)
            values = [v % 2**64 if k is ctypes.c_void_p else v % 2**32 for v, k in zip(values, kinds, strict=True)]
            grid = ",".join(map(str, launch.grid))
            lines.append(f"launch {symbol} {grid} {launch.threads},1,1 {launch.shared} 1 {' '.join(map(str, values))}")
        return lines

    runner = TritonRunner(artifact, "cuda")
    found["opening"] = told()
    feeds = {
        tensor.name: np.zeros([int(d) if d.isdecimal() else 3 for d in tensor.shape], np.float32)
        for tensor in runner.artifact.plan.inputs
    }
    for what in ("alone", "recorded", "replayed"):
        runner.run(feeds)
        found[what], found[f"{what}, expected"] = told(), expected()
    arrays = {}
    for name, array in feeds.items():
        address = array.ctypes.data if array.ctypes.data % 16 == 0 else None
        if address is not None:
            interface = {"shape": array.shape, "typestr": array.dtype.str, "data": (address, False), "version": 3}
            arrays[name] = SimpleNamespace(__cuda_array_interface__=interface)
    left = runner.run_on_device({**feeds, **arrays})
    found["in place"], found["in place, expected"] = told(), expected()
    found["addresses"] = [array.__cuda_array_interface__["data"][0] for array in arrays.values()]
    found["outputs"] = {name: array.address for name, array in left.items()}
    found["capsule"] = str(next(iter(left.values())).__dlpack__())
    stub_stream = int(runner._device._stream)
    runner.run_on_device(feeds, stream=stub_stream)
    try:
        big = {name: np.zeros((1 << 22, *array.shape[1:]), np.float32) for name, array in feeds.items()}
        runner.run(big)
    except BackendError as error:
        found["too much"] = str(error)
    del left
    runner.close()
    found["alive"] = stub.stub_alive()
    return found


if __name__ == "__main__":
    if "OPTC_LIVE" not in os.environ:
        started()
    print(json.dumps(main(Path(sys.argv[1]))))
