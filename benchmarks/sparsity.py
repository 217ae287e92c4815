"""What 2:4 weights and zeroed kernels cost in accuracy, by method.

    python benchmarks/sparsity.py [--digits] [--sentences minilm.onnx --vocabulary vocab.txt] [--mixed]
        [--peers PYTHON] [--store]

``--digits`` makes the classifiers in examples/digits 2:4 and judges their accuracy, beside ``torch.ao.pruning`` where
``--peers`` names an interpreter with torch; errors of layers are those of their outputs over the calibration data, all
else is judged on other data. ``--sentences`` looks at the layers of a sentence embedder, each alone, on real sentences
(as sentences.py has them), those that were calibrated with and others. ``--mixed`` takes channels and kernels of the
convolutional classifier by one schedule. Nothing here runs sparse kernels, so that only ``--mixed``, which makes layers
smaller, is timed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness.inputs import open_session
from harness.process import run_measured
from harness.tables import markdown
from harness.wordpiece import WordPiece
from prune import DIGITS, HERE, compile_, store, timed
from sentences import batches, find_vocabulary, sentences, write_calibration

from optc.ir.model import load
from optc.ir.rewriter import Rewriter
from optc.ir.saving import save
from optc.ir.sparsity import Pattern
from optc.ir.targets import builtin_targets
from optc.measure import Measure
from optc.options import Options
from optc.passes.compress.layers import weighted_layers
from optc.passes.compress.lowrank.inputs import gram_request
from optc.passes.compress.sparsity.columns import Columns
from optc.passes.compress.sparsity.methods import output_error, sparsify
from optc.passes.compress.sparsity.permute import best_order
from optc.passes.compress.sparsity.sparsity import why_dense
from optc.passes.compress.sparsity.writing import known
from optc.passes.compress.sparsity.writing import store as store_weight
from optc.progress import Silent
from optc.statistics import Collector

#: Everything inside of a budget that only the compile itself would hold against it.
_FREE = ("--max-error=0.9", "--verify=off", "--no-measure")
_CALIBRATION = 256
#: Options of the pass by what they are called.
WAYS = {
    "magnitude": "method=magnitude,repair=false,permute=false",
    "magnitude, reordered": "method=magnitude,repair=false",
    "Wanda": "method=wanda,repair=false,permute=false",
    "Wanda, reordered": "method=wanda,repair=false",
    "SparseGPT": "method=sparsegpt,repair=false,permute=false",
    "SparseGPT, repaired": "method=sparsegpt,permute=false",
    "SparseGPT, repaired, reordered": "method=sparsegpt",
}
#: Method, least squares, another order of channels.
LAYER_WAYS = {
    "magnitude": ("magnitude", False, False),
    "Wanda": ("wanda", False, False),
    "Wanda, reordered": ("wanda", False, True),
    "SparseGPT": ("sparsegpt", False, False),
    "SparseGPT, repaired": ("sparsegpt", True, False),
    "SparseGPT, repaired, reordered": ("sparsegpt", True, True),
}
_PATTERN = Pattern(2, 4)
SCHEDULES = ("conv=0.25", "kernels[conv]=0.3", "conv=0.25;kernels[conv]=0.3", "conv=0.5", "kernels[conv]=0.6")
#: How good a model is, as cells of a table.
Judge = Callable[[Path], list[str]]


def compared(
    model: Path, calib: Path, channels: int, judge: Judge, peers: Path | None, folder: Path
) -> list[list[str]]:
    """A row for every way to make a model 2:4; the first cells are errors of layers."""
    dense = folder / f"{model.stem}_dense.onnx"
    compile_(model, dense, "", *_FREE)
    rows = [["dense", "", "", *judge(dense)]]
    for name, options in WAYS.items():
        out = folder / f"{model.stem}_{len(rows)}.onnx"
        report = compile_(
            model, out, f"sparsity{{{options},channels={channels},force=true}}", f"--calib={calib}", *_FREE
        )
        rows.append([name, *_layers(report), *([report["failure"]] if "failure" in report else judge(out))])
        print(f"  {model.stem} {' | '.join(rows[-1])}", file=sys.stderr, flush=True)
    if peers is not None:
        problem = _by_torch(dense, folder / "torch.onnx", channels, peers)
        cells = [problem] if problem is not None else judge(folder / "torch.onnx")
        rows.insert(1, ["torch.ao.pruning (magnitude)", "", "", *cells])
    return rows


def _layers(report: dict[str, Any]) -> list[str]:
    """The mean and the largest of the errors of layers."""
    errors = [row["error"] for row in report.get("ledger", []) if row["taken"] and row["error"] is not None]
    return [f"{np.mean(errors):.3f}", f"{max(errors):.3f}"] if errors else ["", ""]


def _by_torch(dense: Path, out: Path, channels: int, peers: Path) -> str | None:
    """The dense model with its weights made 2:4 by torch.ao.pruning; why that failed, if it did."""
    model = load(dense)
    rw = Rewriter(model)
    layers = [one for one in weighted_layers(model.graph, rw.facts) if not why_dense(one, rw.facts, _PATTERN, channels)]
    columns = [Columns.of(layer, rw.facts) for layer in layers]
    stacks = [one.channels_last(layer.by_output(rw.facts)) for layer, one in zip(layers, columns, strict=True)]
    given, made = out.with_suffix(".in.npz"), out.with_suffix(".out.npz")
    np.savez(given, **{f"w{at}": stack.reshape(-1, stack.shape[-1]) for at, stack in enumerate(stacks)})
    done = run_measured([str(peers), str(HERE / "harness" / "torch_sparse.py"), str(given), str(made)], 900)
    if done.failure:
        return done.failure
    with np.load(made) as arrays:
        for at, (layer, one, stack) in enumerate(zip(layers, columns, stacks, strict=True)):
            store_weight(rw, layer, one.stored(arrays[f"w{at}"].reshape(stack.shape)), "torch")
    save(model, out)
    return None


def digits(peers: Path | None, folder: Path) -> str:
    """The classifiers of examples/digits."""
    with np.load(DIGITS / "test.npz") as test:
        images, labels = test["image"], test["label"]
    rows = [["result", "layers' error", "worst layer", "error of logits, test.npz", "accuracy on test.npz"]]
    for network, channels in (("cnn", 32), ("vit", 32)):
        expected = _run(DIGITS / f"{network}.onnx", images)

        def judge(path: Path, expected: np.ndarray = expected) -> list[str]:
            logits = _run(path, images)
            error = float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))
            return [f"{error:.3f}", f"{100 * float((logits.argmax(-1) == labels).mean()):.2f} %"]

        found = compared(DIGITS / f"{network}.onnx", DIGITS / "calib.npz", channels, judge, peers, folder)
        rows += [[f"{network}, {name}", *cells] for name, *cells in found]
    return markdown(rows)


def _run(path: Path, images: np.ndarray) -> np.ndarray:
    result: np.ndarray = open_session(str(path), optimize=True, threads=1).run(None, {"image": images})[0]
    return result


def layers(model: Path, vocabulary: Path | None, channels: int, every: int, folder: Path) -> str:
    """Errors of the outputs of an embedder's layers, each alone, on sentences calibrated with and on others."""
    dense = folder / "dense.onnx"
    compile_(model, dense, "", *_FREE)
    tokenizer, texts = WordPiece(find_vocabulary(vocabulary)), sentences()
    graph = load(dense)
    rw = Rewriter(graph)
    chosen = [one for one in weighted_layers(graph.graph, rw.facts) if not why_dense(one, rw.facts, _PATTERN, channels)]
    chosen = chosen[::every]
    requests = [request for one in chosen if (request := gram_request(one, rw.facts)) is not None]
    found = []
    for number in range(2):
        data = folder / f"sentences{number}.npz"
        drawn = sorted(texts[number * _CALIBRATION : (number + 1) * _CALIBRATION], key=len)
        write_calibration(data, batches(drawn, tokenizer), {value.name or "" for value in graph.graph.inputs})
        options = Options.of(calib=data, calib_cache="off")
        measure = Measure(graph, builtin_targets()["cpu"], options)
        found.append(Collector(measure, options, Silent()).collect(graph, list(dict.fromkeys(requests))))
    errors: dict[str, list[tuple[float, float]]] = {}
    for layer in chosen:
        weight, columns = layer.by_output(rw.facts).astype(np.float32), Columns.of(layer, rw.facts)
        seen, other = (known(layer, rw.facts, one) for one in found)
        assert seen.gram is not None and other.gram is not None
        for name, (method, repair, reorder) in LAYER_WAYS.items():
            order = _order(weight, columns, seen.gram[0]) if reorder else np.arange(columns.channels)
            moved = columns.moved(order)
            mine = replace(seen, gram=seen.gram[:, moved][:, :, moved])
            sparse = sparsify(weight[:, moved], columns, _PATTERN, method, mine, repair)
            unseen = output_error([weight[:, moved]], [sparse.weight], other.gram[:, moved][:, :, moved])
            errors.setdefault(name, []).append((sparse.error or 0.0, unseen))
        print(f"  {layer.name}: {[f'{found[-1][1]:.3f}' for found in errors.values()]}", file=sys.stderr, flush=True)
    rows = [["method", f"mean error of {len(chosen)} layers", "worst", "on other sentences", "worst"]]
    for name, pairs in errors.items():
        (mean, unseen), (worst, other_worst) = np.mean(pairs, axis=0), np.max(pairs, axis=0)
        rows.append([name, f"{mean:.3f}", f"{worst:.3f}", f"{unseen:.3f}", f"{other_worst:.3f}"])
    return markdown(rows)


