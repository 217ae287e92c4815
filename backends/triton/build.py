"""Building an artifact: lower the graph, choose tiles, compile every kernel for every target, plan the memory."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import onnx_ir
import triton

from optc.backends.triton import memory
from optc.backends.triton.artifact import PLAN, Writer
from optc.backends.triton.attention import takes
from optc.backends.triton.codegen import Generated, generate
from optc.backends.triton.expansions import expand
from optc.backends.triton.lower import Lowering
from optc.backends.triton.merge import merge_projections
from optc.backends.triton.plan import (
    ITEM_SIZE,
    Argument,
    Buffer,
    KernelEntry,
    Launch,
    Plan,
    Tensor,
    Variant,
    number,
)
from optc.backends.triton.ranges import usual_sizes, with_ranges
from optc.backends.triton.rules import RULES
from optc.backends.triton.tuning import Tuning
from optc.ir.dims import Dim, parse, symbol, symbols
from optc.ir.errors import BackendError
from optc.ir.facts import Facts
from optc.ir.functions import FUSED_DOMAIN, inline
from optc.ir.rewriter import Rewriter
from optc.ir.sizes import Size
from optc.ir.targets import Target
from optc.kernels.base import Specialization
from optc.kernels.compile import Compiled, compile_kernel
from optc.kernels.library import KERNELS
from optc.kernels.tiles import Choice, Tile, choose

#: The oldest driver that loads what a toolkit makes, by its first number.
DRIVERS = {"12": "525.60.13", "13": "580.65.06"}


@dataclass(frozen=True)
class Lowered:
    """A graph as launches, before anything is compiled.

    Attributes:
        plan: The plan; its kernels have no variants yet.
        generated: The kernels, by name.
        weights: Contents of the weights by key, with their types.
        sources: Which initializer each weight is.
        notes: What the user should know of it.
    """

    plan: Plan
    generated: Mapping[str, Generated]
    weights: Mapping[str, tuple[str, np.ndarray]]
    sources: Mapping[str, str]
    notes: tuple[str, ...] = ()


def lower(
    model: onnx_ir.Model, targets: Sequence[Target] = (), shapes: Mapping[str, Size] = MappingProxyType({})
) -> Lowered:
    """Lower a graph.

    Args:
        model: The model; fused ops are functions of the domain "optc". It is not changed.
        targets: The devices that kernels are chosen for; without any the choice is good for all.
        shapes: Usual sizes of symbolic dims, or ranges.

    Raises:
        BackendError: Some nodes cannot be compiled; all are named.
    """

    def lowered(made: onnx_ir.Model, notes: tuple[str, ...] = (), named: Mapping[str, Dim] | None = None) -> Lowered:
        ready = prepared(made)
        facts = Facts(ready, named=named or {})
        sizes = usual_sizes(model, [facts.shape(value) or () for value in ready.graph.inputs], shapes)
        return lower_prepared(ready, notes, facts, Tuning(sizes, tuple(targets)))

    try:
        return lowered(model.clone())
    except BackendError as error:
        failed = error
    sums, notes = _named_sums(model)
    if sums:
        try:
            return lowered(model.clone(), notes, sums)
        except BackendError:
            pass
    alike, notes = _same_dims(model.clone())
    if not notes:
        raise failed
    return lowered(alike, notes)


def _named_sums(model: onnx_ir.Model) -> tuple[dict[str, Dim], tuple[str, ...]]:
    """Dims of inputs that are called after others, as in "past + seq", and what that asks of the inputs.

    To ONNX these are names without structure. Exporters of decoders mean what they write: a mask is as long as the
    keys that were there before and the new ones together.
    """
    owners: dict[str, str] = {}
    for value in model.graph.inputs:
        for dim in value.shape or ():
            if not isinstance(dim, int) and dim.value:
                owners.setdefault(dim.value, value.name or "")
    found = {}
    for name in owners:
        parsed = parse(name)
        if parsed != symbol(name) and symbols(parsed) and symbols(parsed) <= owners.keys():
            found[name] = parsed
    return found, tuple(f"a dim of {owners[name]!r} must be {name}, as it is called" for name in found)


def _same_dims(model: onnx_ir.Model) -> tuple[onnx_ir.Model, tuple[str, ...]]:
    """The model with the dims of inputs of one rank taken to be the same, and what that asks of the inputs.

    Exporters give every input dims of its own, although token ids and their mask always have one shape; whether
    anything is broadcast can then not be known before the run.
    """
    renamed: dict[str, str] = {}
    notes = []
    first: dict[int, onnx_ir.Value] = {}
    for value in model.graph.inputs:
        if value.shape is None or value in model.graph.initializers.values():
            continue
        like = first.setdefault(len(value.shape), value)
        assert like.shape is not None
        for own, other in zip(value.shape, like.shape, strict=True):
            if not isinstance(own, int) and not isinstance(other, int) and own.value and other.value != own.value:
                renamed.setdefault(own.value, str(other.value))
        if like is not value and any(str(getattr(dim, "value", "")) in renamed for dim in value.shape):
            notes.append(
                f"{value.name!r} must have the shape of {like.name!r}: sizes that differ could not be compiled"
            )
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = onnx_ir.Shape(
                [dim if isinstance(dim, int) else renamed.get(dim.value or "", dim.value) for dim in value.shape]
            )
    return model, tuple(notes)


def prepared(model: onnx_ir.Model) -> onnx_ir.Model:
    """The model, changed: fused ops that no kernel computes as parts again, products of one input as one."""
    rewriter = Rewriter(model)
    expand(rewriter)
    pending = [node for node in model.graph if node.domain == FUSED_DOMAIN]
    while pending:
        call = pending.pop()
        if f"{FUSED_DOMAIN}::{call.op_type}" not in RULES or (call.op_type == "Attention" and not takes(call)):
            pending.extend(node for node in inline(rewriter, call) if node.domain == FUSED_DOMAIN)
    merge_projections(rewriter)
    return model


def lower_prepared(
    model: onnx_ir.Model, notes: tuple[str, ...] = (), facts: Facts | None = None, tuning: Tuning | None = None
) -> Lowered:
    """Lower what :func:`prepared` returns.

    Args:
        model: The model.
        notes: What the user should know of it.
        facts: What is known about it; derived where it is not given.
        tuning: What to choose between kernels for.

    Raises:
        CannotCompile: Some nodes cannot be lowered; all are named.
    """
    lowering = Lowering(model, facts or Facts(model), RULES, tuning)
    lowering.run()
    return _planned(model, lowering, notes)


def _planned(model: onnx_ir.Model, lowering: Lowering, notes: tuple[str, ...]) -> Lowered:
    generated: dict[str, Generated] = {}
    names: dict[str, str] = {}
    launches = []
    for group in lowering.builder.groups:
        made = generate(group, KERNELS[group.kernel].hooks)
        name = names.setdefault(made.key(), f"k{len(names):03d}_{group.kernel}")
        generated.setdefault(name, made)
        launches.append(
            Launch(
                kernel=name,
                args=tuple(Argument(a.buffer, None if a.dim is None else str(a.dim)) for a in made.arguments),
                sizes={size: str(value) for size, value in made.sizes.items()},
                reads=tuple(sorted(group.reads())),
                writes=tuple(sorted(group.writes())),
                nodes=made.nodes,
            )
        )
    roles = {
        **dict.fromkeys(lowering.inputs.values(), "input"),
        **dict.fromkeys(lowering.outputs.values(), "output"),
        **dict.fromkeys(lowering.weights, "weight"),
    }
    used = {buffer for launch in launches for buffer in (*launch.reads, *launch.writes)} | set(roles)
    used -= {b for b in lowering.weights if not any(b in launch.reads for launch in launches)}
    order = sorted(used)
    renumbered = {old: new for new, old in enumerate(order)}
    keys = {buffer: f"w{place:04d}" for place, buffer in enumerate(b for b in order if b in lowering.weights)}
    buffers = tuple(
        Buffer(roles.get(b, "temporary"), str(lowering.builder.sizes[b][0]), lowering.builder.sizes[b][1], keys.get(b))  # type: ignore[arg-type]
        for b in order
    )
    plan = Plan(
        inputs=tuple(
            _tensor(lowering, value, renumbered[lowering.inputs[value.name or ""]])
            for value in model.graph.inputs
            if (value.name or "") in lowering.inputs
        ),
        outputs=tuple(
            _tensor(lowering, value, renumbered[lowering.outputs[value.name or ""]]) for value in model.graph.outputs
        ),
        buffers=buffers,
        kernels={
            name: KernelEntry(
                kernel=made.kernel,
                source=f"sources/{name}.py",
                hooks=made.hooks,
                types=made.types,
                sizes=made.literals,
                passed=tuple(size for size in KERNELS[made.kernel].sizes if made.literals[size] is None),
                grid=KERNELS[made.kernel].grid,
                variants={},
            )
            for name, made in generated.items()
        },
        launches=tuple(_renumber(launch, renumbered) for launch in launches),
        ranges={dim: (0, most) for dim, most in sorted(lowering.limits.items())},
    )
    weights = {
        keys[b]: (lowering.builder.sizes[b][1], _contents(lowering.weights[b].tensor, lowering.builder.sizes[b][1]))
        for b in order
        if b in keys
    }
    return Lowered(plan, generated, weights, {keys[b]: lowering.weights[b].name for b in order if b in keys}, notes)


def _contents(tensor: onnx_ir.TensorProtocol, kind: str) -> np.ndarray:
    array = np.asarray(tensor.numpy())
    return array.view(np.int8) if array.dtype == np.bool_ else array


def _tensor(lowering: Lowering, value: onnx_ir.Value, buffer: int) -> Tensor:
    dtype = lowering.facts.dtype(value)
    assert dtype is not None
    return Tensor(value.name or "", dtype.name, tuple(map(str, lowering.shape(value))), buffer)


def _renumber(launch: Launch, numbers: Mapping[int, int]) -> Launch:
    return Launch(
        kernel=launch.kernel,
        args=tuple(Argument(None if a.buffer is None else numbers[a.buffer], a.value) for a in launch.args),
        sizes=launch.sizes,
        reads=tuple(numbers[b] for b in launch.reads),
        writes=tuple(numbers[b] for b in launch.writes),
        nodes=launch.nodes,
    )


def load_hooks(path: Path, name: str) -> ModuleType:
    """The generated hooks of a kernel, imported from their file."""
    spec = importlib.util.spec_from_file_location(f"optc_generated_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def specialize(entry: KernelEntry, hooks: ModuleType, tile: Tile) -> Specialization:
    """A kernel of a plan with its hooks and a tile, as the compiler and the interpreter take it."""
    return Specialization(
        KERNELS[entry.kernel],
        entry.types,
        entry.sizes,
        {parameter: getattr(hooks, function) for parameter, function in entry.hooks.items()},
        tile.constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def build(
    model: onnx_ir.Model, targets: Sequence[Target], out: Path, shapes: Mapping[str, Size], cache: Path | None
) -> tuple[Plan, list[Path], tuple[str, ...]]:
    """Compile a model and write its artifact.

    Args:
        model: The model; see :func:`lower`.
        targets: What to compile for.
        out: The folder to write.
        shapes: Usual sizes of symbolic dims, for which tiles are chosen, or ranges, which the artifact is made for.
        cache: A folder with kernels that were compiled before.

    Returns:
        The plan, the files of the artifact, and remarks for the user.
    """
    lowered = lower(model, targets, shapes)
    plan, files = write(lowered, model, targets, out, shapes, cache)
    return plan, files, lowered.notes


def write(
    lowered: Lowered,
    model: onnx_ir.Model,
    targets: Sequence[Target],
    out: Path,
    shapes: Mapping[str, Size],
    cache: Path | None,
) -> tuple[Plan, list[Path]]:
    """Compile what a model was lowered to, and write the artifact; arguments as for :func:`build`."""
    arches = {target.arch: target for target in targets if target.arch}
    plan, bindings = with_ranges(lowered.plan, model, shapes)
    with Writer(out) as writer:
        kernels = {}
        for name, made in lowered.generated.items():
            entry = lowered.plan.kernels[name]
            hooks = load_hooks(writer.add(entry.source, made.source), name)
            launch = next(launch for launch in lowered.plan.launches if launch.kernel == name)
            sizes = {size: number(value, bindings) for size, value in launch.sizes.items()}
            variants = {}
            for arch, target in arches.items():
                choice = choose_tile(entry, made, hooks, sizes, target, cache)
                cubin = f"kernels/{arch}/{name}.cubin"
                writer.add(cubin, choice.compiled.cubin)
                variants[arch] = _variant(choice, made.constants, cubin)
            kernels[name] = KernelEntry(**{**vars(entry), "variants": variants})
        plan = replace(plan, kernels=kernels)
        writer.add(PLAN, plan.to_json())
        writer.add_weights(lowered.weights, {"optc.sources": "manifest.json says which initializer each one is"})
        return plan, writer.finish(_manifest(model, plan, lowered, arches))


def choose_tile(
    entry: KernelEntry,
    made: Generated,
    hooks: ModuleType,
    sizes: Mapping[str, int],
    target: Target,
    cache: Path | None,
) -> Choice:
    """The tile of a kernel for a device, compiled.

    Args:
        entry: The kernel.
        made: Its hooks.
        hooks: The same, imported.
        sizes: Typical values of its sizes.
        target: The device.
        cache: A folder with kernels that were compiled before.
    """
    arch = int((target.arch or "").removeprefix("sm_"))
    item = max((ITEM_SIZE[kind[1:]] for kind in entry.types if kind.startswith("*")), default=4)

    def make(tile: Tile) -> Specialization:
        constants = {**made.constants, **tile.constants}
        return specialize(entry, hooks, Tile(constants, tile.num_warps, tile.num_stages))

    def compiled(spec: Specialization) -> Compiled:
        return compile_kernel(spec, arch, cache)

    decided = {name: value for name, value in made.constants.items() if isinstance(value, int)}
    return choose(entry.kernel, make, compiled, {**decided, **sizes}, item, target)


def _variant(choice: Choice, constants: Mapping[str, Any], cubin: str) -> Variant:
    compiled = choice.compiled
    return Variant(
        constants={**constants, **choice.tile.constants},
        num_warps=compiled.num_warps,
        num_stages=choice.tile.num_stages,
        cubin=cubin,
        symbol=compiled.symbol,
        shared=compiled.shared,
        parameters=compiled.parameters,
        cuda=compiled.cuda,
        registers=compiled.resources.registers,
        spills=compiled.resources.spills,
        mma=compiled.resources.instructions["mma"],
        reason=choice.reason,
    )


def _manifest(model: onnx_ir.Model, plan: Plan, lowered: Lowered, arches: Mapping[str, Target]) -> dict[str, Any]:
    needed = {
        arch: max((entry.variants[arch].cuda for entry in plan.kernels.values()), key=_version, default="12.0")
        for arch in arches
    }
    settled = not plan.dims or plan.arena == "largest"
    return {
        "producer": {"triton": triton.__version__},
        "targets": {
            arch: {
                "built_for": target.name,
                "cuda": needed[arch],
                "driver": DRIVERS.get(needed[arch].split(".")[0], ""),
            }
            for arch, target in arches.items()
        },
        "weights": {key: {"initializer": name, "recipe": "as stored"} for key, name in lowered.sources.items()},
        "memory": vars(memory.place(plan, {})) | {"offsets": None} if settled else None,
    }


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))
