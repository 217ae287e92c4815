"""The driver's double is as strict as cuda-bindings are, and all that we call is there in every version."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest

from . import surface
from .double import Driver


def test_the_surface_is_that_of_the_bindings():
    major = surface.installed()
    if major is None:
        pytest.skip("cuda-bindings is not installed")
    assert surface.read() == surface.load(major), "the bindings changed: run surface.py write"


@pytest.mark.parametrize("major", surface.MAJORS)
def test_all_that_is_used_is_there(major):
    stored = surface.load(major)
    known = {*stored["functions"], *stored["enums"], *stored["structures"]}
    known |= {member for members in stored["enums"].values() for member in members}
    assert surface.used() <= known
    assert len(stored["functions"]) > 30


def test_versions_agree_in_all_that_is_used():
    first, second = ({**surface.load(major), "major": 0} for major in surface.MAJORS)
    assert first == second


def test_docstrings_of_functions_are_read():
    doc = """cuF(hGraph, dependencies: Optional[tuple[A] | list[B]], size_t numDependencies, char *name)

    Does.

    Parameters
    ----------
    hGraph : Any
        It.

    Returns
    -------
    CUresult
        :py:obj:`~.CUDA_SUCCESS`
    first : Any
        One.
    second : int
        Two.

    See Also
    --------
    other : Any
    """
    assert surface._parameters(doc) == ["hGraph", "dependencies", "numDependencies", "name"]
    assert surface._results(doc) == 2


@pytest.mark.parametrize("major", surface.MAJORS)
@pytest.mark.parametrize(
    ("error", "call"),
    [
        (AttributeError, lambda driver: driver.cuMemAllocate(8)),
        (TypeError, lambda driver: driver.cuMemAlloc()),
        (TypeError, lambda driver: driver.cuGraphInstantiate(1, 0, 0)),
        (AttributeError, lambda driver: setattr(driver.CUDA_KERNEL_NODE_PARAMS(), "grid", 1)),
        (AttributeError, lambda driver: driver.CUevent_flags.CU_EVENT_DISABLE_TIMINGS),
        (KeyError, lambda driver: driver.cuMemFree(8)),
        (AssertionError, lambda driver: driver.cuStreamSynchronize(77)),
        (AssertionError, lambda driver: driver.cuMemcpyHtoD(4096, 4096, 1)),
    ],
)
def test_a_wrong_call_fails(major, error, call):
    with pytest.raises(error):
        call(Driver(major))


def test_memory_is_limited_and_must_not_be_overrun():
    driver = Driver(memory=1000)
    status, address = driver.cuMemAlloc(600)
    assert int(status) == 0 and driver.cuMemGetInfo()[1:] == (400, 1000)
    assert int(driver.cuMemAlloc(600)[0]) == 2
    with pytest.raises(AssertionError, match="in no allocated memory"):
        driver.cuMemcpyHtoD(address + 1, address, 600)
    driver.cuMemFree(address)
    assert driver.alive() == {}


def test_it_takes_the_place_of_the_bindings(monkeypatch):
    made = Driver().put(monkeypatch)
    assert importlib.import_module("cuda.bindings.driver") is made
    assert isinstance(made.CUdevice_attribute, SimpleNamespace)
