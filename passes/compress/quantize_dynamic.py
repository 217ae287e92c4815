"""Weight-only and dynamic INT8, where it is measured to be faster and inside the error budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir

from optc.ir.errors import UsageError
from optc.ir.rewriter import Rewriter
from optc.passes.base import Decision, Numerics, Pass, PassContext
from optc.passes.compress.layers import Layer, weighted_layers
from optc.passes.compress.schemes import SCHEMES, Arrays, Scheme

#: Rows of activations kept per layer: enough for a stable error, little enough for hundreds of layers.
_ROWS = 256
#: Seconds spent on timing one (shape, scheme).
_TRIAL_SECONDS = 0.25
#: End-to-end measurements in the search for the fastest assignment inside the budget.
_SEARCH_STEPS = 9

_CONVOLUTIONS = ("Conv", "FusedConv", "ConvTranspose")

Assignment = tuple[str | None, ...]


@dataclass(frozen=True)
class Option:
    """One scheme for one layer: seconds per call, and the relative L2 error of the layer's output."""

    scheme: str | None
    seconds: float
    error: float


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """INT8 weights (per column or per block) with activations quantized on the fly; no calibration needed.

    Every scheme is timed and its error measured for every layer, on the kernels that will run. One number then trades
    time against squared error over all layers, and is searched for the fastest model whose outputs, measured end to
    end, stay inside the budget. What is not faster as a whole is taken back.

    Attributes:
        schemes: The schemes to try, by name.
        min_gain: The share of time that the whole model must gain to be worth it.
    """

    name: ClassVar[str] = "quantize-dynamic"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    schemes: tuple[str, ...] = ("dynamic-int8", "block-int8-128", "block-int8-64", "block-int8-32")
    min_gain: float = 0.03

    def __post_init__(self) -> None:
        for name in self.schemes:
            if name not in SCHEMES:
                raise UsageError(
                    f"pass {self.name!r} knows no scheme {name!r}", hint=f"its schemes are: {', '.join(SCHEMES)}"
                )

    def run(self, ctx: PassContext) -> None:
        measure = ctx.services.get("measure")
        reason = self._why_not(ctx, measure)
        if reason is not None:
            ctx.decide(Decision(self.name, [], False, reason))
            return
        convolutions = [node.name or "" for node in ctx.model.graph if node.op_type in _CONVOLUTIONS]
        if convolutions:
            left = "convolutions stay fp32: without calibrated ranges onnxruntime has no fast integer kernel for them"
            ctx.decide(Decision(self.name, convolutions, False, left))
        layers = list(weighted_layers(ctx.model.graph, ctx.facts))
        if not layers:
            none = "the model has no MatMul or Gemm with constant fp32 weights that is large enough"
            ctx.decide(Decision(self.name, [], False, none))
            return
        search = _Search(self, ctx, measure, layers, self._usable(ctx))
        search.run()

    def _why_not(self, ctx: PassContext, measure: Any) -> str | None:
        if measure is None:
            return "nothing can be measured in this compile"
        if measure.why_not is not None:
            return measure.why_not
        return None if self._usable(ctx) else "this onnxruntime has no kernels for it"

    def _usable(self, ctx: PassContext) -> list[str]:
        """The schemes that the target's runtime has kernels for."""
        kernels, provider = ctx.services.get("kernels"), ctx.target.provider
        if kernels is None:
            return []
        return [n for n in self.schemes if kernels.supports("com.microsoft", SCHEMES[n].op, 1, provider=provider)]


