"""What is made of the real bindings' classes, in a process of its own: subclasses, and errors where there is no GPU."""

from __future__ import annotations

import json

import pytest

from . import surface

SCRIPT = r"""
import json, tensorrt as trt
from optc.backends.tensorrt.builder import _builder
from optc.backends.tensorrt.library import SINCE, library, part
from optc.backends.tensorrt.monitor import Log, monitor
from optc.backends.tensorrt.runner import DTYPES, _allocator
from optc.ir.errors import BackendError

found = {"library": library() is trt}
log = Log()
logger = log.logger(trt)
for severity in trt.ILogger.Severity.__members__.values():
    logger.log(severity, f"a\n{severity.name}")
found["errors"], found["warnings"] = list(log.errors), list(log.warnings)

events = []
class Listener:
    def start(self, *told): events.append(("start", *told))
    def advance(self, *told): events.append(("advance", *told))
    def finish(self, *told): events.append(("finish", *told))
watching = monitor(trt, Listener(), lambda: len(events) > 3)
watching.phase_start("a", None, 2)
watching.phase_start("b", "a", 1)
going = [watching.step_complete("a", 0), watching.step_complete("a", 1)]
watching.phase_finish("b")
watching.phase_finish("a")
found["events"], found["going"] = events, going

allocator = _allocator(trt)
allocator.notify_shape("y", trt.Dims((2, 3)))
found["shape"] = allocator.shape

log = Log()
for make in (lambda: _builder(trt, log.logger(trt), log), lambda: trt.Runtime(log.logger(trt))):
    try:
        make()
        found.setdefault("refused", []).append(None)
    except (BackendError, TypeError) as error:
        found.setdefault("refused", []).append(f"{type(error).__name__}: {error}")
found["parts"] = [part(trt, name, "a test") is not None for name in SINCE]
found["types"] = sorted(set(DTYPES) - set(trt.DataType.__members__))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    reason = surface.missing()
    if reason is not None:
        pytest.skip(reason)
    return json.loads(surface.run(SCRIPT, surface.installed()).splitlines()[-1])


def test_the_library_is_taken(found):
    assert found["library"] and all(found["parts"]) and found["types"] == []


def test_a_logger_of_the_bindings(found):
    assert sorted(found["errors"]) == ["a ERROR", "a INTERNAL_ERROR"]
    assert found["warnings"] == ["a WARNING"]


def test_a_progress_monitor_of_the_bindings(found):
    assert found["events"] == [
        ["start", "a", 2],
        ["advance", "a", 0, "b"],
        ["advance", "a"],
        ["advance", "a"],
        ["finish", "a"],
    ]
    assert found["going"] == [True, False]


def test_an_output_allocator_of_the_bindings(found):
    assert found["shape"] == [2, 3]


def test_without_a_gpu_the_real_classes_are_refused_as_expected(found):
    built, run = found["refused"]
    assert built.startswith("BackendError: TensorRT cannot start on this machine: it found no GPU")
    assert run.startswith("TypeError") and "nullptr" in run
