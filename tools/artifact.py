"""Showing a compiled artifact: its launches, its tiles, its memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from optc.backends.triton.artifact import Artifact, open_artifact
from optc.backends.triton.memory import place
from optc.backends.triton.parts import in_parts, read_parts
from optc.tools.console import show, table
from optc.units import size_text


def show_artifact(path: Path, sizes: Mapping[str, int], nodes: bool) -> None:
    """Print what an artifact is made of.

    Args:
        path: Its folder.
        sizes: Values of symbolic dims, for which memory is told.
        nodes: Also list the nodes that every launch stands for.
    """
    if in_parts(path):
        _show_parts(path)
        return
    artifact = open_artifact(path)
    plan = artifact.plan
    show(table(("", ""), _facts(artifact, sizes)), "")
    io = [("input", tensor) for tensor in plan.inputs] + [("output", tensor) for tensor in plan.outputs]
    rows = [(kind, f"{tensor.name}: {tensor.dtype.lower()}[{', '.join(tensor.shape)}]") for kind, tensor in io]
    show(table(("", ""), rows), "")
    launches = [
        (
            number,
            launch.kernel,
            ", ".join(f"{name} {size}" for name, size in launch.sizes.items()),
            ", ".join(launch.nodes)
            if nodes
            else f"{launch.nodes[-1]}{f' +{len(launch.nodes) - 1}' * (len(launch.nodes) > 1)}",
        )
        for number, launch in enumerate(plan.launches)
        if launch.nodes
    ]
    show(table(("launch", "kernel", "sizes", "nodes"), launches, right=("launch",)), "")
    tiles = [
        (name, arch, variant.reason, variant.mma)
        for name, entry in plan.kernels.items()
        for arch, variant in entry.variants.items()
    ]
    show(table(("kernel", "for", "tile (chosen by rules and what the compiler says)", "mma"), tiles, right=("mma",)))


def _show_parts(path: Path) -> None:
    found = read_parts(path)
    ports = [("input", port) for port in found.inputs] + [("output", port) for port in found.outputs]
    show(table(("", ""), [(kind, str(port.spec)) for kind, port in ports]), "")
    rows = [
        (entry.path, entry.runs, ", ".join(entry.inputs), ", ".join(entry.outputs), entry.why) for entry in found.parts
    ]
    show(table(("part", "run by", "reads", "makes", "not compiled, because"), rows), "")
    show(f"more of a part: optc inspect {path}/{next(e.path for e in found.parts if e.runs == 'triton')}")


def _facts(artifact: Artifact, sizes: Mapping[str, int]) -> list[tuple[str, str]]:
    plan, manifest = artifact.plan, artifact.manifest
    files = manifest["files"]
    weights = files.get("weights.safetensors", {"bytes": 0})["bytes"]
    targets = ", ".join(
        f"{arch} ({entry['built_for']}; driver {entry['driver']} or later)"
        for arch, entry in manifest["targets"].items()
    )
    facts = [
        ("artifact", f"{artifact.path}, {size_text(sum(entry['bytes'] for entry in files.values()))}"),
        ("format", str(manifest["format"])),
        ("compiled for", targets),
        ("launches", f"{len(plan.launches)} of {len(plan.kernels)} kernels"),
        ("weights", size_text(weights)),
    ]
    if plan.ranges:
        limits = (f"{dim} {low}..{'' if high is None else high}" for dim, (low, high) in plan.ranges.items())
        facts.append(("sizes", ", ".join(limits)))
    unbound = [dim for dim in plan.dims if dim not in sizes and plan.arena == "exact"]
    if unbound:
        facts.append(("memory", f"depends on {', '.join(unbound)}; give sizes with --shape"))
    else:
        layout = place(plan, sizes)
        facts.append(
            (
                "arena",
                f"{size_text(layout.size)} ({layout.size / max(layout.bound, 1):.2f} of the lower bound "
                f"{size_text(layout.bound)}; all temporaries together {size_text(layout.total)})",
            )
        )
    return facts
