"""The pass that quantizes weights as it is told: one method, one grid, every layer that it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import onnx_ir

from optc.ir.errors import UsageError
from optc.ir.mapped import Spool, release
from optc.passes.base import Decision, Numerics, Pass, PassContext
from optc.passes.compress.layers import Kind, Layer, weighted_layers
from optc.passes.compress.weights.codes import Grid, Zeros
from optc.passes.compress.weights.forms import Form, usable_forms
from optc.passes.compress.weights.inputs import KnownInputs, gram_request
from optc.passes.compress.weights.methods import METHODS, quantize
from optc.passes.compress.weights.scaling import scale_inputs
from optc.passes.compress.weights.writing import bytes_of, form_for, write

#: Constants up to this many bytes stay in memory.
_SMALL = 1 << 16


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store the weights of products in 4 or 8 bits, by one method, without a search.

    For models that are too large to be searched, or where the way is known. Weights are read from the file that they
    lie in, and the codes written to a temporary one, so that memory does not grow with the model. What comes out is
    still held against the error budget, unless verification is off.

    Attributes:
        method: "rtn", "mse", "hqq", "k-quant", "awq" or "gptq"; the last two need calibration data.
        bits: 4 or 8.
        block: Weights along K that share a scale; 0 for all of a row.
        zeros: Zero points: "none", "integer" or "float".
        activations: "float" computes with activations as they are, "int8" rounds them on the fly, which is faster.
        lookups: Whether embeddings (Gather) are quantized, too.
    """

    name: ClassVar[str] = "quantize-weights"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    method: str = "rtn"
    bits: int = 4
    block: int = 32
    zeros: str = "none"
    activations: str = "float"
    lookups: bool = False

    def __post_init__(self) -> None:
        for what, value, known in (
            ("method", self.method, tuple(METHODS)),
            ("zeros", self.zeros, get_args(Zeros)),
            ("activations", self.activations, ("float", "int8")),
        ):
            if value not in known:
                raise UsageError(f"the pass {self.name!r} has no {what} {value!r}", hint=f"one of {', '.join(known)}")
        if self.bits not in (4, 8) or self.block < 0:
            raise UsageError(f"the pass {self.name!r} takes 4 or 8 bits and blocks of 0 or more")
        problem = METHODS[self.method].why_not(self._grid, inputs=True)
        if problem is not None:
            raise UsageError(f"the method {self.method!r} cannot be used so: {problem}", hint="zeros=integer, for one")

    @property
    def _grid(self) -> Grid:
        return Grid(self.bits, self.block, self.zeros)  # type: ignore[arg-type]  # looked at in __post_init__

    def run(self, ctx: PassContext) -> None:
        kinds: tuple[Kind, ...] = ("matmul", "conv", "lookup") if self.lookups else ("matmul", "conv")
        fitting: list[tuple[Layer, Form]] = []
        for layer in weighted_layers(ctx.model.graph, ctx.facts, kinds):
            found = self._form(ctx, layer)
            if isinstance(found, str):
                ctx.decide(Decision(self._label, [layer.name], False, found))
            else:
                fitting.append((layer, found))
        if not fitting:
            ctx.decide(Decision(self._label, [], False, "the model has no weights that fit"))
            return
        known = self._known(ctx, [layer for layer, _ in fitting])
        sizes: list[int] = [layer.weight.const_value.nbytes for layer, _ in fitting]
        scaled = self.method == "awq"
        spool = Spool(sum(sizes) * (2 if scaled else 1))
        if scaled:
            left = scale_inputs(ctx.rewriter, [layer for layer, _ in fitting], known, self._grid, spool.keep)
            for name, reason in left.items():
                ctx.remark("skipped", name, f"its channels are not scaled: {reason}")
        saved, names, odd = 0, [], []
        for layer, form in fitting:
            fewer = self._quantize(ctx, layer, form, known, spool)
            if fewer is None:
                odd.append(layer.name)
            else:
                names.append(layer.name)
                saved += fewer
        if odd:
            ctx.decide(Decision(self._label, odd, False, "not all of its weights are finite"))
        if names:
            ctx.hit(self._label, len(names))
            ctx.decide(Decision(self._label, names, True, "as the pass was told", bytes_saved=saved))

    @property
    def _label(self) -> str:
        return f"int{self.bits}-{self.method}-g{self.block or 'K'}"

    def _form(self, ctx: PassContext, layer: Layer) -> Form | str:
        """The first form of the target's runtime that does it, or why none does."""
        kernels = ctx.services.get("kernels")
        if kernels is None:
            return "the kernels of the target's runtime are not known"

        def supports(domain: str, op: str, version: int) -> bool:
            return bool(kernels.supports(domain, op, version, provider=ctx.target.provider))

        rounds = self.activations == "int8"
        forms = usable_forms("onnxruntime", supports)
        wanted = [form for form in forms if form.lookup is not None or form.rounds_activations == rounds]
        return form_for(layer, self._grid, wanted, ctx.facts)

    def _known(self, ctx: PassContext, layers: list[Layer]) -> KnownInputs:
        if not METHODS[self.method].needs_inputs:
            return KnownInputs(None)
        service = ctx.services.get("statistics")
        if service is None:
            raise UsageError(f"the method {self.method!r} needs to run the model, which cannot be done here")
        requests = [request for layer in layers if (request := gram_request(layer)) is not None]
        found = service.collect(ctx.model, dict.fromkeys(requests))
        for layer in layers:
            release(layer.weight.const_value)  # running the model has read all of them
        return KnownInputs(found)

    def _quantize(self, ctx: PassContext, layer: Layer, form: Form, known: KnownInputs, spool: Spool) -> int | None:
        """Quantize one layer; the bytes that this saves, or None for weights that are not finite."""
        method, tensor = self.method, layer.weight.const_value
        inputs = known.of(layer)
        if isinstance(inputs, str):
            ctx.remark("skipped", layer.name, f"rounded to nearest instead of by {method}: {inputs}")
            method, inputs = "mse", None
        codes = quantize(layer.by_output(ctx.facts), method, self._grid, inputs)
        if not codes.finite:
            return None

        def keep(constant: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
            return spool.keep(constant) if constant.nbytes > _SMALL else constant

        write(ctx.rewriter, layer, codes, form, self._label, keep)
        release(tensor)
        return tensor.nbytes - bytes_of(codes)
