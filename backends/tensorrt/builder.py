"""From a bundle to an engine: the part that needs TensorRT and a GPU. Not run on a GPU yet.

The calls are those of TensorRT 10 and 11 alike (tests hold them against the bindings of both). The network is typed
strongly, which 11 always does: what is computed in which type stands in the ONNX file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optc.backends import cuda
from optc.backends.base import ValueSpec
from optc.backends.tensorrt import timing_cache
from optc.backends.tensorrt.engine_file import EngineInfo, Tensor, info_path
from optc.backends.tensorrt.inspector import layers, sources_of
from optc.backends.tensorrt.library import library, part
from optc.backends.tensorrt.monitor import Listener, Log, interruptible, monitor
from optc.backends.tensorrt.plugins import register
from optc.backends.tensorrt.recipe import BuildRecipe, File, digest, read_recipe
from optc.ir.errors import BackendError
from optc.ir.model import load
from optc.ir.writing import replacing

#: What a recipe asks for -> TensorRT's names of it.
_FLAGS: Mapping[str, str] = {
    "version_compatible": "VERSION_COMPATIBLE",
    "weight_streaming": "WEIGHT_STREAMING",
    "refit": "REFIT",
    "sparse_weights": "SPARSE_WEIGHTS",
}
_COMPATIBILITY: Mapping[str, str] = {
    "ampere_plus": "AMPERE_PLUS",
    "same_compute_capability": "SAME_COMPUTE_CAPABILITY",
}
#: How many nodes that the parser refused one message lists.
_MOST_NODES = 20


@dataclass(frozen=True)
class Built:
    """An engine that was built.

    Attributes:
        path: Its file.
        files: All files: the engine, and what is known of it.
        info: What is known of it.
        notes: What the user should know.
    """

    path: Path
    files: tuple[Path, ...]
    info: EngineInfo
    notes: tuple[str, ...] = ()


def build(bundle: Path, output: Path, progress: Listener | None = None) -> Built:
    """Build the engine that a bundle describes, for the GPU of this machine.

    Args:
        bundle: The folder.
        output: The file to write; what is known of the engine goes beside it.
        progress: Is told of TensorRT's phases.

    Raises:
        BackendError: The bundle is damaged; TensorRT is missing, too old or finds no GPU; or it does not take the
            model. All of the parser's reasons are listed with their nodes.
        OutputError: The engine cannot be written.
        KeyboardInterrupt: The user stopped it; nothing was written.
    """
    recipe = read_recipe(bundle)
    trt = library()
    device = cuda.open_device()
    log = Log()
    logger = log.logger(trt)
    with interruptible() as stopped:
        builder = _builder(trt, logger, log)
        register(trt, logger, bundle, recipe.plugins, device.capability)
        network = builder.create_network(_network_flags(trt, recipe))
        config = builder.create_builder_config()
        _configure(trt, config, recipe)
        if progress is not None:
            watching = monitor(trt, progress, stopped)  # must outlive the build
            config.progress_monitor = watching
        _parse(trt, network, logger, log, bundle / recipe.model)
        _add_profiles(builder, config, network, recipe, bundle)
        cache = timing_cache.place(trt, device)
        warm = timing_cache.attach(config, cache, bundle / recipe.timing_cache if recipe.timing_cache else None)
        plan = builder.build_serialized_network(network, config)
        if stopped():
            raise BackendError("the build was stopped", where=str(bundle))
        if plan is None:
            raise BackendError(
                f"TensorRT could not build the engine:{log.told() or ' it does not say why'}",
                where=str(bundle),
                hint="a message about memory: give workspace_bytes; about a kernel: --builder-level higher or lower",
            )
        timing_cache.keep(config, cache)
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(f"TensorRT cannot load what it built:{log.told()}", where=str(bundle))
        info = _info(trt, engine, recipe, bundle, device)
    notes = [*_unmet(recipe, device), *(f"TensorRT: {line}" for line in log.warnings)]
    notes += ["kernels were timed from scratch; the next build on this GPU is faster"] * (not warm)
    return _write(output, plan, info, tuple(notes))


def _builder(trt: Any, logger: Any, log: Log) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError as error:  # "factory function returned nullptr": it found no GPU, or no driver that it knows
        raise BackendError(
            f"TensorRT cannot start on this machine:{log.told() or ' it found no GPU that it can use'}",
            hint="nvidia-smi shows whether the GPU is there, and which CUDA its driver knows",
        ) from error


def _network_flags(trt: Any, recipe: BuildRecipe) -> int:
    """The creation flags of the network: strongly typed (which TensorRT 11 is anyway), and plugins without Python."""
    flags = trt.NetworkDefinitionCreationFlag
    bits = 1 << int(flags.STRONGLY_TYPED)
    if any(plugin.files for plugin in recipe.plugins):
        bits |= 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS)
    return bits


def _configure(trt: Any, config: Any, recipe: BuildRecipe) -> None:
    config.builder_optimization_level = recipe.builder_optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it layers do not tell of their nodes
    if recipe.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_bytes)
    for asked, flag in _FLAGS.items():
        if getattr(recipe, asked):
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if recipe.hardware_compatibility != "none":
        level = f"HardwareCompatibilityLevel.{_COMPATIBILITY[recipe.hardware_compatibility]}"
        config.hardware_compatibility_level = part(trt, level, "this hardware compatibility")


def _parse(trt: Any, network: Any, logger: Any, log: Log, model: Path) -> None:
    """Read the ONNX file into the network; all that the parser refuses is told at once."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(model)) and not parser.num_errors:
        return
    problems = [_problem(parser.get_error(index)) for index in range(parser.num_errors)]
    shown = dict.fromkeys(problems[:_MOST_NODES])
    more = f"\n  and {len(problems) - _MOST_NODES} more" if len(problems) > _MOST_NODES else ""
    told = "".join(f"\n  {line}" for line in shown) or log.told()
    raise BackendError(
        f"TensorRT's parser does not take the model:{told}{more}",
        where=str(model),
        hint="see docs/tensorrt.md for what TensorRT takes, or use --backend=onnxruntime",
    )


