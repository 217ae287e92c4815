"""A compile that is stopped in the middle: one line, and nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

#: A pass that says when it runs and then takes its time.
SLEEPY = """
import pathlib, time
from dataclasses import dataclass
from typing import ClassVar
from optc.passes.base import Pass
from optc.plugins import Plugin

@dataclass(frozen=True)
class Sleepy(Pass):
    '''Sleeps.'''
    name: ClassVar[str] = "sleepy"

    def run(self, ctx):
        pathlib.Path("asleep").touch()
        time.sleep(60)

plugin = Plugin("sleepy", passes={"sleepy": "sleepy_plugin:Sleepy"})
"""


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_in_the_middle(vit: Path, tmp_path: Path, number: int, code: int, message: str) -> None:
    site = tmp_path / "site"
    (site / "sleepy-1.dist-info").mkdir(parents=True)
    (site / "sleepy-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: sleepy\nVersion: 1\n")
    (site / "sleepy-1.dist-info" / "entry_points.txt").write_text("[optc.plugins]\nsleepy = sleepy_plugin:plugin\n")
    (site / "sleepy_plugin.py").write_text(SLEEPY)
    before = vit.read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-m", "optc", "vit.onnx", "--passes", "dce,sleepy", "-o", "out.onnx", "--report", "r.json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_for(tmp_path / "asleep", process)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == code
    assert err == f"optc: error: {message}\n" and out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"vit.onnx", "site", "asleep"}
    assert vit.read_bytes() == before


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away(vit: Path, unbuffered: str) -> None:
    """What ``optc inspect model.onnx --nodes | head -1`` does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "optc", "inspect", str(vit), "--nodes"],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=20) == 141


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