def _order(weight: np.ndarray, columns: Columns, gram: np.ndarray) -> np.ndarray:
    """The order of channels that keeps most; whether the graph allows it is not asked here."""
    scores = columns.channels_last(np.square(weight) * np.diagonal(gram).astype(np.float32))
    order = best_order(scores.reshape(-1, columns.channels), _PATTERN)
    return np.arange(columns.channels) if order is None else order


def mixed(seconds: float, folder: Path) -> str:
    """Channels and kernels of the convolutional classifier."""
    with np.load(DIGITS / "test.npz") as test:
        images, labels = test["image"], test["label"]
    whole = folder / "whole.onnx"
    compile_(DIGITS / "cnn.onnx", whole, "", *_FREE)
    models, cells = {"-O2": whole}, {"-O2": ["", "", "", _accuracy(whole, images, labels)]}
    for number, schedule in enumerate(SCHEDULES):
        models[schedule] = out = folder / f"mixed{number}.onnx"
        lossy = f'prune{{schedule="{schedule}"}}'
        report = compile_(DIGITS / "cnn.onnx", out, lossy, f"--calib={DIGITS / 'calib.npz'}", *_FREE)
        reason = next(one["reason"] for one in report["decisions"] if one["kept"])
        after = reason.partition(" before, ")[2]
        found = re.match(r"([\d,]+) parameters, ([\d.,e+]+) MFLOP(?: \((\d+%) zero and ([\d.,e+]+) MFLOP)?", after)
        assert found is not None, reason
        zero = found[3] or "0%"
        cells[schedule] = [f"{found[1]} ({zero} zero)", found[2], found[4] or found[2], _accuracy(out, images, labels)]
    head = ["schedule", "parameters", "MFLOP", "without zeros", "accuracy on test.npz", "median us", "speed"]
    rows = [head]
    for name, row in timed(models, [{"batch": 1}], seconds, 10**6).items():
        rows.append([f"`{name}`", *cells[name], f"{1e3 * row['median_ms']:.0f}", f"{row['speed']:.2f}x"])
    return markdown(rows)


def _accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> str:
    return f"{100 * float((_run(path, images).argmax(-1) == labels).mean()):.2f} %"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--sentences", type=Path, metavar="MODEL")
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--channels", type=int, default=256, help="fewest channels of the embedder's sparse layers")
    parser.add_argument("--every", type=int, default=1, help="look at every so many of the embedder's layers")
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--peers", type=Path, metavar="PYTHON")
    parser.add_argument("--seconds", type=float, default=20, help="for timing")
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args(arguments)
    tables: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="sparsity-") as name:
        folder = Path(name)
        if options.digits:
            tables["2:4 weights: digits"] = digits(options.peers, folder)
        if options.sentences is not None:
            model = options.sentences.resolve()
            table = layers(model, options.vocabulary, options.channels, options.every, folder)
            tables[f"2:4 weights: sentences ({model.name})"] = table
        if options.mixed:
            tables["Channels and kernels: digits"] = mixed(options.seconds, folder)
    for title, table in tables.items():
        print(f"\n## {title}\n\n{table}")
    if options.store:
        store(tables, arguments, "sparsity.py")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
