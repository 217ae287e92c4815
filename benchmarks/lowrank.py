"""What low rank gains, and what it costs, alone and with INT8.

    python benchmarks/lowrank.py [--sentences minilm.onnx --vocabulary vocab.txt] [--digits] [--store]

``--sentences`` factors a sentence embedder at several ratios and judges it on real sentences (first sentences of
docstrings, as sentences.py does), alone and with INT8; ``--digits`` factors the classifiers in examples/digits and
judges their accuracy. All results of one table are timed in turns, in one process, with one thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from harness.inputs import open_session
from harness.tables import markdown
from harness.wordpiece import WordPiece
from prune import compile_, store, timed
from sentences import batches, embed, find_vocabulary, neighbours, sentences, write_calibration

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits"
_INT8 = "quantize{techniques=[dynamic-int8],min_gain=0.0}"
#: The classifiers, and whether there is anything for dynamic INT8 in them: convolutions need calibrated ranges.
_NETWORKS = {"cnn": False, "vit": True}
#: Everything inside of a budget that only the compile itself would hold against it.
_FREE = ("--max-error=0.9", "--verify=off", "--no-measure")
_JUDGED, _CALIBRATION = 1000, 256
#: Rounds of timing at most: as many as there is time for.
_ROUNDS = 10**6
#: Sizes that are timed: a paragraph.
_SETTING = {name: 128 for name in ("seq", "sequence", "sequence_length", "seq_len")} | {"batch": 1, "batch_size": 1}


def ways(ratios: list[float], integers: bool = True) -> dict[str, str]:
    """Lossy passes by what they are called."""
    found = {"-O2": "", **({"INT8": _INT8} if integers else {})}
    for ratio in ratios:
        found[f"low rank {ratio:g}"] = f"low-rank{{ratio={ratio}}}"
        if integers:
            found[f"low rank {ratio:g}, INT8"] = f"low-rank{{ratio={ratio}}},{_INT8}"
    return found


def embeddings(model: Path, vocabulary: Path | None, ratios: list[float], seconds: float, folder: Path) -> str:
    """A sentence embedder, factored, in INT8 and both."""
    tokenizer, texts = WordPiece(find_vocabulary(vocabulary)), sentences()
    feeds = batches(sorted(texts[:_JUDGED], key=len), tokenizer)
    session = open_session(str(model), optimize=True, threads=1)
    names = {given.name for given in session.get_inputs()}
    expected = embed(session, feeds)
    nearest = neighbours(expected)
    data = folder / "calibration.npz"
    drawn = sorted(texts[_JUDGED : _JUDGED + _CALIBRATION], key=len)
    write_calibration(data, batches(drawn, tokenizer), names)
    models = {"original": model}
    cells = {"original": [f"{model.stat().st_size:,d}", "1", "1", "100.0 %"]}
    for number, (name, lossy) in enumerate(ways(ratios).items()):
        out = folder / f"way{number}.onnx"
        report = compile_(model, out, lossy, f"--calib={data}", *_FREE)
        if report.get("failure"):
            cells[name] = [report["failure"]]
            continue
        models[name] = out
        vectors = embed(open_session(str(out), optimize=True, threads=1), feeds)
        cosine = (vectors * expected).sum(1)
        same = float((neighbours(vectors) == nearest).mean())
        quality = [f"{cosine.mean():.4f}", f"{np.quantile(cosine, 0.01):.4f}", f"{100 * same:.1f} %"]
        cells[name] = [f"{out.stat().st_size:,d}", *quality]
        print(f"  {name}: {' | '.join(cells[name])}", file=sys.stderr, flush=True)
    found = timed(models, [_SETTING], seconds, _ROUNDS)
    rows = [["result", "bytes", "mean cosine", "lowest 1 %", "same neighbour", "median ms", "speed", "beside INT8"]]
    for name, known in cells.items():
        row, int8 = found.get(name), found.get("INT8")
        speeds = [] if row is None or int8 is None else [f"{row['speed']:.2f}x", f"{row['speed'] / int8['speed']:.2f}x"]
        rows.append([name, *known, *([f"{row['median_ms']:.2f}", *speeds] if row else [])])
    return markdown(rows)


def digits(ratios: list[float], seconds: float, folder: Path) -> str:
    """The classifiers of examples/digits."""
    with np.load(DIGITS / "test.npz") as test:
        images, labels = test["image"], test["label"]
    rows = [["result", "bytes", "weights of layers", "accuracy on test.npz", "median us", "speed"]]
    for network, integers in _NETWORKS.items():
        original = DIGITS / f"{network}.onnx"
        models, cells = {}, {}
        for number, (name, lossy) in enumerate({"original": "", **ways(ratios, integers)}.items()):
            path, share = original, "1.00"
            if name != "original":
                path = folder / f"{network}{number}.onnx"
                report = compile_(original, path, lossy, f"--calib={DIGITS / 'calib.npz'}", *_FREE)
                if report.get("failure"):
                    cells[name] = [report["failure"]]
                    continue
                share = f"{name.split()[2].rstrip(',')}" if name.startswith("low rank") else "1.00"
            logits = open_session(str(path), optimize=True, threads=1).run(None, {"image": images})[0]
            accuracy = 100 * float((logits.argmax(-1) == labels).mean())
            models[name] = path
            cells[name] = [f"{path.stat().st_size:,d}", share, f"{accuracy:.2f} %"]
            print(f"  {network} {name}: {' | '.join(cells[name])}", file=sys.stderr, flush=True)
        found = timed(models, [{"batch": 1}], seconds, _ROUNDS)
        for name, known in cells.items():
            row = found.get(name)
            time = [f"{1e3 * row['median_ms']:.0f}", f"{row['speed']:.2f}x"] if row else []
            rows.append([f"{network}, {name}", *known, *time])
    return markdown(rows)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=Path, metavar="MODEL")
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--ratio", type=float, action="append", help="share of the weights that is left")
    parser.add_argument("--seconds", type=float, default=20, help="for timing each table")
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args(arguments)
    ratios = options.ratio or [0.8, 0.6]
    tables: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="lowrank-") as name:
        if options.digits:
            tables["Low rank: digits"] = digits(ratios, options.seconds, Path(name))
        if options.sentences is not None:
            model = options.sentences.resolve()
            title = f"Low rank: sentences ({model.name})"
            tables[title] = embeddings(model, options.vocabulary, ratios, options.seconds, Path(name))
    for title, table in tables.items():
        print(f"\n## {title}\n\n{table}")
    if options.store:
        store(tables, arguments, "lowrank.py")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
