"""The device "cuda" without a GPU: on a driver as strict as the real one, whose kernels the interpreter runs."""

from __future__ import annotations

import contextlib
import gc
import importlib
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("triton")

import optc
from optc.backends.device_arrays import DeviceArray
from optc.backends.ort import Session
from optc.backends.triton.artifact import open_artifact
from optc.backends.triton.build import load_hooks, specialize
from optc.ir.errors import BackendError, DataError
from optc.kernels.interpret import interpreter
from optc.kernels.library import KERNELS
from optc.kernels.tiles import Tile

from ..driver.double import Driver, Status
from ..driver.surface import MAJORS
from .models import model

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[B,8] x, float[8,4] w_1) => (float[B,4] y)
{
    h = MatMul (x, w_1)
    y = Relu (h)
}
"""
#: Two inputs, two outputs, temporaries, an intermediate value that is an output, a weight.
DEEP = """
<ir_version: 8, opset_import: ["": 17]>
g (float[B,8] x, float[B,8] z, float[8,8] w_1) => (float[B,8] y, float[B,8] s)
{
    a = MatMul (x, w_1)
    s = Softmax <axis=-1> (a)
    b = MatMul (s, w_1)
    c = Softmax <axis=-1> (b)
    y = Add (c, z)
}
"""


def made(folder, text=TEXT, **options):
    """An artifact."""
    out = folder / "m.optc"
    return optc.compile(model(text), target="a100", output=out, verify="off", **options).artifact


@contextlib.contextmanager
def on(driver, artifact):
    """The artifact, opened on a driver whose kernels are run by the interpreter."""
    with pytest.MonkeyPatch.context() as patch, interpreter() as running:
        driver.put(patch)
        patch.delitem(sys.modules, "optc.backends.triton.cuda_device", raising=False)
        opened = open_artifact(artifact)
        known = {}
        for name, entry in opened.plan.kernels.items():
            variant = entry.variants["sm_80"]
            tile = Tile(variant.constants, variant.num_warps, variant.num_stages)
            spec = specialize(entry, load_hooks(artifact / entry.source, name), tile)
            known[opened.read(variant.cubin)] = entry, variant, spec

        def kernel(launch):
            entry, variant, spec = known[driver.code(launch.function)]
            count = len(entry.types)
            args, passed, scratch = launch.values[:count], launch.values[count:-2], launch.values[-2:]
            assert scratch == (0, 0) and len(passed) == len(entry.passed)
            assert (launch.threads, launch.shared) == (32 * variant.num_warps, variant.shared)
            for value, kind in zip(args, entry.types, strict=True):
                if kind.startswith("*"):
                    assert value % 16 == 0 and driver.block_of(value)
            running.launch(spec, args, dict(zip(entry.passed, passed, strict=True)))

        driver.kernel = kernel
        runner = optc.load(artifact, device="cuda")
        try:
            yield runner
        finally:
            runner.close()
    sys.modules.pop("optc.backends.triton.cuda_device", None)
    importlib.invalidate_caches()


def refused(driver, artifact):
    """What opening an artifact on a driver fails with."""
    with pytest.raises(BackendError) as caught, on(driver, artifact):
        pass
    return str(caught.value)


class Foreign:
    """An array of another library, in the memory of a driver."""

    def __init__(self, driver, array, **told):
        self.array, self.told = array, told
        self.address = driver.lend(array)
        self.asked: list[object] = []

    def numpy(self):
        return self.array


class WithInterface(Foreign):
    @property
    def __cuda_array_interface__(self):
        told = {"shape": self.array.shape, "typestr": self.array.dtype.str, "data": (self.address, False)}
        return {**told, "version": 3, **self.told}


class WithDlpack(Foreign):
    def __dlpack_device__(self):
        return self.told.get("device", (2, 0))

    def __dlpack__(self, *, stream=None):
        self.asked.append(stream)
        return self.array.__dlpack__()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return made(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return made(tmp_path_factory.mktemp("deep"), DEEP)


def aligned(shape, values=None, dtype=np.float32):
    """An array that begins where kernels want it."""
    raw = np.zeros(int(np.prod(shape)) * 8 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    made = raw[start : start + int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
    if values is not None:
        made[...] = values
    return made


def feeds_of(batch, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(batch, 8)).astype(np.float32) for name in ("x", "z")}


def check(outputs, feeds):
    wanted = Session(model(DEEP), optimization="off").run(feeds)
    for name, array in wanted.items():
        found = outputs[name]
        found = found if isinstance(found, np.ndarray) else found.numpy()
        np.testing.assert_allclose(found, array, rtol=1e-5, atol=1e-6)


# numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.parametrize("graphs", [False, True])
def test_results_are_those_of_the_model(deep, major, graphs):
    with on(Driver(major), deep) as runner:
        runner._device._graphs = graphs
        for seed, batch in enumerate((3, 5, 3, 3, 1, 5, 5, 3)):
            feeds = feeds_of(batch, seed)
            check(runner.run(feeds), feeds)


@pytest.mark.parametrize("kind", [WithInterface, WithDlpack])
def test_arrays_on_the_gpu_are_used_in_place(deep, kind):
    driver = Driver()
    with on(driver, deep) as runner:
        runner.run(feeds_of(3))
        for seed in range(4):
            feeds = feeds_of(3, seed)
            given = {name: kind(driver, aligned(array.shape, array)) for name, array in feeds.items()}
            out = kind(driver, aligned((3, 8)))
            driver.calls.clear()
            outputs = runner.run_on_device(given, {"y": out})
            assert outputs["y"] is out and isinstance(outputs["s"], DeviceArray)
            assert not any("Memcpy" in name for name in driver.names()), "nothing is copied"
            used = {value for launch in driver.launches for value in launch.values}
            assert {out.address, *(array.address for array in given.values())} <= used
            check(outputs, feeds)
            if kind is WithDlpack:
                assert out.asked == [runner._device._stream], "what writes it is waited for on our stream"


def test_arrays_of_both_kinds_may_be_mixed(deep):
    driver = Driver()
    with on(driver, deep) as runner:
        for seed in range(3):
            feeds = feeds_of(2, seed)
            mixed = {**feeds, "x": WithDlpack(driver, aligned((2, 8), feeds["x"]))}
            check(runner.run(mixed), feeds)
            check(runner.run(feeds), feeds)


def test_what_is_not_aligned_is_moved(deep):
    driver = Driver()
    with on(driver, deep) as runner:
        feeds = feeds_of(2)
        raw = aligned((17,))
        raw[1:] = feeds["x"].reshape(-1)
        driver.lend(raw)
        odd = WithInterface(driver, raw[1:].reshape(2, 8))
        check(runner.run({**feeds, "x": odd}), feeds)
        assert len(driver.named("cuMemcpyDtoDAsync")) == 1
        with pytest.raises(DataError, match="output 'y' does not begin at a multiple of 16 bytes"):
            runner.run_on_device(feeds, {"y": odd})


def test_booleans_and_numbers_of_16_bits(tmp_path):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    g (bfloat16[B] x, bool[B] m) => (bfloat16[B] y, bool[B] n)
    { t = Neg (x) y = Where (m, x, t) n = Not (m) }
    """
    driver, artifact = Driver(), made(tmp_path, text)
    with on(driver, artifact) as runner:
        feeds = {"x": np.arange(5).astype(runner.inputs[0].dtype.numpy()), "m": np.array([1, 0, 1, 0, 1], np.bool_)}
        outputs = runner.run(feeds)
        assert outputs["n"].tolist() == [False, True, False, True, False] and outputs["n"].dtype == np.bool_
        assert outputs["y"].tolist() == [0, -1, 2, -3, 4] and outputs["y"].dtype == feeds["x"].dtype
        left = runner.run_on_device(feeds)
        assert np.asarray(left["n"]).tolist() == outputs["n"].tolist()
        assert left["y"].numpy().tolist() == [0, -1, 2, -3, 4]


