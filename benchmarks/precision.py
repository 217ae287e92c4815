"""FP16 by optc beside the converters that ONNX Runtime and ONNX's own tools bring: casts, nodes, bytes, error.

    python benchmarks/precision.py MODEL.onnx ... [--dim batch=1 --dim seq=64] [--store NAME]

Every contender gets the model as it is and keeps the types of its inputs and outputs: optc at -O3 for a GPU with and
without calibration data (quantization left out), ``onnxruntime.transformers.float16`` and, where it is installed,
``onnxconverter_common.float16``, as their users call them, and the first of them on what optc's -O2 makes of the model,
which has the same fused operators. Results are run by ONNX Runtime on the CPU with its own optimizations off, which
computes FP16 with FP32 kernels and rounds what they write; so errors are those of a GPU, and times would mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from harness import machine
from harness.inputs import make_feeds, open_session
from harness.tables import document, find_models, markdown, public, shown

import optc
from optc.measure import relative_error

RESULTS = Path(__file__).resolve().parent / "results"
HEADER = ["converter", "nodes", "casts", "in FP16", "bytes", "error", "inputs x100"]
#: Sets of inputs that optc may look at; errors are measured on another one.
_CALIBRATION, _TARGET = 4, "a100"
_FLOAT16 = onnx.TensorProto.FLOAT16


def convert(model: Path, out: Path, module: str) -> None:
    """A peer's conversion with its defaults, but for the types of inputs and outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for every constant that it changes
        converted = importlib.import_module(module).convert_float_to_float16(onnx.load(model), keep_io_types=True)
    onnx.save(converted, out)


def compile_with(model: Path, out: Path, calib: Mapping[str, np.ndarray] | None, level: int = 3) -> None:
    """optc's conversion."""
    options = {"level": level, "target": _TARGET, "backend": "onnxruntime", "verify": "off", "calib_cache": "off"}
    optc.compile(model, output=out, calib=calib, skip=("quantize",) if level == 3 else (), **options)


def contenders(calib: Mapping[str, np.ndarray]) -> dict[str, Callable[[Path, Path], None]]:
    """What makes a result, by name; peers that are not installed are left out."""

    def peer_after_o2(model: Path, out: Path) -> None:
        between = out.with_suffix(".o2.onnx")
        compile_with(model, between, None, level=2)
        convert(between, out, "onnxruntime.transformers.float16")

    found: dict[str, Callable[[Path, Path], None]] = {
        "optc -O3": lambda model, out: compile_with(model, out, None),
        "optc -O3 --calib": lambda model, out: compile_with(model, out, calib),
        "ort float16": lambda model, out: convert(model, out, "onnxruntime.transformers.float16"),
        "optc -O2, ort float16": peer_after_o2,
    }
    if importlib.util.find_spec("onnxconverter_common") is not None:
        found["onnxconverter-common"] = lambda model, out: convert(model, out, "onnxconverter_common.float16")
    return found


def in_half(model: onnx.ModelProto) -> int:
    """How many nodes, casts aside, make numbers of 16 bits: their types follow from shape inference and operands."""
    half = {tensor.name for tensor in model.graph.initializer if tensor.data_type == _FLOAT16}
    count = 0
    for node in model.graph.node:
        if node.op_type == "Cast":
            narrow = next(a.i for a in node.attribute if a.name == "to") == _FLOAT16
        elif node.op_type == "Constant":
            narrow = any(a.t.data_type == _FLOAT16 for a in node.attribute if a.name == "value")
        else:
            narrow = node.op_type not in _NO_FLOATS and any(name in half for name in node.input)
            count += narrow
        half |= set(node.output) if narrow else set()
    return count


#: Operators that read floats and make none.
_NO_FLOATS = frozenset({"Shape", "Size", "Equal", "Less", "Greater", "ArgMax", "IsNaN", "NonZero"})


def error(result: Path, feeds: Mapping[str, np.ndarray], wanted: list[np.ndarray]) -> float:
    """The worst relative L2 error of an output."""
    found = open_session(str(result), optimize=False).run(None, dict(feeds))
    named = [{str(index): array for index, array in enumerate(arrays)} for arrays in (wanted, found)]
    return relative_error(*([one] for one in named))


def compare(model: Path, dims: Mapping[str, int]) -> str:
    """The table of one model."""
    session = open_session(str(model), optimize=False)
    sets = [make_feeds(session, dims, seed) for seed in range(_CALIBRATION + 1)]
    usual, seen = sets[0], sets[1:]
    floats = any(array.dtype == np.float32 for array in usual.values())
    large = {name: array * np.float32(100) if array.dtype == np.float32 else array for name, array in usual.items()}
    wanted = [session.run(None, feeds) for feeds in (usual, large)]
    calib = {name: np.concatenate([one[name] for one in [*seen, *([large] if floats else [])]]) for name in usual}
    rows = [HEADER]
    with tempfile.TemporaryDirectory() as folder:
        for name, make in contenders(calib).items():
            out = Path(folder) / f"{len(rows)}.onnx"
            try:
                make(model, out)
                made = onnx.load(out)
                casts = sum(node.op_type == "Cast" for node in made.graph.node)
                size = sum(file.stat().st_size for file in Path(folder).glob(f"{out.name}*"))
                errors = [error(out, usual, wanted[0]), error(out, large, wanted[1]) if floats else None]
            except Exception as problem:  # peers raise anything; their row says so
                rows.append([name, f"{type(problem).__name__}: {str(problem).splitlines()[0][:90]}"])
                continue
            told = [shown(one, ".1e") if one is None or np.isfinite(one) else "not finite" for one in errors]
            rows.append(
                [
                    name,
                    str(sum(node.op_type != "Constant" for node in made.graph.node)),
                    str(casts),
                    str(in_half(made)),
                    f"{size:,d}",
                    *told,
                ]
            )
    return markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=SIZE")
    parser.add_argument("--store", help="write results/NAME.md")
    arguments = parser.parse_args()
    dims = {name: int(size) for name, size in (dim.split("=") for dim in arguments.dim)}
    tables = {}
    for model in find_models(arguments.models):
        tables[model.name] = compare(model, dims)
        print(f"\n{model.name}\n\n{tables[model.name]}", flush=True)
    if arguments.store:
        conditions = f"target {_TARGET}; calibrated on {_CALIBRATION} drawn inputs, and one of them x100"
        told = public(sys.argv[1:])
        text = document("FP16", "precision.py", told, [machine.versions()], conditions, tables)
        (RESULTS / f"{arguments.store}.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
