"""The sweep: what it finds is what NumPy finds over all arrays, however the data is cut and whatever happens to it."""

from __future__ import annotations

import hashlib
from functools import partial

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir
import pytest

from optc.backends.ort import Session
from optc.ir.errors import DataError
from optc.ir.model import load
from optc.passes.calibration.store import Request
from optc.passes.calibration.sweep import sweep
from optc.passes.calibration.views import COLUMNS, Patches

OPEN = partial(Session, optimization="off", spinning=False)
RNG = np.random.default_rng(0)
TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, S, 6] x) => (float[N, S, 4] y)
<float[6, 8] w, float[8, 4] v>
{ a = MatMul (x, w)  b = Relu (a)  i = Shape (b)  y = MatMul (b, v) }
"""


class Data:
    """Arrays that can be iterated over again and again, and say how often they were."""

    real = True

    def __init__(self, arrays) -> None:
        self.arrays, self.rounds = list(arrays), 0
        self.digest = hashlib.sha256(repr([a.tobytes() for a in self.arrays]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.arrays)

    def __iter__(self):
        self.rounds += 1
        return ({"x": array} for array in self.arrays)


def model() -> onnx_ir.Model:
    proto = onnx.parser.parse_model(TEXT)
    for name, shape in (("w", (6, 8)), ("v", (8, 4))):
        array = np.random.default_rng(shape).standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    del proto.graph.value_info[:]
    return load(proto)


def ragged(count: int = 20) -> list[np.ndarray]:
    """Samples of different lengths, the later ones larger in magnitude."""
    rng = np.random.default_rng(1)
    return [(rng.standard_normal((1, 3 + i % 5, 6)) * 1.3**i).astype(np.float32) for i in range(count)]


def inner(arrays) -> np.ndarray:
    w = model().graph.initializers["w"].const_value.numpy()
    return np.concatenate([np.maximum(a @ w, 0).reshape(-1, 8) for a in arrays])


ALL = [
    Request("b", histogram=True, channels=-1, gram=True, rows=16),
    Request("x", histogram=True),
    Request("a", rows=500),
]


@pytest.mark.parametrize("budget", [1 << 30, 1], ids=["one group", "a group each"])
def test_what_is_found_is_what_numpy_finds(budget) -> None:
    arrays = ragged()
    found = sweep(model(), ALL, Data(arrays), OPEN, budget=budget)
    b = inner(arrays)
    moments, channels = found.moments("b"), found.channels("b", -1)
    assert (moments.count, moments.minimum, moments.maximum) == (b.size, b.min(), b.max())
    assert moments.mean == pytest.approx(b.mean(dtype=float), rel=1e-5)
    assert moments.mean_square == pytest.approx(np.mean(b.astype(float) ** 2), rel=1e-5)
    np.testing.assert_allclose(channels.mean, b.mean(axis=0, dtype=float), rtol=1e-5)
    np.testing.assert_array_equal(channels.absmax, abs(b).max(axis=0))
    np.testing.assert_allclose(found.gram("b"), b.T.astype(float) @ b / len(b), rtol=1e-4)
    histogram = found.histogram("b")
    assert histogram.total == b.size
    np.testing.assert_array_equal(histogram.counts, np.histogram(b.astype(float), histogram.edges)[0])
    assert found.histogram("x").total == sum(a.size for a in arrays)
    rows = found.rows("b")
    assert rows.shape == (16, 8) and all((row == b).all(axis=1).any() for row in rows)
    assert len(found.rows("a")) == sum(a.shape[1] for a in arrays)


def test_what_cannot_be_had_is_said() -> None:
    found = sweep(model(), [Request("i"), Request("w"), Request("nope"), Request("b")], Data(ragged(2)), OPEN)
    assert list(found) == ["b"]
    assert found.why_not(Request("b")) is None
    assert "int64" in found.why_not(Request("i"))
    assert "constant" in found.why_not(Request("w")) and "no such value" in found.why_not(Request("nope"))
    assert "not asked for" in found.why_not(Request("b", histogram=True))
    with pytest.raises(DataError, match="not asked for"):
        found.histogram("b")
    with pytest.raises(DataError, match="no samples"):
        sweep(model(), [Request("b")], Data([]), OPEN)


def test_a_finished_sweep_is_not_run_again(tmp_path) -> None:
    data = Data(ragged())
    first = sweep(model(), ALL, data, OPEN, folder=tmp_path)
    rounds = data.rounds

    def refuse(copy):
        raise AssertionError("nothing needs to run")

    again = sweep(model(), ALL, data, refuse, folder=tmp_path)
    assert data.rounds == rounds
    np.testing.assert_array_equal(first.gram("b"), again.gram("b"))
    with pytest.raises(AssertionError):
        sweep(model(), ALL, Data(ragged(21)), refuse, folder=tmp_path)
    with pytest.raises(AssertionError):
        sweep(model(), [*ALL, Request("x", channels=-1)], data, refuse, folder=tmp_path)


def test_patches_are_what_a_convolution_multiplies() -> None:
    for auto_pad, groups in (("NOTSET", 1), ("SAME_UPPER", 2), ("SAME_LOWER", 4), ("VALID", 1)):
        x = RNG.standard_normal((2, 4, 7, 6)).astype(np.float32)
        w = RNG.standard_normal((8, 4 // groups, 3, 2)).astype(np.float32)
        dilated = 2 if auto_pad == "NOTSET" else 1
        pads = "pads = [1, 2, 0, 1], " if auto_pad == "NOTSET" else f'auto_pad = "{auto_pad}", '
        node = f"Conv <{pads}strides = [2, 1], dilations = [1, {dilated}], group = {groups}> (x, w)"
        text = f'<ir_version: 8, opset_import: ["": 17]> g (float[2,4,7,6] x, float[8,{4 // groups},3,2] w) => '
        built = onnx_ir.from_onnx_text(text + f"(float[a,b,c,d] y) {{ y = {node} }}")
        expected = OPEN(built).run({"x": x, "w": w})["y"]
        (conv,) = built.graph
        rows = Patches.of(conv, (3, 2)).rows(x, RNG)
        parts = rows.reshape(len(rows), groups, -1)
        y = np.einsum("pgk,gok->pgo", parts, w.reshape(groups, 8 // groups, -1)).reshape(len(rows), 8)
        np.testing.assert_allclose(y, expected.transpose(0, 2, 3, 1).reshape(-1, 8), rtol=1e-4, atol=1e-5)
        some = Patches.of(conv, (3, 2), positions=3).rows(x, RNG)
        assert len(some) == 6 and all((row == rows).all(axis=1).any() for row in some)


def test_columns_of_another_axis() -> None:
    x = RNG.standard_normal((3, 5)).astype(np.float32)
    np.testing.assert_array_equal(COLUMNS.rows(x, RNG), x)