# graphs ---------------------------------------------------------------------------------------------------------------


def test_sizes_that_come_again_are_replayed_as_a_graph(deep):
    driver = Driver()
    with on(driver, deep) as runner:
        launches = len(runner.artifact.plan.launches)
        runner.run(feeds_of(3))
        assert driver.names().count("cuLaunchKernel") == launches
        assert "cuGraphCreate" not in driver.names()
        driver.calls.clear()
        for _ in range(3):
            runner.run(feeds_of(3))
        names = driver.names()
        assert names.count("cuGraphAddKernelNode") == launches and names.count("cuGraphInstantiate") == 1
        assert names.count("cuGraphLaunch") == 3 and "cuLaunchKernel" not in names
        assert names.index("cuGraphCreate") < names.index("cuGraphAddKernelNode") < names.index("cuGraphInstantiate")
        assert names.index("cuGraphInstantiate") < names.index("cuMemcpyHtoDAsync") < names.index("cuGraphLaunch")
        assert names.index("cuGraphLaunch") < names.index("cuMemcpyDtoHAsync") < names.index("cuEventSynchronize", 20)
        assert "cuGraphExecKernelNodeSetParams" not in names, "nothing moved"


def test_a_graph_is_made_when_a_model_without_symbolic_dims_is_opened(tmp_path):
    driver = Driver()
    with on(driver, made(tmp_path, TEXT.replace("B", "3"))) as runner:
        assert driver.names().count("cuGraphInstantiate") == 1 and not driver.launches
        runner.run({"x": np.zeros((3, 8), np.float32)})
        assert driver.names().count("cuGraphLaunch") == 1 and "cuLaunchKernel" not in driver.names()


