"""Plugins: which parts of a model become one, that their PTX is the kernel's, and that TensorRT launches it alike."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

triton = pytest.importorskip("triton")

from optc.backends.tensorrt import plugin_compiler, plugins  # noqa: E402
from optc.backends.tensorrt.plugin_compiler import NotAPlugin, Part, add_plugins, compile_part  # noqa: E402
from optc.backends.tensorrt.plugin_file import PluginFile, PluginKernel, Port, read_plugin  # noqa: E402
from optc.backends.triton.backend import TritonBackend  # noqa: E402
from optc.ir.dims import evaluate, parse  # noqa: E402
from optc.ir.errors import BackendError  # noqa: E402
from optc.ir.facts import Facts  # noqa: E402
from optc.ir.targets import builtin_targets, find_target  # noqa: E402
from optc.kernels.ptx import entry  # noqa: E402

from ..driver.double import Driver  # noqa: E402
from ..triton.models import model  # noqa: E402
from .contract import surface  # noqa: E402

A100, H100 = (find_target(name, builtin_targets()) for name in ("a100", "h100"))
HEAD = '<ir_version: 8, opset_import: ["": 17]>'
#: Parts that one kernel does: pointwise chains, rows, windows of other shapes, several outputs, constants inside.
PARTS = {
    "chain": """g (float16[b,s,64] x, float16[64] k) => (float16[b,s,64] y)
        { a = Mul (x, k) e = Erf (a) y = Add (e, x) }""",
    "softmax": """g (float[b,h,q,k] x, float[b,1,q,k] m) => (float[b,h,q,k] y)
        { a = Add (x, m) y = Softmax <axis=-1> (a) }""",
    "norm": """g (float16[b,s,768] x, float16[768] g, float16[768] o) => (float16[b,s,768] y)
        { y = LayerNormalization <axis=-1, epsilon=1e-5> (x, g, o) }""",
    "reduce": """g (float[b,s,n] x) => (float[b,s] y)
        <int64[1] axes = {2}> { y = ReduceSum <keepdims=0> (x, axes) }""",
    "two outputs": """g (float[b,n] x) => (float[b,n] y, float[b,n] z)
        <float half = {0.5}> { y = Mul (x, half) z = Exp (y) }""",
    "literal": """g (float16[b,n] x) => (float16[b,n] y)
        <float half = {0.5}> { h = Cast <to=10> (half) y = Mul (x, h) }""",
    "fixed": """g (float[4,6] x) => (float[6,4] y) { t = Transpose <perm=[1,0]> (x) y = Relu (t) }""",
    "gather": """g (float16[v,64] t, int64[b,s] ids) => (float16[b,s,64] y)
        { r = Gather <axis=0> (t, ids) y = Tanh (r) }""",
}
#: Values of the symbolic dims, by the order in which they occur.
SIZES = ((2, 3, 5, 7), (1, 1, 1, 1), (8, 128, 16, 256))


def part(text: str) -> Part:
    """A text's graph as one part."""
    found = model(f"{HEAD} {text}")
    return Part.of(Facts(found), list(found.graph))


@pytest.fixture(scope="module")
def all_compiled(kernel_cache):
    """Every part, and what was compiled of it."""
    cuts = {name: part(text) for name, text in PARTS.items()}
    return {name: (cut, compile_part(cut, [A100, H100], {})) for name, cut in cuts.items()}


@pytest.fixture(params=list(PARTS))
def compiled(request, all_compiled):
    """One of them."""
    return all_compiled[request.param]


