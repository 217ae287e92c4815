"""Building an artifact in parts, where not all of a model can be compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir

from optc.backends.base import ValueSpec
from optc.backends.triton.artifact import PARTS_FORMAT, Writer
from optc.backends.triton.build import Lowered, lower_prepared, prepared, write
from optc.backends.triton.lower import CannotCompile
from optc.backends.triton.partition import Part, parts
from optc.backends.triton.parts import Entry, Port
from optc.ir.dims import Dim
from optc.ir.errors import BackendError
from optc.ir.facts import Facts
from optc.ir.saving import save
from optc.ir.sizes import Size
from optc.ir.targets import Target


@dataclass(frozen=True)
class Piece:
    """A part and what it was lowered to; None for one that ONNX Runtime runs."""

    part: Part
    lowered: Lowered | None


def split(model: onnx_ir.Model) -> tuple[list[Piece], dict[str, str]]:
    """A model in as few parts as its order allows, of which those for kernels can be compiled.

    What cannot be lowered is found by trying: a node that fails moves to ONNX Runtime, and what is left is cut anew.

    Args:
        model: The model; it is not changed.

    Returns:
        The parts in order, and why nodes cannot be compiled, by name.

    Raises:
        BackendError: Nothing can be compiled, or what is in the way is no node.
    """
    whole = prepared(model.clone())
    _name_nodes(whole.graph)
    facts = Facts(whole)
    why: dict[str, str] = {}
    names: dict[Dim, str] = {}
    while True:
        pieces: list[Piece] = []
        failed: dict[str, str] = {}
        for part in parts(whole, facts, why.keys(), names):
            lowered = None
            if part.compiled:
                try:
                    lowered = lower_prepared(part.model)
                except CannotCompile as error:
                    failed |= error.nodes
                    if not error.nodes:
                        raise
            pieces.append(Piece(part, lowered))
        if not failed:
            break
        if failed.keys() <= why.keys():
            raise AssertionError(f"nodes that are not compiled cannot be compiled: {', '.join(failed)}")
        why |= failed
    if not any(piece.lowered is not None and piece.lowered.plan.launches for piece in pieces):
        raise BackendError("nothing of the model can be compiled", hint="use --backend=onnxruntime")
    return pieces, why


def _name_nodes(graph: onnx_ir.Graph) -> None:
    """Give all nodes names of their own."""
    taken: set[str] = set()
    for number, node in enumerate(graph):
        name = node.name or f"{node.op_type}_{number}"
        while name in taken:
            name = f"{name}_{number}"
        node.name = name
        taken.add(name)


def build_parts(
    model: onnx_ir.Model, targets: Sequence[Target], out: Path, shapes: Mapping[str, Size], cache: Path | None
) -> tuple[list[Path], tuple[str, ...]]:
    """Compile what can be compiled of a model, and write the rest beside it.

    Args:
        model: The model.
        targets: What to compile for.
        out: The folder to write.
        shapes: See :func:`optc.backends.triton.build.build`.
        cache: A folder with kernels that were compiled before.

    Returns:
        The files of the artifact, and remarks for the user.
    """
    pieces, why = split(model)
    entries: list[Entry] = []
    with Writer(out) as writer:
        (writer.folder / "parts").mkdir()
        for number, (part, lowered) in enumerate((piece.part, piece.lowered) for piece in pieces):
            if lowered is not None:
                place = f"parts/{number:03d}"
                _, files = write(lowered, part.model, targets, writer.folder / place, shapes, cache)
                entries.append(Entry("triton", place, part.inputs, part.outputs))
            else:
                place = f"parts/{number:03d}.onnx"
                files = save(part.model, writer.folder / place)
                reasons = {f"{name}: {why[name]}": None for name in part.nodes if name in why}
                entries.append(Entry("onnxruntime", place, part.inputs, part.outputs, "; ".join(reasons)))
            for file in files:
                writer.adopt(file)
        manifest = {
            "parts": [asdict(entry) for entry in entries],
            "inputs": [asdict(_port(v)) for v in model.graph.inputs if v not in model.graph.initializers.values()],
            "outputs": [asdict(_port(value)) for value in model.graph.outputs],
        }
        files = writer.finish(manifest, PARTS_FORMAT)
    launches = sum(len(piece.lowered.plan.launches) for piece in pieces if piece.lowered is not None)
    compiled = sum(entry.runs == "triton" for entry in entries)
    note = (
        f"{launches} launches in {compiled} of {len(entries)} parts; ONNX Runtime runs the rest on the CPU, as "
        f"{len(why)} node{'s' * (len(why) != 1)} cannot be compiled: {'; '.join(dict.fromkeys(list(why.values())[:5]))}"
    )
    return files, (note,)


def _port(value: onnx_ir.Value) -> Port:
    spec = ValueSpec.of(value)
    if spec.kind != "tensor" or spec.dtype is None or spec.shape is None:
        raise BackendError(f"{value.name!r} is no tensor of a known type and rank", hint="use --backend=onnxruntime")
    return Port(spec.name, spec.dtype.name, spec.shape)
