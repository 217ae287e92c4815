"""Making TensorRT know a bundle's plugins: kernels that optc compiled ahead of time, for what TensorRT lacks.

They are TensorRT's ahead-of-time Python plugins (``tensorrt.plugin``, from 10.9 on): at build time Python says which
PTX to launch and with which symbolic sizes, and TensorRT puts both into the engine, which then runs without Python.
Not run on a GPU yet.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optc.backends.tensorrt.library import part, plugin_library
from optc.backends.tensorrt.plugin_file import NAMESPACE, PluginFile, dims_of, read_plugin
from optc.backends.tensorrt.recipe import Plugin
from optc.ir.dims import Dim, parse
from optc.ir.dims_core import terms_of

#: ONNX's element types as TensorRT calls them.
TYPES: Mapping[str, str] = {
    "FLOAT": "FLOAT",
    "FLOAT16": "HALF",
    "BFLOAT16": "BF16",
    "FLOAT8E4M3FN": "FP8",
    "INT8": "INT8",
    "UINT8": "UINT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "BOOL": "BOOL",
}


#: Functions of dims that TensorRT can compute; sums, differences and products besides.
OPERATIONS = ("floordiv", "mod", "mul", "max", "min")


def register(trt: Any, logger: Any, bundle: Path, plugins: Sequence[Plugin], capability: tuple[int, int]) -> None:
    """Make the plugins of a bundle known to TensorRT in this process.

    Args:
        trt: TensorRT.
        logger: TensorRT's logger.
        bundle: The folder.
        plugins: What the recipe says of them. The first file of each is its JSON; those without files are TensorRT's
            own, or were registered by whoever builds.
        capability: The architecture of the GPU to build for.

    Raises:
        BackendError: This version of TensorRT has no such plugins, or one is damaged or not for this GPU.
    """
    ours = [plugin for plugin in plugins if plugin.files]
    if len(ours) < len(plugins):
        trt.init_libnvinfer_plugins(logger, "")
    if not ours:
        return
    part(trt, "QuickPluginCreationRequest", "a model with plugins")
    trtp = plugin_library()
    for plugin in ours:
        found = read_plugin(bundle / plugin.files[0])
        ptx = (bundle / found.kernel(capability).ptx).read_bytes()
        define(trt, trtp, found, capability, ptx)


def define(trt: Any, trtp: Any, plugin: PluginFile, capability: tuple[int, int], ptx: bytes) -> None:
    """Make one plugin known; one of the same name, which is then the same, is known already.

    Args:
        trt: TensorRT.
        trtp: The module ``tensorrt.plugin``.
        plugin: The plugin.
        capability: The architecture of the GPU to build for.
        ptx: Its kernel.
    """
    name = f"{NAMESPACE}::{plugin.name}"
    if hasattr(getattr(trtp.op, NAMESPACE, None), plugin.name):
        return
    kernel = plugin.kernel(capability)
    operations = {"max": trtp.max, "min": trtp.min}

    def sizes(inputs: Sequence[Any]) -> Callable[[Dim], Any]:
        bound = {name: inputs[number].shape_expr[axis] for name, (number, axis) in plugin.places.items()}
        return lambda dim: translated(dim, bound, trtp.ShapeExpr, operations)

    def describe(*inputs: Any) -> Any:
        size = sizes(inputs)
        made = tuple(
            trtp.from_shape_expr(tuple(map(size, dims_of(port.dims))), trt.DataType.__members__[TYPES[port.dtype]])
            for port in plugin.outputs
        )
        return made if len(made) > 1 else made[0]

    def launch(*given: Any) -> tuple[str, bytes, Any, Any]:
        size = sizes(given[: len(plugin.inputs)])
        parameters = trtp.KernelLaunchParams()
        parameters.grid_x, parameters.grid_y, parameters.grid_z = map(size, dims_of(kernel.grid))
        parameters.block_x = kernel.threads
        parameters.shared_mem = kernel.shared
        arguments = trtp.SymIntExprs.from_tuple([trtp.SymInt32(size(parse(text))) for text in plugin.arguments])
        return kernel.symbol, ptx, parameters, arguments

    # TensorRT reads the number of inputs and outputs from the signatures.
    names = [f"input{number}" for number in range(len(plugin.inputs))]
    described = (trtp.TensorDesc,) * len(plugin.outputs)
    _sign(describe, dict.fromkeys(names, trtp.TensorDesc), tuple[described] if len(described) > 1 else described[0])  # type: ignore[valid-type]
    launched = tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]
    _sign(launch, dict.fromkeys([*names, "outputs", "tactic"], inspect.Parameter.empty), launched)
    trtp.register(name)(describe)
    trtp.aot_impl(name)(launch)


def translated(
    dim: Dim, symbols: Mapping[str, Any], constant: Callable[[int], Any], operations: Mapping[str, Any]
) -> Any:
    """A dim in another algebra, such as that of TensorRT's symbolic sizes.

    Args:
        dim: The dim.
        symbols: What the symbols are there.
        constant: What a number is there; the results have the operators ``+``, ``-``, ``*`` and ``//``.
        operations: The functions "max" and "min".
    """

    def size(dim: Dim) -> Any:
        if isinstance(dim, int):
            return constant(dim)
        total = None
        for monomial, count in sorted(terms_of(dim), key=lambda term: term[1] < 0):
            product = constant(abs(count)) if abs(count) != 1 or not monomial else None
            for factor in monomial:
                value = symbols[factor.args[0]] if factor.op == "symbol" else applied(factor.op, factor.args)
                product = value if product is None else product * value
            if total is None:
                total = product if count > 0 else constant(0) - product
            else:
                total = total + product if count > 0 else total - product
        return total

    def applied(op: str, dims: Sequence[Dim]) -> Any:
        first, *others = map(size, dims)
        for other in others:
            if op == "floordiv":
                first = first // other
            elif op == "mod":
                first = first - (first // other) * other
            elif op == "mul":
                first = first * other
            else:
                first = operations[op](first, other)
        return first

    return size(dim)


def _sign(function: Callable[..., Any], parameters: Mapping[str, Any], returns: Any) -> None:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in parameters.items()]
    function.__signature__ = inspect.Signature(signature, return_annotation=returns)  # type: ignore[attr-defined]