def _problem(error: Any) -> str:
    """What the parser says of one node."""
    inside = [name for name in error.local_function_stack() if name]
    node, op = error.node_name() or f"number {error.node()}", error.node_operator()
    place = f"{op} {node!r}" if op else f"node {node!r}"
    if inside:
        place += f" (in {' in '.join(reversed(inside))})"
    return f"{place}: {' '.join(error.desc().split())}"


def _add_profiles(builder: Any, config: Any, network: Any, recipe: BuildRecipe, bundle: Path) -> None:
    """The shapes to build for; they are compared with what the network takes."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    problem = next(_profile_problems(inputs, recipe), None)
    if problem is not None:
        raise BackendError(problem, where=str(bundle), hint="compile the model again with a --shape for its dims")
    if all(-1 not in tuple(tensor.shape) for tensor in inputs):
        return  # fixed shapes need no profile
    for number, ranges in enumerate(recipe.profiles):
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            shapes = ranges[tensor.name]
            profile.set_shape(tensor.name, shapes.minimum, shapes.optimum, shapes.maximum)
        if config.add_optimization_profile(profile) < 0:
            raise BackendError(f"TensorRT does not take profile {number} of the recipe", where=str(bundle))


def _profile_problems(inputs: list[Any], recipe: BuildRecipe) -> Iterator[str]:
    dynamic = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
    if dynamic and not recipe.profiles:
        yield f"input {dynamic[0].name!r} has dims of any size, and the recipe has no profile that says which"
    for tensor in inputs:
        if tensor.is_shape_tensor and tensor.dtype.name in ("INT32", "INT64"):
            yield f"input {tensor.name!r} decides on shapes by its contents; make it a constant of the model"
    for ranges in recipe.profiles:
        for tensor in inputs:
            wanted = tuple(tensor.shape)
            found = ranges.get(tensor.name)
            if found is None:
                yield f"the recipe has no shapes for input {tensor.name!r}"
            elif len(found.optimum) != len(wanted) or any(
                dim not in (-1, size)
                for end in (found.minimum, found.maximum)
                for dim, size in zip(wanted, end, strict=True)
            ):
                yield f"the recipe's shapes for input {tensor.name!r} do not fit {list(wanted)}"


def _info(trt: Any, engine: Any, recipe: BuildRecipe, bundle: Path, device: cuda.Device) -> EngineInfo:
    model = load(bundle / recipe.model)
    given = [value for value in model.graph.inputs if (value.name or "") not in model.graph.initializers]
    return EngineInfo(
        file=File(0, ""),  # not written yet
        tensorrt=trt.__version__,
        device=device.name,
        compute_capability=device.compute_capability,
        hardware_compatibility=recipe.hardware_compatibility,
        version_compatible=recipe.version_compatible,
        recipe=hashlib.sha256(recipe.to_json().encode()).hexdigest(),
        inputs=tuple(Tensor.of(ValueSpec.of(value)) for value in given),
        outputs=tuple(Tensor.of(ValueSpec.of(value)) for value in model.graph.outputs),
        profiles=recipe.profiles,
        layers=layers(trt, engine, sources_of(model)),
    )


def _unmet(recipe: BuildRecipe, device: cuda.Device) -> Iterator[str]:
    """Where the engine is for another GPU than the bundle was prepared for."""
    wanted = {one.compute_capability: one.name for one in recipe.devices}
    if wanted and device.compute_capability not in wanted:
        names = ", ".join(f"{name} ({capability})" for capability, name in wanted.items())
        yield (
            f"the engine is for {device.name} ({device.compute_capability}), where it was built; "
            f"the bundle was prepared for {names}"
        )


def _write(output: Path, plan: Any, info: EngineInfo, notes: tuple[str, ...]) -> Built:
    beside = info_path(output)
    with replacing(output, beside) as (engine, text):
        engine.write_bytes(memoryview(plan))
        info = replace(info, file=digest(engine))
        text.write_text(info.to_json(), "utf-8")
    return Built(output, (output, beside), info, notes)
