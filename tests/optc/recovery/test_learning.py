"""Compressed models learn from their originals, and are never handed back worse.

``pytest -m recover`` runs this, and fails where PyTorch is missing.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from click.testing import CliRunner

import optc
from optc.ir.printer import Style, print_model
from optc.ir.saving import save
from optc.passes.compress.weights.packing import pack
from optc.recovery.recover import WHOLE, Recovery, recover
from optc.tools import recover as tool
from tests.optc.recovery.models import PLAIN, codes, data, graph, halved, plain, quantized, weights

pytestmark = pytest.mark.recover


def learned(compressed: onnx_ir.Model, **settings: Any) -> Recovery:
    return recover(compressed, plain(), data(160), **{"steps": 60, "learning_rate": 1e-2, "batch": 16, **settings})


def contents(model: onnx_ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def structure(model: onnx_ir.Model) -> list[tuple[object, ...]]:
    """All but the contents of the constants."""
    nodes = [
        (
            node.domain,
            node.op_type,
            [v and v.name for v in node.inputs],
            [v.name for v in node.outputs],
            repr(dict(node.attributes)),
        )
        for node in model.graph
    ]
    stored = [
        (name, v.const_value.dtype, tuple(v.const_value.shape.numpy())) for name, v in model.graph.initializers.items()
    ]
    return [*nodes, *stored]


def low_rank() -> onnx_ir.Model:
    """The original with its second product as two of rank 4."""
    drawn = weights()
    u, s, v = np.linalg.svd(drawn.pop("w2"))
    factors = {"u": (u[:, :4] * s[:4]).astype(np.float32), "v": v[:4].astype(np.float32)}
    return graph(
        PLAIN.replace("p2 = MatMul (s1, w2)", "h2 = MatMul (s1, u)\n    p2 = MatMul (h2, v)"), {**drawn, **factors}
    )


def rounded_in_the_graph() -> onnx_ir.Model:
    """The original with float weights that go through QuantizeLinear and DequantizeLinear."""
    drawn = weights()
    pair = "q2 = QuantizeLinear <axis = 1> (w2, k2, z2)\n    d2 = DequantizeLinear <axis = 1> (q2, k2, z2)\n    p2 = "
    text = PLAIN.replace("p2 = ", pair).replace("(s1, w2)", "(s1, d2)")
    scale = codes(drawn["w2"], 3)[1]
    return graph(text, {**drawn, "k2": scale, "z2": np.zeros(8, np.int8)})


def in_blocks() -> onnx_ir.Model:
    """The original with its second product in 4-bit codes of MatMulNBits."""
    drawn = weights()
    whole = codes(drawn.pop("w2"), 3)
    stored = np.pad((whole[0].T + 8).astype(np.uint8), ((0, 0), (0, 8)), constant_values=8)[:, None]
    call = "p2 = com.microsoft.MatMulNBits <K = 8, N = 8, bits = 4, block_size = 16> (s1, c2, k2)"
    text = PLAIN.replace("p2 = MatMul (s1, w2)", call)
    return graph(text, {**drawn, "c2": pack(stored, 4), "k2": whole[1]})


KINDS = {
    "sparse": (halved, {"w1", "w2", "w3", "b1"}),
    "codes": (quantized, {"k1", "k2"}),
    "low rank": (low_rank, {"u", "v"}),
    "rounded in the graph": (rounded_in_the_graph, {"w2"}),
    "codes in blocks": (in_blocks, {"k2"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_nearer_and_stays_what_it_was(kind: str) -> None:
    make, changed = KINDS[kind]
    model = make()
    before = contents(model)
    found = learned(model)
    assert found.gained and found.after < 0.9 * found.before
    assert structure(found.model) == structure(make())
    assert contents(model).keys() == before.keys() and all((contents(model)[n] == a).all() for n, a in before.items())
    after = contents(found.model)
    assert all((after[name] != before[name]).any() for name in changed)
    assert found.learned_from > found.judged_by > 0


def test_zeros_stay_zero() -> None:
    before, after = contents(halved()), contents(learned(halved()).model)
    for name in ("w1", "w2", "w3"):
        assert ((before[name] == 0) == (after[name] == 0)).all()


def test_codes_that_are_wrong_are_put_right() -> None:
    model = quantized()
    spoiled = contents(model)["c2"].copy()
    spoiled[::2] += 2
    model.graph.initializers["c2"].const_value = onnx_ir.tensor(spoiled, name="c2")
    found = learned(model, steps=120, learning_rate=2e-2)
    assert found.after < 0.5 * found.before
    codes_now = contents(found.model)["c2"]
    assert codes_now.dtype == np.int8 and (codes_now != spoiled).mean() > 0.2


def test_zero_points_and_scales_of_activations_stay() -> None:
    before, after = contents(rounded_in_the_graph()), contents(learned(rounded_in_the_graph()).model)
    assert (before["k2"] == after["k2"]).all() and (before["z2"] == after["z2"]).all()


def test_the_same_seed_gives_the_same_weights_and_another_other_ones() -> None:
    first, again, other = (contents(learned(halved(), steps=20, seed=seed).model) for seed in (3, 3, 4))
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_blocks_and_the_whole_are_reported() -> None:
    found = learned(halved())
    assert [block.name for block in found.blocks] == ["s1", "s2", "y", WHOLE]
    assert all(block.after < block.before for block in found.blocks if block.kept)
    assert [block.name for block in learned(halved(), blocks=False).blocks] == [WHOLE]
    assert [block.name for block in learned(halved(), whole=False).blocks] == ["s1", "s2", "y"]


def test_a_block_learns_from_what_the_compressed_model_feeds_it() -> None:
    # The first weight is a wreck that cannot learn, as its reader is not known; the second block makes up for it.
    def wrecked(first: np.ndarray) -> onnx_ir.Model:
        drawn = {**weights(), "w1": first}
        return graph(PLAIN.replace("r1 = Relu (a1)", "c1 = Atan (a1)\n    r1 = Relu (c1)"), drawn)

    original = wrecked(weights()["w1"])
    damaged = wrecked((0.5 * weights()["w1"]).astype(np.float32))
    found = recover(damaged, original, data(160), steps=60, learning_rate=1e-2, batch=16)
    assert found.gained and found.after < 0.9 * found.before
    assert list(found.left.values()) == ["the gradient of Atan is not known"]
    before, after = contents(damaged), contents(found.model)
    assert (before["w1"] == after["w1"]).all() and (before["b1"] == after["b1"]).all()
    assert (before["w2"] != after["w2"]).any()


def test_a_model_that_is_right_already_is_left() -> None:
    found = learned(plain())
    assert not found.gained and found.before == found.after == 0
    assert print_model(found.model, Style(canonical=True)) == print_model(plain(), Style(canonical=True))
    assert all((contents(found.model)[name] == array).all() for name, array in contents(plain()).items())


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Let learning give other numbers than it found."""
    engine = importlib.import_module("optc.recovery.engine.train")
    learn = engine.learn

    def spoiled(*given: Any) -> Any:
        found = learn(*given)
        return engine.Learned({name: change(array) for name, array in found.numbers.items()}, found.before, 0.0, 1)

    monkeypatch.setattr(engine, "learn", spoiled)


