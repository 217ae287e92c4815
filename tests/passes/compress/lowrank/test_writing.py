"""Layers at low rank in a graph: at full rank they compute what the layer did, whatever its geometry."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optc.backends.ort import Session
from optc.ir.rewriter import Rewriter
from optc.ir.verify import Interface, verify_structure
from optc.passes.calibration.store import Statistics
from optc.passes.calibration.sweep import sweep
from optc.passes.compress.layers import Layer, weighted_layers
from optc.passes.compress.lowrank.cuts import Form
from optc.passes.compress.lowrank.forms import forms_of, shared_form
from optc.passes.compress.lowrank.inputs import gram_request
from optc.passes.compress.lowrank.writing import write, write_shared
from tests.passes.compress.texts import parse

RANDOM = np.random.default_rng(0)
#: Operators with the shape of their weight and of their input.
CASES = {
    "padded, strided, dilated": ("Conv<pads=[1,2,0,1],strides=[2,1],dilations=[1,2]>(x,w,b)", (24, 16, 3, 3), (13, 14)),
    "in groups, same at the end": ('Conv<group=2,auto_pad="SAME_UPPER",strides=[2,2]>(x,w,b)', (24, 8, 3, 5), (13, 14)),
    "same at the begin": ('Conv<auto_pad="SAME_LOWER">(x,w)', (24, 16, 2, 3), (9, 9)),
    "valid": ('Conv<auto_pad="VALID">(x,w,b)', (24, 16, 3, 3), (9, 9)),
    "single pixels, strided and padded": ("Conv<strides=[2,2],pads=[1,1,1,1]>(x,w,b)", (24, 16, 1, 1), (9, 8)),
    "single pixels in groups": ("Conv<group=2,strides=[2,1],pads=[0,1,1,0]>(x,w,b)", (24, 8, 1, 1), (9, 8)),
    "fused": ('com.microsoft.FusedConv<activation="Relu",pads=[1,1,1,1]>(x,w,b)', (24, 16, 3, 3), (9, 8)),
    "one dim": ("Conv<pads=[1,1]>(x,w,b)", (24, 16, 3), (11,)),
    "three dims": ("Conv<pads=[1,1,1,0,0,0]>(x,w,b)", (24, 16, 3, 2, 2), (7, 6, 5)),
    "one row": ("Conv<pads=[0,1,0,1]>(x,w)", (24, 16, 1, 3), (7, 6)),
    "Gemm": ("Gemm<transB=1>(x,w,b)", (80, 64), None),
    "Gemm as stored": ("Gemm(x,v,b)", (80, 64), None),
    "MatMul": ("MatMul(x,v)", (80, 64), (5,)),
    "FusedMatMul": ("com.microsoft.FusedMatMul<transB=1>(x,w)", (80, 64), (5,)),
}


def made(text: str, weight: tuple[int, ...], inner: tuple[int, ...] | None) -> tuple[onnx_ir.Model, np.ndarray]:
    """A model of one layer, and inputs whose channels have something in common."""
    groups = 2 if "group=2" in text else 1
    channels = weight[1] * groups
    shape = (3, channels, *(inner or ())) if "Conv" in text else (6, *(inner or ()), channels)
    dims = ",".join(["N", *map(str, shape[1:])])
    out = ",".join(f"D{axis}" for axis in range(len(shape)))
    arrays = {"w": RANDOM.standard_normal(weight), "b": RANDOM.standard_normal(weight[0])}
    arrays["v"] = arrays["w"].T if len(weight) == 2 else arrays["w"]
    used = {name: one.astype(np.float32) for name, one in arrays.items() if f",{name}" in text}
    few = (
        RANDOM.standard_normal((*shape[:1], 4, *shape[2:]))
        if "Conv" in text
        else RANDOM.standard_normal((*shape[:-1], 4))
    )
    mix = RANDOM.standard_normal((channels, 4))
    x = np.einsum("nc...,kc->nk...", few, mix) if "Conv" in text else few @ mix.T
    x = x + 0.1 * RANDOM.standard_normal(x.shape)
    return parse(f"g (float[{dims}] x) => (float[{out}] y) {{ y = {text} }}", used), x.astype(np.float32)


class Samples(list):  # type: ignore[type-arg]
    real, digest = True, ""


def learned(model: onnx_ir.Model, x: np.ndarray) -> Statistics:
    facts = Rewriter(model).facts
    requests = [gram_request(layer, facts) for layer in weighted_layers(model.graph, facts)]
    opener = lambda copy: Session(copy, optimization="off")  # noqa: E731
    return sweep(model, [one for one in requests if one], Samples([{"x": x}]), opener)


def cut(model: onnx_ir.Model, known: Statistics | None, kind: str, *ranks: int) -> tuple[onnx_ir.Model, float]:
    """A copy with its layer written in one form, and the error that was foretold."""
    copy = model.clone()
    rewriter = Rewriter(copy)
    (layer,) = weighted_layers(copy.graph, rewriter.facts)
    (form,) = [form for form in forms(layer, rewriter, known) if form.kind == kind]
    found = form.cut(*(ranks or form.limits))
    write(rewriter, layer, found.stages(), found.label)
    assert verify_structure(copy) == [] and not Interface.of(model).differences(Interface.of(copy))
    return copy, found.error


def forms(layer: Layer, rewriter: Rewriter, known: Statistics | None) -> list[Form]:
    found = forms_of(layer, rewriter.facts, known)
    assert not isinstance(found, str), found
    return found


def kinds(model: onnx_ir.Model) -> list[tuple[str, int]]:
    rewriter = Rewriter(model)
    (layer,) = weighted_layers(model.graph, rewriter.facts)
    return [(form.kind, len(form.limits)) for form in forms(layer, rewriter, None)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("data", [True, False], ids=["with data", "without"])
def test_full_rank_is_exact(name: str, data: bool) -> None:
    model, x = made(*CASES[name])
    expected = Session(model).run({"x": x})["y"]
    known = learned(model, x) if data else None
    for kind, _ in kinds(model):
        copy, error = cut(model, known, kind)
        assert error < 1e-6
        actual = Session(copy).run({"x": x})["y"]
        assert np.abs(actual - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", CASES)
def test_the_error_is_that_of_the_output(name: str) -> None:
    model, x = made(*CASES[name])
    text, weight, inner = CASES[name]
    if "b)" in text or "Relu" in text:  # errors are those of the products alone
        model, x = made(text.replace(",b)", ")").replace('activation="Relu",', ""), weight, inner)
    known, expected = learned(model, x), Session(model).run({"x": x})["y"]
    for kind, count in kinds(model):
        copy, error = cut(model, known, kind, *([5] * count))
        actual = Session(copy).run({"x": x})["y"]
        measured = float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
        assert measured == pytest.approx(error, rel=0.01) and 0 < measured < 1


def test_what_cannot_be_factored_has_a_reason() -> None:
    for text, weight, words in (
        ("Conv<group=16>(x,w)", (16, 1, 3, 3), "depthwise"),
        ("Conv<group=2>(x,w)", (2, 8, 3, 3), "each of its groups makes one output"),
    ):
        dims = weight[1] * (16 if "16" in text else 2)
        body = f"g (float[N,{dims},9,9] x) => (float[N,C,H,W] y) {{ y = {text} }}"
        model = parse(body, {"w": RANDOM.standard_normal(weight).astype(np.float32)})
        rewriter = Rewriter(model)
        (layer,) = weighted_layers(model.graph, rewriter.facts)
        reason = forms_of(layer, rewriter.facts, None)
        assert isinstance(reason, str) and words in reason
    model, _ = made(*CASES["MatMul"])
    model.graph.initializers["v"].const_value = onnx_ir.tensor(np.full((64, 80), np.nan, np.float32))
    rewriter = Rewriter(model)
    (layer,) = weighted_layers(model.graph, rewriter.facts)
    assert forms_of(layer, rewriter.facts, None) == "not all of its weights are finite"


def test_products_of_one_input_share_a_factor() -> None:
    common = RANDOM.standard_normal((64, 16))
    arrays = {
        name: (scale * common @ RANDOM.standard_normal((16, n))).astype(np.float32)
        for name, n, scale in (("q", 80, 1.0), ("k", 70, 30.0), ("v", 90, 0.1))
    }
    body = """g (float[N, 64] x) => (float[N, 80] a, float[N, 70] b, float[N, 90] c) {
        a = MatMul(x, q) b = Gemm(x, k, bias) c = MatMul(x, v)
    }"""
    model = parse(body, {**arrays, "bias": RANDOM.standard_normal(70).astype(np.float32)})
    x = RANDOM.standard_normal((50, 64)).astype(np.float32)
    copy = model.clone()
    rewriter = Rewriter(copy)
    layers = list(weighted_layers(copy.graph, rewriter.facts))
    (form,) = shared_form(layers, rewriter.facts, learned(model, x))
    assert not isinstance(form, str)
    found = form.cut(16)
    assert found.label == "shared-low-rank-r16" and found.error < 1e-3
    down, *ups = found.stages()
    write_shared(rewriter, layers, down.weight, [up.weight for up in ups])
    assert verify_structure(copy) == [] and not Interface.of(model).differences(Interface.of(copy))
    assert sorted(node.op_type for node in copy.graph) == ["Gemm", "MatMul", "MatMul", "MatMul"]
    assert not set(arrays) & set(copy.graph.initializers)
    expected, actual = (Session(one).run({"x": x}) for one in (model, copy))
    for name in expected:
        assert np.allclose(actual[name], expected[name], atol=1e-3 * np.abs(expected[name]).max())
