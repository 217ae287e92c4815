"""What the documentation says is true: commands run, excerpts stand in their files, links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: What sets a machine up; whoever runs this test has done that already.
_SETUP = re.compile(r"python3 -m venv |\.venv/bin/pip |\.venv/bin/python -m pytest")
_BLOCK = re.compile(r"(?:^ *<!-- (?P<mark>[^>]+) -->\n)?^ *```(?P<language>\w+)\n(?P<text>.*?)^ *```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block, and the comment above it: "not run", or "from FILE"."""

    language: str
    text: str
    mark: str


def blocks(document: Path) -> list[Block]:
    return [
        Block(found["language"], found["text"], found["mark"] or "")
        for found in _BLOCK.finditer(document.read_text("utf-8"))
    ]


def steps(block: Block) -> list[list[str]]:
    """The commands of a block, less those that set the machine up."""
    if block.language == "python":
        return [[sys.executable, "-c", block.text]]
    here = f"{Path(sys.executable).parent}{os.sep}"
    parts = [part.strip() for line in block.text.splitlines() for part in line.split(" && ")]
    return [["bash", "-c", part.replace(".venv/bin/", here)] for part in parts if part and not _SETUP.match(part)]


def test_blocks_are_found() -> None:
    found = blocks(ROOT / "README.md")
    assert {block.language for block in found} == {"sh", "text", "python"}
    assert any("optc examples/digits/vit.onnx -O3" in command[-1] for block in found for command in steps(block))
    assert not any("pip install" in command[-1] for block in found for command in steps(block))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_run(document: Path, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for block in blocks(document):
        if block.language not in ("sh", "python") or block.mark:
            continue
        for command in steps(block):
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_excerpts_stand_in_their_files(document: Path) -> None:
    for block in blocks(document):
        assert block.mark in ("", "not run") or block.mark.startswith("from "), block.mark
        if block.mark.startswith("from "):
            assert block.text in (ROOT / block.mark.removeprefix("from ")).read_text("utf-8"), block.text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text("utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    missing = [target for target in targets if not (document.parent / target).exists()]
    named = re.findall(r"`((?:ir|passes|kernels|backends|optc|tools|tests|docs|examples|\.ci)/[\w./-]*)`", text)
    missing += [name for name in named if not (ROOT / name).exists() and "NAME" not in name]
    assert not missing