def test_only_nodes_whose_arrays_moved_are_told(deep):
    driver = Driver()
    with on(driver, deep) as runner:
        feeds = feeds_of(3)
        for _ in range(2):
            runner.run(feeds)
        driver.calls.clear()
        moved = {**feeds, "x": WithInterface(driver, aligned((3, 8), feeds["x"]))}
        runner.run(moved)
        runner.run(moved)
        (told,) = driver.named("cuGraphExecKernelNodeSetParams")
        assert moved["x"].address in told[2].kernelParams[0]
        check(runner.run(feeds), feeds)
        assert len(driver.named("cuGraphExecKernelNodeSetParams")) == 2, "and when they come back"


def test_a_run_that_is_bound_only_replays(deep):
    driver = Driver()
    with on(driver, deep) as runner:
        feeds = feeds_of(3)
        given = {name: WithDlpack(driver, aligned(array.shape, array)) for name, array in feeds.items()}
        outputs = {name: WithDlpack(driver, aligned((3, 8))) for name in ("y", "s")}
        run = runner.bind(given, outputs)
        for seed in range(3):
            changed = feeds_of(3, seed)
            for name, array in changed.items():
                given[name].array[...] = array
            driver.calls.clear()
            run()
            assert driver.names() == ["cuCtxSetCurrent", "cuGraphLaunch", "cuEventRecord", "cuEventSynchronize"]
            check(outputs, changed)
        check(runner.run(feeds), feeds)
        check(outputs, changed)
        runner.run(feeds_of(50))
        with pytest.raises(BackendError, match="the memory that this run was bound to is gone"):
            run()
        again = runner.bind(given, outputs)
        runner.close()
        with pytest.raises(BackendError, match="is gone"):
            again()
        assert driver.alive().keys() <= {"memory"}, "what the test lent"


def test_outputs_that_are_given_are_waited_for_unless_the_stream_is_known(deep):
    driver = Driver()
    with on(driver, deep) as runner:
        given = {name: WithDlpack(driver, aligned((3, 8))) for name in ("x", "z")}
        outputs = {name: WithDlpack(driver, aligned((3, 8))) for name in ("y", "s")}
        _, stream = driver.cuStreamCreate(1)
        for own, waits in ((None, 1), (stream, 0)):
            run = runner.bind(given, outputs, stream=own)
            driver.calls.clear()
            runner.run_on_device(given, outputs, stream=own)
            assert driver.count("cuEventSynchronize") == waits
            driver.calls.clear()
            run()
            assert driver.count("cuEventSynchronize") == waits
        driver.calls.clear()
        runner.run_on_device(given)
        assert driver.count("cuEventSynchronize") == 0, "who takes the results waits for them"


