"""Plugins, tried with a real package that is really installed, and with broken ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from onnx import TensorProto, helper

from optc.ir.errors import UsageError
from optc.passes.pipeline import print_pipeline
from optc.plugins import Found, Plugin, environment

PACKAGE = Path(__file__).with_name("plugin_package")
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the example plugin."""
    source = tmp_path_factory.mktemp("source") / "plugin_package"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    target = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", target, source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


@pytest.fixture
def cli(site: Path, tmp_path: Path) -> Cli:
    """The command line in a process that finds the example plugin, and whatever lies in further folders."""

    def run(*arguments: object, extra: Path | None = None) -> subprocess.CompletedProcess[str]:
        paths = [str(path) for path in (site, extra) if path is not None]
        return subprocess.run(
            [sys.executable, "-m", "optc", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Softsign in parts, the absolute value of a Relu, and a global average pool."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Abs", ["r"], ["ra"], name="abs_of_relu"),
        helper.make_node("Sub", ["ra", "half"], ["c"], name="centred"),
        helper.make_node("Abs", ["c"], ["ca"], name="size"),
        helper.make_node("Add", ["ca", "one"], ["d"], name="denominator"),
        helper.make_node("Div", ["c", "d"], ["s"], name="squashed"),
        helper.make_node("GlobalAveragePool", ["s"], ["y"], name="pool"),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("half", 0.5), ("one", 1))
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [value("y", TensorProto.FLOAT, ["batch", 3, 1, 1])],
        constants,
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def distribution(folder: Path, name: str, module: str, code: str | None) -> Path:
    """A minimal installed distribution with one plugin, as an installer leaves it."""
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[optc.plugins]\n{name} = {module}:plugin\n")
    if code is not None:
        (folder / f"{module}.py").write_text(code)
    return folder


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_an_installed_plugin_is_listed_with_what_it_adds(cli: Cli) -> None:
    done = cli("plugins")
    assert done.returncode == 0, done.stderr
    assert "optc-example-plugin 1.2.3" in done.stdout
    for what in ("rule softsign", "pass mean-pool", "script drop-abs", "backend listing", "targets"):
        assert what in done.stdout
    passes = {line.split()[0]: line for line in cli("passes").stdout.splitlines()}
    assert "rounding" in passes["softsign"] and "-O2 -O3" in passes["softsign"] and "example" in passes["softsign"]
    assert "exact" in passes["drop-abs"]
    assert "-O" not in passes["mean-pool"]
    assert "25 GB/s" in cli("targets", "edge-box").stdout
    assert "listing" in cli("backends").stdout


def test_its_rule_script_and_target_take_part_in_a_level(cli: Cli, model: Path, tmp_path: Path) -> None:
    done = cli(model, "-O2", "--target=edge-box", "-o", "out.onnx", "--no-measure")
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    result = onnx.load(tmp_path / "out.onnx")
    found = [node.op_type for node in result.graph.node]
    assert "Softsign" in found and "Div" not in found
    assert found.count("Abs") == 0
    softsign = next(node for node in result.graph.node if node.op_type == "Softsign")
    metadata = {entry.key: entry.value for entry in softsign.metadata_props}
    assert "squashed" in metadata["optc.source"].split(",")
    assert "softsign" in metadata["optc.rule"].split(",")


def test_its_pass_runs_where_a_pipeline_names_it(cli: Cli, model: Path, tmp_path: Path) -> None:
    assert cli(model, "--passes", "mean-pool", "-o", "out.onnx", "--no-measure").returncode == 0
    assert "ReduceMean" in ops(tmp_path / "out.onnx") and "GlobalAveragePool" not in ops(tmp_path / "out.onnx")
    done = cli(model, "--passes", "mean-pool{max_rank=3}", "-o", "out.onnx", "--no-measure")
    assert "GlobalAveragePool" in ops(tmp_path / "out.onnx")
    assert "its rank is unknown or too high" in done.stdout
    shown = cli("--passes", "mean-pool{max_rank=3}", "--print-pipeline")
    assert shown.stdout.strip() == "mean-pool{max_rank=3}"


