"""Arrays that are exchanged without copying; NumPy is the other library, on memory that passes for a GPU's."""

from __future__ import annotations

import ctypes
import gc

import ml_dtypes
import numpy as np
import pytest

from optc.backends import cuda, device_arrays
from optc.backends.device_arrays import DeviceArray, on_gpu, stream_handle, view
from optc.ir.errors import DataError

from .driver.double import Driver


@pytest.fixture
def driver(monkeypatch):
    return Driver().put(monkeypatch)


class OnHost(DeviceArray):
    """Says that it is in the host's memory, as the double's is, so that NumPy takes it."""

    def __dlpack_device__(self):
        return 1, 0


def left(driver, array, kind=OnHost):
    """What a run left."""
    gpu = cuda.open_device()
    memory = cuda.take(gpu, array.nbytes, "a test")
    if array.nbytes:
        ctypes.memmove(memory.value, array.ctypes.data, array.nbytes)
    return kind(memory, array.shape, array.dtype, cuda.Event(gpu))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.array(3, np.float16),
        np.zeros((0, 3), np.int64),
        np.array([True, False]),
        np.arange(5, dtype=np.uint8),
    ],
)
def test_another_library_takes_it_as_it_is(driver, array):
    made = left(driver, array)
    taken = np.from_dlpack(made)
    np.testing.assert_array_equal(taken, array)
    assert taken.dtype == array.dtype and taken.shape == array.shape
    if array.nbytes:
        assert taken.ctypes.data == made.address


def test_memory_stays_for_as_long_as_somebody_has_it(driver):
    made = left(driver, np.arange(6.0))
    taken = np.from_dlpack(made)
    part = taken[2:4]
    del made, taken
    gc.collect()
    assert driver.alive()["memory"] == 1 and part.tolist() == [2, 3]
    del part
    gc.collect()
    assert driver.alive() == {} and not device_arrays._given_out


def test_a_capsule_that_nobody_takes_gives_it_back(driver):
    made = left(driver, np.arange(6.0))
    capsule = made.__dlpack__()
    del made
    gc.collect()
    assert driver.alive()["memory"] == 1
    del capsule
    gc.collect()
    assert driver.alive() == {} and not device_arrays._given_out


@pytest.mark.parametrize(("stream", "waits"), [(None, [1]), (-1, []), (2, [2]), (0, [0])])
def test_who_takes_it_waits_on_its_own_stream(driver, stream, waits):
    left(driver, np.arange(6.0)).__dlpack__(stream=stream)
    assert [arguments[0] for arguments in driver.named("cuStreamWaitEvent")] == waits


def test_what_it_does_not_do_is_refused(driver):
    made = left(driver, np.arange(6.0), DeviceArray)
    for asked in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError):
            made.__dlpack__(**asked)
    with pytest.raises(ValueError, match="copy"):
        np.asarray(made, copy=False)
    assert made.__dlpack__(dl_device=(2, 0), max_version=(1, 0)) is not None


def test_the_interface_of_cuda_arrays(driver):
    made = left(driver, np.arange(6, dtype=np.int32).reshape(2, 3))
    told = made.__cuda_array_interface__
    assert told["data"] == (made.address, False) and (told["shape"], told["typestr"]) == ((2, 3), "<i4")
    assert told["stream"] is None and driver.names()[-1] == "cuEventSynchronize", "it is written when it is given away"
    np.testing.assert_array_equal(np.asarray(made), [[0, 1, 2], [3, 4, 5]])
    assert np.asarray(made, np.float64).dtype == np.float64


def test_numbers_of_16_bits_have_their_code(driver):
    made = left(driver, np.arange(4).astype(ml_dtypes.bfloat16), DeviceArray)
    again = view(made, "it", 2)
    assert (again.address, again.dtype, again.shape) == (made.address, ml_dtypes.bfloat16, (4,))
    assert not device_arrays._given_out or again.owner
    del again
    gc.collect()
    assert not device_arrays._given_out


class Versioned:
    """Gives capsules of DLPack's newer kind, as some libraries do."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, *, stream=None):
        return self.array.__dlpack__(max_version=(1, 0))


def test_capsules_of_both_kinds_are_read():
    array = np.arange(12, dtype=np.int16).reshape(3, 4)
    found = view(Versioned(array), "it", 2)
    assert (found.address, found.shape, found.dtype) == (array.ctypes.data, (3, 4), np.int16)
    part = view(Versioned(array[1:]), "it", 2)
    assert part.address == array.ctypes.data + 8
    assert view(Versioned(array[:, :1][:1]), "it", 2).shape == (1, 1), "a dim of 1 may have any stride"
    with pytest.raises(DataError, match="not next to each other"):
        view(Versioned(array[:, :2]), "it", 2)


def test_the_default_stream_has_a_name_for_others():
    asked = []

    class Asked(Versioned):
        def __dlpack__(self, *, stream=None):
            asked.append(stream)
            return self.array.__dlpack__()

    view(Asked(np.arange(3)), "it", 0)
    view(Asked(np.arange(3)), "it", 77)
    assert asked == [1, 77]


def test_what_is_still_being_written_is_waited_for(driver):
    class Written:
        def __init__(self, stream):
            self.__cuda_array_interface__ = {
                "shape": (2,), "typestr": "<f4", "data": (4096, False), "version": 3, "stream": stream,
            }  # fmt: skip

    for stream in (None, 5, 1, 2):
        view(Written(stream), "it", 5)
    assert driver.named("cuStreamSynchronize") == [(1,), (2,)]


def test_a_library_that_refuses_is_named():
    class Refusing:
        def __dlpack_device__(self):
            return 2, 0

        def __dlpack__(self, *, stream=None):
            raise BufferError("it needs a gradient")

    with pytest.raises(DataError, match="input 'x' cannot be taken from Refusing: it needs a gradient"):
        view(Refusing(), "input 'x'", 0)


def test_what_is_on_a_gpu():
    assert not on_gpu(np.zeros(3)) and not on_gpu([1, 2]) and not on_gpu(3.0)
    assert on_gpu(Versioned(np.zeros(3)))

    class Managed(Versioned):
        def __dlpack_device__(self):
            return 13, 0

    assert on_gpu(Managed(np.zeros(3)))


def test_handles_of_streams():
    class Stream:
        def __cuda_stream__(self):
            return 0, 99

    assert (stream_handle(7), stream_handle(Stream())) == (7, 99)
    with pytest.raises(DataError, match="is no CUDA stream"):
        stream_handle("7")


def test_a_type_that_numpy_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(device_arrays, "_dtype", lambda *told: None)
    with pytest.raises(DataError, match="a type that NumPy has none for"):
        view(Versioned(np.zeros(3)), "it", 0)


@pytest.mark.parametrize("told", [(2, 32, 4), (2, 12, 1), (9, 32, 1), (4, 32, 1), (1, 24, 1)])
def test_types_that_numpy_lacks(told):
    assert device_arrays._dtype(*told) is None
