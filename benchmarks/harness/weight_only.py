"""Ways to quantize weights, by name, for the benchmarks that judge them:

    python weight_only.py NAME MODEL OUT [--calib FILE] [--prepared]

``int4-gptq-g32`` is optc's pass quantize-weights after -O2 (``int4-gptq-g32-zeros`` with zero points); a name that
begins with ``optc`` is an optc command line (``"optc -O3 --max-error 0.1"``); ``ort-g32`` is the quantizer of
MatMulNBits that ONNX Runtime comes with, with its defaults, and ``ort-k-quant-g32`` and ``ort-hqq-g32`` its others. A
model that is prepared has its weights as products read them already: it is quantized as it is.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_OURS = re.compile(
    r"int(?P<bits>[48])-(?P<method>rtn|mse|hqq|k-quant|awq|gptq)-g(?P<block>\d+)(?P<zeros>-zeros|-float)?"
)
_ORTS = re.compile(r"ort(?P<method>-k-quant|-hqq)?-g(?P<block>\d+)")
_QUIET = ("--target=cpu", "--verify=off", "--no-measure")


def command(name: str, model: Path, out: Path, calib: Path | None = None, prepared: bool = False) -> list[str]:
    """The command that makes ``out`` of ``model``.

    Raises:
        ValueError: There is no such way.
    """
    given = [f"--calib={calib}"] if calib is not None else []
    if name.startswith("optc "):
        return [sys.executable, "-m", "optc.tools.cli", str(model), *name.split()[1:], *given, "-o", str(out)]
    if not (_OURS.fullmatch(name) or _ORTS.fullmatch(name)):
        raise ValueError(f"no way to quantize is named {name!r}")
    flags = [*given, *(["--prepared"] if prepared else [])]
    return [sys.executable, str(Path(__file__)), name, str(model), str(out), *flags]


def prepare(model: Path, out: Path) -> list[str]:
    """The command that folds what lies between weights and products: ONNX Runtime's quantizer takes no other ones."""
    return [sys.executable, "-m", "optc.tools.cli", str(model), "-O1", *_QUIET, "-o", str(out)]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.strip()


def _ours(found: re.Match[str], options: argparse.Namespace) -> None:
    """-O2's own pipeline, then the pass; both as text, so that what runs can be seen and repeated."""
    cli = [sys.executable, "-m", "optc.tools.cli", str(options.model)]
    zeros = {"-zeros": "integer", "-float": "float", None: "none"}[found["zeros"]]
    settings = f"method={found['method']},bits={found['bits']},block={found['block']},zeros={zeros}"
    passes = f"quantize-weights{{{settings}}}"
    if not options.prepared:
        passes = f"{_run([*cli, '-O2', '--print-pipeline'])},split-projections,{passes}"
    extra = [f"--calib={options.calib}"] if options.calib and found["method"] in ("awq", "gptq") else []
    _run([*cli, "--passes", passes, *_QUIET, *extra, "-o", str(options.out)])


def _onnxruntimes(found: re.Match[str], options: argparse.Namespace) -> None:
    if options.prepared:
        _quantize(found, options.model, options.out)
        return
    with tempfile.TemporaryDirectory(prefix="prepared-", dir=options.out.parent) as folder:
        prepared = Path(folder, "prepared.onnx")
        _run(prepare(options.model, prepared))
        _quantize(found, prepared, options.out)


def _quantize(found: re.Match[str], model: Path, out: Path) -> None:
    onnx, quantizers = (
        importlib.import_module(name) for name in ("onnx", "onnxruntime.quantization.matmul_nbits_quantizer")
    )
    block, settings = int(found["block"]), {}
    if found["method"] == "-k-quant":
        settings = {"algo_config": quantizers.KQuantWeightOnlyQuantConfig()}
    elif found["method"] == "-hqq":
        settings = {"algo_config": quantizers.HQQWeightOnlyQuantConfig(block_size=block)}
    quantizer = quantizers.MatMulNBitsQuantizer(onnx.load(model), block_size=block, is_symmetric=True, **settings)
    quantizer.process()
    size = sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*"))
    quantizer.model.save_model_to_file(str(out), size > 1_800_000_000)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--prepared", action="store_true")
    options = parser.parse_args(arguments)
    if (found := _OURS.fullmatch(options.name)) is not None:
        _ours(found, options)
    elif (found := _ORTS.fullmatch(options.name)) is not None:
        _onnxruntimes(found, options)
    else:
        parser.error(f"no way to quantize is named {options.name!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
