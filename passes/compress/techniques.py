"""What a technique of compression is: it proposes what single layers could become, and never decides.

The search (:mod:`optc.passes.compress.search`) weighs the options of all techniques against each other and against one
budget of error. A technique says for each layer what it could do to it, with the error that this causes at the layer's
own output, and can write a set of chosen options into a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter
from optc.ir.targets import Target
from optc.passes.calibration.store import Request, Statistics
from optc.passes.compress.layers import Layer

#: Rows of activations kept per layer: enough for a stable error, little enough for hundreds of layers.
_ROWS = 256


@dataclass(frozen=True)
class Trial:
    """A small model that stands for one layer on the clock: what it costs is what the layer costs.

    Attributes:
        model: The layer alone, as the target's runtime would run it.
        feeds: What it is timed on, of the sizes that matter.
    """

    model: onnx_ir.Model
    feeds: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Option:
    """One thing that a layer could become.

    Attributes:
        technique: Name of the technique that proposes it.
        label: How reports and recipes call it ("dynamic-int8", "int4-gptq-g128"); unique among a layer's options.
        error: Relative L2 error of the layer's output; None as long as it is not known.
        bytes: Bytes that its weights take.
        precision: What it computes in, a key of :attr:`optc.ir.targets.Target.peak`; for estimates of time.
        trial: Makes what it is timed by; None where it takes the time that the layer takes now. Only sizes matter.
        judge: Finds the error, where that takes work: it is asked for only if the option is cheap enough to matter.
        work: Share of the layer's multiplications that are left; for estimates of time.
        inner: Numbers that pass between its parts for each row or pixel of the result; for estimates of time.
    """

    technique: str
    label: str
    error: float | None
    bytes: int
    precision: str = "fp32"
    trial: Callable[[], Trial] | None = field(default=None, compare=False, repr=False)
    judge: Callable[[], float] | None = field(default=None, compare=False, repr=False)
    work: float = 1.0
    inner: float = 0.0

    def judged(self) -> Option:
        """The same with its error."""
        return self if self.error is not None or self.judge is None else replace(self, error=self.judge())


@dataclass(frozen=True)
class Choice:
    """An option for a layer of the graph that is being written."""

    index: int
    layer: Layer
    option: Option


@dataclass(frozen=True)
class Leftover:
    """Something of a technique that came to nothing after it was written: the node concerned, and why."""

    node: str
    reason: str


@dataclass
class Study:
    """One model under study: its layers and what is known of them.

    Attributes:
        model: The model, in the form in which it would run if nothing more were done to it.
        facts: What is known of its values.
        layers: The layers that could be compressed.
        target: What the result will run on.
        measure: Opens, times and judges models (:class:`optc.measure.Measure`).
        kernels: The kernels of the target's runtime (:mod:`optc.backends.ort_kernels`).
        statistics: Gathers what activations look like, see :mod:`optc.passes.calibration`.
        known: What was gathered for the techniques' requests.
    """

    model: onnx_ir.Model
    facts: Facts
    layers: Sequence[Layer]
    target: Target
    measure: Any
    kernels: Any
    statistics: Any
    known: Statistics | None = None

    def supports(self, domain: str, op: str, since: int = 1) -> bool:
        """Whether the target's runtime has a kernel for an operator."""
        return self.kernels is not None and self.kernels.supports(domain, op, since, provider=self.target.provider)

    def learn(self, requests: Iterable[Request]) -> None:
        """Gather what techniques want to know of activations, all in one sweep."""
        self.known = self.statistics.collect(self.model, list(requests))

    def rows(self, layer: Layer) -> np.ndarray | None:
        """Rows of a product's input, (rows, K) float32, from the samples; None where there are none."""
        request = rows_request(layer)
        if self.known is None or self.known.why_not(request) is not None:
            return None
        return self.known.rows(request.value)

    def timed_rows(self, layer: Layer) -> np.ndarray:
        """Rows for timing a product, (rows, K): as many as it gets at the sizes that are timed."""
        rows = self.rows(layer)
        count = int(np.prod(self.sizes(layer)[:-1]))
        if rows is None or not len(rows):
            return np.zeros((count, layer.rows), np.float32)
        return np.resize(rows, (count, layer.rows))

    def sizes(self, layer: Layer) -> tuple[int, ...]:
        """Shape of a layer's input at the sizes that are timed."""
        return self._sizes[layer.x.name or ""]

    @cached_property
    def _sizes(self) -> dict[str, tuple[int, ...]]:
        return self.measure.shapes(self.model, [layer.x for layer in self.layers])

    def run(self, trial: Trial) -> dict[str, np.ndarray]:
        """Run a trial's model once."""
        return self.measure.open(trial.model).run(trial.feeds)