@pytest.fixture(scope="module", autouse=True)
def kernel_cache(tmp_path_factory):
    """Kernels are kept for this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTC_CACHE", str(tmp_path_factory.mktemp("kernels")))
        yield


def _bindings(plugin: PluginFile, values: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(plugin.places, values, strict=False))


def _shape(port: Port, bindings: dict[str, int]) -> list[int]:
    return [evaluate(parse(text), bindings) for text in port.dims]


# the PTX ----------------------------------------------------------------------------------------------------------


def _assembled(ptx: str, folder: Path) -> str:
    """The instructions of PTX text, in words."""
    (folder / "kernel.ptx").write_text(ptx)
    arch = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]
    tools = triton.knobs.nvidia
    subprocess.run(
        [tools.ptxas.path, f"--gpu-name={arch}", "-o", str(folder / "kernel.cubin"), str(folder / "kernel.ptx")],
        check=True,
    )
    done = subprocess.run([tools.nvdisasm.path, "-c", str(folder / "kernel.cubin")], capture_output=True, check=True)
    return done.stdout.decode()


def test_the_parameters_are_in_tensorrts_order(compiled):
    _, made = compiled
    plugin = made.plugin
    addresses = [8] * len(plugin.inputs)
    for kernel in plugin.kernels.values():
        symbol, parameters = entry(made.files[kernel.ptx])
        assert symbol == kernel.symbol
        assert [p.bytes for p in parameters] == [
            *addresses,
            *([4] * len(plugin.arguments)),
            *([8] * len(plugin.outputs)),
        ]


def test_the_ptx_is_the_kernels_and_assembles(compiled, tmp_path):
    """Instructions read parameters by name, so the text behind the declarations says that nothing else is changed."""
    cut, made = compiled
    originals = _originals(cut)
    for arch, kernel in made.plugin.kernels.items():
        old, new = originals[arch], made.files[kernel.ptx]
        assert old.partition(".entry")[0] == new.partition(".entry")[0]
        assert old.partition(".reqntid")[2] == new.partition(".reqntid")[2]
        declared = {p.name: p.text for p in entry(old)[1]}
        assert all(declared.get(p.name, p.text) == p.text for p in entry(new)[1])
        end = 0x210 if arch == "sm_90" else 0x160
        for parameter in entry(new)[1]:
            end += -end % parameter.bytes + parameter.bytes
        offsets = [int(text, 16) for text in re.findall(r"c\[0x0\]\[(0x[0-9a-f]+)\]", _assembled(new, tmp_path))]
        assert offsets and max(offsets) < end, "nothing behind the parameters is read"


def _originals(cut: Part) -> dict[str, str]:
    """By architecture the PTX as Triton made it."""
    kept: dict[str, str] = {}

    def keep(ptx, order):
        kept[f"sm_{re.search(r'^.target sm_([0-9]+)', ptx, re.MULTILINE)[1]}"] = ptx
        return ptx

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugin_compiler, "reordered", keep)
        compile_part(cut, [A100, H100], {})
    return kept


# the launch -------------------------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """What the triton backend's runtime tells the driver for a part; to be called with sizes."""
    kept = {}

    def run(cut: Part, shapes: list[list[int]]):
        if id(cut) not in kept:
            path = TritonBackend().compile(cut.model.clone(), [A100], tmp_path / "part.optc", {}).path
            driver = Driver().put(monkeypatch)
            monkeypatch.delitem(sys.modules, "optc.backends.triton.cuda_device", raising=False)
            kept[id(cut)] = TritonBackend().open(path), driver
        runner, driver = kept[id(cut)]
        feeds = {
            spec.name: np.zeros(shape, spec.dtype.numpy()) for spec, shape in zip(runner.inputs, shapes, strict=True)
        }
        driver.launches.clear()
        runner.run(feeds)
        (made,) = driver.launches
        return runner, made

    yield run
    sys.modules.pop("optc.backends.triton.cuda_device", None)


def test_the_launch_is_that_of_the_triton_runtime(compiled, launched):
    cut, made = compiled
    plugin = made.plugin
    kernel = plugin.kernels["sm_80"]
    for values in SIZES:
        bindings = _bindings(plugin, values)
        runner, sent = launched(cut, [_shape(port, bindings) for port in plugin.inputs])
        assert list(sent.grid) == [evaluate(parse(text), bindings) for text in kernel.grid]
        assert (sent.threads, sent.shared) == (kernel.threads, kernel.shared)
        passed = list(sent.values)
        assert passed[-2:] == [0, 0], "the scratch areas, which the plugin's PTX does not take"
        plan = runner.artifact.plan
        (launch,) = plan.launches
        integers = [value for value, argument in zip(passed, launch.args, strict=False) if argument.buffer is None]
        integers += passed[len(launch.args) : -2]
        assert integers == [evaluate(parse(text), bindings) for text in plugin.arguments]


