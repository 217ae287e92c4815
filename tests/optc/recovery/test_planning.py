"""What of recovery needs no PyTorch: what may be learned, blocks, pairs, batches, writing back, errors."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir
import pytest

from optc.backends.ort import OnnxRuntimeBackend
from optc.inputs import input_specs
from optc.ir.errors import BackendError, DataError, ModelError, PassError, UsageError
from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter
from optc.ir.saving import save
from optc.recovery import torch_library
from optc.recovery.batches import Shelf, capture, relative_errors, split
from optc.recovery.blocks import cuts, divide, in_order, moved, products, program
from optc.recovery.match import match
from optc.recovery.places import parameters_of, read, written
from optc.recovery.recover import Settings, recover
from tests.optc.recovery.models import PLAIN, data, graph, halved, plain, quantized, weights

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
#: ONNX Runtime's own rewriting computes with codes where it can, and rounds activations for that.
OPEN = partial(OnnxRuntimeBackend().runner, plain=True, few_runs=True)


def roles(model: onnx_ir.Model) -> dict[str, str]:
    return {parameter.name: parameter.role for parameter in parameters_of(model, Facts(model))}


def shelf(*batches: dict[str, np.ndarray]) -> Shelf:
    made = Shelf()
    for batch in batches:
        made.add(batch)
    return made


# what may be learned ----------------------------------------------------------------------------------------------


def test_weights_biases_codes_and_scales_are_found() -> None:
    assert roles(plain()) == {"w1": "weight", "b1": "vector", "w2": "weight", "w3": "weight"}
    assert roles(quantized()) == {
        **{"c1": "codes", "k1": "scale", "c2": "codes", "k2": "scale"},
        **{"b1": "vector", "w3": "weight"},
    }


def test_a_constant_that_is_read_otherwise_too_is_left() -> None:
    drawn = weights()
    shared = PLAIN.replace(
        "r2 = Tanh (p2)", "t2 = Tanh (p2)\n    k = ReduceMax <keepdims = 0> (w2)\n    r2 = Mul (t2, k)"
    )
    assert roles(graph(shared, drawn)) == {"w1": "weight", "b1": "vector", "w3": "weight"}
    masked = PLAIN.replace("Add (p1, b1)", "Add (p1, m)")
    drawn["m"] = np.where(np.arange(8) < 4, 0, -3e38).astype(np.float32)
    del drawn["b1"]
    assert "m" not in roles(graph(masked, drawn))


def test_zeros_of_a_sparse_weight_are_fixed_and_those_of_a_bias_are_not() -> None:
    model = halved()
    facts = Facts(model)
    found = {parameter.name: read(parameter, facts) for parameter in parameters_of(model, facts)}
    assert found["w1"].free is not None and found["w1"].free.mean() == 0.5
    assert (found["w1"].free == (found["w1"].start != 0)).all()
    assert found["b1"].free is None


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.int4, ml_dtypes.uint4], ids=lambda t: np.dtype(t).name)
def test_codes_are_stored_as_they_were(dtype: type) -> None:
    low, high = int(ml_dtypes.iinfo(dtype).min), int(ml_dtypes.iinfo(dtype).max)
    rng = np.random.default_rng(0)
    codes = rng.integers(low, high, (8, 4), endpoint=True).astype(dtype)
    text = """g (float[n, 8] x) => (float[n, 4] y) {
        d = DequantizeLinear <axis = 1> (c, k)
        y = MatMul (x, d)
    }"""
    model = graph(text, {"c": codes, "k": np.full(4, 0.1, np.float32)})
    facts = Facts(model)
    (parameter,) = (one for one in parameters_of(model, facts) if one.role == "codes")
    numbers = read(parameter, facts)
    assert (numbers.low, numbers.high) == (low, high)
    assert (numbers.start == codes.astype(np.float32)).all()
    other = np.clip(numbers.start + rng.integers(-3, 4, codes.shape), low, high).astype(np.float32)
    tensor = written(parameter, other, facts)
    assert tensor.dtype == model.graph.initializers["c"].const_value.dtype and tuple(tensor.shape.numpy()) == (8, 4)
    assert (tensor.numpy().astype(np.float32) == other).all()
    Rewriter(model).set_contents(parameter.value, tensor)
    x = data()["x"]
    assert np.allclose(OPEN(model).run({"x": x})["y"], x @ (other * 0.1), atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_codes_are_unpacked_and_packed_again(bits: int) -> None:
    rng = np.random.default_rng(0)
    rows, columns, block = 3, 40, 16  # the last block is not full
    packed = rng.integers(0, 256, (rows, 3, block * bits // 8), dtype=np.uint8)
    scales = rng.uniform(0.1, 0.2, rows * 3).astype(np.float32)
    text = f"""g (float[n, {columns}] x) => (float[n, {rows}] y) {{
        y = com.microsoft.MatMulNBits <K = {columns}, N = {rows}, bits = {bits}, block_size = {block}> (x, c, k)
    }}"""
    model = graph(text, {"c": packed, "k": scales})
    facts = Facts(model)
    assert roles(model) == {"c": "codes", "k": "scale"}
    parameter = parameters_of(model, facts)[0]
    numbers = read(parameter, facts)
    assert numbers.start.shape == (rows, 3, block) and (numbers.low, numbers.high) == (0, 2**bits - 1)
    assert (written(parameter, numbers.start, facts).numpy() == packed).all()
    # what ONNX Runtime makes of them is what they were taken for
    dense = ((numbers.start - 2 ** (bits - 1)) * scales.reshape(rows, 3, 1)).reshape(rows, -1)[:, :columns]
    x = rng.standard_normal((5, columns)).astype(np.float32)
    assert np.allclose(OPEN(model).run({"x": x})["y"], x @ dense.T, rtol=1e-3, atol=1e-3 * np.abs(x @ dense.T).max())


def test_contents_keep_type_and_shape() -> None:
    model = plain()
    rewriter, value = Rewriter(model), model.graph.initializers["w3"]
    for wrong in (np.zeros((8, 3), np.float32), np.zeros((8, 4), np.float64)):
        with pytest.raises(PassError, match="'w3'"):
            rewriter.set_contents(value, onnx_ir.tensor(wrong))
    rewriter.facts.const(value)
    rewriter.set_contents(value, onnx_ir.tensor(np.ones((8, 4), np.float32)))
    assert (rewriter.facts.const(value) == 1).all() and value.const_value.name == "w3"


# blocks -----------------------------------------------------------------------------------------------------------


def test_a_model_is_cut_where_one_value_passes() -> None:
    model = plain()
    facts, nodes = Facts(model), list(model.graph)
    parameters = parameters_of(model, facts)
    places = cuts(nodes, moved(nodes, parameters, facts), facts)
    one = [cut.values[0].name for cut in places if len(cut.values) == 1]
    assert one == ["p1", "a1", "r1", "s1", "s2"]  # x itself is moved by nothing
    ends = {value for value in model.graph.outputs}
    sums = {value for cut in places for value in cut.values if value.name in ("s1", "s2")} | ends
    blocks = divide(nodes, places, products(model.graph, facts), sums)
    assert [(block.name, len(block.nodes)) for block in blocks] == [("s1", 4), ("s2", 3), ("y", 1)]
    assert [block.name for block in divide(nodes, places, products(model.graph, facts), ends)] == ["y"]
    # of several cuts between two products the last one is taken
    everything = {value for cut in places for value in cut.values} | ends
    assert [block.name for block in divide(nodes, places, products(model.graph, facts), everything)] == [
        "s1",
        "s2",
        "y",
    ]


def test_weights_that_are_made_of_codes_belong_to_what_reads_them() -> None:
    model = quantized()
    facts = Facts(model)
    first = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    for node in reversed(first):  # an order that a file may have as well
        model.graph.remove(node)
        model.graph.insert_before(model.graph[0], node)
    nodes = in_order(model.graph, facts)
    assert sorted(map(id, nodes)) == sorted(map(id, model.graph))
    assert [node.outputs[0].name for node in nodes[:2]] == ["d1", "p1"]
    one = [cut.values[0].name for cut in cuts(nodes, moved(nodes, parameters_of(model, facts), facts), facts)]
    assert "s1" in one and "s2" in one


def test_what_feeds_an_unknown_operator_is_left_and_the_rest_learns() -> None:
    model = plain()
    facts, nodes = Facts(model), list(model.graph)
    parameters = parameters_of(model, facts)
    tanh = next(node for node in nodes if node.op_type == "Tanh")
    run, learned = program(nodes, model.graph.outputs, parameters, {tanh: "it is not known"}, facts)
    assert [parameter.name for parameter in learned] == ["w3"]
    assert [node.outputs[0].name for node in run] == ["y"]
    run, learned = program(nodes, model.graph.outputs, parameters, {}, facts)
    assert len(run) == len(nodes) and len(learned) == 4


def test_shapes_are_fed_and_not_learned_through() -> None:
    text = """g (float[n, 8] x) => (float[n, 2, 4] y) {
        h = MatMul (x, w)
        s = Shape <start = 0, end = 1> (h)
        t = Concat <axis = 0> (s, c)
        y = Reshape (h, t)
    }"""
    model = graph(text, {"w": weights()["w1"], "c": np.array([2, 4])})
    facts = Facts(model)
    nodes = list(model.graph)
    run, _ = program(nodes, model.graph.outputs, parameters_of(model, facts), {}, facts)
    assert [node.op_type for node in run] == ["MatMul", "Reshape"]


def test_values_are_paired_by_name_only_where_they_agree() -> None:
    drawn = weights()
    renamed = graph(PLAIN.replace("s1", "other").replace("r2", "s1"), drawn)
    found = match(renamed, ["other", "s1", "s2"], plain(), data(8), OPEN)
    assert found == {"other": "s1", "s1": "r2", "s2": "s2"}
    negated = {**drawn, "w1": -drawn["w1"], "b1": -drawn["b1"]}
    assert "p1" not in match(graph(PLAIN, negated), ["p1"], plain(), data(8), OPEN)


# data -------------------------------------------------------------------------------------------------------------


def test_rows_are_put_into_batches_and_some_held_out() -> None:
    samples = [{"x": np.full((5, 8), index, np.float32)} for index in range(8)]
    train, held = split(samples, input_specs(plain()), 8, 0.25, 0)
    sizes = [len(batch["x"]) for batch in train]
    assert sum(sizes) + sum(len(batch["x"]) for batch in held) == 40
    assert set(sizes[:-1]) == {8} and 5 <= sum(len(batch["x"]) for batch in held) <= 15
    again, _ = split(samples, input_specs(plain()), 8, 0.25, 0)
    assert all((a["x"] == b["x"]).all() for a, b in zip(train, again, strict=True))


def test_one_sample_cannot_be_judged_by() -> None:
    with pytest.raises(DataError, match="at least two"):
        split([data(1)], input_specs(plain()), 8, 0.25, 0)


def test_a_shelf_goes_to_disk_and_comes_back() -> None:
    made = Shelf(in_memory=100)
    arrays = [{"a": np.arange(10, dtype=np.int64) + index, "b": np.ones(3, ml_dtypes.bfloat16)} for index in range(3)]
    for entry in arrays:
        made.add(entry)
    assert len(made) == 3 and isinstance(made._entries[0], dict) and isinstance(made._entries[1], Path)
    for entry, found in zip(arrays, made, strict=True):
        assert (entry["a"] == found["a"]).all() and (found["b"] == 1).all()


def test_inner_values_and_errors_between_models() -> None:
    names = {"x": "x", "s1": "s1", "y": "y"}
    inputs = shelf(data(4), data(3, seed=2))
    right, got = (capture(model, names, inputs, OPEN) for model in (plain(), halved()))
    assert [batch["s1"].shape for batch in right] == [(4, 8), (3, 8)]
    errors = relative_errors(right, got, names)
    assert errors["x"] == 0 and 0.05 < errors["s1"] < 1 and 0.05 < errors["y"] < 1


# errors -----------------------------------------------------------------------------------------------------------


def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_library.importlib.util, "find_spec", lambda name: None)


def test_without_pytorch_one_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_torch(monkeypatch)
    with pytest.raises(BackendError, match="PyTorch is not installed") as error:
        recover(halved(), plain(), data(), output=tmp_path / "out.onnx")
    assert error.value.hint == "pip install 'optc[recover]'"
    assert list(tmp_path.iterdir()) == []


def test_a_pytorch_that_is_broken_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(torch_library.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch_library.importlib, "import_module", broken)
    with pytest.raises(BackendError, match=r"cannot be imported: libtorch\.so"):
        torch_library.engine()


def test_another_interface_is_refused_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    without_torch(monkeypatch)
    other = graph(PLAIN.replace("y", "z"), weights())
    with pytest.raises(ModelError, match="the compressed model's outputs are"):
        recover(other, plain(), data())


@pytest.mark.parametrize(
    "wrong", [{"steps": -1}, {"learning_rate": 0.0}, {"batch": 0}, {"held_out": 1.0}, {"device": "tpu"}]
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Settings(**wrong)  # type: ignore[arg-type]


def test_nothing_of_pytorch_is_imported_for_the_command_itself() -> None:
    for name in ("optc.recovery.recover", "optc.tools.recover"):
        assert importlib.util.find_spec(name) is not None
    source = (Path(__file__).parents[3] / "optc" / "recovery").glob("*.py")
    assert not [path for path in source if "import torch" in path.read_text("utf-8").replace("import torch_", "")]
    assert json.dumps(Settings().__dict__)


def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(plain(), tmp_path / "plain.onnx")
    without_torch(monkeypatch)
    with pytest.raises(BackendError):
        recover(tmp_path / "plain.onnx", tmp_path / "plain.onnx", data(), output=tmp_path / "plain.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["plain.onnx"]
