"""The build recipe: what it refuses, and that it comes back as it was written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from optc.backends.tensorrt.recipe import (
    FORMAT,
    MODEL,
    RECIPE,
    BuildRecipe,
    Device,
    File,
    Plugin,
    ShapeRange,
    digests,
    is_bundle,
    read_recipe,
    write_recipe,
)
from optc.ir.errors import BackendError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "model.trt"
    folder.mkdir()
    (folder / MODEL).write_bytes(b"model")
    (folder / "plugin.ptx").write_bytes(b"kernel")
    write_recipe(folder, full(folder))
    return folder


def full(folder: Path) -> BuildRecipe:
    return BuildRecipe(
        files=digests(folder, [MODEL, "plugin.ptx"]),
        devices=(Device("a100", "8.0"), Device("h100", "9.0")),
        profiles=({"x": ShapeRange((1, 3), (4, 3), (8, 3))}, {"x": ShapeRange((9, 3), (16, 3), (32, 3))}),
        workspace_bytes=1 << 30,
        builder_optimization_level=5,
        hardware_compatibility="ampere_plus",
        version_compatible=True,
        weight_streaming=True,
        refit=True,
        sparse_weights=True,
        plugins=(Plugin("optc::norm", ("plugin.ptx",)),),
        notes=("a note",),
    )


def test_a_recipe_comes_back_as_it_was_written(bundle: Path) -> None:
    assert is_bundle(bundle)
    assert read_recipe(bundle) == full(bundle)
    assert full(bundle).to_json() == full(bundle).to_json()


def test_files_are_known_by_size_and_digest(bundle: Path) -> None:
    assert read_recipe(bundle).files["plugin.ptx"] == File(
        6, "6923dd1bc0460082c5d55a831908c24a282860b7f1cd6c2b79cf1bc8857c639c"
    )


def damage_byte(bundle: Path) -> None:
    (bundle / MODEL).write_bytes(b"modem")


def cut(bundle: Path) -> None:
    (bundle / MODEL).write_bytes(b"mod")


def remove(bundle: Path) -> None:
    (bundle / "plugin.ptx").unlink()


def no_recipe(bundle: Path) -> None:
    (bundle / RECIPE).unlink()


def no_json(bundle: Path) -> None:
    (bundle / RECIPE).write_text("{")


def deep_json(bundle: Path) -> None:
    (bundle / RECIPE).write_text("[" * 100_000)


def no_text(bundle: Path) -> None:
    (bundle / RECIPE).write_bytes(b"\xff\xfe{}")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_byte, "model.onnx is not what was written"),
        (cut, "model.onnx has 3 bytes instead of 5"),
        (remove, "plugin.ptx is missing"),
        (no_recipe, "build.json is missing"),
        (no_json, "build.json cannot be read"),
        (deep_json, "build.json cannot be read"),
        (no_text, "build.json cannot be read"),
    ],
)
def test_a_damaged_bundle_is_refused_with_the_reason(bundle: Path, damage, says: str) -> None:  # type: ignore[no-untyped-def]
    damage(bundle)
    with pytest.raises(BackendError, match=says) as caught:
        read_recipe(bundle)
    assert caught.value.hint == "compile the model again"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": None}, "does not say which format"),
        ({"format": True}, "does not say which format"),
        ({"strongly_typed": False}, "strongly_typed"),
        ({"builder_optimization_level": 6}, "0 to 5"),
        ({"workspace_bytes": 0}, "workspace_bytes"),
        ({"hardware_compatibility": "any"}, "hardware_compatibility"),
        ({"model": "other.onnx"}, "not among the files"),
        ({"timing_cache": "cache"}, "not among the files"),
        ({"files": {"../model.onnx": {"bytes": 1, "sha256": ""}}}, "no name inside"),
        ({"files": {"/model.onnx": {"bytes": 1, "sha256": ""}}}, "no name inside"),
        ({"devices": [{"name": "a100", "compute_capability": "sm_80"}]}, "compute_capability"),
        ({"profiles": [{"x": {"minimum": [1], "optimum": [1], "maximum": [1, 2]}}]}, "one rank"),
        ({"profiles": [{"x": {"minimum": [2], "optimum": [1], "maximum": [3]}}]}, "not ordered"),
        ({"profiles": [{"x": {"minimum": [-1], "optimum": [1], "maximum": [3]}}]}, "not ordered"),
        ({"profiles": [{"x": {"minimum": [1], "optimum": [1], "maximum": [1]}}, {}]}, "same inputs"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(bundle: Path, changes: dict, says: str) -> None:
    data = json.loads((bundle / RECIPE).read_text())
    (bundle / RECIPE).write_text(json.dumps({**data, **changes}))
    with pytest.raises(BackendError, match=says):
        read_recipe(bundle)


def test_a_newer_format_is_told_from_damage(bundle: Path) -> None:
    (bundle / RECIPE).write_text(json.dumps({"format": FORMAT + 1, "what": "comes later"}))
    with pytest.raises(BackendError, match=f"its format is {FORMAT + 1}, this optc reads up to {FORMAT}") as caught:
        read_recipe(bundle)
    assert "newer" in (caught.value.hint or "")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no folder that optc wrote"):
        read_recipe(tmp_path / "none")


def test_a_recipe_cannot_be_made_wrong(bundle: Path) -> None:
    with pytest.raises(ValueError, match="0 to 5"):
        dataclasses.replace(full(bundle), builder_optimization_level=9)


def test_static_ranges_are_known() -> None:
    assert ShapeRange((1, 2), (1, 2), (1, 2)).is_static
    assert not ShapeRange((1, 2), (1, 2), (2, 2)).is_static