def test_what_cannot_be_bound_is_refused(deep):
    driver = Driver()
    with on(driver, deep) as runner:
        given = {name: WithDlpack(driver, aligned((3, 8))) for name in ("x", "z")}
        outputs = {name: WithDlpack(driver, aligned((3, 8))) for name in ("y", "s")}
        with pytest.raises(DataError, match="'s' must be given, on the GPU"):
            runner.bind(given, {"y": outputs["y"]})
        with pytest.raises(DataError, match="'z' must be given, on the GPU"):
            runner.bind({**given, "z": np.zeros((3, 8), np.float32)}, outputs)
        with pytest.raises(DataError, match="share memory"):
            runner.bind(given, {**outputs, "y": given["x"]})


def test_sizes_are_kept_up_to_a_limit(deep, monkeypatch):
    driver = Driver()
    with on(driver, deep) as runner:
        monkeypatch.setattr(sys.modules["optc.backends.triton.cuda_device"], "KEPT", 2)
        for batch in (9, 9, 1, 1, 2, 2, 3, 3):
            runner.run(feeds_of(batch))
        assert driver.alive()["executable graph"] == 2
        driver.calls.clear()
        runner.run(feeds_of(2))  # kept
        runner.run(feeds_of(9))  # not any more
        assert driver.names().count("cuGraphLaunch") == 1 and "cuLaunchKernel" in driver.names()


def test_memory_that_grows_takes_its_graphs_along(deep):
    driver = Driver()
    with on(driver, deep) as runner:
        for batch in (2, 2, 40, 2, 2, 40, 40):
            feeds = feeds_of(batch)
            check(runner.run(feeds), feeds)
        assert driver.alive()["memory"] == 2, "the weights, and one piece for all sizes"
        assert driver.alive()["pinned memory"] == 1


def test_memory_for_a_range_is_taken_once_for_all_sizes(tmp_path):
    driver = Driver()
    with on(driver, made(tmp_path, shapes={"B": (0, 20)})) as runner:
        for batch in (3, 6, 1, 3):
            assert runner.run({"x": np.zeros((batch, 8), np.float32)})["y"].shape == (batch, 4)
        taken = [size for (size,) in driver.named("cuMemAlloc")]
        assert len(taken) == 2 and taken[1] == 768 + 512, "no temporaries; 640 and 320 bytes, aligned"
        addresses = {tuple(v for v in launch.values if v > 4096) for launch in driver.launches}
        assert len(addresses) == 1


def test_nothing_is_launched_where_there_is_nothing_to_do(small):
    driver = Driver()
    with on(driver, small) as runner:
        for _ in range(3):
            assert runner.run({"x": np.zeros((0, 8), np.float32)})["y"].shape == (0, 4)
        assert not driver.launches and "cuGraphCreate" not in driver.names()


def test_sizes_are_passed_in_the_order_of_the_functions_parameters(tmp_path):
    """The plan's JSON sorts its keys; the function's parameters are not sorted by name."""
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[B,N] x) => (float[B,N] y) { y = Softmax <axis=-1> (x) }'
    driver = Driver()
    with on(driver, made(tmp_path, text)) as runner:
        runner.run({"x": np.zeros((3, 5), np.float32)})
        (entry,) = runner.artifact.plan.kernels.values()
        sizes = KERNELS[entry.kernel].sizes
        assert entry.passed == sizes != tuple(sorted(sizes))
        (launch,) = driver.launches
        assert list(launch.values[-4:]) == [3, 5, 0, 0]


# streams and lifetimes ------------------------------------------------------------------------------------------------


def test_a_run_on_another_stream_waits_for_the_one_before(small):
    driver = Driver()
    with on(driver, small) as runner:
        feeds = {"x": np.ones((2, 8), np.float32)}
        _, stream = driver.cuStreamCreate(1)
        driver.calls.clear()
        runner.run_on_device(feeds, stream=stream)
        assert [arguments[0] for arguments in driver.named("cuStreamWaitEvent")] == [stream]
        assert {launch.stream for launch in driver.launches} == {stream}
        assert driver.names().index("cuStreamWaitEvent") < driver.names().index("cuMemcpyHtoDAsync")
        runner.run_on_device(feeds, stream=stream)
        assert len(driver.named("cuStreamWaitEvent")) == 1, "a stream is in order by itself"
        runner.run(feeds)
        assert driver.named("cuStreamWaitEvent")[-1][0] == runner._device._stream

        class Stream:
            def __cuda_stream__(self):
                return 0, stream

        runner.run_on_device(feeds, stream=Stream())
        assert driver.launches[-1].stream == stream
        with pytest.raises(DataError, match="str is no CUDA stream"):
            runner.run_on_device(feeds, stream="0")


