"""Backends by name: late import, plain words on what is missing, one owner per name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from optc.backends.base import Artifact, Backend, Probe, Runner
from optc.backends.registry import BackendRegistry
from optc.ir.errors import UsageError


class Broken:
    name = "broken"

    def probe(self) -> Probe:
        raise RuntimeError("no driver")

    def claims(self, op, target=None) -> bool:
        return False

    def emit(self, model, target, out) -> Artifact:
        raise NotImplementedError

    def open(self, path, **options) -> Runner:
        raise NotImplementedError


BROKEN = Broken()
NOT_A_BACKEND = 42


def test_the_built_in_backends():
    registry = BackendRegistry()
    assert list(registry) == ["onnxruntime", "openvino", "tensorrt", "triton"]
    for name in registry:
        backend = registry.get(name)
        assert isinstance(backend, Backend)
        assert backend.name == name
    probes = registry.probe()
    assert probes["onnxruntime"].ready
    assert "opset" in probes["onnxruntime"].reason


def test_listing_imports_no_backend():
    code = (
        "import sys; from optc.backends.registry import BackendRegistry; list(BackendRegistry());"
        "sys.exit('onnxruntime' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_whoever_compiles_no_kernels_never_loads_triton():
    code = (
        "import sys, optc.compiler, optc.tools.run, optc.tools.inspect, optc.tools.compile;"
        "from optc.backends.registry import BackendRegistry; BackendRegistry().probe();"
        "sys.exit(bool({'triton', 'cuda', 'torch', 'openvino', 'tensorrt'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UsageError, match="did you mean tensorrt"):
        BackendRegistry().get("tensort")


def test_plugins_add_rows_to_one_registry_only():
    registry = BackendRegistry()
    registry.add("mine", f"{__name__}:BROKEN", "my-package")
    assert registry.get("mine") is sys.modules[__name__].BROKEN
    assert registry.owner("mine") == "my-package"
    assert "mine" not in BackendRegistry()


def test_two_owners_of_one_name():
    with pytest.raises(UsageError, match="by optc and by my-package"):
        BackendRegistry().add("triton", "x:y", "my-package")


@pytest.mark.parametrize(
    "location", ["no_such_module:X", "optc.backends.ort:NO_SUCH_NAME", f"{__name__}:NOT_A_BACKEND"]
)
def test_a_broken_plugin_is_listed_and_breaks_nothing(location):
    registry = BackendRegistry()
    registry.add("bad", location, "my-package")
    with pytest.raises(UsageError, match="'bad'") as caught:
        registry.get("bad")
    assert caught.value.hint == "repair or uninstall my-package"
    probes = registry.probe()
    assert not probes["bad"].ready
    assert probes["onnxruntime"].ready


def test_a_probe_that_raises_is_reported():
    registry = BackendRegistry()
    registry.add("broken", f"{__name__}:BROKEN", "my-package")
    assert registry.probe()["broken"].reason == "its probe failed: RuntimeError: no driver"