class Technique(Protocol):
    """A way to make weighted layers cheaper."""

    name: ClassVar[str]

    def why_not(self, study: Study) -> str | None:
        """Why it is not offered for this model, target and data at all; None if it is."""

    def requests(self, study: Study, layer: Layer) -> Iterable[Request]:
        """What it wants to know of a layer's surroundings before it proposes anything."""

    def propose(self, study: Study, layer: Layer) -> Sequence[Option] | str:
        """What a layer could become, or why there is nothing."""

    def apply(self, rewriter: Rewriter, study: Study, chosen: Sequence[Choice]) -> None:
        """Write options of this technique into a graph, all at once.

        The layers of ``chosen`` are those of the rewriter's model, which is a copy of the study's; everything else
        that is known of them (:meth:`Study.rows`) goes by the names of values, which are the same.
        """

    def settle(self, rewriter: Rewriter, study: Study) -> Sequence[Leftover]:
        """Take back what turned out to be of no use once all techniques have written; what it was, and why."""


def rows_request(layer: Layer) -> Request:
    """The request for what :meth:`Study.rows` returns."""
    return Request(layer.x.name or "", rows=_ROWS)


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 error of an array."""
    norm = float(np.linalg.norm(expected))
    return float(np.linalg.norm(actual - expected)) / norm if norm else 0.0


def single_layer(
    shape: Sequence[int | str],
    emit: Callable[[Rewriter, onnx_ir.Value], onnx_ir.Value],
    *,
    dtypes: tuple[onnx_ir.DataType, onnx_ir.DataType] = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT),
    opset: int = 21,
) -> onnx_ir.Model:
    """A model of one layer, x -> y, written by ``emit``.

    Args:
        shape: Shape of x; ``["rows", K]`` for a product.
        emit: Writes the layer for x and returns y.
        dtypes: Of x and y.
        opset: The version of ONNX's own operators.
    """
    x = onnx_ir.val("x", dtypes[0], list(shape))
    end = onnx_ir.node("Identity", [x])
    end.outputs[0].name, end.outputs[0].dtype = "y", dtypes[1]
    graph = onnx_ir.Graph([x], end.outputs, nodes=[end], opset_imports={"": opset}, name="layer")
    model = onnx_ir.Model(graph, ir_version=10)
    rewriter = Rewriter(model)
    with rewriter.at(end, "single"):
        y = emit(rewriter, x)
    end.replace_input_with(0, y)
    return model


def as_it_is(study: Study, layer: Layer) -> Trial:
    """The trial of a layer that is left alone; its bias and what is added to it are left out."""
    weight = study.facts.const(layer.weight)
    attributes = {name: attr.value for name, attr in layer.node.attributes.items()}

    def emit(rewriter: Rewriter, x: onnx_ir.Value) -> onnx_ir.Value:
        constant = rewriter.constant(weight, "weight")
        return rewriter.op(layer.node.op_type, x, constant, domain=layer.node.domain, **attributes)

    opset = study.model.graph.opset_imports.get("", 21)
    if layer.kind == "matmul":
        return Trial(single_layer(["rows", layer.rows], emit, opset=opset), {"x": study.timed_rows(layer)})
    shape = study.sizes(layer)
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return Trial(single_layer(shape, emit, opset=opset), {"x": x})
