"""What pruning gains, and what it costs.

    python benchmarks/prune.py [--channels resnet50.onnx] [--sentences minilm.onnx --vocabulary vocab.txt] [--digits]
        [--peers PYTHON] [--store]

``--channels`` prunes half of all channels of a network, for speed alone (weights may be random), beside Torch-Pruning
where ``--peers`` names an interpreter that has it; ``--sentences`` prunes a sentence embedder and judges it on real
sentences, alone, with INT8 and beside low rank; ``--digits`` prunes the classifiers in examples/digits inside a budget
of accuracy, alone and with INT8, beside onnxsim where ``--peers`` has it.
All results of one table are timed in turns, in one process.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine
from harness.inputs import open_session
from harness.process import run_measured
from harness.tables import markdown, public, shown
from harness.wordpiece import WordPiece
from sentences import batches, embed, find_vocabulary, neighbours, sentences, write_calibration

from optc.ir.model import load
from optc.passes.compress.prune.cost import parameters
from optc.passes.levels import builtin_levels

HERE = Path(__file__).resolve().parent
STORED = HERE / "results" / "compression-structure.md"
DIGITS = HERE.parent / "examples" / "digits"
#: What -O3 does to a graph before anything lossy, and afterwards.
_SPLIT = "split-convolutions,split-projections"
_JOIN = "fuse{only=[conv-activation,conv-add-activation,conv-add],guard=false},emit,dce"
_INT8 = "quantize{techniques=[dynamic-int8],min_gain=0.0}"
_JUDGED, _CALIBRATION = 1000, 128


def compile_(model: Path, out: Path, lossy: str, *options: str, timeout: float = 1200) -> dict[str, Any]:
    """-O2 and then lossy passes, in a process of its own; the report, or {"failure": why}."""
    report = out.with_suffix(".json")
    passes = ",".join(part for part in (builtin_levels()[2].text, _SPLIT, lossy, _JOIN) if part)
    command = [sys.executable, "-m", "optc.tools.cli", str(model), "--passes", passes, "-o", str(out)]
    done = run_measured([*command, "--report", str(report), *options], timeout)
    return {"failure": done.failure} if done.failure else {**json.loads(report.read_text()), "wall": done.seconds}


def sizes(report: dict[str, Any]) -> tuple[str, str]:
    """Parameters and arithmetic behind pruning, as shares of those before."""
    for decision in report.get("decisions", []):
        if decision["kept"] and (found := re.findall(r"([\d,]+) parameters, ([\d.,e+]+) MFLOP", decision["reason"])):
            (params, flops), (left, less) = ((float(p.replace(",", "")), float(f.replace(",", ""))) for p, f in found)
            return f"{left / params:.2f}", f"{flops / less:.2f}x"
    return "1.00", "1.00x"


def timed(
    models: dict[str, Path], settings: list[dict[str, int]], seconds: float, rounds: int = 9
) -> dict[str, dict[str, float]]:
    """Times of models in turns, in a process of its own with one thread; the first is the reference."""
    with tempfile.TemporaryDirectory() as folder:
        spec, out = Path(folder, "spec.json"), Path(folder, "out.json")
        paths = {name: str(path) for name, path in models.items()}
        spec.write_text(
            json.dumps({"models": paths, "settings": settings, "threads": 1, "seconds": seconds, "rounds": rounds})
        )
        done = run_measured([sys.executable, str(HERE / "harness" / "latency.py"), str(spec), str(out)], 1800)
        if done.failure:
            raise SystemExit(done.failure)
        return json.loads(out.read_text())[0]["models"]


def channels(model: Path, peers: Path | None, seconds: float, folder: Path) -> str:
    """Half of all channels of a network."""
    rows = [["result", "parameters", "fewer FLOPs", "median ms", "speed"]]
    whole, half = folder / "o2.onnx", folder / "half.onnx"
    compile_(model, whole, "", "--verify=off", "--no-measure")
    report = compile_(model, half, "prune{ratio=0.5}", "--verify=off", "--no-measure")
    found = timed({"original": model, "-O2": whole, "-O2, half": half}, [{"batch": 1, "batch_size": 1}], seconds)
    found = {name: found[name] for name in ("original", "-O2", "-O2, half")}
    shares = {"original": ("1.00", "1.00x"), "-O2": ("1.00", "1.00x"), "-O2, half": sizes(report)}
    for name, row in found.items():
        rows.append([f"optc: {name}", *shares[name], f"{row['median_ms']:.2f}", f"{row['speed']:.2f}x"])
    if peers is not None:
        done = run_measured([str(peers), str(HERE / "harness" / "torch_pruned.py"), str(folder), "0.5"], 900)
        if done.failure:
            rows.append([f"Torch-Pruning: {done.failure}"])
        else:
            pair = {"whole": folder / "whole.onnx", "half": folder / "pruned.onnx"}
            other = timed(pair, [{}], seconds)
            for name, row in other.items():
                share = pair[name].stat().st_size / pair["whole"].stat().st_size
                cells = [f"{share:.2f}", "-", f"{row['median_ms']:.2f}", f"{row['speed']:.2f}x"]
                rows.append([f"Torch-Pruning: {name}", *cells])
    return markdown(rows)


def embeddings(model: Path, vocabulary: Path | None, seconds: float, folder: Path) -> str:
    """A sentence embedder, pruned, in INT8 and both."""
    tokenizer, texts = WordPiece(find_vocabulary(vocabulary)), sentences()
    feeds = batches(sorted(texts[:_JUDGED], key=len), tokenizer)
    session = open_session(str(model), optimize=True, threads=1)
    names = {given.name for given in session.get_inputs()}
    expected = embed(session, feeds)
    nearest = neighbours(expected)
    data = folder / "calibration.npz"
    write_calibration(data, batches(sorted(texts[_JUDGED : _JUDGED + _CALIBRATION], key=len), tokenizer), names)
    ways = {"-O2": "", "INT8": _INT8}
    for schedule in ("ffn=0.125", "ffn=0.25", "ffn=0.5", "heads=0.125", "heads=0.25", "ffn=0.25;heads=0.125"):
        ways[schedule] = f'prune{{schedule="{schedule}"}}'
    for schedule in ("ffn=0.125", "ffn=0.25"):
        ways[f"{schedule}, then INT8"] = f'prune{{schedule="{schedule}"}},{_INT8}'
    ways["low rank 0.8"] = "low-rank{ratio=0.8}"
    ways["ffn=0.125, low rank 0.8, INT8"] = f'prune{{schedule="ffn=0.125"}},low-rank{{ratio=0.8}},{_INT8}'
    rows = [["result", "parameters", "bytes", "mean cosine", "lowest 1 %", "same neighbour", "median ms", "speed"]]
    models, cells = {"original": model}, {"original": ["1.00", f"{model.stat().st_size:,d}", "1", "1", "100.0 %"]}
    for number, (name, lossy) in enumerate(ways.items()):
        out = folder / f"way{number}.onnx"
        report = compile_(model, out, lossy, f"--calib={data}", "--max-error=0.9", "--verify=off", "--no-measure")
        if report.get("failure"):
            cells[name] = [report["failure"]]
            continue
        models[name] = out
        vectors = embed(open_session(str(out), optimize=True, threads=1), feeds)
        cosine = (vectors * expected).sum(1)
        same = float((neighbours(vectors) == nearest).mean())
        quality = [f"{cosine.mean():.4f}", f"{np.quantile(cosine, 0.01):.4f}", f"{100 * same:.1f} %"]
        cells[name] = [sizes(report)[0], f"{out.stat().st_size:,d}", *quality]
        print(f"  {name}: {' | '.join(cells[name])}", file=sys.stderr, flush=True)
    setting = {"batch": 1, "batch_size": 1, "seq": 64, "sequence_length": 64, "seq_len": 64, "sequence": 64}
    found = timed(models, [setting], seconds)
    for name, known in cells.items():
        row = found.get(name, {})
        speed = f"{row['speed']:.2f}x" if row else "-"
        rows.append([name, *known, shown(row.get("median_ms"), ".2f"), speed] if row else [name, *known])
    return markdown(rows)


def digits(peers: Path | None, seconds: float, folder: Path) -> str:
    """The classifiers of examples/digits, inside a budget of one percent of accuracy, on images that none has seen."""
    rows = [["result", "parameters", "fewer FLOPs", "accuracy on test.npz", "median us", "speed"]]
    calibration = DIGITS / "calib_labelled.npz"
    budget = (f"--calib={calibration}", "--metric=examples.digits.evaluate:accuracy", "--max-drop=1%")
    for network in ("cnn", "vit"):
        original = DIGITS / f"{network}.onnx"
        models, cells = {network: original}, {network: ["1.00", "1.00x", _accuracy(original)]}
        for name, lossy in (("-O2", ""), ("pruned", "prune"), ("pruned and quantized", "compress")):
            out = folder / f"{network} {name}.onnx"
            report = compile_(original, out, lossy, *(budget if lossy else ("--no-measure",)))
            if report.get("failure"):
                cells[f"{network} {name}"] = [report["failure"]]
                continue
            models[f"{network} {name}"] = out
            cells[f"{network} {name}"] = [*sizes(report), _accuracy(out)]
        for share in (0.25, 0.5) if peers is not None else ():
            name, out = f"{network} onnxsim, {share:g} of all channels", folder / f"{network}{share}.onnx"
            script = HERE / "harness" / "onnxsim_pruned.py"
            done = run_measured([str(peers), str(script), str(original), str(calibration), str(share), str(out)], 900)
            if done.failure:
                cells[name] = [done.failure]
                continue
            models[name] = out
            cells[name] = [f"{_parameters(out) / _parameters(original):.2f}", "-", _accuracy(out)]
        found = timed(models, [{"batch": 1}], seconds)
        for name, known in cells.items():
            row = found.get(name)
            rows.append([name, *known, *([f"{1e3 * row['median_ms']:.0f}", f"{row['speed']:.2f}x"] if row else [])])
    return markdown(rows)


def _parameters(path: Path) -> int:
    return parameters(load(path))


def _accuracy(path: Path) -> str:
    with np.load(DIGITS / "test.npz") as test:
        images, labels = test["image"], test["label"]
    logits = open_session(str(path), optimize=True, threads=1).run(None, {"image": images})[0]
    return f"{100 * float((logits.argmax(-1) == labels).mean()):.2f} %"


def store(tables: dict[str, str], arguments: Sequence[str], script: str = "prune.py") -> None:
    """Write the sections that were measured; those of others in the same file stay."""
    known = machine.describe()
    versions = ", ".join(f"{name} {version}" for name, version in sorted(machine.versions().items()))
    text = STORED.read_text() if STORED.exists() else "# What is removed or factored\n"
    sections = re.split(r"(?m)^(?=## )", text)
    for title, table in tables.items():
        command = " ".join(["python", f"benchmarks/{script}", *public(list(arguments))])
        where = f"{known['cpu']}, {known['cores']} cores, {known['flags']}; Python {known['python']}, {versions}"
        section = f"## {title}\n\n{where}; one thread, `{command}`.\n\n{table}\n"
        sections = [one for one in sections if not one.startswith(f"## {title}\n")] + [section]
    STORED.write_text("\n".join(section.rstrip("\n") + "\n" for section in sections))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=Path, metavar="MODEL")
    parser.add_argument("--sentences", type=Path, metavar="MODEL")
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--peers", type=Path, metavar="PYTHON")
    parser.add_argument("--seconds", type=float, default=20, help="for timing each table")
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args(arguments)
    tables: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="prune-") as name:
        folder = Path(name)
        if options.channels is not None:
            tables["Pruning: half of all channels"] = channels(
                options.channels.resolve(), options.peers, options.seconds, folder
            )
        if options.digits:
            tables["Pruning: digits"] = digits(options.peers, options.seconds, folder)
        if options.sentences is not None:
            tables["Pruning: sentences"] = embeddings(
                options.sentences.resolve(), options.vocabulary, options.seconds, folder
            )
    for title, table in tables.items():
        print(f"## {title}\n\n{table}\n")
    if options.store:
        store(tables, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
