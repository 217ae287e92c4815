"""What reaches the driver by way of the real cuda-bindings is what was meant: a driver in C writes it down."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import optc

from ..triton.models import model
from . import surface

TEXT = """
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


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if surface.installed() is None:
        pytest.skip("cuda-bindings is not installed")
    if shutil.which("gcc") is None:
        pytest.skip("gcc, which builds the driver, is not installed")
    out = tmp_path_factory.mktemp("live") / "m.optc"
    optc.compile(model(TEXT), target="a100", output=out, verify="off")
    command = [sys.executable, str(Path(__file__).with_name("live.py")), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def launched(lines):
    return [line for line in lines if line.startswith("launch ")]


@pytest.mark.parametrize("run", ["alone", "recorded", "replayed", "in place"])
def test_arguments_arrive(found, run):
    assert len(found[f"{run}, expected"]) == 4
    assert launched(found[run]) == found[f"{run}, expected"]


def test_launches_are_recorded_once_and_replayed(found):
    assert "replay" not in found["alone"]
    assert found["recorded"].count("instantiate") == 1 and found["recorded"].count("replay") == 1
    assert "instantiate" not in found["replayed"] and found["replayed"].count("replay") == 1


def test_arrays_on_the_gpu_are_used_where_they_are(found):
    assert not any(line.startswith("copy") for line in found["in place"]) or len(found["addresses"]) < 2
    sent = " ".join(launched(found["in place"])).split()
    assert {str(address) for address in (*found["addresses"], *found["outputs"].values())} <= set(sent)
    before, after = launched(found["replayed"]), launched(found["in place"])
    moved = sum(first != second for first, second in zip(before, after, strict=True))
    assert found["in place"].count("change") == moved > 0, "only launches whose arrays moved are told"
    assert "dltensor" in found["capsule"]


def test_too_little_memory_is_said(found):
    told = r"bytes of GPU memory for tensors at B=4194304 \(\d+ bytes of temporaries, 268435456 of inputs, 268435456 of"
    assert re.search(told, found["too much"])
    assert "(5 of 268435456 bytes are free)" in found["too much"]


def test_everything_is_given_back(found):
    assert found["alive"] == 0
