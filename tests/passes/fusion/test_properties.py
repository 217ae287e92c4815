"""Properties: a formula fuses however it is written, what is near it does not, and the numbers stay."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from .formulas import Formula, close, evaluate, fired, rewrite

quick = settings(max_examples=40, deadline=None)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4)
seeds = st.integers(0, 2**16)


def _gelu(formula: Formula, x: str, factor: float = math.sqrt(0.5), half: float = 0.5, one: float = 1.0) -> str:
    erf = formula.op("Erf", formula.scaled(x, factor))
    return formula.joined("Mul", [x, formula.joined("Add", [erf, formula.constant(one)]), formula.constant(half)])


def _inputs(shape: list[int], seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


@quick
@given(st.data(), shapes, seeds)
def test_gelu_in_any_grouping(data, shape, seed):
    formula = Formula(data.draw)
    model = formula.model({"x": shape}, _gelu(formula, "x"))
    result = rewrite(model)
    assert fired(result) == {"gelu": 1}
    assert [node.op_type for node in result.model.graph] == ["Gelu", "Identity"]
    feeds = _inputs(shape, seed)
    assert close(evaluate(result, feeds), evaluate(model, feeds))


@quick
@given(st.data(), st.sampled_from(["factor", "half", "one"]), st.floats(1e-3, 0.5), st.sampled_from([-1, 1]))
def test_gelu_with_a_constant_a_little_off_is_none(data, which, amount, sign):
    right = {"factor": math.sqrt(0.5), "half": 0.5, "one": 1.0}
    formula = Formula(data.draw)
    model = formula.model({"x": [2, 3]}, _gelu(formula, "x", **{**right, which: right[which] * (1 + sign * amount)}))
    result = rewrite(model)
    assert fired(result) == {}
    assert result.misses["gelu"]


@quick
@given(st.data(), shapes, seeds)
def test_fast_gelu_in_any_grouping(data, shape, seed):
    formula = Formula(data.draw)
    slope, cubic = math.sqrt(2 / math.pi), 0.044715
    cube = [formula.op("Pow", "x", formula.constant(3.0))] if data.draw(st.booleans()) else ["x", "x", "x"]
    inner = formula.joined("Add", ["x", formula.joined("Mul", [*cube, formula.constant(cubic)])])
    tanh = formula.op("Tanh", formula.scaled(inner, slope))
    gate = formula.joined("Add", [tanh, formula.constant(1.0)])
    model = formula.model({"x": shape}, formula.joined("Mul", ["x", formula.constant(0.5), gate]))
    result = rewrite(model)
    assert fired(result) == {"fast-gelu": 1}
    feeds = _inputs(shape, seed)
    assert close(evaluate(result, feeds), evaluate(model, feeds), 1e-4)


@quick
@given(st.data(), shapes, st.floats(0.25, 4.0), seeds)
def test_quick_gelu(data, shape, alpha, seed):
    formula = Formula(data.draw)
    inner = formula.joined("Mul", ["x", formula.constant(alpha)])
    model = formula.model({"x": shape}, formula.joined("Mul", ["x", formula.op("Sigmoid", inner)]))
    result = rewrite(model)
    assert fired(result) == {"quick-gelu": 1}
    feeds = _inputs(shape, seed)
    assert close(evaluate(result, feeds), evaluate(model, feeds))


@quick
@given(st.data(), st.lists(st.integers(2, 5), min_size=2, max_size=4), st.sampled_from([13, 17, 18, 20]), seeds)
def test_layer_norm_in_any_spelling(data, shape, opset, seed):
    """Any number of last axes, counted from either end, as a quotient or a product, with or without parameters."""
    formula, rng = Formula(data.draw, opset), np.random.default_rng(seed)
    first = data.draw(st.integers(1, len(shape) - 1))
    axes = [axis - len(shape) * data.draw(st.integers(0, 1)) for axis in range(first, len(shape))]
    mean = formula.mean("x", axes)
    centered = formula.op("Sub", "x", mean)
    again = centered if data.draw(st.booleans()) else formula.op("Sub", "x", mean)
    if data.draw(st.booleans()):
        square = formula.op("Pow", again, formula.constant(2.0))
    else:
        square = formula.op("Mul", again, again)
    eased = formula.joined("Add", [formula.mean(square, axes), formula.constant(1e-5)])
    if data.draw(st.booleans()):
        y = formula.op("Div", centered, formula.op("Sqrt", eased))
    else:
        y = formula.joined("Mul", [centered, formula.op("Reciprocal", formula.op("Sqrt", eased))])
    name = "layer-norm-plain"
    if data.draw(st.booleans()):
        name = "layer-norm-no-bias"
        y = formula.joined("Mul", [y, formula.weight(rng.standard_normal(shape[first:]).astype(np.float32))])
        if data.draw(st.booleans()):
            name = "layer-norm"
            y = formula.joined("Add", [y, formula.weight(rng.standard_normal(shape[first:]).astype(np.float32))])
    model = formula.model({"x": shape}, y)
    result = rewrite(model)
    assert fired(result) == {name: 1}
    assert next(node.op_type for node in result.model.graph if node.op_type != "Constant") == "LayerNormalization"
    feeds = _inputs(shape, seed)
    assert close(evaluate(result, feeds), evaluate(model, feeds), 1e-4)


@quick
@given(st.data(), st.lists(st.integers(2, 5), min_size=2, max_size=4), seeds)
def test_normalization_over_other_axes_is_none(data, shape, seed):
    """Axes that are not the last ones never fuse, neither as layer nor as RMS normalization."""
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape), unique=True))
    assume(sorted(axes) != list(range(min(axes), len(shape))))
    formula = Formula(data.draw)
    centered = formula.op("Sub", "x", formula.mean("x", axes))
    variance = formula.mean(formula.op("Mul", centered, centered), axes)
    eased = formula.joined("Add", [variance, formula.constant(1e-5)])
    model = formula.model({"x": shape}, formula.op("Div", centered, formula.op("Sqrt", eased)))
    assert fired(rewrite(model)) == {}


@quick
@given(st.data(), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(1, 3), seeds)
def test_affine_chains_go_into_convolutions(data, dims, transposed, biased, group, seed):
    """Any chain of products, quotients, sums, differences and batch normalizations leaves the convolution alone.

    The result is no further from a computation in double precision than what was written, but for rounding.
    """
    rng = np.random.default_rng(seed)
    channels = 2 * group
    weight = rng.standard_normal((2 * group, 2, *[3] * dims))
    bias = rng.standard_normal(channels) if biased else None
    vectors = [(data.draw(st.sampled_from(_STEPS)), rng.uniform(0.5, 2.0, (4, channels))) for _ in range(3)]

    def build(dtype):
        formula = Formula(data.draw, dtype=dtype)
        inputs = ["x", formula.weight(weight.astype(dtype))]
        inputs += [formula.weight(bias.astype(dtype))] if bias is not None else []
        y = formula.op("ConvTranspose" if transposed else "Conv", *inputs, group=group)
        for step, numbers in vectors:
            if step == "BatchNormalization":
                y = formula.op(step, y, *(formula.weight(n.astype(dtype)) for n in numbers))
            else:
                shape = (channels, *[1] * dims)
                y = formula.op(step, y, formula.weight(numbers[0].astype(dtype).reshape(shape)))
        return formula.model({"x": ["N", channels, *[6] * dims]}, y)

    model = build(np.float32)
    result = rewrite(model)
    assert sum(fired(result).values()) == 3
    assert [node.op_type for node in result.model.graph] == ["ConvTranspose" if transposed else "Conv", "Identity"]
    assert len(result.model.graph.initializers) == 2 or not (
        biased or {"Add", "Sub", "BatchNormalization"} & {step for step, _ in vectors}
    )
    x = rng.standard_normal((2, channels, *[6] * dims))
    feeds = {"x": x.astype(np.float32)}
    written, folded = evaluate(model, feeds), evaluate(result, feeds)
    assert close(folded, written, 1e-4)
    if transposed:
        return  # onnx's reference implementation does not know grouped ones
    (exact,) = ReferenceEvaluator(build(np.float64)).run(None, {"x": x})
    error, allowed = np.linalg.norm(folded - exact), np.linalg.norm(written - exact)
    assert error <= 4 * allowed + 1e-6 * np.linalg.norm(exact)


_STEPS = ("Mul", "Div", "Add", "Sub", "BatchNormalization")


@quick
@given(st.data(), st.sampled_from(["Gemm", "MatMul"]), st.booleans(), st.booleans(), seeds)
def test_affine_steps_go_into_dense_layers(data, op, trans_b, biased, seed):
    rng = np.random.default_rng(seed)
    formula = Formula(data.draw)
    weight = rng.standard_normal((4, 6)).astype(np.float32)
    if op == "Gemm":
        inputs = ["x", formula.weight(weight.T.copy() if trans_b else weight)]
        inputs += [formula.weight(rng.standard_normal(6).astype(np.float32))] if biased else []
        y = formula.op("Gemm", *inputs, transB=int(trans_b), alpha=0.5, beta=2.0)
    else:
        y = formula.op("MatMul", "x", formula.weight(weight))
    vectors = (rng.uniform(0.5, 2, 6).astype(np.float32) for _ in range(4))
    y = formula.op("BatchNormalization", y, *(formula.weight(v) for v in vectors))
    y = formula.joined("Mul", [y, formula.weight(rng.uniform(0.5, 2, (1, 6)).astype(np.float32))])
    model = formula.model({"x": ["N", 4]}, y)
    result = rewrite(model)
    assert fired(result) == {"batchnorm-into-layer": 1, "scale-into-layer": 1}
    assert [node.op_type for node in result.model.graph] == ["Gemm", "Identity"]
    feeds = _inputs([3, 4], seed)
    assert close(evaluate(result, feeds), evaluate(model, feeds))


@quick
@given(st.data(), st.booleans(), st.booleans(), st.lists(st.integers(1, 3), max_size=2), seeds)
def test_transposes_and_scales_go_into_products(data, trans_a, trans_b, batch, seed):
    formula = Formula(data.draw)
    rank, shapes, names = len(batch) + 2, {}, {}
    swap = [*range(rank - 2), rank - 1, rank - 2]
    for side, dims, flip in (("a", (3, 4), trans_a), ("b", (4, 5), trans_b)):
        shapes[side] = [*batch, *(dims[::-1] if flip else dims)]
        names[side] = formula.op("Transpose", side, perm=swap) if flip else side
        if data.draw(st.booleans()):
            names[side] = formula.scaled(names[side], 0.25)
    y = formula.scaled(formula.op("MatMul", names["a"], names["b"]), 2.0)
    model = formula.model(shapes, y)
    result = rewrite(model, "fuse,emit{slow=true}")
    assert fired(result) == {"scaled-matmul": 1}
    assert [node.op_type for node in result.model.graph] == ["FusedMatMul", "Identity"]
    rng = np.random.default_rng(seed)
    feeds = {side: rng.standard_normal(shape).astype(np.float32) for side, shape in shapes.items()}
    assert close(evaluate(result, feeds), evaluate(model, feeds))


@quick
@given(st.data(), st.sampled_from(["LayerNormalization", "RMS"]), st.booleans(), st.booleans(), seeds)
def test_residual_sums(data, norm, biased, shared, seed):
    """The fused kernel and what is emitted for the CPU compute the sum, its normalization, and both outputs."""
    rng = np.random.default_rng(seed)
    formula = Formula(data.draw)
    terms = ["x", "z"]
    scale = formula.weight(rng.standard_normal(8).astype(np.float32))
    if biased:
        terms = ["x", formula.joined("Add", ["z", formula.weight(rng.standard_normal(8).astype(np.float32))])]
    total = formula.joined("Add", terms)
    if norm == "RMS":
        eased = formula.joined("Add", [formula.mean(formula.op("Mul", total, total), [-1]), formula.constant(1e-6)])
        y = formula.joined("Mul", [formula.op("Div", total, formula.op("Sqrt", eased)), scale])
    else:
        y = formula.op(norm, total, scale, formula.weight(rng.standard_normal(8).astype(np.float32)))
    if shared:
        y = formula.joined("Add", [y, total])
    model = formula.model({"x": ["B", 3, 8], "z": ["B", 3, 8]}, y)
    feeds = {name: rng.standard_normal((2, 3, 8)).astype(np.float32) for name in "xz"}
    want = evaluate(model, feeds)
    for pipeline in ("fuse,emit", "fuse,emit{slow=true}"):
        result = rewrite(model, pipeline)
        assert fired(result)["skip-rms-norm" if norm == "RMS" else "skip-layer-norm"] == 1
        assert close(evaluate(result, feeds), want, 1e-4)


def test_one_model_many_layers_share_functions():
    """Equal fused ops of a model are calls of one function."""
    formula = Formula(lambda strategy: False if strategy is st.booleans() else ())
    x = "x"
    for _ in range(3):
        sigmoid = formula.op("Sigmoid", x)
        x = formula.op("Mul", x, sigmoid)
    result = rewrite(formula.model({"x": [2, 3]}, x), "fuse")
    assert fired(result) == {"quick-gelu": 3}
    assert len(result.model.functions) == 1


def test_weights_that_overflow_are_not_folded():
    formula = Formula(lambda strategy: (), dtype=np.float16)
    y = formula.op("Conv", "x", formula.weight(np.full((1, 1, 1), 6e4, np.float16)))
    y = formula.op("Mul", y, formula.weight(np.array(4, np.float16)))
    result = rewrite(formula.model({"x": [1, 1, 3]}, y))
    assert fired(result) == {}
    assert "overflow" in str(result.misses["scale-into-layer"][0])


def test_large_weights_are_not_copied():
    """Weights of two megabytes that another layer reads as well stay one tensor."""
    formula = Formula(lambda strategy: ())
    weight = formula.weight(np.ones((512, 1024), np.float32))
    y = formula.op("Mul", formula.op("MatMul", "x", weight), formula.weight(np.array(2, np.float32)))
    y = formula.op("Add", y, formula.op("MatMul", "x", weight))
    result = rewrite(formula.model({"x": [1, 512]}, y), "fuse{only=[scale-into-layer]},emit")
    assert fired(result) == {}
    assert "2097152 bytes" in str(result.misses["scale-into-layer"][0])


def test_training_batch_normalization_stays():
    formula = Formula(lambda strategy: ())
    y = formula.op("Conv", "x", formula.weight(np.ones((2, 2, 1), np.float32)))
    parameters = [formula.weight(np.ones(2, np.float32)) for _ in range(4)]
    formula.nodes.append(
        helper.make_node("BatchNormalization", [y, *parameters], ["n", "m", "v"], name="bn", training_mode=1)
    )
    result = rewrite(formula.model({"x": [1, 2, 3]}, "n"))
    assert fired(result) == {}
    assert "training" in str(result.misses["batchnorm-into-layer"][0])


@quick
@given(st.data(), st.sampled_from([[8], [1], [3, 8], [1, 8], [2, 3, 8]]), st.sampled_from(["none", "tanh"]), seeds)
def test_gelu_of_a_sum_with_a_vector(data, shape, approximate, seed):
    formula = Formula(data.draw, opset=20)
    rng = np.random.default_rng(seed)
    feeds = {"x": rng.standard_normal((2, 3, 8)).astype(np.float32)}
    bias = rng.standard_normal(shape).astype(np.float32)
    if data.draw(st.booleans()):
        feeds["z"], name = bias, "z"
    else:
        name = formula.weight(bias)
    y = formula.op("Gelu", formula.joined("Add", ["x", name]), approximate=approximate)
    model = formula.model({key: array.shape for key, array in feeds.items()}, y)
    result = rewrite(model)
    rule = {"none": "bias-gelu", "tanh": "bias-fast-gelu"}[approximate]
    assert fired(result) == ({rule: 1} if shape == [8] else {})
    assert close(evaluate(result, feeds), evaluate(model, feeds))
