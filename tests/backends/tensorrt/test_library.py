"""Finding TensorRT, and saying in one line what is in the way."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from optc.backends.tensorrt import library
from optc.ir.errors import BackendError


@pytest.fixture
def install(monkeypatch):
    """Puts a module in TensorRT's place."""

    def put(version):
        module = ModuleType("tensorrt")
        module.__version__ = version
        module.__spec__ = ModuleSpec("tensorrt", None)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        return module

    return put


def test_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert library.installed_version() is None
    with pytest.raises(BackendError, match="not installed") as raised:
        library.library()
    assert "pip install 'optc[tensorrt]'" in raised.value.hint


def test_too_old(install):
    install("8.6.1")
    with pytest.raises(BackendError, match=r"TensorRT 8\.6\.1 is too old: 10\.0 or later") as raised:
        library.library()
    assert "pip install --upgrade" in raised.value.hint


@pytest.mark.parametrize("version", ["10.0.1", "10.16.1.11", "11.4.0.106"])
def test_versions_that_are_served(install, version):
    module = install(version)
    assert library.library() is module
    assert library.version_of(module) >= library.OLDEST


def test_an_import_that_fails_is_told_in_one_line(install, monkeypatch):
    install("11.4.0")

    def fail(name, package=None):
        raise OSError("libnvinfer.so.11: cannot open shared object file\nand more")

    monkeypatch.setattr(library.importlib, "import_module", fail)
    with pytest.raises(BackendError, match=r"libnvinfer\.so\.11: cannot open shared object file") as raised:
        library.library()
    assert "\n" not in raised.value.what


def test_what_a_version_lacks_is_said_with_the_version_that_has_it(install):
    trt = install("10.3.0")
    with pytest.raises(BackendError, match="plugins needs QuickPluginCreationRequest") as raised:
        library.part(trt, "QuickPluginCreationRequest", "a network with plugins")
    assert "TensorRT 10.9 or later" in raised.value.hint


def test_version_numbers():
    assert library.parse_version("10.16.1.11") == (10, 16)
    assert library.parse_version("11") == (11, 0)
