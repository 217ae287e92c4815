"""The bundle: a folder ``model.trt`` that holds all that a machine with TensorRT needs to build the engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from optc.backends.tensorrt.check import is_plugin
from optc.backends.tensorrt.plugin_compiler import Added
from optc.backends.tensorrt.prepare import quantizers
from optc.backends.tensorrt.recipe import (
    EVIDENCE,
    MODEL,
    README,
    RECIPE,
    BuildRecipe,
    Plugin,
    digests,
    is_bundle,
    write_recipe,
)
from optc.ir.errors import UsageError
from optc.ir.facts import Facts
from optc.ir.metadata import CALIBRATION_KEY
from optc.ir.names import join_op
from optc.ir.ops import int_attr
from optc.ir.saving import save
from optc.ir.writing import replacing_folder

#: The file of a bundle that a timing cache is copied to.
TIMING_CACHE = "timing.cache"


def write_bundle(
    model: onnx_ir.Model,
    out: Path,
    evidence: Mapping[str, Any],
    facts: Mapping[str, Any],
    timing_cache: Path | None,
    added: Added,
) -> list[Path]:
    """Write a bundle, whole or not at all.

    Args:
        model: The model as TensorRT is to read it.
        out: The folder.
        evidence: What :func:`evidence_of` tells.
        facts: What the recipe says beside its files.
        timing_cache: A timing cache to take along.
        added: Plugins that were made for it.

    Returns:
        Its files, the recipe first.

    Raises:
        OutputError: It cannot be written, or something else is there.
        UsageError: There is no such timing cache.
    """
    if timing_cache is not None and not timing_cache.is_file():
        raise UsageError("there is no such timing cache", where=str(timing_cache), hint="leave the option out")
    with replacing_folder(out, is_bundle) as folder:
        names = [file.name for file in save(model, folder / MODEL)]
        (folder / EVIDENCE).write_text(json.dumps(evidence, indent=1, sort_keys=True) + "\n", "utf-8")
        names.append(EVIDENCE)
        if timing_cache is not None:
            shutil.copyfile(timing_cache, folder / TIMING_CACHE)
            names.append(TIMING_CACHE)
            facts = {**facts, "timing_cache": TIMING_CACHE}
        for name, text in added.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, "utf-8")
            names.append(name)
        recipe = BuildRecipe(files=digests(folder, names), plugins=tuple(_plugins(model, added)), **facts)
        (folder / README).write_text(readme(recipe, out.name), "utf-8")
        recipe = BuildRecipe(**{**vars(recipe), "files": digests(folder, [*names, README])})
        write_recipe(folder, recipe)
    return [out / name for name in (RECIPE, *names, README)]


def _plugins(model: onnx_ir.Model, added: Added) -> Iterable[Plugin]:
    files = {plugin.name: plugin.files for plugin in added.plugins}
    names: dict[str, None] = {}
    for node in model.graph.all_nodes():
        if is_plugin(node):
            space = node.attributes.get("plugin_namespace")
            names[join_op(space.as_string() if space is not None else node.domain, node.op_type)] = None
    return [Plugin(name, files.get(name, ())) for name in names]


def evidence_of(model: onnx_ir.Model, data: str) -> dict[str, Any]:
    """What every scale in a model came from.

    Args:
        model: The model as passes left it: what quantizes says what was seen there.
        data: What it was seen on, in words.
    """
    facts = Facts(model)
    tensors, weights = [], []
    for node in quantizers(model):
        scale = facts.const(node.inputs[1])
        floats = [] if scale is None else np.asarray(scale, np.float64).reshape(-1).tolist()
        if node.op_type == "QuantizeLinear":
            told = node.metadata_props.get(CALIBRATION_KEY)
            tensors.append(
                {
                    "tensor": node.inputs[0].name if node.inputs[0] is not None else "",
                    "type": _type(facts, node.outputs[0]),
                    "scale": floats[0] if len(floats) == 1 else floats,
                    "from": json.loads(told) if told is not None else "the model as it was given",
                }
            )
        else:
            weights.append(
                {
                    "tensor": node.inputs[0].name if node.inputs[0] is not None else "",
                    "type": _type(facts, node.inputs[0]),
                    "axis": int_attr(node, "axis", 1) if len(floats) > 1 else None,
                    "block": int_attr(node, "block_size", 0) or None,
                    "scales": len(floats),
                    "smallest": min(floats, default=0.0),
                    "largest": max(floats, default=0.0),
                }
            )
    return {"data": data if tensors else "", "tensors": tensors, "weights": weights}


def _type(facts: Facts, value: onnx_ir.Value | None) -> str:
    dtype = facts.dtype(value)
    return dtype.name.lower() if dtype is not None else "?"


def readme(recipe: BuildRecipe, name: str) -> str:
    """One page on a bundle, for whoever gets it without knowing of optc."""
    devices = ", ".join(f"{one.name} (compute capability {one.compute_capability})" for one in recipe.devices)
    engine = name.removesuffix(".trt") + ".engine"
    lines = [
        f"# {name}",
        "",
        f"An ONNX model, ready for NVIDIA TensorRT, for {devices}. On a machine with that GPU and TensorRT:",
        "",
        "```sh",
        "pip install 'optc[tensorrt]'",
        f"optc build {name} -o {engine}",
        "```",
        "",
        *_by_hand(recipe, name, engine),
        "",
        "## What it takes",
        "",
        *_shapes(recipe.profiles),
        "",
        "## Files",
        "",
        *(f"* `{file}`: {_meaning(file, recipe)}" for file in sorted(recipe.files)),
        f"* `{RECIPE}`: how to build the engine, and the digests of the other files",
        f"* `{README}`: this page",
    ]
    if recipe.notes:
        lines += ["", "## Remarks", "", *(f"* {note}" for note in recipe.notes)]
    return "\n".join(lines) + "\n"


_MEANINGS = {
    MODEL: "the model; its types are those that the engine computes in",
    EVIDENCE: "what every scale of quantized tensors came from",
    TIMING_CACHE: "timings of kernels to start from",
}


def _meaning(file: str, recipe: BuildRecipe) -> str:
    if any(file in plugin.files for plugin in recipe.plugins):
        return "a kernel for what TensorRT lacks"
    return _MEANINGS.get(file, "weights and other data of the model")


def _by_hand(recipe: BuildRecipe, name: str, engine: str) -> list[str]:
    """How to build it without optc."""
    if any(plugin.files for plugin in recipe.plugins):
        return ["TensorRT's own tool, trtexec, cannot build it, as it does not know the plugins in `plugins/`."]
    command = " ".join(_trtexec(recipe, name, engine))
    return ["or, with TensorRT's own tool:", "", "```sh", command, "```"]


def _shapes(profiles: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = ["| input | smallest | tuned for | largest |", "|---|---|---|---|"]
    for profile in profiles:
        for name, shape in sorted(profile.items()):
            cells = (list(end) for end in (shape.minimum, shape.optimum, shape.maximum))
            rows.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return rows


def _trtexec(recipe: BuildRecipe, name: str, engine: str) -> list[str]:
    words = ["trtexec", f"--onnx={name}/{recipe.model}", f"--saveEngine={engine}", "--stronglyTyped"]
    moving = [profile for profile in recipe.profiles if not all(shape.is_static for shape in profile.values())]
    for flag, end in (("min", "minimum"), ("opt", "optimum"), ("max", "maximum")) if moving else ():
        shapes = (f"{one}:{'x'.join(map(str, getattr(shape, end)))}" for one, shape in sorted(moving[0].items()))
        words.append(f"--{flag}Shapes={','.join(shapes)}")
    words.append(f"--builderOptimizationLevel={recipe.builder_optimization_level}")
    if recipe.workspace_bytes is not None:
        words.append(f"--memPoolSize=workspace:{recipe.workspace_bytes / (1 << 20):g}")
    if recipe.hardware_compatibility != "none":
        level = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}
        words.append(f"--hardwareCompatibilityLevel={level[recipe.hardware_compatibility]}")
    flags = (
        (recipe.version_compatible, "--versionCompatible"),
        (recipe.weight_streaming, "--allowWeightStreaming"),
        (recipe.refit, "--refit"),
        (recipe.sparse_weights, "--sparsity=enable"),
    )
    return words + [word for wanted, word in flags if wanted]


__all__ = ["evidence_of", "readme", "write_bundle"]
