"""The sweep: what it finds is what NumPy finds over all arrays, however the data is cut and whatever happens to it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
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
from optc.passes.calibration.folder import make_room
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
    assert not list(sweep(model(), [Request("nope")], Data(ragged(2)), OPEN))
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


# interrupted -------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for the end of a process."""


def counting(runs: list[int], limit: int | None = None):
    """An opener whose sessions count how often they run, and die after so many times."""

    class Counted:
        def __init__(self, copy) -> None:
            self.session = OPEN(copy)

        def run(self, feeds):
            if limit is not None and runs[0] == limit:
                raise Killed
            runs[0] += 1
            return self.session.run(feeds)

    return Counted


def everything(found) -> dict[str, np.ndarray]:
    return {f"{name} {key}": array for name, record in found._records.items() for key, array in record.items()}


def check_same(one, two) -> None:
    first, second = everything(one), everything(two)
    assert set(first) == set(second) and len(first) > 10
    for key, array in first.items():
        np.testing.assert_array_equal(array, second[key], err_msg=key)


@pytest.mark.parametrize("budget", [1 << 30, 1], ids=["one group", "a group each"])
def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path, budget) -> None:
    data = Data(ragged(40))
    whole = sweep(model(), ALL, data, OPEN, budget=budget)
    runs, starts = [0], 0
    while True:
        starts += 1
        try:
            opener = counting(runs, runs[0] + 11)
            found = sweep(model(), ALL, data, opener, budget=budget, folder=tmp_path, save_every=0)
            break
        except Killed:
            continue
    check_same(whole, found)
    fresh = [0]
    sweep(model(), ALL, data, counting(fresh), budget=budget)
    assert starts > 3
    # No sample ran twice, except the few whose shapes are looked at before each start has a plan.
    assert runs[0] <= fresh[0] + 3


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nothing", None])
def test_a_damaged_state_is_started_anew(tmp_path, damage) -> None:
    data = Data(ragged(10))
    whole = sweep(model(), ALL, data, OPEN)
    with pytest.raises(Killed):
        sweep(model(), ALL, data, counting([0], 9), folder=tmp_path, save_every=0)
    (state,) = tmp_path.glob("*/*.part.npz")
    state.write_bytes(state.read_bytes()[:-200] if damage is None else damage)
    check_same(whole, sweep(model(), ALL, data, OPEN, folder=tmp_path))
    (plan,) = tmp_path.glob("*/plan.json")
    plan.write_text("{")
    check_same(whole, sweep(model(), ALL, data, OPEN, folder=tmp_path))


def test_a_killed_process_is_followed_by_another(tmp_path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{KILLED}", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == "25":
            child.kill()
            break
    assert child.wait() == -signal.SIGKILL
    assert len(list(tmp_path.glob("*/*.part.npz"))) == 1
    data, runs = Data(ragged(40)), [0]
    found = sweep(model(), ALL, data, counting(runs), folder=tmp_path)
    assert 10 <= runs[0] < 20
    check_same(sweep(model(), ALL, data, OPEN), found)
    assert not list(tmp_path.glob("*/*.part.npz"))


KILLED = f"""
import importlib.util, pathlib, time
spec = importlib.util.spec_from_file_location("again", {__file__!r})
again = importlib.util.module_from_spec(spec)
spec.loader.exec_module(again)
def tell(done, total):
    print(done, flush=True)
    time.sleep(0.01)
data = again.Data(again.ragged(40))
again.sweep(again.model(), again.ALL, data, again.OPEN, folder=pathlib.Path(sys.argv[1]), save_every=0, progress=tell)
"""


def test_two_samples_in_another_order_are_other_data(tmp_path) -> None:
    arrays = ragged(3)
    sweep(model(), ALL, Data(arrays), OPEN, folder=tmp_path)
    sweep(model(), ALL, Data(arrays[::-1]), OPEN, folder=tmp_path)
    other = model()
    other.graph.initializers["w"].const_value = onnx_ir.tensor(np.ones((6, 8), np.float32), name="w")
    sweep(other, ALL, Data(arrays), OPEN, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_data_that_runs_out_is_said() -> None:
    class Less(Data):
        def __iter__(self):
            return iter(list(super().__iter__())[: 10 if self.rounds > 1 else 20])

    data = Less(ragged())
    with pytest.raises(DataError, match="20 samples at first and 10 later"):
        sweep(model(), ALL, data, OPEN)


def test_old_sweeps_make_room(tmp_path) -> None:
    for age, count in ((30, 2), (20, 3), (10, 4)):
        sweep(model(), ALL, Data(ragged(count)), OPEN, folder=tmp_path)
        for folder in tmp_path.iterdir():
            for plan in folder.glob("plan.json"):
                if time.time() - plan.stat().st_mtime < 5:
                    os.utime(plan, (time.time() - age,) * 2)
    size = sum(file.stat().st_size for file in tmp_path.glob("*/*"))
    by_age = sorted(tmp_path.iterdir(), key=lambda folder: (folder / "plan.json").stat().st_mtime)
    make_room(tmp_path, size - 1)
    assert set(tmp_path.iterdir()) == set(by_age[1:])
    make_room(tmp_path, 0)
    assert set(tmp_path.iterdir()) == {by_age[2]}


# odd data ----------------------------------------------------------------------------------------------------------


def test_what_is_not_finite_is_counted_and_named() -> None:
    arrays = ragged(4)
    arrays[2][0, 1, 3] = np.nan
    arrays[3][0, 0, 0] = np.inf
    found = sweep(model(), [Request("x", histogram=True, channels=-1, gram=True, rows=100)], Data(arrays), OPEN)
    assert found.odd() == {"x": (1, 1)}
    rows = np.concatenate([a.reshape(-1, 6) for a in arrays])
    fine = rows[np.isfinite(rows).all(axis=1)]
    assert len(found.rows("x")) == len(fine) == len(rows) - 2
    np.testing.assert_allclose(found.gram("x"), fine.T.astype(float) @ fine / len(fine), rtol=1e-5)
    assert found.histogram("x").total == np.isfinite(rows).sum() == found.channels("x", -1).count.sum()


def test_channels_that_change_are_a_reason_not_an_error() -> None:
    found = sweep(model(), [Request("x", channels=1), Request("b", channels=1, gram=True)], Data(ragged(3)), OPEN)
    assert "3 channels in one sample and 4 in another" in found.why_not(Request("b", channels=1))
    assert found.why_not(Request("b", gram=True)) is None
    assert found.moments("x").count == sum(a.size for a in ragged(3))
