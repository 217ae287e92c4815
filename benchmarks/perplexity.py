"""What quantized weights cost a language model, against the original.

    python examples/language_model/train.py lm.onnx
    python benchmarks/perplexity.py lm.onnx [--technique int4-gptq-g128 ...] [--store perplexity]

The text is that of examples/language_model: files of Python's standard library that training has not seen; the
calibration takes others. Each technique (see harness/weight_only.py) quantizes the model in a process of its own; the
perplexities are of the same windows, so that small differences between them mean something.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
from harness import machine
from harness.inputs import open_session
from harness.process import run_measured
from harness.tables import document, markdown, public, shown
from harness.weight_only import command

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
TEXT = HERE.parent / "examples" / "language_model" / "text.py"
HEADER = ("technique", "bytes", "seconds", "perplexity", "above the original", "of RTN's gap")
METHODS = ("ort-{}", "ort-k-quant-{}", "int4-rtn-{}", "int4-mse-{}", "int4-awq-{}", "int4-gptq-{}", "int4-rtn-{}-zeros")
METHODS += ("int4-hqq-{}-float", "int4-k-quant-{}-zeros", "int4-awq-{}-zeros", "int4-gptq-{}-zeros")
TECHNIQUES = tuple(method.format(block) for block in ("g128", "g32") for method in METHODS)
TOKENS, BATCH = 192, 16


def load_text() -> ModuleType:
    """The example's own module."""
    spec = importlib.util.spec_from_file_location("language_model_text", TEXT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def windows(text: bytes, count: int, seed: int) -> np.ndarray:
    """Windows of a text at drawn places, (count, TOKENS + 1) int64."""
    data = np.frombuffer(text, np.uint8).astype(np.int64)
    starts = np.random.default_rng(seed).integers(0, len(data) - TOKENS - 1, count)
    return np.stack([data[start : start + TOKENS + 1] for start in starts])


def feeds(session: onnxruntime.InferenceSession, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The model's inputs: the tokens, and a mask of ones where it wants one."""
    names = [given.name for given in session.get_inputs()]
    return {name: np.ones_like(ids) if "mask" in name else ids for name in names}


def perplexity(session: onnxruntime.InferenceSession, samples: np.ndarray) -> float:
    """The exponential of the mean negative log-likelihood of every token but the first of each window."""
    total = 0.0
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        logits = session.run(None, feeds(session, batch[:, :-1]))[0].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        likelihood = np.take_along_axis(logits, batch[:, 1:, None], 2)[..., 0] - np.log(np.exp(logits).sum(-1))
        total -= likelihood.sum()
    return float(np.exp(total / (len(samples) * TOKENS)))


def write_calibration(path: Path, session: onnxruntime.InferenceSession, samples: np.ndarray) -> None:
    """One batch per sample, stacked."""
    given = [feeds(session, samples[at : at + BATCH, :-1]) for at in range(0, len(samples), BATCH)]
    with path.open("wb") as stream:
        np.savez(stream, **{f"{name}.{at}": array for at, feed in enumerate(given) for name, array in feed.items()})


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--technique", action="append", help="see harness/weight_only.py; may be given several times")
    parser.add_argument("--windows", type=int, default=256, help=f"windows of {TOKENS} tokens to judge by")
    parser.add_argument("--calibration", type=int, default=64, help="windows to calibrate with")
    parser.add_argument("--timeout", type=float, default=900)
    parser.add_argument("--store", metavar="NAME", help="write benchmarks/results/NAME.md")
    options = parser.parse_args(arguments)
    module = load_text()
    judged = windows(module.text(held_out=True), options.windows, 0)
    session = open_session(str(options.model), optimize=True, threads=1)
    original = perplexity(session, judged)
    rows = [["original", f"{options.model.stat().st_size:,d}", "-", f"{original:.4f}", "-", "-"]]
    gaps: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="perplexity-") as folder:
        calibration, out = Path(folder, "calibration.npz"), Path(folder, "out.onnx")
        write_calibration(calibration, session, windows(module.text(held_out=False), options.calibration, 1))
        for technique in options.technique or TECHNIQUES:
            out.unlink(missing_ok=True)
            done = run_measured(command(technique, options.model.resolve(), out, calibration), options.timeout)
            row = [technique, "-", shown(done.seconds, ".1f"), done.failure or ""]
            if done.failure is None:
                found = perplexity(open_session(str(out), optimize=True, threads=1), judged)
                block = "".join(re.findall(r"-g\d+", technique))
                gaps.setdefault(block, found - original) if re.fullmatch(r"int4-rtn-g\d+", technique) else None
                share = (found - original) / gaps[block] if gaps.get(block) else None
                row = [technique, f"{out.stat().st_size:,d}", shown(done.seconds, ".1f"), f"{found:.4f}"]
                row += [f"{found - original:+.4f}", "-" if share is None else f"{share:.0%}".replace("%", " %")]
            rows.append(row)
            print(f"  {' | '.join(row)}", file=sys.stderr, flush=True)
    table = markdown([list(HEADER), *rows])
    print(table)
    if options.store:
        conditions = (
            f"{options.windows} windows of {TOKENS} tokens judged, {options.calibration} others to calibrate with"
        )
        title, found_versions = f"Perplexity: {options.store}", [machine.versions()]
        tables = {options.model.name: table}
        text = document(title, "perplexity.py", public(arguments), found_versions, conditions, tables)
        (RESULTS / f"{options.store}.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
