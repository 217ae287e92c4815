"""What TensorRT bundles hold, in FP16, BF16 and INT8: whether TensorRT's table takes them, and how far off they are.

    python benchmarks/tensorrt.py MODEL.onnx ... [--target a100] [--dim batch=1] [--store NAME]

Every model is compiled to a bundle three times, with a few drawn inputs as calibration data. Its file is held against
the table of what TensorRT takes, and run by ONNX Runtime on the CPU on inputs that were not calibrated, beside the
original. BF16 has no kernels there; its error is that of an emulated copy. Nothing is built and nothing timed: that
takes a GPU. There is no peer beside it: NVIDIA's own tool for this (ModelOpt) wants PyTorch and a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from harness import machine
from harness.inputs import make_feeds, open_session
from harness.tables import document, find_models, markdown, public, shown

import optc
from optc.backends.tensorrt.check import check
from optc.ir.errors import OptcError
from optc.ir.model import load
from optc.measure import relative_error
from optc.passes.levels import builtin_levels

Feeds = Mapping[str, np.ndarray]
RESULTS = Path(__file__).resolve().parent / "results"
HEADER = ["types", "nodes", "casts", "Q/DQ pairs", "MiB", "not taken", "error, calibrated", "budget", "unseen", "s"]
#: What is added to -O2 for TensorRT, with the error budget.
TYPES = {
    "FP16": ("mixed-precision{dtype=fp16}", 0.03),
    "BF16": ("mixed-precision{dtype=bf16}", 0.03),
    "INT8 + FP16": ("split-projections,quantize{techniques=[static-int8]},mixed-precision{dtype=fp16}", 0.1),
}
_BEFORE = builtin_levels()[2].text
_CALIBRATION = 4


def row(
    model: Path, types: str, target: str, calib: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]
) -> list[str]:
    """One bundle."""
    passes, budget = TYPES[types]
    wanted = open_session(str(model), optimize=False).run(None, dict(feeds))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "m.trt"
        try:
            result = optc.compile(
                model, passes=f"{_BEFORE},{passes},dce", target=target, backend="tensorrt", output=out, calib=calib,
                calib_cache="off", max_error=budget, measure=False,
            )  # fmt: skip
        except OptcError as error:
            return [types, error.what.splitlines()[0][:100]]
        seconds = time.perf_counter() - start
        file = out / "model.onnx"
        found = onnx.load(file, load_external_data=False)
        ops = Counter(node.op_type for node in found.graph.node)
        problems = check(load(file))
        try:
            outputs = open_session(str(file), optimize=False).run(None, dict(feeds))
            named = [{str(index): array for index, array in enumerate(arrays)} for arrays in (wanted, outputs)]
            unseen = shown(relative_error(*([one] for one in named)), ".1e")
        except Exception as error:  # of the runtime: BF16 has few kernels on a CPU
            unseen = "not run: the CPU has no kernels" if "NOT_IMPLEMENTED" in str(error) else str(error)[:80]
        size = sum(part.stat().st_size for part in out.iterdir())
        verification = result.report.verification
        decided = [one.error for one in result.report.decisions if one.kept and one.error]
        error = verification.worst_error if verification.status == "passed" else max(decided, default=None)
        return [
            types,
            str(sum(ops.values())),
            str(ops["Cast"]),
            str(ops["DequantizeLinear"]),
            f"{size / 2**20:.1f}",
            str(len(problems)),
            shown(error, ".1e"),
            str(budget),
            unseen,
            f"{seconds:.0f}",
        ]


def compare(model: Path, target: str, dims: Mapping[str, int]) -> str:
    """The table of one model."""
    session = open_session(str(model), optimize=False)
    sets = [make_feeds(session, dims, seed) for seed in range(_CALIBRATION + 1)]
    calib = {name: np.concatenate([one[name] for one in sets[1:]]) for name in sets[0]}
    return markdown([HEADER, *(row(model, types, target, calib, sets[0]) for types in TYPES)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--target", default="a100")
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=SIZE")
    parser.add_argument("--store", help="write results/NAME.md")
    arguments = parser.parse_args()
    dims = {name: int(size) for name, size in (dim.split("=") for dim in arguments.dim)}
    tables = {}
    for model in find_models(arguments.models):
        tables[model.name] = compare(model, arguments.target, dims)
        print(f"\n{model.name}\n\n{tables[model.name]}", flush=True)
    if arguments.store:
        conditions = f"target {arguments.target}; calibrated on {_CALIBRATION} drawn inputs; nothing was run on a GPU"
        text = document(
            "TensorRT bundles", "tensorrt.py", public(sys.argv[1:]), [machine.versions()], conditions, tables
        )
        (RESULTS / f"{arguments.store}.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