class _Search:
    """The search for one model."""

    def __init__(
        self,
        options: QuantizeDynamic,
        ctx: PassContext,
        measure: Any,
        layers: Sequence[Layer],
        schemes: Sequence[str],
    ) -> None:
        self.options, self.ctx, self.measure, self.layers, self.schemes = options, ctx, measure, layers, schemes
        self.positions = {node: index for index, node in enumerate(ctx.model.graph)}
        self.arrays: dict[tuple[int, str], Arrays | None] = {}
        self.trials: dict[Assignment, tuple[onnx_ir.Model, Any]] = {}

    def run(self) -> None:
        table = self._options()
        if not any(option.scheme for options in table for option in options):
            self._refuse("no scheme is faster than fp32 for any layer at these sizes")
            return
        best = self._search(table)
        if best is None:
            self._refuse(
                f"no assignment stays inside the error budget of {self.measure.max_error:.3g} on {self.measure.data}"
            )
            return
        model, judgement = self.trials[best]
        ratio = self._ratio(model)
        if ratio > 1 - self.options.min_gain:
            self._refuse(
                f"the whole model is not faster with it: {1 / ratio:.2f}x on this CPU", judgement.error, 1 / ratio
            )
            return
        self._keep(best, judgement, 1 / ratio)

    # -- local measurements -----------------------------------------------------------------------------------------

    def _options(self) -> list[list[Option]]:
        """What each layer can be: as it is, or any scheme that beats that in time."""
        inputs = self._activations()
        timed: dict[tuple[int, int, int], dict[str | None, float]] = {}
        table = []
        for index, layer in enumerate(self.layers):
            x, matrix = inputs.get(layer.x.name or ""), layer.matrix(self.ctx.facts)
            if x is None or not len(x) or not (np.isfinite(x).all() and np.isfinite(matrix).all()):
                table.append([Option(None, 0.0, 0.0)])
                continue
            expected = x @ matrix
            models: dict[str | None, onnx_ir.Model] = {None: _single(None, layer, {"weight": matrix})}
            for scheme in self.schemes:
                arrays = self._encoded(index, scheme, matrix)
                if arrays is not None:
                    models[scheme] = _single(SCHEMES[scheme], layer, arrays)
            runs = {name: self.measure.open(model) for name, model in models.items()}
            key = (layer.rows, layer.columns, len(x))
            if key not in timed:
                calls = {str(name): _caller(run, x) for name, run in runs.items()}
                seconds = self.measure.time(calls, _TRIAL_SECONDS * len(calls))
                timed[key] = {name: seconds[str(name)] for name in runs}
            base = timed[key][None]
            options = [Option(None, base, 0.0)]
            for name, run in runs.items():
                if name is not None and timed[key].get(name, base) < base * (1 - self.options.min_gain):
                    error = _relative(run.run({"x": x})["y"], expected)
                    options.append(Option(name, timed[key][name], error))
            table.append(options)
        return table

    def _activations(self) -> dict[str, np.ndarray]:
        """Rows of each layer's input, (rows, K)."""
        rows: dict[str, list[np.ndarray]] = {}
        for sample in self.measure.capture(self.ctx.model, [layer.x for layer in self.layers]):
            for name, array in sample.items():
                kept = rows.setdefault(name, [])
                room = _ROWS - sum(len(part) for part in kept)
                if room > 0:
                    kept.append(array.reshape(-1, array.shape[-1])[:room].astype(np.float32))
        return {name: np.ascontiguousarray(np.concatenate(parts)) for name, parts in rows.items() if parts}

    def _encoded(self, index: int, scheme: str, matrix: np.ndarray | None = None) -> Arrays | None:
        key = (index, scheme)
        if key not in self.arrays:
            matrix = self.layers[index].matrix(self.ctx.facts) if matrix is None else matrix
            self.arrays[key] = SCHEMES[scheme].encode(matrix)
        return self.arrays[key]

    # -- the search -------------------------------------------------------------------------------------------------

    def _search(self, table: Sequence[Sequence[Option]]) -> Assignment | None:
        """The fastest assignment inside the budget, along the curve that one price of error traces."""
        best: Assignment | None = None
        low, high = 0.0, _highest_price(table)
        for step in range(_SEARCH_STEPS):
            price = 0.0 if step == 0 else (low * high) ** 0.5 if low else high * 1e-4
            assignment = tuple(min(options, key=lambda o: o.seconds + price * o.error**2).scheme for options in table)
            if not any(assignment):
                high = price
                continue
            judgement = self._try(assignment)
            if judgement.reason is None:
                best, high = assignment, price
                if step == 0:
                    break
            else:
                low = max(price, high * 1e-6)
        return best

    def _try(self, assignment: Assignment) -> Any:
        if assignment not in self.trials:
            model = self._build(assignment)
            judgement = self.measure.judge(model)
            # A refused candidate is not needed again; only its verdict is.
            self.trials[assignment] = (model if judgement.reason is None else self.ctx.model, judgement)
        return self.trials[assignment][1]

    def _build(self, assignment: Assignment) -> onnx_ir.Model:
        model = self.ctx.model.clone()
        nodes = list(model.graph)
        rewriter = Rewriter(model)
        targets = {index: nodes[self.positions[layer.node]] for index, layer in enumerate(self.layers)}
        self._rewrite(rewriter, assignment, targets)
        return model

    def _rewrite(self, rewriter: Rewriter, assignment: Assignment, nodes: Mapping[int, onnx_ir.Node]) -> None:
        for index, name in enumerate(assignment):
            if name is None:
                continue
            node, scheme = nodes[index], SCHEMES[name]
            arrays = self._encoded(index, name)
            x = node.inputs[0]
            if arrays is None or x is None:
                continue
            weight = node.inputs[1]
            with rewriter.at(node, name):
                y = scheme.emit(rewriter, x, arrays, (weight.name if weight else None) or node.name or "weight")
                rewriter.facts.assume(y, like=node.outputs[0])
                if len(node.inputs) > 2 and node.inputs[2] is not None:
                    y = rewriter.op("Add", y, node.inputs[2])
                rewriter.replace(node.outputs[0], y)
            rewriter.erase(node)
            if weight is not None:
                rewriter.erase_initializer(weight)

    def _ratio(self, model: onnx_ir.Model) -> float:
        return self.measure.compare({"before": self.ctx.model, "after": model})["after"].ratio.median

    # -- the outcome ------------------------------------------------------------------------------------------------

    def _refuse(self, reason: str, error: float | None = None, speedup: float | None = None) -> None:
        names = [layer.node.name or "" for layer in self.layers]
        self.ctx.decide(Decision(self.options.name, names, False, reason, error, speedup))

    def _keep(self, assignment: Assignment, judgement: Any, speedup: float) -> None:
        before = _weight_bytes(self.ctx.model)
        nodes = {index: layer.node for index, layer in enumerate(self.layers)}
        self._rewrite(self.ctx.rewriter, assignment, nodes)
        saved = before - _weight_bytes(self.ctx.model)
        for name in dict.fromkeys(filter(None, assignment)):
            chosen = [
                layer.node.name or "" for layer, scheme in zip(self.layers, assignment, strict=True) if scheme == name
            ]
            self.ctx.hit(name, len(chosen))
            self.ctx.decide(
                Decision(
                    name,
                    chosen,
                    True,
                    f"{len(chosen)} of {len(self.layers)} layers; with all of it {speedup:.2f}x faster on this CPU, "
                    f"error {judgement.error:.3g} of {self.measure.max_error:.3g} on {self.measure.data}",
                    judgement.error,
                    speedup,
                    saved,
                )
            )
        left = sum(scheme is None for scheme in assignment)
        if left:
            self.ctx.remark("skipped", f"{left} of {len(assignment)} layers", "fp32 is as fast, or the budget is spent")


