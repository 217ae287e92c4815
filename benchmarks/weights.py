"""Time and memory of quantizing the weights of a large model, optc beside ONNX Runtime's own quantizer.

    python benchmarks/weights.py tinyllama.onnx [--technique int4-rtn-g32 ...] [--store weights]

All start from one file, the model after optc -O1, in which weights lie as products read them. Every technique runs in a
process of its own, from starting the interpreter to having written the result. Those that look at activations
("gptq", "awq") get a few short samples drawn from the model's signature unless --calib names a file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from harness import machine
from harness.inputs import DTYPES
from harness.process import run_measured
from harness.tables import document, markdown, public, shown
from harness.weight_only import command, prepare

RESULTS = Path(__file__).resolve().parent / "results"
HEADER = ("technique", "seconds", "peak MiB", "bytes", "quantized products")
TECHNIQUES = ("ort-g32", "int4-rtn-g32", "int4-mse-g32")


def write_samples(model: Path, path: Path, count: int, tokens: int) -> None:
    """Token ids drawn from below 256, and masks of ones: enough to run; says nothing about accuracy."""
    random = np.random.default_rng(0)
    arrays = {}
    for given in onnx.load(model, load_external_data=False).graph.input:
        kind = onnx.helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
        assert kind.type in DTYPES.values()
        for index in range(count):
            shape = (1, tokens)
            array = np.ones(shape, kind) if "mask" in given.name else random.integers(0, 256, shape).astype(kind)
            arrays[f"{given.name}.{index}"] = array
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def products(path: Path) -> int:
    """How many products with quantized weights a model has."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return sum(node.op_type == "MatMulNBits" for node in nodes)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--technique", action="append", help="see harness/weight_only.py; may be given several times")
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--timeout", type=float, default=1800)
    parser.add_argument("--scratch", type=Path, help="folder for intermediate files")
    parser.add_argument("--store", metavar="NAME", help="write benchmarks/results/NAME.md")
    options = parser.parse_args(arguments)
    rows = [list(HEADER)]
    with tempfile.TemporaryDirectory(prefix="weights-", dir=options.scratch) as name:
        folder = Path(name)
        prepared = folder / "prepared" / options.model.name
        prepared.parent.mkdir()
        done = run_measured(prepare(options.model.resolve(), prepared), options.timeout)
        if done.failure is not None:
            raise SystemExit(f"{options.model.name} cannot be prepared: {done.failure}")
        calib = options.calib.resolve() if options.calib else folder / "samples.npz"
        if options.calib is None:
            write_samples(prepared, calib, options.samples, options.tokens)
        for technique in options.technique or TECHNIQUES:
            out = folder / "result" / options.model.name
            out.parent.mkdir()
            done = run_measured(command(technique, prepared, out, calib, prepared=True), options.timeout)
            row = [technique, shown(done.seconds, ".1f"), shown(done.peak_bytes / 2**20, ".0f")]
            files = list(out.parent.iterdir())
            row += (
                [done.failure] if done.failure else [f"{sum(f.stat().st_size for f in files):,d}", str(products(out))]
            )
            rows.append(row)
            print(f"  {' | '.join(row)}", file=sys.stderr, flush=True)
            for file in files:
                file.unlink()
            out.parent.rmdir()
    table = markdown(rows)
    print(table)
    if options.store:
        conditions = f"{options.samples} samples of {options.tokens} tokens for techniques that look at activations"
        title, found_versions = f"Weights: {options.store}", [machine.versions()]
        text = document(title, "weights.py", public(arguments), found_versions, conditions, {options.model.name: table})
        (RESULTS / f"{options.store}.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
