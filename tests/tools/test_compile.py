"""``optc MODEL``: what it writes and what it says."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest

from optc import report

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"
FAST = ("--no-measure",)


def logits(model: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(os.fspath(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "arguments",
    [
        ("vit.onnx", "-O1"),
        ("-O1", "vit.onnx"),
        ("-O", "1", "vit.onnx"),
        ("compile", "vit.onnx", "-O1"),
        ("-q", "vit.onnx", "-O1"),
    ],
    ids=" ".join,
)
def test_a_model_is_compiled_however_it_is_written(cli, vit, tmp_path, arguments) -> None:
    done = cli(*arguments, *FAST)
    assert done.code == 0, done.err
    onnx.checker.check_model(tmp_path / "vit.opt.onnx")
    assert len(onnx.load(tmp_path / "vit.opt.onnx").graph.node) < len(onnx.load(vit).graph.node)
    assert names(tmp_path) == {"vit.onnx", "vit.opt.onnx"}


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_the_result_computes_what_the_level_promises(cli, vit, calib, tmp_path, level) -> None:
    done = cli(vit, f"-O{level}", "--calib", calib, "-o", "out.onnx", "--report", "report.json", *FAST)
    assert done.code == 0, done.err
    images = np.load(calib)["image"]
    before, after = logits(vit, images), logits(tmp_path / "out.onnx", images)
    error = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert error <= (1e-5, 1e-5, 1e-4, 0.03)[level]
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["verification"]["status"] == "passed"
    assert "passed" in done.out


def test_the_report_is_what_its_schema_says(cli, cnn, calib, tmp_path) -> None:
    done = cli(cnn, "-O3", "--calib", calib, "-o", "out.onnx", "--report", "report.json", "--dim", "batch=2")
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(written, json.loads(SCHEMA.read_text()))
    assert written["model"]["path"] == str(cnn)
    assert written["artifact"][0]["bytes"] == (tmp_path / "out.onnx").stat().st_size
    assert written["options"]["shapes"] == {"batch": 2}
    assert written["latency"]["measured"] and written["latency"]["ratio"]["median"] > 0
    assert written["versions"]["onnxruntime"] == onnxruntime.__version__
    assert written["result"]["nodes"] == sum(written["result"]["ops"].values())


def test_the_schema_describes_every_key_of_the_report() -> None:
    schema = json.loads(SCHEMA.read_text())
    described = {"Report": schema, **schema["$defs"]}
    classes = {"Report": report.Report}
    for name in schema["$defs"]:
        classes[name] = getattr(report, name)
    for name, part in described.items():
        keys = {item.name for item in dataclasses.fields(classes[name])} | ({"schema"} if name == "Report" else set())
        assert set(part["properties"]) == keys == set(part["required"]), name
        assert part["additionalProperties"] is False
    assert schema["properties"]["schema"]["const"] == report.SCHEMA


def test_the_documentation_of_the_report_names_every_key() -> None:
    text = SCHEMA.with_name("report.md").read_text()
    schema = json.loads(SCHEMA.read_text())
    keys = {key for part in (schema, *schema["$defs"].values()) for key in part["properties"]}
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_a_printed_pipeline_can_be_given_back(cli) -> None:
    for level in (0, 1, 2, 3):
        printed = cli(f"-O{level}", "--print-pipeline")
        assert printed.code == 0
        assert all(line.startswith("# ") for line in printed.err.splitlines())
        again = cli("--passes", printed.out.strip(), "--print-pipeline")
        assert again.code == 0 and again.out == printed.out
    without = cli("-O1", "--skip", "cse,dce", "--skip", "dedup", "--print-pipeline").out
    assert not {"cse", "dce", "dedup"} & set(without.replace("(", ",").replace(")", ",").split(","))


def test_a_pipeline_of_ones_own_replaces_the_level(cli, vit, tmp_path) -> None:
    done = cli(vit, "--passes", "dce", "--time-passes", "-o", "out.onnx", *FAST)
    assert done.code == 0, done.err
    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node] == [
        node.op_type for node in onnx.load(vit).graph.node
    ]
    assert "dce" in done.out and "(100%)" in done.out


def test_the_graph_after_each_pass_is_written(cli, vit, tmp_path) -> None:
    assert cli(vit, "-O1", "--print-after-all", "dumps", *FAST).code == 0
    dumps = sorted(names(tmp_path / "dumps"))
    assert len(dumps) >= 2 and dumps[0].startswith("000-")
    for dump in dumps:
        onnx.parser.parse_model((tmp_path / "dumps" / dump).read_text())


def test_quiet_says_nothing(cli, vit) -> None:
    done = cli(vit, "-O1", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_the_same_command_writes_the_same_bytes(cli, vit, tmp_path) -> None:
    for name in ("a.onnx", "b.onnx"):
        assert cli(vit, "-O2", "-o", name, *FAST).code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("alias", ["same name", "link", "default name"])
def test_the_input_is_never_replaced(cli, vit, tmp_path, alias) -> None:
    before = vit.read_bytes()
    arguments: tuple[object, ...] = (vit, "-o", vit)
    if alias == "link":
        (tmp_path / "other.onnx").hardlink_to(vit)
        arguments = (vit, "-o", "other.onnx")
    elif alias == "default name":
        (tmp_path / "x.opt.onnx").symlink_to(vit)
        (tmp_path / "x.onnx").symlink_to(vit)
        arguments = ("x.onnx",)
    done = cli(*arguments)
    assert "the output is the model itself" in done.message
    assert done.code == 2 and vit.read_bytes() == before


def test_the_data_of_the_input_is_never_replaced(cli, vit, tmp_path) -> None:
    onnx.save(onnx.load(vit), "in.onnx", save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    before = (tmp_path / "out.onnx.data").read_bytes()
    for output in ("out.onnx", "out.onnx.data"):
        assert "holds the model's weights" in cli("in.onnx", "-o", output).message
    assert (tmp_path / "out.onnx.data").read_bytes() == before and not (tmp_path / "out.onnx").exists()
    assert cli("in.onnx", "-O1", "-o", "other.onnx", *FAST).code == 0
    assert {"other.onnx", "other.onnx.data"} <= names(tmp_path)
    assert "out.onnx.data" in cli("inspect", "in.onnx").out


@pytest.mark.parametrize(
    ("given", "dims"),
    [
        (("--dim", "batch=3"), {"batch": 3}),
        (("--shape", "image=5,1,8,8"), {"batch": 5}),
        ((), {}),
    ],
)
def test_sizes_of_dims(cli, vit, tmp_path, given, dims) -> None:
    assert cli(vit, "-O0", *given, "--report", "r.json", *FAST).code == 0
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["options"]["shapes"] == dims
    seen = {checked["dims"]["batch"] for checked in written["verification"]["checked"]}
    assert seen == set(dims.values()) if dims else len(seen) > 1


def test_ranges_of_dims(cli, vit, tmp_path) -> None:
    assert cli(vit, "-O0", "--shape", "batch=3..6", "--report", "r.json", *FAST).code == 0
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["options"]["shapes"] == {"batch": [3, 6]}
    seen = {checked["dims"]["batch"] for checked in written["verification"]["checked"]}
    assert len(seen) > 1 and seen <= {3, 4, 5, 6}
    assert "one size is needed here, not a range" in cli("run", vit, "--shape", "batch=3..6").message


def test_a_metric_bounds_what_may_be_lost(cli, vit, tmp_path, monkeypatch) -> None:
    digits = Path(__file__).parents[2] / "examples" / "digits"
    (tmp_path / "mymetric.py").write_text(
        "import numpy as np\n"
        "def accuracy(outputs, labels):\n"
        "    return float(np.mean(outputs['logits'].argmax(-1) == labels['label']))\n"
    )
    options = ("--calib", digits / "test.npz", "--metric", "mymetric:accuracy", "--max-drop")
    done = cli(vit, "-O3", *options, "1%", "--report", "r.json", *FAST)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "r.json").read_text())["verification"]["status"] == "passed"


def test_output_that_is_piped_is_plain(vit, tmp_path) -> None:
    command = [sys.executable, "-m", "optc", str(vit), "-O1", *FAST]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout and done.stderr == ""
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


def test_calibration_data_from_a_function(cli, vit, tmp_path) -> None:
    (tmp_path / "own_batches.py").write_text(
        "import numpy as np\n"
        "def batches(value=0.5):\n"
        "    for size in (1, 2):\n"
        "        yield {'image': np.full((size, 1, 8, 8), value, np.float32)}\n"
        "def broken(): return batches(np.nan)\n"
    )
    options = (vit, "-O1", *FAST, "-o", "out.onnx", "--calib-cache", "off", "--calib")
    assert cli(*options, "own_batches:batches").code == 0
    message = cli(*options, "own_batches:broken").message
    assert "own_batches:broken, sample 0: 'image' holds 64 NaN of 64 values" in message
    assert "cannot import" in cli(*options, "own_batches:nothing").message
