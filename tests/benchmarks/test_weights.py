"""The benchmarks of quantized weights measure what they say."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest

ROOT = Path(__file__).resolve().parents[2]
VIT = ROOT / "examples" / "digits" / "vit.onnx"


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of benchmarks; they are scripts that find each other by folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module(name)


def session(text: str) -> onnxruntime.InferenceSession:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_perplexity_of_a_model_that_knows_nothing_is_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("perplexity", monkeypatch)
    text = module.load_text().text(held_out=True)
    samples = module.windows(text, 20, 0)
    assert samples.shape == (20, module.TOKENS + 1) and samples.max() < 128
    blind = "g (int64[B, T] input_ids) => (float[B, T, 128] y) { d = Constant<value = int64[1] {128}>()"
    blind += " s = Shape(input_ids) t = Concat<axis = 0>(s, d) y = ConstantOfShape(t) }"
    assert module.perplexity(session(blind), samples) == pytest.approx(128)
    # One that is sure that a character is followed by itself is right where it is, and e^10 times wrong elsewhere.
    sure = "g (int64[B, T] input_ids) => (float[B, T, 128] y) { d = Constant<value = int64 {128}>()"
    sure += " v = Constant<value = float[2] {0, 10}>() y = OneHot(input_ids, d, v) }"
    same = float((samples[:, 1:] == samples[:, :-1]).mean())
    expected = np.exp(np.log(np.exp(10) + 127) - 10 * same)
    assert module.perplexity(session(sure), samples) == pytest.approx(expected, rel=1e-4)


def test_training_and_judging_see_different_files(monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("perplexity", monkeypatch).load_text()
    seen, held_out = (module.text(held_out=held) for held in (False, True))
    assert len(seen) > 5 * len(held_out) > 100_000
    middle = len(held_out) // 2
    assert held_out[middle : middle + 500] not in seen


def test_sentences_are_many_and_neighbours_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("sentences", monkeypatch)
    found = module.sentences()
    assert len(found) == len(set(found)) > 2500
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.2, 0.9]])
    assert module.neighbours(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).tolist() == [1, 0, 3, 2]


def test_words_are_taken_apart_as_bert_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "cafe", ".", "_"]))
    tokenizer = benchmark("harness.wordpiece", monkeypatch).WordPiece(vocabulary)
    assert tokenizer.ids("Unaffable Café.") == [2, 4, 5, 6, 7, 8, 3]
    assert tokenizer.ids("un_un unx") == [2, 4, 9, 4, 1, 3]
    assert tokenizer.ids("un un un un", longest=4) == [2, 4, 4, 3]


def test_techniques_go_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = benchmark("harness.weight_only", monkeypatch)
    assert "-O3" in module.command("optc -O3 --max-error 0.1", VIT, tmp_path / "out.onnx")
    with pytest.raises(ValueError):
        module.command("int3-rtn-g32", VIT, tmp_path / "out.onnx")


def test_time_and_memory_are_told() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "weights.py", VIT, "--technique", "int4-rtn-g32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("| int4-rtn-g32"))
    _, _, seconds, peak, size, products, _ = (cell.strip() for cell in row.split("|"))
    assert float(seconds) > 0 and float(peak) > 50 and int(products) == 24
    assert 0.1 < int(size.replace(",", "")) / VIT.stat().st_size < 0.5