def test_inputs_are_held_until_the_run_is_over(small, monkeypatch):
    driver = Driver()
    with on(driver, small) as runner:
        monkeypatch.setattr(driver, "_cuEventQuery", lambda event: Status.CUDA_ERROR_NOT_READY, raising=False)
        array = aligned((2, 8), 1)
        given = WithDlpack(driver, array)
        before = sys.getrefcount(array)
        runner.run_on_device({"x": given})
        del given
        gc.collect()
        assert sys.getrefcount(array) >= before
        assert len(runner._device._in_use) == 1
        monkeypatch.undo()
        runner.run({"x": np.ones((2, 8), np.float32)})
        assert not runner._device._in_use


def test_outputs_outlive_the_model(small):
    driver = Driver()
    with on(driver, small) as runner:
        left = runner.run_on_device({"x": np.ones((2, 8), np.float32)})["y"]
        wanted = runner.run({"x": np.ones((2, 8), np.float32)})["y"]
        runner.close()
        np.testing.assert_array_equal(np.asarray(left), wanted)
        assert driver.alive() == {"event": 1, "memory": 1}
        del left
        gc.collect()
        assert driver.alive() == {}


def test_closing_gives_everything_back(deep):
    driver = Driver()
    with on(driver, deep) as runner:
        for batch in (3, 3, 4, 4):
            runner.run(feeds_of(batch))
        made = driver.alive()
        assert made.keys() == {"event", "executable graph", "graph", "memory", "module", "pinned memory", "stream"}
        runner.close()
        runner.close()
        assert driver.alive() == {}
        with pytest.raises(BackendError, match="the model was closed"):
            runner.run(feeds_of(3))


@pytest.mark.parametrize("failing", ["cuModuleLoadData", "cuMemAlloc", "cuStreamCreate", "cuMemcpyHtoD"])
def test_what_fails_while_opening_leaves_nothing_behind(deep, failing):
    driver = Driver(failing=failing)
    refused(driver, deep)
    gc.collect()
    assert driver.alive() == {}


@pytest.mark.parametrize("failing", ["cuGraphAddKernelNode", "cuGraphInstantiate", "cuGraphLaunch"])
def test_what_fails_in_a_run_can_be_closed(deep, failing):
    driver = Driver()
    with on(driver, deep) as runner:
        runner.run(feeds_of(3))
        driver.failing = failing
        with pytest.raises(BackendError, match="CUDA_ERROR_OUT_OF_MEMORY"):
            runner.run(feeds_of(3))
        assert failing == "cuGraphLaunch" or "graph" not in driver.alive(), "half a graph is no graph"
        driver.failing = None
        feeds = feeds_of(3, 7)
        check(runner.run(feeds), feeds)
    assert driver.alive() == {}


def test_a_graph_that_could_not_be_changed_is_not_used(deep):
    driver = Driver()
    with on(driver, deep) as runner:
        feeds = feeds_of(3)
        for _ in range(2):
            runner.run(feeds)
        driver.failing = "cuGraphExecKernelNodeSetParams"
        moved = {**feeds, "x": WithInterface(driver, aligned((3, 8), feeds["x"]))}
        with pytest.raises(BackendError, match="cannot change a graph"):
            runner.run(moved)
        driver.failing = None
        check(runner.run(feeds), feeds)


# what is said ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", [(8, 6), (8, 9)])
def test_code_of_a_generation_runs_on_its_later_chips(small, capability):
    with on(Driver(capability=capability), small):
        pass


@pytest.mark.parametrize(
    ("driver", "problem"),
    [
        (Driver(capability=(9, 0)), "this GPU is sm_90; the artifact was compiled for sm_80"),
        (Driver(capability=(7, 5)), "this GPU is sm_75"),
        (Driver(version=11080), "the driver knows CUDA 11.8, the kernels need 12.0"),
        (Driver(failing="cuInit"), "cannot start CUDA"),
        (
            Driver(memory=100),
            "cannot get 256 bytes of GPU memory for the weights: CUDA_ERROR_OUT_OF_MEMORY (100 of 100 bytes are free)",
        ),
    ],
)
def test_what_is_in_the_way_is_said_in_words(small, driver, problem):
    driver.calls.clear()
    assert problem in refused(driver, small)


