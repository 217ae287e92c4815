"""Every fact holds in every run: facts are compared with what ONNX Runtime computes, for several sizes of the dims."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.loader
import onnx.parser
import onnx.printer
import onnx_ir
import onnxruntime as ort
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from optc.ir import dims
from optc.ir.dims import Dim, symbol
from optc.ir.facts import Facts
from optc.ir.infer_base import Fact

EXAMS = Path(__file__).parents[2].parent / "shared" / "exams" / "models"

A, B, S = symbol("a"), symbol("b"), symbol("s")


# the harness ------------------------------------------------------------------------------------------------------


def run_exposed(proto: onnx.ModelProto, feeds: Mapping[str, Any], directory: str | None = None) -> dict[str, Any]:
    """All values of the main graph, computed by ONNX Runtime without any optimization."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    known = {output.name for output in exposed.graph.output}
    for name in dict.fromkeys(name for node in exposed.graph.node for name in node.output if name):
        if name not in known:
            exposed.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if directory is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", directory)
    session = ort.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


class Claims:
    """Gathers what facts claim about actual values; ``wrong`` lists the claims that do not hold.

    A symbol that the analysis made up has no given value: the first value that is claimed to be just that symbol
    defines it, so two such values must agree.
    """

    def __init__(self, bindings: Mapping[str, int]) -> None:
        self.bindings = dict(bindings)
        self.wrong: list[tuple] = []
        self.counts: Counter[str] = Counter()
        self._numbers: list[tuple[str, Dim, int]] = []

    def add(self, what: str, fact: Fact, actual: Any) -> None:
        if isinstance(actual, list):
            if fact.shape is not None or fact.dtype is not None:
                self.wrong.append((what, "a sequence has no shape", fact))
            if fact.items is not None:
                if len(fact.items) != len(actual):
                    self.wrong.append((what, "items", len(fact.items), len(actual)))
                for index, (item, value) in enumerate(zip(fact.items, actual, strict=False)):
                    self.add(f"{what}[{index}]", item, value)
            return
        self.counts["tensors"] += 1
        if fact.dtype is not None:
            self.counts["dtypes"] += 1
            if fact.dtype != onnx_ir.DataType.STRING and fact.dtype.numpy() != actual.dtype:
                self.wrong.append((what, "dtype", fact.dtype, actual.dtype))
        if fact.shape is not None:
            self.counts["shapes"] += 1
            if len(fact.shape) != actual.ndim:
                self.wrong.append((what, "rank", fact.shape, actual.shape))
            else:
                self._numbers += [(f"{what}: dim", *pair) for pair in zip(fact.shape, actual.shape, strict=True)]
        if fact.elements is not None:
            self.counts["contents"] += 1
            if len(fact.elements) != actual.size:
                self.wrong.append((what, "number of elements", fact.elements, actual))
            else:
                contents = map(int, actual.reshape(-1))
                self._numbers += [(f"{what}: element", *pair) for pair in zip(fact.elements, contents, strict=True)]

    def settle(self) -> list[tuple]:
        for _, dim, actual in self._numbers:
            names = dims.symbols(dim)
            if len(names) == 1 and str(dim) == str(symbol(*names)):
                self.bindings.setdefault(*names, actual)
        for what, dim, actual in self._numbers:
            low, high = dims.bounds(dim)
            if not low <= actual <= high:
                self.wrong.append((what, str(dim), "bounds", (low, high), actual))
            try:
                expected = dims.evaluate(dim, self.bindings)
            except KeyError:
                self.counts["not evaluated"] += 1
                continue
            if expected != actual:
                self.wrong.append((what, str(dim), expected, actual))
        return self.wrong


def check(
    proto: onnx.ModelProto, feeds: Mapping[str, Any], bindings: Mapping[str, int], results: dict[str, Any] | None = None
) -> Claims:
    """Compares all facts about ``proto`` with one run of it."""
    model = onnx_ir.from_proto(proto)
    facts = Facts(model)
    assert facts.failures == []
    results = run_exposed(proto, feeds) if results is None else results
    claims = Claims(bindings)
    for value in itertools.chain(model.graph.inputs, *(node.outputs for node in model.graph)):
        actual = results.get(value.name, feeds.get(value.name))
        if isinstance(actual, np.ndarray | list):
            claims.add(value.name, facts.fact(value)._replace(elements=facts.elements(value)), actual)
    assert claims.settle() == []
    return claims


def facts_of(text: str, **arrays: np.ndarray) -> tuple[Facts, dict[str, onnx_ir.Value]]:
    """Facts about a graph in ONNX's text syntax, and its values by name."""
    model = onnx_ir.from_proto(parse(text, **arrays))
    facts = Facts(model)
    assert facts.failures == []
    values = {v.name: v for v in itertools.chain(model.graph.inputs, *(node.outputs for node in model.graph))}
    values.update(model.graph.initializers)
    return facts, values


