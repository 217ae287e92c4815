"""Compiling parts of a model to plugins: what TensorRT lacks and one kernel of ours can do. Needs Triton, and no GPU.

The kernels are those of the triton backend: a part of the graph is lowered as a model of its own, and if that becomes
one launch without weights and temporaries of its own, it can be a plugin. What a launch of the triton backend's runtime
would be told, TensorRT is told in symbols: grid, threads, shared memory and integers are the same.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from optc.backends.cache import cache_folder
from optc.backends.tensorrt import recipe
from optc.backends.tensorrt.check import name_of
from optc.backends.tensorrt.plugin_file import NAMESPACE, PluginFile, PluginKernel, Port
from optc.backends.tensorrt.plugins import OPERATIONS, TYPES, translated
from optc.backends.triton.plan import number
from optc.backends.triton.ranges import with_ranges
from optc.ir.dims import Dim, maximum, minimum, parse, provably_ge
from optc.ir.dims_core import terms_of
from optc.ir.errors import BackendError
from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter
from optc.ir.sizes import Size
from optc.ir.targets import Target
from optc.kernels.ptx import reordered

#: Folder of the bundle that plugins lie in.
FOLDER = "plugins"
#: A launch gets this much shared memory without being allowed more, which TensorRT has no way to ask for.
_MOST_SHARED = 48 * 1024
#: Integers and single numbers up to this many elements are compiled into a kernel.
_INNER_CONSTANT_SIZE = 256
_RULE = "plugin"

Region = Sequence[onnx_ir.Node]


class NotAPlugin(BackendError):
    """A part of a model that cannot be a plugin; ``what`` says why."""


@dataclass(frozen=True)
class Compiled:
    """A plugin with the contents of its files, by name."""

    plugin: PluginFile
    files: Mapping[str, str]


@dataclass(frozen=True)
class Added:
    """Plugins that a model calls now.

    Attributes:
        plugins: For the recipe.
        files: Contents of their files, by name in the bundle.
        about: What each computes.
        refused: Parts that were left as they are: the first node's name, and the reason.
    """

    plugins: tuple[recipe.Plugin, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    about: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


def add_plugins(
    model: onnx_ir.Model, regions: Iterable[Region], targets: Sequence[Target], shapes: Mapping[str, Size]
) -> Added:
    """Let a model call plugins for parts of it, as far as they can be compiled.

    Args:
        model: The model, ready for TensorRT otherwise; it is changed.
        regions: The parts; each is one or more nodes of the main graph, in order, that can run without a break.
        targets: The devices to compile for.
        shapes: Usual sizes or ranges of symbolic dims, for which tiles are chosen.
    """
    rewriter = Rewriter(model)
    made: dict[str, Compiled] = {}
    refused: dict[str, str] = {}
    for region in regions:
        try:
            part = Part.of(rewriter.facts, region)
            compiled = compile_part(part, targets, shapes)
        except BackendError as error:
            refused[name_of(region[0])] = error.what
            continue
        made[f"{NAMESPACE}::{compiled.plugin.name}"] = compiled
        _call(rewriter, part, region, compiled.plugin)
    return Added(
        tuple(recipe.Plugin(name, tuple(compiled.files)) for name, compiled in made.items()),
        {name: text for compiled in made.values() for name, text in compiled.files.items()},
        tuple(compiled.plugin.about for compiled in made.values()),
        refused,
    )


@dataclass(frozen=True)
class Part:
    """A region as a model of its own.

    Attributes:
        model: The model; its inputs and outputs are those of the region, with the same facts.
        inputs: What the region reads, in the order of the model's inputs.
        outputs: What others read of it.
        about: Its operators.
    """

    model: onnx_ir.Model
    inputs: tuple[onnx_ir.Value, ...]
    outputs: tuple[onnx_ir.Value, ...]
    about: str

    @classmethod
    def of(cls, facts: Facts, region: Region) -> Part:
        """Cut a region out.

        Raises:
            NotAPlugin: A value is of an unknown type or rank, or a node has sub-graphs.
        """
        inside = {value for node in region for value in node.outputs}
        names: dict[Dim, str] = {}
        mapping: dict[onnx_ir.Value, onnx_ir.Value] = {}
        given: dict[onnx_ir.Value, onnx_ir.Value] = {}
        constants = []
        for value in dict.fromkeys(v for node in region for v in node.inputs if v is not None and v not in inside):
            mapping[value] = copy = _outer(facts, value, f"x{len(mapping)}", names)
            if copy.const_value is not None:
                constants.append(copy)
            else:
                given[value] = copy
        nodes = []
        for node in region:
            if any(
                a.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS) for a in node.attributes.values()
            ):
                raise NotAPlugin(f"{node.op_type} has sub-graphs")
            copy_ = onnx_ir.Node(
                node.domain,
                node.op_type,
                [None if value is None else mapping[value] for value in node.inputs],
                list(node.attributes.values()),
                overload=node.overload,
                num_outputs=len(node.outputs),
                name=node.name,
            )
            for old, new in zip(node.outputs, copy_.outputs, strict=True):
                new.name = f"v{len(mapping)}" if old.name else ""
                mapping[old] = new
            nodes.append(copy_)
        inner = {id(node) for node in region}
        outputs = tuple(
            value
            for node in region
            for value in node.outputs
            if value.is_graph_output() or any(id(user) not in inner for user, _ in value.uses())
        )
        graph = onnx_ir.Graph(
            list(given.values()),
            [mapping[value] for value in outputs],
            nodes=nodes,
            initializers=constants,
            opset_imports=dict(region[0].graph.opset_imports) if region[0].graph is not None else {},
            name="plugin",
        )
        model = onnx_ir.Model(graph, ir_version=10)
        return cls(model, tuple(given), outputs, ", ".join(node.op_type for node in region))


def compile_part(part: Part, targets: Sequence[Target], shapes: Mapping[str, Size]) -> Compiled:
    """Compile a part of a model for some devices.

    Raises:
        NotAPlugin: It needs more than one kernel, or something that a plugin cannot be told.
        BackendError: Triton is missing, or cannot compile it.
    """
    build = _builder()
    lowered = build.lower(part.model)
    plan = lowered.plan
    if len(plan.launches) != 1:
        raise NotAPlugin(f"{part.about} takes {len(plan.launches)} kernels, a plugin is one")
    roles = {buffer.role for buffer in plan.buffers}
    if not roles <= {"input", "output"}:
        raise NotAPlugin(f"{part.about} needs memory of its own ({', '.join(sorted(roles - {'input', 'output'}))})")
    (launch,) = plan.launches
    ((name, made),) = lowered.generated.items()
    by_name = {tensor.name: tensor for tensor in plan.inputs}
    inputs = [by_name[value.name] for value in part.model.graph.inputs]
    outputs = list(plan.outputs)
    sizes = {size: parse(text) for size, text in launch.sizes.items()}
    runtime = plan.kernels[name].passed
    integers = [parse(a.value or "0") for a in launch.args if a.buffer is None] + [sizes[size] for size in runtime]
    for dim in (*integers, *sizes.values()):
        _check_expressible(dim, part.about)
    order = _order(
        [a.buffer for a in launch.args], len(runtime), [t.buffer for t in inputs], [t.buffer for t in outputs]
    )
    _, bindings = with_ranges(plan, part.model, shapes)
    kernels: dict[str, PluginKernel] = {}
    texts: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="optc-plugin-") as folder:
        source = Path(folder, f"{name}.py")
        source.write_text(made.source, "utf-8")
        hooks = build.load_hooks(source, name)
        for target in targets:
            arch = target.arch or ""
            typical = {size: number(text, bindings) for size, text in launch.sizes.items()}
            choice = build.choose_tile(plan.kernels[name], made, hooks, typical, target, cache_folder("kernels"))
            compiled = choice.compiled
            if compiled.shared > _MOST_SHARED or compiled.scratch:
                raise NotAPlugin(f"{part.about} needs {compiled.shared} bytes of shared memory in a block")
            constants = {**made.constants, **choice.tile.constants}
            texts[arch] = reordered(compiled.ptx, order)
            kernels[arch] = PluginKernel(
                ptx="",
                symbol=compiled.symbol,
                grid=_grid(plan.kernels[name].grid, sizes, constants),
                threads=32 * compiled.num_warps,
                shared=compiled.shared,
                cuda=compiled.cuda,
            )
    ports = [tuple(Port(tensor.dtype, tensor.shape) for tensor in tensors) for tensors in (inputs, outputs)]
    for port in (*ports[0], *ports[1]):
        if port.dtype not in TYPES:
            raise NotAPlugin(f"{part.about} has tensors of type {port.dtype.lower()}")
    unnamed = PluginFile("x", ports[0], ports[1], tuple(map(str, integers)), kernels, part.about)
    return _named(unnamed, texts)


def _builder() -> Any:
    """The module that builds the triton backend's artifacts.

    Raises:
        BackendError: Triton is not installed.
    """
    try:
        return importlib.import_module("optc.backends.triton.build")
    except ImportError as error:
        raise BackendError(
            "triton, which compiles plugins, is not installed", hint="pip install 'optc[triton]' (Linux)"
        ) from error


def _outer(facts: Facts, value: onnx_ir.Value, name: str, names: dict[Dim, str]) -> onnx_ir.Value:
    """A value from outside of a region: a constant of the kernel, or an input of the plugin."""
    dtype, shape = facts.dtype(value), facts.shape(value)
    if dtype is None or shape is None:
        raise NotAPlugin(f"the type or rank of {value.name!r} is not known")
    size = facts.const_size(value)
    if size is not None and size <= _INNER_CONSTANT_SIZE and (size == 1 or dtype.is_integer()):
        tensor = onnx_ir.Tensor(np.array(facts.const(value)), dtype=dtype, name=name)
        return onnx_ir.Value(name=name, type=onnx_ir.TensorType(dtype), shape=tensor.shape, const_value=tensor)
    # Equal dims have one name, so that the kernel knows what is never broadcast.
    dims = [dim if isinstance(dim, int) else names.setdefault(dim, f"d{len(names)}") for dim in shape]
    return onnx_ir.Value(name=name, type=onnx_ir.TensorType(dtype), shape=onnx_ir.Shape(dims))


def _order(
    members: Sequence[int | None], sizes: int, inputs: Sequence[int], outputs: Sequence[int]
) -> list[int | None]:
    """The kernel's parameters as TensorRT passes them: inputs, integers, outputs.

    Args:
        members: The buffer of each member of the kernel's ``args``; None for an integer.
        sizes: How many integers follow them.
        inputs: The buffers of the plugin's inputs.
        outputs: Those of its outputs.
    """
    addresses = [buffer for buffer in members if buffer is not None]
    if len(set(addresses)) != len(addresses):
        raise NotAPlugin("its kernel looks at one tensor as two types")
    place = {buffer: index for index, buffer in enumerate(members) if buffer is not None}
    integers = [index for index, buffer in enumerate(members) if buffer is None]
    integers += range(len(members), len(members) + sizes)
    return [*(place.get(buffer) for buffer in inputs), *integers, *(place.get(buffer) for buffer in outputs)]


def _grid(grid: Sequence[str], sizes: Mapping[str, Dim], constants: Mapping[str, Any]) -> tuple[str, str, str]:
    """Blocks along each axis, at least one: a launch of none is an error, and of one without elements does nothing."""
    known = {**{name: value for name, value in constants.items() if isinstance(value, int)}, **sizes}
    found = []
    for text in (*grid, "1", "1")[:3]:
        dim = translated(parse(text), known, int, {"max": maximum, "min": minimum})
        found.append(str(dim if provably_ge(dim, 1) else maximum(dim, 1)))
    return found[0], found[1], found[2]


def _check_expressible(dim: Dim, about: str) -> None:
    for monomial, _ in terms_of(dim):
        for factor in monomial:
            if factor.op != "symbol":
                if factor.op not in OPERATIONS:
                    raise NotAPlugin(f"{about} has a size {dim} that TensorRT cannot compute")
                for inner in factor.args:
                    _check_expressible(inner, about)


def _named(plugin: PluginFile, texts: Mapping[str, str]) -> Compiled:
    """The plugin under a name that says what it is: equal names are equal plugins."""
    digest = hashlib.sha256(json.dumps([asdict(plugin), dict(sorted(texts.items()))], sort_keys=True).encode())
    operators = "_".join("".join(c for c in op if c.isalnum()) for op in plugin.about.split(", "))[:40]
    name = f"{operators}_{digest.hexdigest()[:12]}"
    files = {arch: f"{FOLDER}/{name}.{arch}.ptx" for arch in plugin.kernels}
    kernels = {arch: replace(kernel, ptx=files[arch]) for arch, kernel in plugin.kernels.items()}
    made = replace(plugin, name=name, kernels=kernels)
    return Compiled(made, {f"{FOLDER}/{name}.json": made.to_json(), **{files[arch]: texts[arch] for arch in texts}})


def _call(rewriter: Rewriter, part: Part, region: Region, plugin: PluginFile) -> None:
    """Put a call of the plugin in the place of its region."""
    root = region[-1]
    with rewriter.at(root, _RULE, list(region)):
        rewriter.import_opset(NAMESPACE, 1)
        marks: dict[str, Any] = {"plugin_namespace": NAMESPACE, "plugin_version": "1", "aot": 1}
        made = rewriter.op(plugin.name, *part.inputs, domain=NAMESPACE, outputs=len(part.outputs), **marks)
        for old, new in zip(part.outputs, [made] if len(part.outputs) == 1 else list(made), strict=True):
            rewriter.facts.assume(new, like=old)
            rewriter.keep_name(old, rewriter.replace(old, new))
        for node in reversed(region):
            rewriter.erase(node)