def test_how_much_memory_some_sizes_need_is_said(deep):
    driver = Driver(memory=100_000)
    with on(driver, deep) as runner:
        runner.run(feeds_of(3))
        with pytest.raises(BackendError) as caught:
            runner.run(feeds_of(4000))
        told = str(caught.value)
        assert "bytes of GPU memory for tensors at B=4000 (" in told and "256000 of inputs, 256000 of outputs)" in told
        assert "of 100000 bytes are free" in told and "smaller sizes need less" in told
        feeds = feeds_of(3)
        check(runner.run(feeds), feeds)


def test_a_size_outside_of_its_range_is_refused_before_anything_is_done(tmp_path):
    driver = Driver()
    with on(driver, made(tmp_path, shapes={"B": (1, 4)})) as runner:
        driver.calls.clear()
        with pytest.raises(DataError, match=r"dim 'B' of input 'x' is 5; the artifact was built for 1..4"):
            runner.run({"x": np.zeros((5, 8), np.float32)})
        assert driver.names() == []


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda d: WithDlpack(d, aligned((3, 8)), device=(2, 1)), "input 'x' is on GPU 1; the model runs on GPU 0"),
        (lambda d: WithDlpack(d, aligned((8, 3)).T), "the elements of input 'x' are not next to each other"),
        (lambda d: WithInterface(d, aligned((3, 8)), strides=(4, 12)), "the elements of input 'x' are not next to"),
        (lambda d: WithInterface(d, aligned((3, 8)), mask=1), "input 'x' has a mask"),
        (lambda d: WithInterface(d, aligned((3, 8), dtype=np.float16)), "input 'x' is of type float, not float16"),
        (lambda d: np.zeros((3, 8)), "input 'x' is of type float, not float64"),
        (lambda d: WithDlpack(d, aligned((3, 7))), "dim 1 of input 'x' is 8, not 7"),
    ],
)
def test_an_input_that_cannot_be_used_is_refused(small, make, problem):
    driver = Driver()
    with on(driver, small) as runner, pytest.raises(DataError, match=problem):
        runner.run({"x": make(driver)})


def test_outputs_that_cannot_be_written_are_refused(deep):
    driver = Driver()
    with on(driver, deep) as runner:
        feeds = feeds_of(3)
        x = WithInterface(driver, aligned((3, 8), feeds["x"]))
        for outputs, problem in (
            ({"q": x}, "the model has no output 'q'"),
            ({"y": np.zeros((3, 8), np.float32)}, "output 'y' is to be written to what is not on the GPU"),
            ({"y": WithInterface(driver, aligned((2, 8)))}, r"output 'y' is of shape \[3, 8\], not \[2, 8\]"),
            ({"y": x}, "share memory"),
            ({"y": (out := WithInterface(driver, aligned((3, 8)))), "s": out}, "share memory"),
        ):
            with pytest.raises(DataError, match=problem):
                runner.run_on_device({**feeds, "x": x}, outputs)


def test_the_interpreter_is_no_gpu(small):
    runner = optc.load(small, device="interpreter")
    with pytest.raises(BackendError, match="device 'interpreter' is no GPU"):
        runner.run_on_device({"x": np.zeros((2, 8), np.float32)})
    with pytest.raises(DataError, match="input 'x' is on a GPU, which device 'interpreter' does not use"):
        runner.run({"x": WithDlpack(Driver(), aligned((2, 8)))})


def test_running_needs_few_packages():
    """What was compiled ahead of time runs without onnx, onnx-ir, onnxruntime, Triton and torch."""
    script = """
import sys
for name in ("onnx", "onnx_ir", "onnxruntime", "triton", "torch", "click", "rich"):
    sys.modules[name] = None
from optc.backends import cuda, device_arrays
from optc.backends.triton import cuda_session, memory, runtime
print("loaded")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "loaded\n", done.stderr
