"""Chains of moves: whatever is drawn, a Gather in their place moves every element to the same place."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from .formulas import evaluate, fired, rewrite


class _Chain:
    """Moves of a tensor whose first axis has any size, written as they are drawn."""

    def __init__(self, inner: tuple[int, ...], form: str = "N") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inner, self.start, self.value = inner, inner, "x"
        self.form = form

    def add(self, op: str, *inputs: str, **attributes) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def ints(self, *items: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(items, np.int64), name))
        return name

    def reshape(self, *inner: int) -> None:
        """Views the tensor with other dims; the first one takes what is left."""
        self.value, self.inner = self.add("Reshape", self.value, self.ints(-1, *inner)), inner

    def transpose(self, *perm: int) -> None:
        self.value = self.add("Transpose", self.value, perm=list(perm))
        self.inner = tuple((0, *self.inner)[axis] for axis in perm[1:])

    def slice(self, value: str, axis: int, start: int, end: int, step: int = 1) -> str:
        return self.add("Slice", value, *(self.ints(item) for item in (start, end, axis, step)))

    def roll(self, axis: int, shift: int) -> None:
        pieces = self.slice(self.value, axis, shift, 2**31 - 1), self.slice(self.value, axis, 0, shift)
        self.value = self.add("Concat", *pieces, axis=axis)

    def gather(self, axis: int, indices: list[int]) -> None:
        self.value = self.add("Gather", self.value, self.ints(*indices), axis=axis)
        self.inner = (*self.inner[: axis - 1], len(indices), *self.inner[axis:])

    def model(self) -> onnx.ModelProto:
        nodes = [*self.nodes, helper.make_node("Neg", [self.value], ["y"], name="end")]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [self.form, *self.start])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, "moves", [x], [y], initializer=self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _agree(result, model: onnx.ModelProto, inner: tuple[int, ...], sizes: tuple[int, ...] = (1, 2, 4, 0)) -> None:
    for size in sizes:
        x = np.arange(size * np.prod(inner, dtype=int), dtype=np.float32).reshape(size, *inner)
        assert np.array_equal(evaluate(result, {"x": x}), evaluate(model, {"x": x}))


def _ops(result) -> Counter[str]:
    return Counter(node.op_type for node in result.model.graph)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_chains(data):
    chain = _Chain((4, 6, 32))
    for _ in range(data.draw(st.integers(2, 5))):
        rank = len(chain.inner) + 1
        kind = data.draw(st.sampled_from(["transpose", "roll", "gather", "split", "join", "regroup"]))
        axis = data.draw(st.integers(1, rank - 2)) if rank > 2 else 1
        dim = chain.inner[axis - 1]
        if kind == "transpose":
            chain.transpose(0, *data.draw(st.permutations(range(1, rank - 1))), rank - 1)
        elif kind == "roll" and dim > 1:
            chain.roll(axis, data.draw(st.integers(1, dim - 1)))
        elif kind == "gather":
            chain.gather(axis, data.draw(st.lists(st.integers(0, dim - 1), min_size=1, max_size=5)))
        elif kind == "split" and dim % 2 == 0:
            chain.reshape(*chain.inner[: axis - 1], 2, dim // 2, *chain.inner[axis:])
        elif kind == "join" and rank > 3:
            chain.reshape(chain.inner[0] * chain.inner[1], *chain.inner[2:])
        elif kind == "regroup" and rank > 3:
            chain.reshape(*chain.inner[1:])  # the first axis takes the second one in
    model = chain.model()
    _agree(rewrite(model), model, chain.start)


def _window(chain: _Chain, size: int, shift: int) -> None:
    """Swin's partition of an image into windows, after a cyclic shift of both axes."""
    height, width, channels = chain.inner
    if shift:
        chain.roll(1, shift)
        chain.roll(2, shift)
    chain.reshape(height // size, size, width // size, size, channels)
    chain.transpose(0, 1, 3, 2, 4, 5)
    chain.reshape(size * size, channels)


def test_shifted_windows():
    chain = _Chain((8, 8, 16))
    _window(chain, 4, 2)
    model = chain.model()
    result = rewrite(model, "fuse,emit,simplify")
    assert _ops(result) == {"Reshape": 2, "Gather": 1, "Neg": 1}
    _agree(result, model, chain.start)


def test_windows_back():
    chain = _Chain((16, 16), "W")
    chain.reshape(2, 2, 4, 4, 16)
    chain.transpose(0, 1, 3, 2, 4, 5)
    chain.reshape(8, 8, 16)
    chain.roll(1, 6)
    chain.roll(2, 6)
    model = chain.model()
    result = rewrite(model, "fuse,emit,simplify")
    assert _ops(result) == {"Reshape": 2, "Gather": 1, "Neg": 1}
    _agree(result, model, chain.start, (4, 12))


def test_patches_merged():
    chain = _Chain((4, 6, 16))
    rows = [chain.slice("x", 1, start, 2**31 - 1, 2) for start in (0, 1)]
    parts = [chain.slice(row, 2, start, 2**31 - 1, 2) for start in (0, 1) for row in rows]
    chain.value = chain.add("Concat", *parts, axis=-1)
    model = chain.model()
    result = rewrite(model, "fuse,emit,simplify")
    assert _ops(result) == {"Reshape": 2, "Gather": 1, "Neg": 1}
    _agree(result, model, chain.start)


def test_one_transpose_is_left_alone():
    chain = _Chain((8, 8, 16))
    _window(chain, 4, 0)
    assert "moves-to-gather" not in fired(rewrite(chain.model()))


def test_short_rows_and_other_readers_and_the_first_axis():
    short = _Chain((8, 8, 1))
    _window(short, 4, 1)
    result = rewrite(short.model())
    assert fired(result) == {}
    assert "too short" in result.misses["moves-to-gather"][0].wanted
    shared = _Chain((8, 8, 16))
    shared.roll(1, 2)
    read = shared.value
    shared.roll(2, 2)
    shared.value = shared.add("Add", shared.value, read)
    assert fired(rewrite(shared.model())) == {"moves-to-gather": 2}, "each roll by itself"
    mixed = _Chain((8, 8, 16))
    mixed.value = mixed.add("Transpose", "x", perm=[1, 0, 2, 3])
    mixed.value = mixed.add("Transpose", mixed.value, perm=[2, 1, 0, 3])
    assert fired(rewrite(mixed.model())) == {}
