"""``optc run MODEL``: run a model and show or save its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir

import optc
from optc.backends.base import Runner
from optc.host import ENDINGS
from optc.inputs import draw_inputs, input_specs, signature, usual_bindings
from optc.ir.model import load
from optc.shapes import dim_sizes
from optc.sources import load_samples
from optc.tools.console import show, table
from optc.tools.files import write_arrays
from optc.tools.parameters import FILE, common, input_option, plural, seed_option, shape_option


@click.command("run", short_help="Run a model and show or save its outputs.")
@click.argument("model", type=FILE)
@input_option
@click.option("-o", "--output", type=FILE, help="Save the outputs: an .npz file; of several samples as name.0, name.1.")
@shape_option
@seed_option
@click.option("--threads", type=click.IntRange(1), help="Threads per operator.")
@click.option("--device", help="For a compiled artifact: cuda, or interpreter to run its kernels on the CPU.")
@common
def command(
    model: Path,
    data: Path | None,
    output: Path | None,
    shapes: tuple[str, ...],
    seed: int,
    threads: int | None,
    device: str | None,
) -> None:
    """Run MODEL on inputs from a file, or on inputs drawn from its own signature."""
    options: dict[str, Any] = {
        name: value for name, value in {"threads": threads, "device": device}.items() if value is not None
    }
    runner = optc.load(model, **options)
    graph = graph_of(model, runner)
    samples = load_samples(data, input_specs(graph)) if data is not None else [drawn(graph, shapes, seed)]
    results = [runner.run(sample) for sample in samples]
    if output is not None:
        write_arrays(output, dict(_named(results)))
    source = str(data) if data is not None else f"drawn from the model's signature with seed {seed}"
    show(f"inputs: {plural(len(samples), 'sample')}, {source}")
    rows = [("input", name, *_described([sample[name] for sample in samples])) for name in samples[0]]
    rows += [("output", name, *_described([result[name] for result in results])) for name in results[0]]
    show(table(("", "name", "type", "min", "mean", "max"), rows, right=("min", "mean", "max")))
    if output is not None:
        show(f"wrote {output}")


def graph_of(path: Path, runner: Runner) -> onnx_ir.Model:
    """The graph that inputs are drawn for: the model itself, or what stands for one that is no longer ONNX."""
    return signature(runner.inputs) if path.is_dir() or path.suffix.lower() in ENDINGS else load(path)


def drawn(graph: onnx_ir.Model, shapes: Iterable[str], seed: int) -> dict[str, np.ndarray]:
    """Inputs of usual sizes for a model, or of those that ``--shape`` names."""
    return draw_inputs(graph, {**usual_bindings(graph, {"batch": 1}), **dim_sizes(shapes, graph)}, seed)


def _named(results: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, Any]]:
    """Arrays to save; absent optional outputs are left out, sequences are numbered."""
    for index, result in enumerate(results):
        for name, value in result.items():
            key = name if len(results) == 1 else f"{name}.{index}"
            if isinstance(value, list):
                yield from ((f"{key}[{place}]", item) for place, item in enumerate(value))
            elif value is not None:
                yield key, value


def _described(values: list[Any]) -> tuple[str, str, str, str]:
    """Type, smallest, mean and largest value of what all samples gave for one name."""
    first = values[0]
    if not isinstance(first, np.ndarray):
        kind = "absent" if first is None else f"{type(first).__name__} of {len(first)}"
        return kind, "", "", ""
    shapes = dict.fromkeys(str(list(value.shape)) for value in values)
    shape = next(iter(shapes)) if len(shapes) == 1 else "[differs]"
    text = f"{first.dtype}{shape}"
    flat = np.concatenate([np.asarray(value).reshape(-1) for value in values])
    if flat.dtype.kind not in "fiub" and "float" not in flat.dtype.name and "int" not in flat.dtype.name:
        return text, "", "", ""
    numbers = flat.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    if finite.size < numbers.size:
        text += f", {numbers.size - finite.size} not finite"
    if not finite.size:
        return text, "", "", ""
    return text, f"{finite.min():.6g}", f"{finite.mean():.6g}", f"{finite.max():.6g}"
