"""Reading, running and writing golden cases."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir
from onnx import numpy_helper

from optc.backends import ort_kernels
from optc.ir.matcher import Miss
from optc.ir.model import load
from optc.ir.printer import Style, print_model
from optc.ir.targets import builtin_targets
from optc.passes.manager import PassManager
from optc.passes.pipeline import Pipeline, leaves, parse_pipeline
from optc.passes.registry import pass_registry

CASES = Path(__file__).parent / "cases"
_STYLE = Style(canonical=True, digests=False)
#: Cases that the fuzzer wrote: what went wrong once.
FOUND = Path(__file__).parent / "found"
_HEADERS = {"pipeline", "fires", "near", "target", "tolerance", "dims", "shared", "seed"}


@dataclass(frozen=True)
class Case:
    """A case as it stands in its file."""

    path: Path
    title: str
    headers: Mapping[str, str]
    sections: Mapping[str, str] = field(hash=False)

    @property
    def fires(self) -> dict[str, int]:
        text = self.headers["fires"]
        if text == "nothing":
            return {}
        return {rule.strip(): int(count) for rule, count in (entry.split(":") for entry in text.split(","))}

    @property
    def tolerance(self) -> float:
        return float(self.headers.get("tolerance", "1e-5"))

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(map(int, self.headers.get("dims", "2 3 5").split()))

    @property
    def shared(self) -> dict[str, str]:
        """What is said of single inner values."""
        entries = [entry.split(":") for entry in self.headers.get("shared", "").split(",") if entry.strip()]
        return {name.strip(): word.strip() for name, word in entries}

    def pipeline(self) -> Pipeline:
        return parse_pipeline(self.headers["pipeline"], pass_registry())

    def model(self) -> onnx.ModelProto:
        """The input model, with weights."""
        return with_weights(onnx.parser.parse_model(self.sections["input"]))


@dataclass(frozen=True)
class Outcome:
    """What a pipeline made of a model.

    Attributes:
        model: The result.
        fired: Applications of each rule of the pass ``fuse``.
        misses: The nearest misses by rule.
    """

    model: onnx_ir.Model
    fired: dict[str, int]
    misses: dict[str, list[Miss]]

    @property
    def text(self) -> str:
        return print_model(self.model, _STYLE)


def run(model: onnx.ModelProto | onnx_ir.Model, pipeline: Pipeline, target: str = "cpu") -> Outcome:
    """Run a pipeline; whatever a pass raises is raised."""
    manager = PassManager(builtin_targets()[target], {"kernels": ort_kernels}, strict=True)
    result = manager.run(load(model), pipeline)
    fired: dict[str, int] = {}
    for record in result.records:
        if record.name == "fuse":
            for rule, count in record.hits.items():
                fired[rule] = fired.get(rule, 0) + count
    return Outcome(result.model, fired, result.misses)


def up_to_fuse(pipeline: Pipeline) -> Pipeline:
    """The pipeline as far as ``fuse``, which leaves fused ops in the graph."""
    names = [item.name for item in leaves(pipeline)]
    return tuple(leaves(pipeline))[: names.index("fuse") + 1]


def read_case(path: Path) -> Case:
    """Parse a case file.

    Raises:
        ValueError: The file has an unknown header or lacks a part.
    """
    head, *rest = path.read_text("utf-8").split("\n=== ")
    title, *lines = [line for line in head.strip().splitlines() if line.strip()]
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name not in _HEADERS:
            raise ValueError(f"{path.name}: unknown header {line!r}")
        headers[name] = value.strip()
    sections = {}
    for part in rest:
        name, _, body = part.partition("\n")
        sections[name.strip()] = body.strip("\n") + "\n"
    if "pipeline" not in headers or not {"fires", "seed"} & set(headers) or "input" not in sections:
        raise ValueError(f"{path.name}: pipeline, fires (or seed) and the input are required")
    return Case(path, title, headers, sections)


def write_case(case: Case, sections: Mapping[str, str]) -> None:
    """Store a case with other expectations."""
    case = replace(case, sections={**case.sections, **sections})
    headers = "".join(f"{name}: {value}\n" for name, value in case.headers.items())
    order = [name for name in ("input", "output", "miss") if case.sections.get(name)]
    body = "".join(f"\n=== {name}\n{case.sections[name]}" for name in order)
    case.path.write_text(f"{case.title}\n\n{headers}{body}", "utf-8")


def with_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fill tensors that are declared without data: what nothing makes and no caller gives is a weight."""
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    made |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for value in list(graph.value_info):
        if value.name in made:
            continue
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        rng = np.random.default_rng(zlib.crc32(value.name.encode()))
        array = rng.uniform(0.5, 1.5, shape) if "var" in value.name else rng.standard_normal(shape)
        array = array.astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        graph.initializer.append(numpy_helper.from_array(array, value.name))
        graph.value_info.remove(value)
    return model
