"""The static check: one small graph for every rule, and all problems at once."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir
import pytest

from optc.backends.tensorrt.check import NotTaken, check, needed_version
from optc.backends.tensorrt.operators import TYPES, float_precisions, supports, table

from .models import standard

DType = onnx_ir.DataType
IMAGE = "g (float[1, 8, 6, 6] x) => (float[A, B, C, D] y)"
ROWS = "g (float[N, 8] x) => (float[A, B] y)"


def told(text: str, opset: int = 21, **weights: np.ndarray) -> list[str]:
    return [str(problem) for problem in check(standard(text, opset, **weights))]


# -- the table --------------------------------------------------------------------------------------------------------


def test_every_operator_of_the_table_is_one_of_onnx():
    old = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}  # of ONNX's first versions, which parsers still read
    newest = onnx.defs.onnx_opset_version()
    for name in set(table().operators) - old:
        assert onnx.defs.has(name, newest, ""), name
    for name in table().instead:
        assert onnx.defs.has(name, newest, "") and name not in table().operators


def test_the_table_speaks_of_inputs_outputs_and_attributes_that_there_are():
    for name, entry in table().operators.items():
        if not onnx.defs.has(name):
            continue
        schema, most = onnx.defs.get_schema(name), {"BatchNormalization": 5}
        positions = {*entry.constant, *entry.absent, *entry.static, *map(int, (*entry.ranks, *entry.exactly))}
        assert max(positions, default=0) < max(schema.max_input, 1), name
        assert max(entry.unread, default=0) < most.get(name, schema.max_output), name
        assert set(entry.attributes) <= set(schema.attributes), name
        assert entry.types <= TYPES


@pytest.mark.parametrize(
    ("domain", "op", "opset", "dtypes", "wanted"),
    [
        ("", "Relu", 13, DType.FLOAT, True),
        ("ai.onnx", "Relu", 13, None, True),
        ("", "Relu", 8, None, False),
        ("", "Relu", 25, None, False),
        ("", "Relu", 13, DType.BOOL, False),
        ("", "Gelu", 19, None, False),
        ("", "Gelu", 20, {"T": DType.FLOAT16}, True),
        ("", "Mish", 18, DType.BFLOAT16, False),
        ("", "LayerNormalization", 13, DType.FLOAT, False),
        ("", "BitShift", 13, None, False),
        ("", "DequantizeLinear", 21, DType.INT4, True),
        ("", "DequantizeLinear", 21, DType.FLOAT16, True),
        ("", "DequantizeLinear", 21, DType.UINT8, False),
        ("com.microsoft", "Gelu", 1, DType.FLOAT, False),
    ],
)
def test_what_graphs_may_be_written_with(domain, op, opset, dtypes, wanted):
    assert supports(domain, op, opset, dtypes) is wanted


def test_types_are_those_of_the_graph():
    assert float_precisions() == ()


# -- operators --------------------------------------------------------------------------------------------------------


def test_a_plain_network_is_taken():
    text = (
        f"{IMAGE} {{ a = Conv <pads = [1, 1, 1, 1]> (x, w, b) c = Relu (a) y = MaxPool <kernel_shape = [2, 2]> (c) }}"
    )
    assert told(text, w=np.ones((8, 8, 3, 3), np.float32), b=np.zeros(8, np.float32)) == []


REFUSED = {
    "no such operator": (f"{ROWS} {{ y = Det (x) }}", {}, "Det 'y': TensorRT has no such operator"),
    "of another domain": (
        f"{ROWS} {{ y = com.microsoft.QuickGelu (x) }}",
        {},
        "com.microsoft::QuickGelu 'y': TensorRT has no such operator",
    ),
    "type": (
        "g (bool[N] x) => (bool[N] y) { z = Cast <to = 9> (x) y = CumSum (z, a) }",
        {"a": np.int64(0)},
        "CumSum 'y': TensorRT has it for bfloat16, float, float16, not for bool",
    ),
    "axes that are computed": (
        "g (float[N, 8] x, int64[1] a) => (float[M] y) { y = ReduceSum (x, a) }",
        {},
        "ReduceSum 'y': its input 1 must be a constant",
    ),
    "rank": (
        "g (float[1, 2, 3, 3, 3, 3] x) => (float[A, B, C, D, E, F] y) "
        "{ y = AveragePool <kernel_shape = [1, 1, 1, 1]> (x) }",
        {},
        "AveragePool 'y': its input 0 has rank 6, TensorRT takes 3 or 4 or 5",
    ),
    "indices": (
        "g (float[1, 8, 6, 6] x) => (float[A, B, C, D] y, int64[A, B, C, D] z) "
        "{ y, z = MaxPool <kernel_shape = [2, 2]> (x) }",
        {},
        "MaxPool 'y': its output 1 is read, and TensorRT has none",
    ),
    "dilations": (
        f"{IMAGE} {{ y = MaxPool <kernel_shape = [2, 2], dilations = [1, 2]> (x) }}",
        {},
        "MaxPool 'y': dilations is 2, TensorRT takes 1",
    ),
    "antialiasing": (
        f'{IMAGE} {{ y = Resize <antialias = 1, mode = "linear"> (x, , s) }}',
        {"s": np.array([1, 1, 2, 2], np.float32)},
        "Resize 'y': antialias is 1, TensorRT takes 0",
    ),
    "rounding": (
        f'{IMAGE} {{ y = Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn", nearest_mode = "ceil"> '
        "(x, , s) }",
        {"s": np.array([1, 1, 2, 2], np.float32)},
        "Resize 'y': with tf_half_pixel_for_nn TensorRT rounds by round_prefer_floor only",
    ),
    "many": (
        "g (float[N, 9000] x) => (float[N, M] y, int64[N, M] z) { y, z = TopK (x, k) }",
        {"k": np.array([4000])},
        "TopK 'y': K is 4000, TensorRT takes less than 3840",
    ),
    "directions": (
        "g (float[S, 1, 4] x) => (float[S, 2, 1, 2] y) "
        '{ y = RNN <hidden_size = 2, direction = "bidirectional", activations = ["Tanh", "Relu"]> (x, w, r) }',
        {"w": np.ones((2, 2, 4), np.float32), "r": np.ones((2, 2, 2), np.float32)},
        "RNN 'y': its activations differ between the two directions",
    ),
    "training": (
        f"{ROWS} {{ y = Dropout (x, r, t) }}",
        {"r": np.float32(0.5), "t": np.bool_(True)},
        "Dropout 'y': it is in training mode",
    ),
    "unknown size": (
        "g (float[N, 8] x) => (float[N, 8] y) { e = EyeLike <dtype = 1> (x) y = Add (x, e) }",
        {},
        "EyeLike 'e': the dims of its input 0 must be known",
    ),
    "two types": (
        "g (float[N] x, int64[N] e) => (float[N] y) { y = Pow (x, e) }",
        {},
        "Pow 'y': its input 1 is int64, its first float",
    ),
    "a shape that is an input": (
        "g (float[N, 8] x, int64[2] k) => (float[A, B] y) { l = Add (k, k) y = Reshape (x, l) }",
        {},
        "Reshape 'y': the values of 'k' decide its shape (by its input 1), and profiles have no range for them",
    ),
    "branches": (
        "g (bool b, float[4] x) => (float[A] y) { y = If (b) <then_branch = t () => (float[4] p) { p = Relu (x) }, "
        "else_branch = e () => (float[1, 4] q) { z = Constant <value = int64[1] {0}> () q = Unsqueeze (x, z) }> }",
        {},
        "If 'y': its branches give 'p' of rank 1 and 'q' of rank 2",
    ),
    "inside of a branch": (
        "g (bool b, float[4, 4] x) => (float y) { y = If (b) <then_branch = t () => (float p) { p = Det (x) }, "
        "else_branch = e () => (float q) { q = ReduceSum <keepdims = 0> (x) }> }",
        {},
        "Det 'p': TensorRT has no such operator",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_named_with_the_node(name):
    text, weights, says = REFUSED[name]
    assert told(text, **weights) == [says]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("g (double[N] x) => (double[N] y) { y = Relu (x) }", "TensorRT has no double"),
        ("g (string[N] x) => (string[N] y) { y = Identity (x) }", "TensorRT has no string"),
        ("g (complex64[N] x) => (complex64[N] y) { y = Identity (x) }", "TensorRT has no complex64"),
        ("g (uint16[N] x) => (uint16[N] y) { y = Identity (x) }", "TensorRT has no uint16"),
        ("g (int8[N] x) => (int8[N] y) { y = Identity (x) }", "Identity reads int8 codes"),
        ("g (uint8[N] x) => (uint8[N] y) { y = Identity (x) }", "Identity reads uint8"),
    ],
)
def test_types_that_there_are_not(text, says):
    problems = check(standard(text))
    assert problems[0].node == "x" and problems[0].op == "input" and says in problems[0].what
    assert all(problem.hint for problem in problems)


def test_shapes_may_be_computed_from_shapes():
    text = """g (float[N, 8] x, float[N] z) => (float[A, B] y) {
        s = Shape (z) t = Concat <axis = 0> (s, two, minus) r = Reshape (x, t) y = ReduceMean <axes = [2]> (r)
    }"""
    assert told(text, 17, two=np.array([2]), minus=np.array([-1])) == []


def test_bytes_of_an_image_may_come_in_and_be_cast():
    assert told("g (uint8[N] x) => (float[N] y) { y = Cast <to = 1> (x) }") == []


def test_opsets_and_ranks_that_parsers_do_not_take():
    assert told("g (float[N] x) => (float[N] y) { y = Relu (x) }", opset=25) == [
        "model 'g': it is of opset 25, TensorRT's parser takes 9 to 24"
    ]
    model = standard("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    model.graph.inputs[0].shape = None
    assert [str(problem) for problem in check(model)] == ["input 'x': its rank is not known"]


def test_operators_of_later_opsets_are_named():
    assert told(
        "g (float[N, 8] x) => (float[N, 8] y) { y = LayerNormalization (x, s) }", 13, s=np.ones(8, np.float32)
    ) == ["LayerNormalization 'y': ONNX has no such operator in opset 13"]


def test_a_node_that_says_that_it_is_a_plugin_is_taken():
    assert told('g (float[N] x) => (float[N] y) { y = my.Thing <plugin_namespace = "my"> (x) }') == []


def test_all_problems_are_told_at_once_with_what_to_do():
    text = 'g (float[4, 4] x) => (float y) { a = Det (x) b = BitShift <direction = "LEFT"> (u, v) y = Add (a, a) }'
    problems = check(standard(text, u=np.array([1], np.uint32), v=np.array([1], np.uint32)))
    error = NotTaken(problems)
    assert len(problems) == 4, "two operators, and two constants of a type that there is not"
    for problem in problems:
        assert str(problem) in error.what and problem.hint in error.what
    assert error.problems == tuple(problems)
    assert json.loads(json.dumps(error.details))[2]["op"] == "Det"


def test_the_version_that_is_needed_is_that_of_the_newest_operator():
    text = "g (float[N, 8] x) => (float[N, 8] y) { y = RMSNormalization (x, s) }"
    assert needed_version(standard(text, 23, s=np.ones(8, np.float32))) == "10.14"
    assert needed_version(standard("g (float[N] x) => (float[N] y) { y = Swish (x) }", 24)) == "11.0"
    assert needed_version(standard("g (float[N] x) => (float[N] y) { y = Relu (x) }")) == "10.0"


# -- grids ------------------------------------------------------------------------------------------------------------

ACTIVATION = "g (float[N, 8] x) => (float[N, 8] y) { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }"
PRODUCT = "g (float[N, 8] x) => (float[N, 4] y) { d = DequantizeLinear <axis = %d> (w, s, z) y = MatMul (x, d) }"
I8 = np.zeros((8, 4), np.int8)


def test_symmetric_grids_are_taken():
    assert told(ACTIVATION, s=np.float32(0.1), z=np.int8(0)) == []
    assert told(PRODUCT % 1, w=I8, s=np.full(4, 0.1, np.float32), z=np.zeros(4, np.int8)) == []


@pytest.mark.parametrize(
    ("text", "weights", "says"),
    [
        (ACTIVATION, {"s": np.float32(0.1), "z": np.int8(3)}, "its zero point is not 0"),
        (ACTIVATION, {"s": np.float32(0), "z": np.int8(0)}, "not all of its scales are above 0"),
        (ACTIVATION, {"s": np.float32(0.1), "z": np.uint8(0)}, "its codes are uint8"),
        (ACTIVATION, {"s": np.ones(8, np.float32), "z": np.zeros(8, np.int8)}, "has more than one scale"),
        (
            ACTIVATION.replace("x)", "x, float s)", 1),
            {"z": np.int8(0)},
            "its scale is not constant",
        ),
        (
            PRODUCT % 0,
            {"w": I8, "s": np.ones(8, np.float32), "z": np.zeros(8, np.int8)},
            "its scales are along axis 0, and the output channels of MatMul along axis 1",
        ),
        (
            "g (float[1, 4, 6, 6] x) => (float[A, B, C, D] y) "
            "{ d = DequantizeLinear <axis = 1> (w, s, z) y = Conv (x, d) }",
            {"w": np.zeros((4, 4, 1, 1), np.int8), "s": np.ones(4, np.float32), "z": np.zeros(4, np.int8)},
            "the output channels of Conv along axis 0",
        ),
        (
            ACTIVATION.replace("y = DequantizeLinear (q", "r = Relu (q) y = DequantizeLinear (r"),
            {"s": np.float32(0.1), "z": np.int8(0)},
            "Relu reads int8 codes",
        ),
    ],
)
def test_grids_that_are_not_taken(text, weights, says):
    found = told(text, **weights)
    assert found and any(says in line for line in found), found


def blocked(rows: int, block: int, dtype: DType = DType.INT4) -> onnx_ir.Model:
    text = PRODUCT.replace("8]", f"{rows}]").replace(", z)", ")") % 0
    text = text.replace("<axis = 0>", f"<axis = 0, block_size = {block}>")
    model = standard(text, w=np.zeros((rows, 4), np.int8), s=np.ones((-(-rows // block), 4), np.float32))
    value = model.graph.initializers["w"]
    value.const_value = onnx_ir.tensor(np.zeros((rows, 4), dtype.numpy()), dtype=dtype, name="w")
    value.dtype = dtype
    return model


def test_weights_of_four_bits_in_blocks_are_for_products():
    assert check(blocked(64, 32)) == []
    assert [problem.what for problem in check(blocked(40, 32))] == ["blocks of 32 do not divide 40"]
    found = [problem.what for problem in check(blocked(64, 32, DType.INT8))]
    assert found == ["codes of int8 have no blocks with scales of their own"]
    model = blocked(64, 32)
    product = model.graph[-1]
    product.op_type = "Add"
    assert "blocks with scales of their own are for constant weights of products" in [p.what for p in check(model)]
