"""The statistics service: where it keeps sweeps, what it reports, and that memory does not grow with the samples."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir
import pytest

import optc
from optc.ir.errors import OutputError
from optc.ir.model import load
from optc.ir.targets import builtin_targets
from optc.measure import Measure
from optc.options import Options
from optc.passes.calibration.store import Request
from optc.progress import Silent
from optc.statistics import Collector, user_cache

WIDTH = 1024
TEXT = f"""<ir_version: 8, opset_import: ["": 17]>
g (float[N, S, {WIDTH}] x) => (float[N, S, 32] y)
<float[{WIDTH}, 32] w>
{{ a = Relu (x)  l = Log (a)  y = MatMul (a, w) }}
"""
REQUESTS = [Request("a", histogram=True, channels=-1, gram=True, rows=512), Request("y", histogram=True)]


def model() -> onnx_ir.Model:
    proto = onnx.parser.parse_model(TEXT)
    weight = np.random.default_rng(0).standard_normal((WIDTH, 32)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    del proto.graph.value_info[:]
    return load(proto)


def collector(progress=None, **options) -> Collector:
    chosen = Options.of(**options)
    return Collector(Measure(model(), builtin_targets()["cpu"], chosen), chosen, progress or Silent())


def samples(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 4, WIDTH)).astype(np.float32)} for _ in range(count)]


class Noting:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told = []

    def start(self, stage, total=None) -> None:
        self.told.append(("start", stage, total))

    def advance(self, stage, steps=1, text="") -> None:
        self.told.append(("advance", stage, steps))

    def finish(self, stage) -> None:
        self.told.append(("finish", stage, None))


def test_sweeps_over_the_users_data_are_kept_and_told_of(tmp_path) -> None:
    for round in range(2):
        progress = Noting()
        found = collector(progress, calib=samples(3), calib_cache=tmp_path).collect(model(), REQUESTS)
        assert found.real and found.samples == 3 and found.moments("a").count == 3 * 4 * WIDTH
        assert progress.told[1] == ("start", "calibrate", 3) and progress.told[-1][0] == "finish"
        steps = [count for kind, _, count in progress.told if kind == "advance"]
        assert sum(steps) == 3 and len([step for step in steps if step]) == (3, 1)[round]
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_kept_where_that_is_not_wanted(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = collector(calib=samples(2), calib_cache="off").collect(model(), REQUESTS)
    assert found.moments("y").count == 2 * 4 * 32
    drawn = collector(shapes={"N": 1, "S": 2}).collect(model(), REQUESTS)
    assert not drawn.real and drawn.gram("a").shape == (WIDTH, WIDTH)
    assert not list(tmp_path.iterdir())
    collector(calib=samples(2)).collect(model(), REQUESTS)
    assert len(list((tmp_path / "optc" / "statistics").iterdir())) == 1


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        collector(calib=samples(1), calib_cache=tmp_path / "file").collect(model(), REQUESTS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert collector(calib=samples(1)).collect(model(), REQUESTS).samples == 1


def test_activations_that_are_not_finite_are_reported() -> None:
    one = collector(calib=samples(1))
    one.collect(model(), [Request("l"), Request("a")])
    (note,) = one.notes()
    negative = int((samples(1)[0]["x"] <= 0).sum())
    assert note.startswith(f"the activations 'l' hold 0 NaN and {negative} infinite values on calibration data")


def test_caches_of_systems() -> None:
    assert user_cache("linux", {"XDG_CACHE_HOME": "/c"}) == Path("/c/optc")
    assert user_cache("linux", {"XDG_CACHE_HOME": "c"}) == user_cache("linux", {}) == Path.home() / ".cache" / "optc"
    assert user_cache("darwin", {}) == Path.home() / "Library" / "Caches" / "optc"
    assert user_cache("win32", {"LOCALAPPDATA": "C:/l"}) == Path("C:/l") / "optc" / "Cache"


def peak_of(path: Path, shape: tuple[int, ...]) -> int:
    """Peak memory, in bytes, of a process that gathers statistics over a stack of samples."""
    again = f"import sys; sys.path[:0] = {sys.path!r}\n" + MEASURED.format(module=__file__, path=str(path))
    done = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=True)
    peak, count, kept = (int(number) for number in done.stdout.split())
    # One of four samples is held out where there are enough.
    fitted = shape[0] * 3 // 4 if shape[0] >= 16 else shape[0]
    assert count == fitted * shape[2] * WIDTH and kept == min(512, fitted * shape[2])
    return peak


MEASURED = """
import importlib.util, pathlib, re
spec = importlib.util.spec_from_file_location("again", {module!r})
again = importlib.util.module_from_spec(spec)
spec.loader.exec_module(again)
found = again.collector(calib={path!r}, calib_cache="off").collect(again.model(), again.REQUESTS)
status = pathlib.Path("/proc/self/status").read_text()
print(int(re.search("VmHWM:\\s+(\\d+) kB", status)[1]) * 1024, found.moments("a").count, len(found.rows("a")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_memory_is_flat_from_10_to_1000_samples(tmp_path) -> None:
    peaks = []
    for count in (10, 1000):
        shape = (count, 1, 16, WIDTH)  # 64 KiB each
        np.save(tmp_path / f"{count}.npy", np.random.default_rng(0).standard_normal(shape, np.float32))
        peaks.append(peak_of(tmp_path / f"{count}.npy", shape))
    assert peaks[1] < peaks[0] + (16 << 20)


def test_a_compile_takes_all_of_it(tmp_path) -> None:
    result = optc.compile(onnx_ir.to_proto(model()), level=3, calib=iter(samples(3)), calib_cache=tmp_path)
    assert result.report.verification.status == "passed"