def _single(scheme: Scheme | None, layer: Layer, arrays: Arrays) -> onnx_ir.Model:
    """A model of one layer without its bias: x (rows, K) -> y (rows, N)."""
    x = onnx_ir.val("x", onnx_ir.DataType.FLOAT, ["rows", layer.rows])
    end = onnx_ir.node("Identity", [x])
    end.outputs[0].name = "y"
    end.outputs[0].dtype, end.outputs[0].shape = onnx_ir.DataType.FLOAT, onnx_ir.Shape(["rows", layer.columns])
    graph = onnx_ir.Graph([x], end.outputs, nodes=[end], opset_imports={"": 17}, name="layer")
    model = onnx_ir.Model(graph, ir_version=8)
    rewriter = Rewriter(model)
    with rewriter.at(end, "single"):
        if scheme is None:
            y = rewriter.op("MatMul", x, rewriter.constant(arrays["weight"], "weight"))
        else:
            y = scheme.emit(rewriter, x, arrays, "weight")
    end.replace_input_with(0, y)
    return model


def _caller(run: Any, x: np.ndarray) -> Any:
    return lambda: run.run({"x": x})


def _relative(actual: np.ndarray, expected: np.ndarray) -> float:
    norm = float(np.linalg.norm(expected))
    return float(np.linalg.norm(actual - expected)) / norm if norm else 0.0


def _highest_price(table: Sequence[Sequence[Option]]) -> float:
    """A price of squared error at which no scheme pays any more."""
    prices = [
        (options[0].seconds - option.seconds) / max(option.error, 1e-9) ** 2
        for options in table
        for option in options[1:]
    ]
    return 2 * max(prices, default=1.0)


def _weight_bytes(model: onnx_ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
