"""What a fused op may become: for each, the realisations in order of preference.

A realisation is taken if the target's ONNX Runtime provider has a kernel for it at the types in question, and if it is
not known to be slower than what ONNX Runtime makes of the unfused nodes by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir

from optc.ir.rewriter import Rewriter

CPU = "CPUExecutionProvider"
MS = "com.microsoft"


def _as_they_are(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    return dict(attributes)


_PRODUCT_DEFAULTS = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def _product_attributes(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    """What differs from the operator's defaults."""
    return {name: value for name, value in attributes.items() if value != _PRODUCT_DEFAULTS.get(name)}


def _gemm_attributes(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    """FusedGemm names the parameters of its activation one by one, and knows no Clip."""
    own = _product_attributes(attributes)
    if own["activation"] == "Clip":
        return None
    parameters = own.pop("activation_params", [])
    return {**own, **dict(zip(("activation_alpha", "activation_beta"), parameters, strict=False))}


def _times_x(rw: Rewriter, call: onnx_ir.Node, y: onnx_ir.Value) -> onnx_ir.Value:
    return rw.op("Mul", call.inputs[0], y)


@dataclass(frozen=True)
class Realisation:
    """An operator that computes what a fused op computes.

    Attributes:
        op: The operator's name.
        domain: Its domain.
        since: The opset version of the domain from which on it may be used.
        attributes: Makes its attributes of those of the call; None if it cannot serve this call.
        outputs: Position in the operator's outputs of each of the call's outputs.
        types: Type variable of the operator -> input of the call that says what it is.
        slow_on: Execution providers on which the unfused nodes are as fast or faster.
        ones: Input that becomes a vector of ones, as long as the normalized axes, where the call leaves it out.
        finish: Makes the first result of the operator's, where that is not the same.
    """

    op: str
    domain: str = ""
    since: int = 1
    attributes: Callable[[Mapping[str, Any]], dict[str, Any] | None] = _as_they_are
    outputs: tuple[int, ...] = (0,)
    types: Mapping[str, int] = field(default_factory=lambda: {"T": 0})
    slow_on: frozenset[str] = frozenset()
    ones: int | None = None
    finish: Callable[[Rewriter, onnx_ir.Node, onnx_ir.Value], onnx_ir.Value] | None = None


CLAIMS: Mapping[str, tuple[Realisation, ...]] = {
    "Gelu": (Realisation("Gelu", MS), Realisation("Gelu", since=20)),
    "FastGelu": (
        Realisation("FastGelu", MS),
        Realisation("Gelu", since=20, attributes=lambda given: {"approximate": "tanh"}),
    ),
    "BiasGelu": (Realisation("BiasGelu", MS),),
    "BiasFastGelu": (Realisation("FastGelu", MS),),
    "QuickGelu": (Realisation("QuickGelu", MS),),
    "HardSigmoid": (Realisation("HardSigmoid", since=6),),
    "HardSwish": (
        Realisation("HardSwish", since=14),
        Realisation("HardSigmoid", since=6, attributes=lambda given: {"alpha": 1 / 6, "beta": 0.5}, finish=_times_x),
    ),
    # ONNX Runtime registers LayerNormalization in the default domain from opset 1 on, ONNX from 17 on.
    "LayerNormalization": (Realisation("LayerNormalization", ones=1),),
    "SimplifiedLayerNormalization": (
        Realisation("SimplifiedLayerNormalization", ones=1),
        Realisation("RMSNormalization", since=23, ones=1),
    ),
    "SkipLayerNormalization": (Realisation("SkipLayerNormalization", MS, outputs=(0, 3)),),
    "SkipSimplifiedLayerNormalization": (Realisation("SkipSimplifiedLayerNormalization", MS, outputs=(0, 3)),),
    "FusedConv": (Realisation("FusedConv", MS),),
    "FusedGemm": (Realisation("FusedGemm", MS, attributes=_gemm_attributes),),
    "FusedMatMul": (Realisation("FusedMatMul", MS, attributes=_product_attributes),),
}