def parse(text: str, opset: int = 20, **arrays: np.ndarray) -> onnx.ModelProto:
    header = f'<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1, "custom" : 1, "local" : 1]>\n'
    proto = onnx.parser.parse_model(header + text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return proto


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def feeds_for(proto: onnx.ModelProto, bindings: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of the declared types."""
    generator = np.random.default_rng(seed)
    defaults = {initializer.name for initializer in proto.graph.initializer}
    feeds = {}
    for value in proto.graph.input:
        if value.name in defaults:
            continue
        tensor = value.type.tensor_type
        shape = [bindings[dim.dim_param] if dim.dim_param else dim.dim_value for dim in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if np.dtype(dtype).kind == "f":
            feeds[value.name] = generator.standard_normal(shape).astype(dtype)
        else:
            feeds[value.name] = generator.integers(0, 2, shape).astype(dtype)
    return feeds


# graphs of which both the facts and the runs are looked at -----------------------------------------------------------

MASK = """
g (int64[b, s] ids, float[b, 8, s] x) => (float[m, n] out)
<int64 one = {1}, int64 zero = {0}, int64[1] minus = {-1}, int64[1] first = {0}> {
  shape = Shape(ids)
  batch = Gather<axis = 0>(shape, zero)
  length = Gather<axis = 0>(shape, one)
  batch1 = Unsqueeze(batch, first)
  length1 = Unsqueeze(length, first)
  target = Concat<axis = 0>(batch1, length1)
  ones = ConstantOfShape<value = int64[1] {1}>(target_shape)
  unset = Equal(target, minus)
  wanted = Where(unset, ones, target)
  positions = Range(zero, length, one)
  row = Unsqueeze(positions, first)
  spread = Expand(row, wanted)
  four = Concat<axis = 0>(batch1, heads, length1)
  eight = Reshape(x, four)
  turned = Transpose<perm = [0, 2, 1]>(eight)
  flat = Concat<axis = 0>(batch1, minus)
  out = Reshape(turned, flat)
}
"""

GRAPHS: dict[str, tuple[str, dict[str, np.ndarray], dict[str, Any]]] = {
    "mask": (
        MASK,
        {"heads": ints(8), "target_shape": ints(2)},
        {
            "wanted": ((2,), (B, S)),
            "spread": (B, S),
            "positions": (S,),
            "eight": (B, 8, S),
            "turned": (B, S, 8),
            "out": (B, 8 * S),
        },
    ),
    "heads": (
        """g (float[b, s, 24] x) => (float[m] z) {
             heads = Reshape(x, split)
             turned = Transpose<perm = [0, 2, 1, 3]>(heads)
             keys = Transpose<perm = [0, 2, 3, 1]>(heads)
             scores = MatMul(turned, keys)
             soft = Softmax(scores)
             mixed = MatMul(soft, turned)
             back = Transpose<perm = [0, 2, 1, 3]>(mixed)
             shape = Shape<start = 0, end = 2>(x)
             whole = Concat<axis = 0>(shape, width)
             joined = Reshape(back, whole)
             same = Add(joined, x)
             z = Flatten(same)
           }""",
        {"split": ints(0, 0, 4, 6), "width": ints(24)},
        {"scores": (B, 4, S, S), "joined": (B, S, 24), "same": (B, S, 24), "z": (B, 24 * S)},
    ),
    "slices": (
        """g (float[a, 10] x) => (float[m, n] z) {
             rest = Slice(x, one, far, first)
             last = Slice(x, minus, far, first)
             most = Slice(x, zero, minus, first)
             back = Slice(x, minus, before, first, minus)
             evens = Slice(x, zero, far, first, two)
             some = Slice(x, one, three, second)
             middle = Slice(x, one, three, first)
             shape = Shape<start = 0, end = 1>(x)
             all = Slice(x, zero, shape, first)
             z = Identity(all)
           }""",
        {
            "one": ints(1), "two": ints(2), "three": ints(3), "zero": ints(0), "first": ints(0), "second": ints(1),
            "minus": ints(-1), "far": ints(2**63 - 1), "before": ints(-(2**63)),
        },
        {
            "rest": (dims.maximum(A - 1, 0), 10),
            "last": (dims.minimum(A, 1), 10),
            "most": (dims.maximum(A - 1, 0), 10),
            "back": (A, 10),
            "evens": ((A + 1) // 2, 10),
            "some": (A, 2),
            "all": (A, 10),
        },
    ),
    "broadcasts": (
        """g (float[a, 1] x, float[b] y, float[s, 5] v) => (float[m, n] z) {
             xy = Add(x, y)
             again = Mul(xy, xy)
             rows = Add(x, v)
             five = ReduceSum<keepdims = 0>(v, axis)
             z = Add(xy, x)
           }""",
        {"axis": ints(0)},
        {"xy": (A, B), "again": (A, B), "five": (5,), "z": (A, B), "rows": (dims.broadcast(A, S), 5)},
    ),
    "convolution": (
        """g (float[b, 3, s, 224] x, float[8, 3, 7, 7] w, float[8, 1, 3, 3] d) => (float[m, n, o, p] z) {
             c = Conv<strides = [2, 2], pads = [3, 3, 3, 3]>(x, w)
             p = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(c)
             d1 = Conv<group = 8, pads = [1, 1, 1, 1]>(p, d)
             same = Conv<group = 8, strides = [3, 3], auto_pad = "SAME_UPPER">(d1, d)
             up = ConvTranspose<group = 8, strides = [2, 2]>(p, d)
             ceil = AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(p)
             g = GlobalAveragePool(d1)
             f = Flatten(g)
             z = Resize<mode = "nearest">(d1, , scales)
           }""",
        {"scales": np.array([1, 1, 2, 2], np.float32)},
        {
            "c": (B, 8, (S - 1) // 2 + 1, 112),
            "p": (B, 8, (S - 1) // 4 + 1, 56),
            "d1": (B, 8, (S - 1) // 4 + 1, 56),
            "f": (B, 8),
            "z": (B, 8, 2 * ((S - 1) // 4) + 2, 112),
        },
    ),
    "splits": (
        """g (float[b, 2 , 12] x, float[s, 4] y) => (float[m] z) {
             p, q, r = Split<axis = 2>(x, sizes)
             t, u, v = Split<axis = 2, num_outputs = 3>(x)
             joined = Concat<axis = 2>(p, q, r)
             tall = Concat<axis = 0>(y, y, y)
             tiled = Tile(y, repeats)
             padded = Pad(y, pads)
             z = ReduceMax<keepdims = 0>(padded)
           }""",
        {"sizes": ints(2, 4, 6), "repeats": ints(3, 2), "pads": ints(1, 0, 2, 3)},
        {
            "q": (B, 2, 4),
            "t": (B, 2, 4),
            "joined": (B, 2, 12),
            "tall": (3 * S, 4),
            "tiled": (3 * S, 8),
            "padded": (S + 3, 7),
            "z": (),
        },
    ),
    "branches": (
        """g (float[b, s] x, bool c) => (float[m, n] z) {
             same = If(c) <then_branch = t1 () => (float[m, n] u) { u = Neg(x) },
                           else_branch = e1 () => (float[m, n] v) { v = Mul(x, x) }>
             other = If(c) <then_branch = t2 () => (float[m, n] u2) { u2 = Concat<axis = 1>(x, x) },
                            else_branch = e2 () => (float[m, n] v2) { v2 = Identity(x) }>
             z = Abs(other)
           }""",
        {},
        {"same": (B, S)},
    ),
    "sequence": (
        """g (float[b, s, 12] x) => (float[m, n, o] z) <int64 four = {4}, int64 two = {2}> {
             parts = SplitToSequence<axis = 2>(x, four)
             part = SequenceAt(parts, two)
             joined = ConcatFromSequence<axis = 2>(parts)
             z = Identity(part)
           }""",
        {},
        {"part": (B, S, 4), "joined": (B, S, 12)},
    ),
    "contents": (
        """g (float[b, s, 6] x) => (int64[m] z) {
             shape = Shape(x)
             size = Size(x)
             part = Slice(shape, one, three)
             gone = Gather(shape, pick)
             double = Mul(part, two)
             half = Div(double, two)
             narrow = Cast<to = 6>(half)
             wide = Cast<to = 7>(narrow)
             total = ReduceProd<keepdims = 0>(shape)
             few = Range(zero, six, step)
             flags = GreaterOrEqual(shape, zero)
             more = Max(shape, zero)
             z = Concat<axis = 0>(wide, gone)
           }""",
        {
            "one": ints(1), "three": ints(3), "two": ints(2), "pick": ints(-1, 0), "zero": np.array(0, np.int64),
            "six": np.array(6, np.int64), "step": np.array(2, np.int64),
        },
        {
            "shape": ((3,), (B, S, 6)),
            "size": ((), (6 * B * S,)),
            "half": ((2,), (S, 6)),
            "total": ((), (6 * B * S,)),
            "few": ((3,), (0, 2, 4)),
            "flags": ((3,), (1, 1, 1)),
            "more": ((3,), (B, S, 6)),
            "z": ((4,), (S, 6, 6, B)),
        },
    ),
}  # fmt: skip

SIZES = [
    dict(zip("abs", sizes, strict=True)) for sizes in [(1, 1, 1), (2, 3, 5), (5, 1, 4), (3, 2, 1), (4, 4, 4), (7, 2, 9)]
]


@pytest.mark.parametrize("name", GRAPHS)
def test_facts_are_known(name: str):
    text, arrays, expected = GRAPHS[name]
    facts, values = facts_of(text, **arrays)
    for value, wanted in expected.items():
        if wanted and isinstance(wanted[0], tuple):
            shape, contents = wanted
            assert (facts.shape(values[value]), facts.elements(values[value])) == (shape, contents), value
        else:
            assert facts.shape(values[value]) == wanted, value


@pytest.mark.parametrize("name", GRAPHS)
def test_facts_hold(name: str):
    text, arrays, _ = GRAPHS[name]
    proto = parse(text, **arrays)
    ran = 0
    for sizes in SIZES:
        feeds = feeds_for(proto, sizes)
        try:
            results = run_exposed(proto, feeds)
        except Exception:  # sizes that can not be broadcast together
            continue
        ran += 1
        check(proto, feeds, sizes, results)
    assert ran >= 2


@pytest.mark.parametrize("name", ["mask", "heads", "slices", "contents", "splits"])
def test_facts_hold_for_empty_tensors(name: str):
    text, arrays, _ = GRAPHS[name]
    proto = parse(text, **arrays)
    for empty in "abs":
        sizes = {"a": 3, "b": 2, "s": 4, empty: 0}
        feeds = feeds_for(proto, sizes)
        try:
            results = run_exposed(proto, feeds)
        except Exception:
            continue
        check(proto, feeds, sizes, results)


# what must stay unknown -------------------------------------------------------------------------------------------


def test_different_unknown_dims_are_not_taken_for_equal():
    facts, values = facts_of("g (float[a] x, float[b] y) => (float[m] z) { z = Add(x, y) }")
    assert facts.shape(values["z"]) not in ((A,), (B,))


def test_declared_intermediate_types_are_not_believed():
    proto = parse("g (float[b, 3] x) => (float[b, 3] z) { y = Neg(x)  z = Neg(y) }")
    feeds = {"x": np.zeros((2, 3), np.float32)}
    results = run_exposed(proto, feeds)
    proto.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.INT8, [7, "wrong", 2]))
    assert check(proto, feeds, {"b": 2}, results).counts["shapes"] == 3


def test_declared_types_of_unknown_operators_are_used():
    facts, values = facts_of("g (float[b, 3] x) => (float[b, 7] z) { z = custom.Magic(x) }")
    assert facts.shape(values["z"]) == (B, 7)
    assert facts.dtype(values["z"]) == onnx_ir.DataType.FLOAT


def test_unknown_contents_do_not_become_shapes():
    facts, values = facts_of("g (float[b, 6] x, int64[2] t) => (float[m, n] z) { z = Reshape(x, t) }")
    shape = facts.shape(values["z"])
    assert shape is not None and len(shape) == 2
    assert all(dims.symbols(dim) - {"b"} for dim in shape)


def test_a_symbol_may_be_zero_where_zero_means_copy():
    # t may be [0, 6] in a run in which x is not empty: then the result has 5 rows, not 0
    text = """g (float[5, 6] x, float[k] y) => (float[m, n] z) {
        h = Shape(y) t = Concat<axis = 0>(h, six) z = Reshape(x, t)
    }"""
    proto = parse(text, six=ints(6))
    for size in (0, 5):
        feeds = {"x": np.zeros((5, 6), np.float32), "y": np.zeros(size, np.float32)}
        check(proto, feeds, {"k": size})


def test_names_of_made_up_symbols_are_new():
    facts, values = facts_of("g (float[_d0] x) => (int64[m, n] z) { z = NonZero(x) }")
    (_, count) = facts.shape(values["z"]) or ()
    assert count != symbol("_d0")


def test_dim_names_are_names_whatever_they_look_like():
    proto = parse("g (float[n] x, float[n] y) => (float[m] z) { z = Concat<axis = 0>(x, y) }")
    proto.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "n + 1"
    feeds = {"x": np.zeros(2, np.float32), "y": np.zeros(7, np.float32)}
    check(proto, feeds, {"n": 2, "n + 1": 7})


# constants --------------------------------------------------------------------------------------------------------


def test_constants():
    facts, values = facts_of(
        """g (float[b] x, int64[2] default) => (float[b] z) {
             c = Constant<value = float[2] {1, 2}>()
             i = Constant<value_int = 7>()
             l = Constant<value_ints = [1, 2]>()
             f = Constant<value_float = 0.5>()
             t = Constant<value_string = "text">()
             z = Neg(x)
           }""",
        w=np.ones((2, 2), np.float32),
        default=ints(1, 2),
        flag=np.array([True]),
    )
    assert facts.is_const(values["w"]) and facts.const_size(values["w"]) == 4
    np.testing.assert_array_equal(facts.const(values["c"]), np.array([1, 2], np.float32))
    assert facts.scalar(values["i"]) == 7 and type(facts.scalar(values["i"])) is int
    assert facts.scalar(values["f"]) == 0.5 and facts.scalar(values["c"]) is None
    assert facts.scalar(values["flag"]) is True
    assert facts.scalar(values["t"]) is None
    assert facts.ints(values["l"]) == (1, 2) and facts.ints(values["c"]) is None
    assert facts.dtype(values["t"]) == onnx_ir.DataType.STRING
    assert not facts.is_const(values["x"]) and facts.const(values["x"]) is None
    # a default of an input can be overridden
    assert not facts.is_const(values["default"]) and facts.ints(values["default"]) is None
    assert facts.shape(values["default"]) == (2,)
    assert facts.shape(None) is None and not facts.is_const(None)


def test_large_external_weights_are_not_read(tmp_path: Path):
    proto = parse("g (float[b, 300] x) => (float[b, 200] z) { z = MatMul(x, w) }", w=np.zeros((300, 200), np.float32))
    onnx.save_model(proto, tmp_path / "m.onnx", save_as_external_data=True, location="gone.data", size_threshold=0)
    model = onnx_ir.load(tmp_path / "m.onnx")
    os.remove(tmp_path / "gone.data")
    facts = Facts(model)
    assert facts.shape(model.graph.outputs[0]) == (B, 200)
    assert facts.const_size(model.graph.initializers["w"]) == 60000
    with pytest.raises(OSError):
        facts.const(model.graph.initializers["w"])


def test_small_external_tensors_are_not_kept_open(tmp_path: Path):
    proto = parse("g (float[b, 6] x) => (float[m, n] z) { z = Reshape(x, t) }", t=ints(-1, 2, 3))
    onnx.save_model(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = onnx_ir.load(tmp_path / "m.onnx")
    facts = Facts(model)
    assert facts.shape(model.graph.outputs[0]) == (B, 2, 3)
    tensor = model.graph.initializers["t"].const_value
    assert isinstance(tensor, onnx_ir.ExternalTensor) and tensor.raw is None
    np.testing.assert_array_equal(tensor.numpy(), [-1, 2, 3])


# control flow, functions, editing ---------------------------------------------------------------------------------


def _loop(body: str, initial: str = "x") -> str:
    return f"""g (float[b, s] x, int64 n, bool c) => (float[m, k] z) {{
        final, stacked = Loop(n, c, {initial}) <body = body (int64 i, bool go, float[p, q] h)
            => (bool on, float[p2, q2] h2, float[p3, q3] out) {{ on = Identity(go) {body} }}>
        z = Neg(final)
    }}"""


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("h2 = Neg(h) out = Identity(h)", (B, S)),
        ("h2 = Add(h, x) out = Identity(h2)", (B, S)),
        ("h2 = Concat<axis = 1>(h, x) out = ReduceSum<keepdims = 1>(h)", None),
    ],
)
def test_loops(body: str, shape: tuple[Dim, ...] | None):
    text = _loop(body)
    facts, values = facts_of(text)
    if shape is not None:
        assert facts.shape(values["final"]) == shape
    else:
        rows, columns = facts.shape(values["z"]) or ()
        assert rows == B and columns != S
    for trips in (0, 1, 3):
        proto = parse(text)
        feeds = {"x": np.ones((2, 3), np.float32), "n": np.array(trips), "c": np.array(True)}
        check(proto, feeds, {"b": 2, "s": 3})


def test_scan():
    proto = parse(
        """g (float[s, b] x, float[b] start) => (float[m] z) {
             final, sums = Scan<num_scan_inputs = 1, body = body (float[p] h, float[q] row)
               => (float[p2] h2, float[q2] out) { h2 = Add(h, row) out = Identity(h2) }>(start, x)
             z = ReduceSum<keepdims = 0>(sums)
           }"""
    )
    check(proto, {"x": np.ones((4, 3), np.float32), "start": np.ones(3, np.float32)}, {"s": 4, "b": 3})
    model = onnx_ir.from_proto(proto)
    assert Facts(model).shape(model.graph[0].outputs[0]) == (B,)


def test_function_calls_are_inferred_from_their_arguments():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20, "local" : 1]>
        g (float[b, s, 6] x, float[s, 3] y) => (float[m, n, k] z, float[m2, n2] w) {
          z = local.double<axis = 2>(x)
          w = local.double<axis = 0>(y)
        }
        <domain: "local", opset_import: ["" : 20]>
        double <axis> (x) => (z) { z = Concat<axis: int = @axis>(x, x) }
        """
    )
    claims = check(proto, {"x": np.zeros((2, 4, 6), np.float32), "y": np.zeros((4, 3), np.float32)}, {"b": 2, "s": 4})
    assert claims.counts["shapes"] == 4
    model = onnx_ir.from_proto(proto)
    facts = Facts(model)
    assert [facts.shape(value) for value in model.graph.outputs] == [(B, S, 12), (2 * S, 3)]


def test_unsorted_graphs():
    proto = parse("g (float[b, 3] x, bool c) => (float[m, n] z) { z = Neg(y) y = Concat<axis = 1>(x, x) }")
    model = onnx_ir.from_proto(proto)
    assert Facts(model).shape(model.graph.outputs[0]) == (B, 6)


def test_a_new_node_is_made_known():
    model = onnx_ir.from_proto(parse("g (float[b, 3] x) => (float[b, 3] z) { z = Neg(x) }"))
    facts = Facts(model)
    node = onnx_ir.node("Transpose", [model.graph.inputs[0]])
    model.graph.append(node)
    assert facts.shape(node.outputs[0]) is None
    facts.infer(node)
    assert facts.shape(node.outputs[0]) == (3, B)
    facts.forget(node.outputs[0])
    assert facts.shape(node.outputs[0]) is None


def test_invalid_nodes_are_reported_and_unknown():
    model = onnx_ir.from_proto(parse("g (float[b, 3] x) => (float[m] z) { z = Conv() }"))
    facts = Facts(model)
    assert facts.rank(model.graph.outputs[0]) is None


# random graphs ----------------------------------------------------------------------------------------------------

_UNARY = ["Neg", "Relu", "Softmax", "Identity", "Exp"]
_BINARY = ["Add", "Mul", "Max", "Sub"]


@st.composite
def _programs(draw: st.DrawFn) -> onnx.ModelProto:
    """Chains of shape arithmetic and movement on inputs with symbolic dims; some fail for some sizes."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    tensors, shapes = ["x", "y"], []

    def constant(*numbers: int, scalar: bool = False) -> str:
        array = np.array(numbers[0] if scalar else numbers, np.int64)
        constants.append(numpy_helper.from_array(array, f"c{len(constants)}"))
        return constants[-1].name

    def emit(op: str, inputs: Iterable[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"v{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    small = st.integers(-3, 3)
    for _ in range(draw(st.integers(1, 9))):
        tensor = draw(st.sampled_from(tensors))
        choice = draw(st.integers(0, 13))
        if choice == 0:
            tensors.append(emit(draw(st.sampled_from(_UNARY)), [tensor]))
        elif choice == 1:
            tensors.append(emit(draw(st.sampled_from(_BINARY)), [tensor, draw(st.sampled_from(tensors))]))
        elif choice == 2:
            tensors.append(emit("Transpose", [tensor]))
        elif choice == 3:
            shapes.append(emit("Shape", [tensor]))
        elif choice == 4:
            bounds = [constant(draw(st.integers(-12, 12))) for _ in range(2)]
            step = constant(draw(st.sampled_from([1, 1, 2, -1, -2, 3])))
            tensors.append(emit("Slice", [tensor, *bounds, constant(draw(st.sampled_from([0, -1]))), step]))
        elif choice == 5:
            tensors.append(
                emit("Concat", [tensor, draw(st.sampled_from(tensors))], axis=draw(st.sampled_from([0, -1])))
            )
        elif choice == 6:
            tensors.append(emit("Unsqueeze", [tensor, constant(draw(st.sampled_from([0, 1, -1])))]))
        elif choice == 7:
            tensors.append(emit("Flatten", [tensor], axis=draw(st.sampled_from([0, 1, -1]))))
        elif choice == 8:
            tensors.append(
                emit("Reshape", [tensor, constant(*draw(st.sampled_from([(-1,), (0, -1), (-1, 2), (0, 0, 1)])))])
            )
        elif choice == 9:
            axes = constant(draw(st.integers(0, 1)))  # ONNX Runtime forgets negative axes of an empty tensor
            tensors.append(emit("ReduceSum", [tensor, axes], keepdims=draw(st.integers(0, 1))))
        elif shapes and choice == 10:
            picked = [constant(*draw(st.lists(st.sampled_from([0, 1, -1]), min_size=1, max_size=3)))]
            shapes.append(emit("Gather", [draw(st.sampled_from(shapes)), *picked]))
        elif shapes and choice == 11:
            other = draw(st.sampled_from([*shapes, constant(draw(small)), constant(draw(st.integers(1, 4)))]))
            op = draw(st.sampled_from(["Add", "Sub", "Mul", "Concat", "Max", "Min", "Equal"]))
            result = emit(op, [draw(st.sampled_from(shapes)), other], **({"axis": 0} if op == "Concat" else {}))
            shapes.append(emit("Cast", [result], to=TensorProto.INT64) if op == "Equal" else result)
        elif shapes and choice == 12:
            target = draw(st.sampled_from(shapes))
            op = draw(st.sampled_from(["Reshape", "Expand", "ConstantOfShape"]))
            tensors.append(emit(op, [target] if op == "ConstantOfShape" else [tensor, target]))
        elif shapes and choice == 13:
            slices = [constant(draw(small)), constant(draw(st.sampled_from([1, 2, -1, 100])))]
            shapes.append(emit("Slice", [draw(st.sampled_from(shapes)), *slices]))
    graph = helper.make_graph(
        nodes or [helper.make_node("Neg", ["x"], ["v0"])],
        "g",
        [
            helper.make_tensor_value_info(
                "x", TensorProto.FLOAT, draw(st.sampled_from([["a", "b"], ["a", 4], ["a", "b", 6]]))
            ),
            helper.make_tensor_value_info(
                "y", TensorProto.FLOAT, draw(st.sampled_from([["b"], ["a", "s"], ["s", 1], [4]]))
            ),
        ],
        [onnx.ValueInfoProto(name=nodes[-1].output[0] if nodes else "v0")],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _prefixes(proto: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """The model, then the model without its last node, and so on."""
    while proto.graph.node:
        proto.graph.output[0].name = proto.graph.node[-1].output[0]
        yield proto
        del proto.graph.node[-1]


@settings(max_examples=250, deadline=None)
@given(_programs(), st.tuples(*[st.sampled_from([0, 1, 1, 2, 3, 4, 6])] * 3))
def test_random_graphs(proto: onnx.ModelProto, numbers: tuple[int, int, int]):
    sizes = dict(zip("abs", numbers, strict=True))
    feeds = feeds_for(proto, sizes)
    for part in _prefixes(proto):  # where the whole does not run, a part of it may
        try:
            results = run_exposed(part, feeds)
        except Exception:
            continue
        note(onnx.printer.to_text(part))
        check(part, feeds, sizes, results)
        return


# the operators' own test cases -------------------------------------------------------------------------------------


def _variants(proto: onnx.ModelProto, feeds: dict[str, Any]) -> Iterator[tuple[onnx.ModelProto, dict, dict[str, int]]]:
    """The case itself; with all dims symbolic; and both with small vectors made constants."""
    vectors = {
        name: array
        for name, array in feeds.items()
        if isinstance(array, np.ndarray) and array.dtype.kind in "if" and array.ndim <= 1 and array.size <= 64
    }
    for constants, symbolic in itertools.product([{}, vectors] if vectors else [{}], [False, True]):
        variant = onnx.ModelProto()
        variant.CopyFrom(proto)
        bindings: dict[str, int] = {}
        for value in list(variant.graph.input):
            if value.name in constants:
                variant.graph.input.remove(value)
                variant.graph.initializer.append(numpy_helper.from_array(constants[value.name], value.name))
            elif symbolic and isinstance(feeds[value.name], np.ndarray):
                for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                    dim.dim_param = f"{value.name}_{axis}"
                    bindings[dim.dim_param] = feeds[value.name].shape[axis]
        yield variant, {name: array for name, array in feeds.items() if name not in constants}, bindings


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_operator_cases():
    counts: Counter[str] = Counter()
    for case in onnx.backend.test.loader.load_model_tests(kind="node"):
        if case.data_sets is None:
            pytest.skip("onnx before 1.23 keeps its cases in files, which tests/conformance reads")
        inputs, _ = case.data_sets[0]
        feeds = {value.name: array for value, array in zip(case.model.graph.input, inputs, strict=False)}
        if not all(isinstance(array, np.ndarray | list) for array in feeds.values()):
            continue  # types that only exist as protobuf messages
        for proto, rest, bindings in _variants(case.model, feeds):
            try:
                results = run_exposed(proto, rest)
            except Exception:
                counts["not run"] += 1
                continue
            try:
                counts.update(check(proto, rest, bindings, results).counts)
            except AssertionError as error:
                raise AssertionError(f"{case.name} with {bindings}") from error
    assert counts["tensors"] > 20_000
    assert counts["shapes"] > 0.98 * counts["tensors"]
    assert counts["dtypes"] > 0.99 * counts["tensors"]
    assert counts["contents"] > 0.2 * counts["tensors"]


# operators of ONNX Runtime -------------------------------------------------------------------------------------------


def _f32(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _u8(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


SCALE, ZERO = np.array(0.1, np.float32), np.array(3, np.uint8)
IDS = np.array([[1, 2, 3], [4, 0, 1]], np.int32)
QUANTIZED = [_u8(2, 8), SCALE, ZERO]

CONTRIB: list[tuple[str, list[np.ndarray | None], int, dict[str, Any]]] = [
    ("Gelu", [_f32(2, 3)], 1, {}),
    ("FastGelu", [_f32(2, 3, 8), _f32(8)], 1, {}),
    ("QuickGelu", [_f32(2, 3)], 1, {}),
    ("BiasGelu", [_f32(2, 3, 8), _f32(8)], 1, {}),
    ("FusedMatMul", [_f32(2, 3, 8), _f32(2, 5, 8)], 1, {"transB": 1}),
    ("FusedMatMul", [_f32(3, 2, 8), _f32(2, 8, 5)], 1, {"transBatchA": 1}),
    ("FusedMatMul", [_f32(8, 2, 3), _f32(2, 8, 5)], 1, {"transBatchA": 1, "transA": 1}),
    ("TransposeMatMul", [_f32(2, 8, 3), _f32(8, 5)], 1, {"transA": 1}),
    ("FusedGemm", [_f32(4, 5), _f32(6, 5), _f32(6)], 1, {"transB": 1, "activation": "Relu"}),
    ("FusedConv", [_f32(1, 3, 8, 9), _f32(4, 3, 3, 3)], 1, {"pads": [1, 1, 0, 0], "activation": "Relu"}),
    ("SkipLayerNormalization", [_f32(2, 3, 8), _f32(2, 3, 8), _f32(8), _f32(8), _f32(8)], 4, {}),
    ("SkipLayerNormalization", [_f32(2, 3, 8), _f32(1, 3, 8), _f32(8)], 1, {}),
    ("SkipSimplifiedLayerNormalization", [_f32(2, 3, 8), _f32(2, 3, 8), _f32(8)], 4, {}),
    ("EmbedLayerNormalization", [IDS, None, _f32(9, 8), _f32(9, 8), None, _f32(8), _f32(8)], 3, {}),
    ("Attention", [_f32(2, 3, 8), _f32(8, 24), _f32(24)], 1, {"num_heads": 2}),
    ("Attention", [_f32(2, 3, 8), _f32(8, 24), _f32(24)], 2, {"num_heads": 2}),
    ("Attention", [_f32(2, 3, 8), _f32(8, 24), _f32(24), None, _f32(2, 2, 2, 5, 4)], 2, {"num_heads": 2}),
    ("Attention", [_f32(2, 3, 8), _f32(8, 20), _f32(20)], 1, {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 4]}),
    ("MultiHeadAttention", [_f32(2, 3, 8), _f32(2, 5, 8), _f32(2, 5, 12)], 1, {"num_heads": 2}),
    ("MultiHeadAttention", [_f32(2, 3, 8), _f32(2, 2, 5, 4), _f32(2, 2, 5, 4)], 1, {"num_heads": 2}),
    ("MultiHeadAttention", [_f32(2, 3, 8), _f32(2, 2, 5, 4), _f32(2, 2, 5, 4)], 3, {"num_heads": 2}),
    ("MultiHeadAttention", [_f32(2, 3, 8), _f32(2, 5, 8), _f32(2, 5, 8)], 3, {"num_heads": 2}),
    (
        "MultiHeadAttention",
        [_f32(2, 3, 8), _f32(2, 3, 8), _f32(2, 3, 8), None, None, None, _f32(2, 2, 6, 4), _f32(2, 2, 6, 4)],
        3,
        {"num_heads": 2},
    ),
    (
        "GroupQueryAttention",
        [
            *(_f32(2, 3, 32), _f32(2, 3, 16), _f32(2, 3, 16), _f32(2, 2, 6, 8), _f32(2, 2, 6, 8)),
            *(np.full(2, 2, np.int32), np.array(3, np.int32)),
        ],
        3,
        {"num_heads": 4, "kv_num_heads": 2},
    ),
    (
        "GroupQueryAttention",
        [_f32(2, 3, 64), None, None, None, None, np.full(2, 2, np.int32), np.array(3, np.int32)],
        3,
        {"num_heads": 4, "kv_num_heads": 2},
    ),
    ("RotaryEmbedding", [_f32(2, 3, 32), ints(0), _f32(9, 4), _f32(9, 4)], 1, {"num_heads": 4}),
    ("MatMulNBits", [_f32(2, 3, 32), _u8(6, 1, 16), _f32(6)], 1, {"K": 32, "N": 6, "bits": 4, "block_size": 32}),
    ("DynamicQuantizeMatMul", [_f32(2, 3, 8), _u8(8, 5), _f32(1), _u8(1)], 1, {}),
    ("MatMulIntegerToFloat", [_u8(2, 3, 8), _u8(8, 5), _f32(1), _f32(1)], 1, {}),
    ("QLinearAdd", [_u8(2, 1, 8), SCALE, ZERO, _u8(3, 8), SCALE, ZERO, SCALE, ZERO], 1, {}),
    ("QLinearSigmoid", [*QUANTIZED, SCALE, ZERO], 1, {}),
    ("QLinearGlobalAveragePool", [_u8(2, 3, 5, 5), SCALE, ZERO, SCALE, ZERO], 1, {"channels_last": 0}),
    ("QLinearConcat", [SCALE, ZERO, *QUANTIZED, *QUANTIZED], 1, {"axis": 1}),
    ("QGemm", [*QUANTIZED, _u8(8, 5), SCALE, ZERO, None, SCALE, ZERO], 1, {}),
    ("QGemm", [*QUANTIZED, _u8(8, 5), SCALE, ZERO], 1, {}),
    ("QAttention", [_u8(2, 3, 8), _u8(8, 24), _f32(24), SCALE, SCALE, None, ZERO, ZERO], 1, {"num_heads": 2}),
    ("QuantizeLinear", [_f32(2, 8), SCALE, ZERO], 1, {}),
    ("DequantizeLinear", QUANTIZED, 1, {}),
    ("MoE", [_f32(4, 8), _f32(4, 2), _f32(2, 8, 16), None, _f32(2, 16, 8)], 1, {"k": 1}),
]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("case", CONTRIB, ids=lambda case: case[0])
def test_contrib_operators(case: tuple, symbolic: bool):
    op, arrays, outputs, attributes = case
    names = ["" if array is None else f"i{index}" for index, array in enumerate(arrays)]
    feeds = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
    # weights have known dims, and ONNX Runtime insists on that for some operators
    loose = symbolic and op != "EmbedLayerNormalization"
    bindings = {f"{name}_{axis}": size for name, array in feeds.items() for axis, size in enumerate(array.shape)}
    graph = helper.make_graph(
        [helper.make_node(op, names, [f"o{index}" for index in range(outputs)], domain="com.microsoft", **attributes)],
        "g",
        [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(array.dtype),
                [f"{name}_{axis}" for axis in range(array.ndim)] if loose else array.shape,
            )
            for name, array in feeds.items()
        ],
        [onnx.ValueInfoProto(name="o0")],
    )
    # the statistics of the Skip operators exist for training only
    if outputs == 4:
        graph.node[0].output[1] = graph.node[0].output[2] = ""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    claims = check(proto, feeds, bindings)
    computed = sum(1 for name in graph.node[0].output if name)
    assert claims.counts["dtypes"] == claims.counts["tensors"] == len(feeds) + computed
    assert claims.counts["shapes"] >= len(feeds) + 1


# models of other projects ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not EXAMS.is_dir(), reason="the collection of models is not here")
def test_models_of_other_projects():
    counts: Counter[str] = Counter()
    for path in sorted(EXAMS.rglob("*.onnx")):
        try:
            proto = onnx.load(path, load_external_data=False)
            model = onnx_ir.from_proto(proto)
        except Exception:
            counts["not loaded"] += 1
            continue
        Facts(model)
        names = sorted({dim.dim_param for value in proto.graph.input for dim in value.type.tensor_type.shape.dim})
        for size in (1, 2, 3):
            sizes = {name: size + index % 2 for index, name in enumerate(names)}
            try:
                feeds = feeds_for(proto, sizes)
                results = run_exposed(proto, feeds, str(path.parent))
            except Exception:
                counts["not run"] += 1
                continue
            counts.update(check(proto, feeds, sizes, results).counts)
            counts["runs"] += 1
    assert counts["runs"] > 100


@pytest.mark.parametrize("name", ["value", "value_int", "value_floats", "value_string"])
def test_constants_of_another_type_than_their_attribute_have_no_value(name):
    node = onnx_ir.Node("", "Constant", [], [onnx_ir.Attr(name, onnx_ir.AttributeType.INTS, (1, 2))], num_outputs=1)
    graph = onnx_ir.Graph([], node.outputs, nodes=[node], opset_imports={"": 17}, name="g")
    facts = Facts(onnx_ir.Model(graph, ir_version=8))
    assert facts.tensor(node.outputs[0]) is None and facts.const(node.outputs[0]) is None
