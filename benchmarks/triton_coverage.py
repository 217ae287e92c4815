"""Which models the Triton backend compiles wholly, and which nodes of the others it does not.

    python benchmarks/triton_coverage.py MODEL.onnx ... FOLDER ... [--target a100] [-v] [--store NAME]

Models are optimized at -O2 and lowered; no kernel is compiled. Folders are searched to the bottom. First come the
reasons, each with the number of models that it stops and how many it alone stops; with ``-v`` every node, by model.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import machine
from harness.tables import document, markdown, public

import optc
from optc.backends.triton.build import lower
from optc.backends.triton.lower import CannotCompile
from optc.ir.errors import OptcError

RESULTS = Path(__file__).resolve().parent / "results"
_SHOWN = 90


def reasons(model: Path, target: str) -> dict[str, str] | None:
    """Why nodes of a model are not compiled, by name; nothing where all are; None where it is no valid model."""
    try:
        optimized = optc.compile(model, level=2, target=target, backend="triton", verify="off", measure=False).model
    except OptcError:
        return None
    try:
        lower(optimized)
    except CannotCompile as error:
        return dict(error.nodes) or {"": error.what}
    return {}


def summary(found: Mapping[str, Mapping[str, str]]) -> str:
    """The reasons, the most frequent first."""
    models: dict[str, set[str]] = defaultdict(set)
    nodes: Counter[str] = Counter()
    for model, whys in found.items():
        for why in whys.values():
            models[_short(why)].add(model)
            nodes[_short(why)] += 1
    lines = [["reason", "models", "alone", "nodes", "for example"]]
    for why in sorted(models, key=lambda why: (-len(models[why]), why)):
        alone = [name for name in models[why] if {_short(other) for other in found[name].values()} == {why}]
        counts = len(models[why]), len(alone), nodes[why]
        lines.append([why, *map(str, counts), min(alone or models[why])])
    return markdown(lines)


def _short(why: str) -> str:
    first = why.splitlines()[0].replace("|", "/")
    return first if len(first) <= _SHOWN else f"{first[:_SHOWN]}..."


def _models(given: Sequence[Path]) -> list[tuple[str, Path]]:
    """The models named, and all below folders, by what to call them."""
    found = []
    for entry in given:
        paths = sorted(entry.rglob("*.onnx")) if entry.is_dir() else [entry]
        found += [(str(path.relative_to(entry)) if entry.is_dir() else path.name, path) for path in paths]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--target", default="a100")
    parser.add_argument("-v", dest="verbose", action="store_true", help="print every node")
    parser.add_argument("--store", help="write results/NAME.md")
    arguments = parser.parse_args()
    found: dict[str, Mapping[str, str]] = {}
    invalid = []
    for name, path in _models(arguments.models):
        whys = reasons(path, arguments.target)
        if whys is None:
            invalid.append(name)
            continue
        found[name] = whys
        if arguments.verbose and whys:
            print(name, *(f"    {node}: {why}" for node, why in whys.items()), sep="\n", flush=True)
    whole = sum(not whys for whys in found.values())
    line = f"{whole} of {len(found)} models are compiled wholly; {len(invalid)} are not valid models"
    table = summary(found)
    print(f"\n{line}\n\n{table}")
    if arguments.store:
        title = "What the Triton backend compiles"
        text = document(
            title, "triton_coverage.py", public(sys.argv[1:]), [machine.versions()], line, {"Not compiled": table}
        )
        (RESULTS / f"{arguments.store}.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