def test_what_is_worse_in_onnxruntime_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda array: 3 * array + 1)
    found = learned(halved(), steps=5)
    assert not found.gained and found.after == found.before
    assert not any(block.kept for block in found.blocks) and all(block.reason for block in found.blocks)
    assert all((contents(found.model)[name] == array).all() for name, array in contents(halved()).items())


def test_what_is_not_finite_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda array: array * np.float32("nan"))
    found = learned(halved(), steps=5)
    assert not found.gained and not any(block.kept for block in found.blocks)


def test_blocks_that_make_the_outputs_worse_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    work = importlib.import_module("optc.recovery.recover")._Work
    errors = iter([0.1, 0.2, 0.1])
    monkeypatch.setattr(work, "_error", lambda *given: next(errors))
    found = learned(halved(), whole=False)
    assert not found.gained and found.after == 0.1
    assert {block.kept for block in found.blocks} == {False}
    assert all((contents(found.model)[name] == array).all() for name, array in contents(halved()).items())


def test_what_pytorch_computes_otherwise_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    table = importlib.import_module("optc.recovery.engine.program").OPERATORS
    monkeypatch.setitem(table, ("", "Tanh"), lambda call, x: 1.1 * x.tanh())
    blocks = {block.name: block for block in learned(halved(), steps=5).blocks}
    assert "PyTorch computes it otherwise" in blocks["s2"].reason and not blocks["s2"].kept
    assert blocks["s1"].kept


def test_no_steps_leave_everything() -> None:
    found = learned(halved(), steps=0)
    assert not found.gained and found.blocks == []


def test_the_command_writes_the_model_and_tells_what_was_gained(tmp_path: Path) -> None:
    save(plain(), tmp_path / "plain.onnx")
    save(halved(), tmp_path / "halved.onnx")
    np.savez(tmp_path / "data.npz", **data(160))
    words = [tmp_path / "halved.onnx", "--original", tmp_path / "plain.onnx", "--calib", tmp_path / "data.npz"]
    words += ["-o", tmp_path / "out.onnx", "--steps", 40, "--batch", 16, "--learning-rate", 0.01]
    done = CliRunner().invoke(tool.command, list(map(str, words)))
    assert done.exit_code == 0, done.output
    assert "relative L2 error of the worst output" in done.output and "wrote" in done.output and "kept" in done.output
    done = CliRunner().invoke(tool.command, [*map(str, words), "--json"])
    told = json.loads(done.output)
    assert told["gained"] and told["after"] < told["before"]
    assert [block["name"] for block in told["blocks"]] == ["s1", "s2", "y", WHOLE]
    x = data(9, seed=5)
    right, was, now = (optc.load(tmp_path / f"{name}.onnx").run(x)["y"] for name in ("plain", "halved", "out"))
    assert np.linalg.norm(now - right) < 0.9 * np.linalg.norm(was - right)
