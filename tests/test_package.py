"""The package as a whole: who imports whom, what is shipped, and what must not be in it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Where each part of the package lies; "" is the driver.
FOLDERS = {"": "optc", "ir": "ir", "passes": "passes", "kernels": "kernels", "backends": "backends", "tools": "tools"}
#: Which parts a part may import.
ALLOWED = {
    "ir": {"ir"},
    "passes": {"passes", "ir"},
    "kernels": {"kernels", "ir"},
    "backends": {"backends", "ir", "kernels"},
    "": {"", "ir", "passes", "kernels", "backends"},
    "tools": {"tools", "", "ir", "passes", "kernels", "backends"},
}
#: ``python -m optc`` is the command line under another name.
ENTRY = "optc.__main__"
#: Modules that import by name what is named in a table, a plugin or an option; nothing else imports late.
LATE = {
    "optc",
    "optc.backends.cuda",
    "optc.backends.openvino_library",
    "optc.backends.tensorrt.library",
    "optc.backends.tensorrt.plugin_compiler",
    "optc.backends.triton.backend",
    "optc.backends.triton.runtime",
    "optc.callables",
    "optc.ir.registry",
    "optc.recovery.torch_library",
    "optc.tools.cli",
}


def modules() -> dict[str, Path]:
    """Every module of the package with its file."""
    found = {}
    for part, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = ["optc", *([part] if part else []), *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def part_of(module: str) -> str:
    names = module.split(".")
    return names[1] if len(names) > 1 and names[1] in FOLDERS else ""


def imports(tree: ast.AST, module: str) -> Iterator[str]:
    """The modules of optc that a syntax tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            # `from optc.ir import dims` imports a module, `from optc.ir.dims import parse` a name in one.
            longer = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in longer]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "optc")


def runtime_tree(path: Path) -> ast.Module:
    """A module's syntax tree without what only type checkers read."""
    tree = ast.parse(path.read_text("utf-8"))
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
    ]
    return tree


def test_the_walk_sees_the_package() -> None:
    assert {"optc", "optc.compiler", "optc.ir.rewriter", "optc.passes.fusion", "optc.tools.cli"} <= set(MODULES)
    tree = ast.parse("import optc.ir.dims\nfrom optc.ir import facts\nfrom optc.compiler import compile\nimport numpy")
    assert list(imports(tree, "m")) == ["optc.ir.dims", "optc.ir.facts", "optc.compiler"]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_it_may(module: str) -> None:
    for imported in imports(ast.parse(MODULES[module].read_text("utf-8")), module):
        assert imported in MODULES, f"{module} imports {imported}, which there is not"
        allowed = ALLOWED[part_of(module)] | ({"tools"} if module == ENTRY else set())
        assert part_of(imported) in allowed, f"{module} must not import {imported}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_stand_at_the_top(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inner = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
            assert not inner, f"{module}, line {inner[0].lineno}: an import inside a function"
    late = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & {"import_module"}
    assert not late or module in LATE, f"{module} imports by name; only {', '.join(sorted(LATE))} do"


def test_no_imports_run_in_a_circle() -> None:
    graph = {module: set(imports(runtime_tree(path), module)) & set(MODULES) for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if module in done:
            return
        assert module not in trail, f"a circle: {' -> '.join((*trail[trail.index(module) :], module))}"
        for imported in sorted(graph[module]):
            visit(imported, (*trail, module))
        done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_every_folder_is_declared_as_a_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    declared = set(settings["packages"])
    present = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert present == declared
    assert settings["package-dir"] == {f"optc.{part}" if part else "optc": folder for part, folder in FOLDERS.items()}


def test_a_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = set()
    for part, folder in FOLDERS.items():
        inside = Path("optc") / part
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        expected |= {(inside / path.relative_to(ROOT / folder)).as_posix() for path in files}
    assert packed == expected


def tracked_text() -> Iterator[tuple[Path, str]]:
    """The text files under version control."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        try:
            yield path, path.read_text("utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue


def test_no_file_names_a_folder_of_someones_machine() -> None:
    somewhere = re.compile(r"(?<![\w.])/(?:" + "|".join(("home", "root", "work", "Users")) + r")/\w+")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}" for path, text in tracked_text() if (match := somewhere.search(text))
    ]
    assert not found


def test_every_text_file_ends_with_one_newline() -> None:
    found = [
        str(path.relative_to(ROOT))
        for path, text in tracked_text()
        if text and (not text.endswith("\n") or text.endswith("\n\n"))
    ]
    assert not found
