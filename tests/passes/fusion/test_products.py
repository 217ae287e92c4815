"""Properties of products of matrices: whatever is drawn, what fuses is what may, and the numbers stay."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from .formulas import Formula, close, evaluate, fired, rewrite

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**16)


def _feeds(shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _readable(perm: list[int], order: list[int]) -> bool:
    """Whether FusedMatMul reads an operand that this permutation of axes turns into (batch..., row, column)."""
    rank = len(perm)
    batch = perm[:-2]
    behind = list(range(rank - 2)), list(range(1, rank - 1))
    return batch in behind and sorted(perm[-2:]) == [axis for axis in order if axis not in batch]


@quick
@given(st.integers(3, 4).flatmap(lambda rank: st.permutations(range(rank))), st.sampled_from("ab"), st.data(), seeds)
def test_transposes_go_into_products_where_the_kernel_can_read_them(perm, side, data, seed):
    perm, rank = list(perm), len(perm)
    formula = Formula(data.draw)
    batch = [2, 3][: rank - 2]
    wanted = {"a": [*batch, 4, 5], "b": [*batch, 5, 6]}
    stored = [0] * rank
    for place, axis in enumerate(perm):
        stored[axis] = wanted[side][place]
    shapes = {**wanted, side: stored}
    names = {name: name for name in "ab"}
    names[side] = formula.op("Transpose", side, perm=perm)
    model = formula.model(shapes, formula.op("MatMul", names["a"], names["b"]))
    result = rewrite(model)
    fits = _readable(perm, list(range(rank))) and perm != list(range(rank))
    assert fired(result) == ({"transposed-matmul": 1} if fits else {})
    assert bool(result.misses["transposed-matmul"]) == (not fits)
    feeds = _feeds(shapes, seed)
    assert close(evaluate(result, feeds), evaluate(model, feeds))


@quick
@given(st.data(), st.sampled_from([([], []), ([2], []), ([2], [2])]), st.booleans(), st.booleans(), st.booleans())
def test_products_over_an_empty_axis_are_zeros(data, batches, trans_a, trans_b, scaled):
    """Also where the memory that they are written to held other numbers before.

    Of (M, 0) @ (B, 0, N) ONNX Runtime's own MatMul writes one matrix only, so there is nothing to compare with.
    """
    batch_a, batch_b = batches
    formula = Formula(data.draw)
    inner, fed = data.draw(st.sampled_from([("K", 0), (0, 0), ("M", 3)]))
    shapes = {"a": [*batch_a, "M", inner], "b": [*batch_b, inner, 5], "big": [64]}
    names = {}
    for side, turned in (("a", trans_a), ("b", trans_b)):
        rank = len(shapes[side])
        order = [*range(rank - 2), rank - 1, rank - 2]
        if turned:
            shapes[side] = [shapes[side][axis] for axis in order]
        names[side] = formula.op("Transpose", side, perm=order) if turned else side
    written = formula.op("Exp", formula.op("Neg", formula.op("Exp", "big")))
    product = formula.op("MatMul", names["a"], names["b"])
    result = formula.op("Mul", product, formula.constant(3.0)) if scaled else product
    model = formula.model(shapes, result)
    model.graph.output.append(helper.make_tensor_value_info(written, TensorProto.FLOAT, None))
    sizes = {"M": 3, "K": fed}
    feeds = _feeds({name: [sizes.get(dim, dim) for dim in shape] for name, shape in shapes.items()}, 0)
    assert close(evaluate(rewrite(model), feeds), evaluate(model, feeds))


@quick
@given(
    st.data(),
    st.sampled_from(["Gemm", "MatMul"]),
    st.sampled_from(["Add", "Sum"]),
    st.sampled_from([[], [1], [6], [1, 1], [1, 6], [3, 1], [3, 6], [1, 3, 6], [2, 3, 6]]),
    st.sampled_from([1, 3]),
    seeds,
)
def test_a_gemm_adds_what_broadcasts_to_its_shape(data, op, join, summand, rows, seed):
    formula = Formula(data.draw)
    shapes = {"a": [rows, 4], "b": [4, 6], "c": summand}
    attributes = {"alpha": 0.5, "beta": 3.0} if op == "Gemm" else {}
    terms = [formula.op(op, "a", "b", **attributes), "c"]
    y = formula.op(join, *(terms[::-1] if data.draw(st.booleans()) else terms))
    model = formula.model(shapes, y)
    result = rewrite(model)
    sums = op == "Gemm" or join == "Add"
    fits = sums and len(summand) <= 2 and (summand[:-1] in ([], [1]) or summand[0] == rows)
    assert fired(result) == ({"gemm-sum" if op == "Gemm" else "matmul-add": 1} if fits else {})
    feeds = _feeds(shapes, seed)
    assert close(evaluate(result, feeds), evaluate(model, feeds))


@quick
@given(st.data(), st.booleans(), st.booleans(), st.booleans(), st.booleans(), seeds)
def test_a_transposed_gemm_has_no_transpose(data, trans_a, trans_b, summand, shared, seed):
    formula = Formula(data.draw)
    shapes = {"a": [4, 3] if trans_a else [3, 4], "b": [5, 4] if trans_b else [4, 5], "c": [5]}
    product = formula.op("Gemm", "a", "b", *(["c"] if summand else []), transA=trans_a, transB=trans_b, alpha=0.5)
    y = formula.op("Transpose", product)
    if shared:
        y = formula.op("MatMul", y, product)
    model = formula.model(shapes, y)
    result = rewrite(model, "fuse{only=[transposed-gemm]},emit")
    fits = not (summand or shared)
    assert fired(result) == ({"transposed-gemm": 1} if fits else {})
    assert bool(result.misses["transposed-gemm"]) == (not fits)
    feeds = _feeds(shapes, seed)
    assert close(evaluate(result, feeds), evaluate(model, feeds))


@quick
@given(
    st.data(),
    st.sampled_from(["Add", "Sub", "Mul"]),
    st.sampled_from([[], [1], [5], [3, 5], [2, 1, 5]]),
    st.booleans(),
    seeds,
)
def test_operands_that_are_both_narrowed_meet_before(data, op, shape, wide, seed):
    formula = Formula(data.draw, dtype=np.float16)
    shapes = {"a": [3, 5], "b": shape}
    sines = [formula.op("Sin", formula.op("Cast", name, to=TensorProto.FLOAT)) for name in "ab"]
    x, z = (formula.op("Cast", sine, to=TensorProto.FLOAT16) for sine in sines)
    model = formula.model(shapes, formula.op(op, x, z))
    if wide:
        model.graph.output.append(helper.make_tensor_value_info(sines[0], TensorProto.FLOAT, None))
    result = rewrite(model)
    assert fired(result) == ({} if wide else {"sink-casts": 1})
    assert bool(result.misses["sink-casts"]) == wide
    feeds = {name: array.astype(np.float16) for name, array in _feeds(shapes, seed).items()}
    written, sunk = evaluate(model, feeds), evaluate(result, feeds)
    x, z = (np.sin(feeds[name].astype(np.float64)) for name in "ab")
    exact = {"Add": x + z, "Sub": x - z, "Mul": x * z}[op]
    assert np.abs(sunk - exact).max() <= np.abs(written - exact).max() + 2**-11 * np.abs(exact).max()


@quick
@given(st.data(), st.booleans(), st.sampled_from([[2, 4, 3, 3], [1, 4, 3, 3], [4, 3, 3], [4, 1, 1], [1]]), seeds)
def test_a_convolution_accumulates_what_has_its_shape(data, shared, shape, seed):
    formula = Formula(data.draw)
    shapes = {"x": [2, 3, 5, 5], "z": shape}
    weight = np.random.default_rng(seed).standard_normal((4, 3, 3, 3)).astype(np.float32)
    conv = formula.op("Conv", "x", formula.weight(weight))
    y = formula.joined("Add", [conv, "z"])
    if shared:
        y = formula.op("Mul", y, conv)
    model = formula.model(shapes, y)
    result = rewrite(model)
    assert fired(result) == ({"conv-add": 1} if shape == [2, 4, 3, 3] and not shared else {})
    feeds = _feeds(shapes, seed)
    assert close(evaluate(result, feeds), evaluate(model, feeds))


@quick
@given(
    st.data(),
    st.sampled_from([[], [1], [6], [1, 6], [4, 1]]),
    st.sampled_from([None, [6], [1, 6], [4, 6]]),
    st.booleans(),
    st.booleans(),
    seeds,
)
def test_products_of_quantized_matrices(data, scales, bias, zero, shared, seed):
    rng = np.random.default_rng(seed)
    formula = Formula(data.draw)
    formula.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="quantize"))
    weight = formula.weight(rng.integers(-127, 127, (5, 6)).astype(np.int8))
    zeros = [formula.weight(rng.integers(-9, 9, scales).astype(np.int8))] if zero and scales != [1, 6] else []
    if scales == [4, 1]:
        zeros = []
    product = formula.op("MatMulInteger", "q", weight, "z", *zeros)
    factors = [formula.op("Cast", product, to=TensorProto.FLOAT), "s"]
    y = formula.joined("Mul", [*factors, formula.weight(rng.uniform(0.1, 1, scales).astype(np.float32))])
    if bias is not None:
        y = formula.op("Add", y, formula.weight(rng.standard_normal(bias).astype(np.float32)))
    if shared:
        y = formula.op("Add", y, "s")
    model = formula.model({"x": [4, 5]}, y)
    result = rewrite(model)
    name = "integer-matmul-to-float" if shared else "dynamic-quantize-matmul"
    fits = scales in ([], [1], [6])
    assert fired(result) == ({name + ("-bias" if bias == [6] else ""): 1} if fits else {})
    feeds = _feeds({"x": [4, 5]}, seed)
    assert close(evaluate(result, feeds), evaluate(model, feeds), 1e-4)