@pytest.fixture(scope="module")
def answers(all_compiled, tmp_path_factory):
    """What TensorRT's own plugin layer makes of every plugin, at every set of sizes."""
    reason = surface.missing()
    if reason is not None:
        pytest.skip(reason)
    bundle, jobs = tmp_path_factory.mktemp("bundle"), {}
    (bundle / "plugins").mkdir()
    for _, made in all_compiled.values():
        for name, text in made.files.items():
            (bundle / name).write_text(text)
        bound = [_bindings(made.plugin, values) for values in SIZES]
        jobs[made.plugin.name] = [[_shape(port, dims) for port in made.plugin.inputs] for dims in bound]
    script = (Path(__file__).parent / "contract" / "plugin_script.py").read_text()
    told = surface.run(script, surface.installed(), str(bundle), json.dumps(jobs))
    return json.loads(told.splitlines()[-1])  # before it, TensorRT says that plugins are experimental


def test_tensorrts_own_plugin_layer_takes_it_and_computes_the_same(compiled, answers):
    _, made = compiled
    plugin = made.plugin
    kernel, found = plugin.kernels["sm_80"], answers[plugin.name]
    assert found["types"] == [plugins.TYPES[port.dtype] for port in plugin.outputs]
    for launch, values in zip(found["launches"], SIZES, strict=True):
        bindings = _bindings(plugin, values)
        assert launch["outputs"] == [_shape(port, bindings) for port in plugin.outputs]
        assert launch["grid"] == [evaluate(parse(text), bindings) for text in kernel.grid]
        assert launch["block"] == [kernel.threads, 1, 1]
        assert launch["shared"] == kernel.shared
        assert launch["arguments"] == [evaluate(parse(text), bindings) for text in plugin.arguments]
        assert launch["symbol"] == kernel.symbol
        assert launch["ptx"] == made.files[kernel.ptx]


def test_the_same_part_compiled_twice_is_the_same_plugin(compiled):
    cut, made = compiled
    assert compile_part(cut, [A100, H100], {}) == made


# in a model -------------------------------------------------------------------------------------------------------


def test_a_model_calls_the_plugin(tmp_path):
    found = model(
        f"""{HEAD} g (float16[batch,seq,64] x, float16[64,8] w) => (float16[batch,seq,8] y)
        {{ e = Erf (x) [soft] s = Softmax <axis=-1> (e) y = MatMul (s, w) }}"""
    )
    nodes = list(found.graph)
    added = add_plugins(found, [nodes[:2]], [A100], {})
    assert not added.refused
    (plugin,) = added.plugins
    call, product = found.graph
    assert (call.domain, f"optc::{call.op_type}") == ("optc", plugin.name)
    assert {name: attribute.value for name, attribute in call.attributes.items()} == {
        "plugin_namespace": "optc",
        "plugin_version": "1",
        "aot": 1,
    }
    assert call.outputs[0] is product.inputs[0]
    assert found.graph.opset_imports["optc"] == 1
    assert set(plugin.files) == set(added.files)
    (tmp_path / "plugin.json").write_text(added.files[plugin.files[0]])
    written = read_plugin(tmp_path / "plugin.json")
    assert written.about == "Erf, Softmax"
    assert written.inputs == (Port("FLOAT16", ("d0", "d1", "64")),)


@pytest.mark.parametrize(
    "text, reason",
    [
        (
            """g (float[b,64] x, float[64,64] w) => (float[b,64] y)
            { a = Softmax (x) b = MatMul (a, w) y = Softmax (b) }""",
            "kernels, a plugin is one",
        ),
        (
            """g (float x, float[4] z) => (float[4] y) { c = Greater (x, x) y = If (c)
            <then_branch = t () => (float[4] o) { o = Neg (z) },
            else_branch = e () => (float[4] o) { o = Abs (z) }> }""",
            "has sub-graphs",
        ),
        ("g (float[b,n] x) => (float[b,n] y) { y = Foo.Bar (x) }", "Bar"),
    ],
)
def test_what_cannot_be_a_plugin_stays_and_the_reason_is_told(text, reason):
    head = HEAD.replace("17]", '17, "Foo": 1]') if "Foo" in text else HEAD
    found = model(f"{head} {text}")
    before = [node.op_type for node in found.graph]
    added = add_plugins(found, [list(found.graph)], [A100], {})
    assert not added.plugins and not added.files and len(added.refused) == 1
    assert reason in next(iter(added.refused.values()))
    assert [node.op_type for node in found.graph] == before