def test_its_backend_emits(cli: Cli, model: Path, tmp_path: Path) -> None:
    done = cli(model, "-O0", "--backend=listing", "--target=edge-box", "-o", "ops.txt", "--no-measure")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ops.txt").read_text().splitlines() == ops(model)
    assert "listed for edge-box" in done.stdout


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (None, "No module named 'broken_plugin'"),
        ("raise OSError('no licence')", "no licence"),
        ("plugin = 7", "not an optc.plugins.Plugin but a int"),
    ],
)
def test_a_broken_plugin_is_listed_and_breaks_nothing(
    cli: Cli, model: Path, tmp_path: Path, code: str | None, error: str
) -> None:
    extra = distribution(tmp_path / "extra", "broken", "broken_plugin", code)
    listed = cli("plugins", extra=extra)
    assert listed.returncode == 0
    assert error in listed.stdout and "optc-example-plugin" in listed.stdout
    assert cli(model, "-O2", "-o", "out.onnx", "--no-measure", extra=extra).returncode == 0
    assert "Softsign" in ops(tmp_path / "out.onnx")


def test_two_owners_of_one_name_are_both_named(cli: Cli, model: Path, tmp_path: Path) -> None:
    code = "from optc.plugins import Plugin\nplugin = Plugin('rival', passes={'softsign': 'nowhere:Nothing'})\n"
    extra = distribution(tmp_path / "extra", "rival", "rival_plugin", code)
    for command in (("plugins",), (model, "-o", "out.onnx")):
        done = cli(*command, extra=extra)
        assert done.returncode == 2
        assert "'softsign'" in done.stderr and "optc-example-plugin 1.2.3" in done.stderr and "rival" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_what_cannot_be_imported_fails_only_when_it_is_used(cli: Cli, model: Path, tmp_path: Path) -> None:
    code = "from optc.plugins import Plugin\nplugin = Plugin('late', passes={'lost': 'nowhere:Lost'})\n"
    extra = distribution(tmp_path / "extra", "late", "late_plugin", code)
    assert cli(model, "-O1", "-o", "out.onnx", "--no-measure", extra=extra).returncode == 0
    listed = cli("passes", extra=extra)
    assert listed.returncode == 0
    assert "No module named 'nowhere'" in next(line for line in listed.stdout.splitlines() if line.startswith("lost"))
    used = cli(model, "--passes", "lost", "-o", "other.onnx", extra=extra)
    assert used.returncode == 2 and "late" in used.stderr
    assert not (tmp_path / "other.onnx").exists()


def found(**tables: object) -> Found:
    return Found("p", "p 1", Plugin("p", **tables))  # type: ignore[arg-type]


def test_a_place_beside_an_unknown_pass_is_an_error_of_the_plugin() -> None:
    plugin = found(place={"a": "after:nothing", "b": "beside:fuse", "c": "after:fuse"})
    assert environment([plugin]).placements == {}
    assert ["'a'" in plugin.errors[0], "'b'" in plugin.errors[1], "'c'" in plugin.errors[2]] == [True] * 3


def test_a_location_must_name_a_module_and_a_name() -> None:
    plugin = found(passes={"a": "just_a_module"}, backends={"b": 7})
    known = environment([plugin])
    assert "a" not in known.passes and "b" not in known.backends
    assert len(plugin.errors) == 2


def test_a_bad_target_file_is_an_error_of_the_plugin(tmp_path: Path) -> None:
    for text in ("[t]\nsummary = 'no kind'\n", "not toml ["):
        (tmp_path / "t.toml").write_text(text)
        plugin = found(targets=str(tmp_path / "t.toml"))
        assert "t" not in environment([plugin]).targets
        assert plugin.errors


def test_a_target_of_a_taken_name_names_both_owners(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text("[cpu]\nsummary = 'mine'\nkind = 'cpu'\nprovider = 'CPUExecutionProvider'\n")
    with pytest.raises(UsageError, match=r"'cpu' is registered twice, by optc and by p \(p 1\)"):
        environment([found(targets=tmp_path / "t.toml")])


def test_a_pass_stays_out_of_levels_whose_promise_it_would_break(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))
    plugin = found(
        passes={"mean-pool": "optc_example_plugin.passes:MeanPool"},
        scripts={"drop-abs": "optc_example_plugin.scripts:drop_abs"},
        place={"mean-pool": "after:dedup", "drop-abs": "after:dedup"},
    )
    known = environment([plugin])
    exact, rounding = (print_pipeline(known.pipeline(level)).split(",") for level in (1, 2))
    assert "drop-abs" in exact and "mean-pool" not in exact
    assert "drop-abs" in rounding and "mean-pool" in rounding


def test_a_pass_must_call_itself_what_it_is_registered_as(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))
    plugin = found(passes={"pool": "optc_example_plugin.passes:MeanPool"}, place={"pool": "after:fuse"})
    assert environment([plugin]).placements == {}
    assert plugin.errors == ["the pass registered as 'pool' calls itself 'mean-pool'"]