def test_a_value_of_unknown_rank():
    found = model(f"{HEAD} g (float[b,n] x) => (float[b,n] y) {{ y = Relu (x) }}")
    found.graph.inputs[0].shape = None
    with pytest.raises(NotAPlugin, match="the type or rank of 'x' is not known"):
        Part.of(Facts(found), list(found.graph))


# on disk ----------------------------------------------------------------------------------------------------------


def _plugin(**fields):
    kernel = PluginKernel("plugins/p.ptx", "f", ("d0", "1", "1"), 128, 0, "12.9")
    known = dict(name="p", inputs=(Port("FLOAT", ("d0",)),), outputs=(Port("FLOAT", ("d0",)),), arguments=("d0",))
    return PluginFile(**{**known, "kernels": {"sm_80": kernel}, **fields})


def test_which_gpus_run_which_ptx():
    kernels = {name: PluginKernel(name, "f", ("1", "1", "1"), 32, 0, "12.9") for name in ("sm_80", "sm_86", "sm_90")}
    found = _plugin(kernels=kernels)
    wanted = {(8, 0): "sm_80", (8, 6): "sm_86", (8, 9): "sm_86", (9, 0): "sm_90", (10, 0): "sm_86", (12, 0): "sm_86"}
    assert {capability: found.kernel(capability).ptx for capability in wanted} == wanted
    with pytest.raises(BackendError, match=r"compiled for sm_80, sm_86, sm_90; this GPU is sm_75"):
        found.kernel((7, 5))
    with pytest.raises(BackendError, match="compiled for sm_90; this GPU is sm_100"):
        _plugin(kernels={"sm_90": kernels["sm_90"]}).kernel((10, 0))


def test_a_plugin_is_read_back(tmp_path):
    (tmp_path / "p.json").write_text(_plugin().to_json())
    assert read_plugin(tmp_path / "p.json") == _plugin()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: "",
        lambda data: "{}",
        lambda data: json.dumps({**data, "arguments": ["d7"]}),
        lambda data: json.dumps({**data, "inputs": [{"dtype": "FLOAT", "dims": ["d0*2"]}]}),
        lambda data: json.dumps({**data, "outputs": [{"dtype": "FLOUT", "dims": ["d0"]}]}),
        lambda data: json.dumps({**data, "kernels": {"ampere": data["kernels"]["sm_80"]}}),
        lambda data: json.dumps({**data, "format": "1"}),
    ],
)
def test_a_damaged_plugin(tmp_path, damage):
    (tmp_path / "p.json").write_text(damage(json.loads(_plugin().to_json())))
    with pytest.raises(BackendError, match="the plugin is damaged"):
        read_plugin(tmp_path / "p.json")


def test_a_newer_plugin(tmp_path):
    (tmp_path / "p.json").write_text(_plugin(format=2).to_json())
    with pytest.raises(BackendError, match="its format is 2, this optc reads up to 1"):
        read_plugin(tmp_path / "p.json")


@pytest.mark.parametrize(
    "text",
    ["a", "7", "a*b + 3", "a - 2*b", "-a", "floordiv(a + 7, 8)*b", "mod(a, 3)", "max(a, b)", "min(a, b - 1)", "a*a"],
)
def test_sizes_in_another_algebra(text):
    class Int(int):
        """An integer that has no operators but those of TensorRT's expressions."""

        def __neg__(self):
            raise AssertionError

    for a in (0, 1, 5, 17):
        for b in (1, 4, 9):
            found = plugins.translated(parse(text), {"a": Int(a), "b": Int(b)}, Int, {"max": max, "min": min})
            assert found == evaluate(parse(text), {"a": a, "b": b})


def test_an_old_version_has_no_plugins(tmp_path):
    trt = ModuleType("tensorrt")
    trt.__version__ = "10.8.0"
    with pytest.raises(BackendError, match="a model with plugins needs QuickPluginCreationRequest"):
        plugins.register(trt, None, tmp_path, [plugin_compiler.recipe.Plugin("optc::p", ("p.json",))], (8, 0))
