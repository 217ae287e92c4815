"""Models that are made to do harm: each is a small file that asks for a lot, or for what is not its business."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
from onnx import TensorProto, helper

from .damage import varint

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
#: Writes what is needed into a folder; the name of the model in it.
Make = Callable[[Path], str]
#: What must be refused, with words of the message; and what is a model like any other, but dear if taken at its word.
REFUSED: dict[str, tuple[Make, str]] = {}
BOUNDED: dict[str, Make] = {}


def refused(words: str) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        REFUSED[make.__name__.replace("_", "-")] = make, words
        return make

    return register


def bounded(make: Make) -> Make:
    BOUNDED[make.__name__.replace("_", "-")] = make
    return make


def value(name: str, dims: list[int | str] | None = None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, dims)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    initializers: list[onnx.TensorProto] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
    infos: list[onnx.ValueInfoProto] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        inputs if inputs is not None else [value("x", [4])],
        outputs if outputs is not None else [value("y", [4])],
        initializers or [],
        value_info=infos or [],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions or [])


def saved(folder: Path, proto: onnx.ModelProto, name: str = "m.onnx") -> str:
    (folder / name).write_bytes(proto.SerializeToString())
    return name


def tensor(name: str, dims: list[int], raw: bytes = b"", dtype: int = FLOAT) -> onnx.TensorProto:
    made = TensorProto(name=name, data_type=dtype, dims=dims)
    made.raw_data = raw
    return made


def constant(name: str, numbers: list[int] | np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(numbers, np.int64), name)


def _external(folder: Path, location: str, offset: str = "0", length: str = "16") -> str:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=text)
    return saved(folder, model([helper.make_node("Add", ["x", "w"], ["y"], name="n")], initializers=[weight]))


# external data --------------------------------------------------------------------------------------------------------


@refused("not allowed")
def external_data_above_the_folder(folder: Path) -> str:
    (folder / "sub").mkdir()
    (folder / "secret.bin").write_bytes(bytes(16))
    return f"sub/{_external(folder / 'sub', '../secret.bin')}"


@refused("not allowed")
def external_data_above_by_a_detour(folder: Path) -> str:
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "secret.bin").write_bytes(bytes(16))
    return f"sub/{_external(folder / 'sub', 'deep/../../secret.bin')}"


@refused("not allowed")
def external_data_at_an_absolute_path(folder: Path) -> str:
    return _external(folder, "/etc/hostname", length="4")


@refused("not allowed")
def external_data_through_a_link(folder: Path) -> str:
    (folder / "sub").mkdir()
    (folder / "secret.bin").write_bytes(bytes(16))
    (folder / "sub" / "w.bin").symlink_to(folder / "secret.bin")
    return f"sub/{_external(folder / 'sub', 'w.bin')}"


@refused("not allowed")
def external_data_through_a_linked_folder(folder: Path) -> str:
    (folder / "sub").mkdir()
    (folder / "secret.bin").write_bytes(bytes(16))
    (folder / "sub" / "up").symlink_to(folder)
    return f"sub/{_external(folder / 'sub', 'up/secret.bin')}"


@refused("hard link")
def external_data_through_a_hard_link(folder: Path) -> str:
    (folder / "secret.bin").write_bytes(bytes(16))
    (folder / "sub").mkdir()
    os.link(folder / "secret.bin", folder / "sub" / "w.bin")
    return f"sub/{_external(folder / 'sub', 'w.bin')}"


@refused("missing")
def external_data_in_a_pipe(folder: Path) -> str:
    os.mkfifo(folder / "w.bin")
    return _external(folder, "w.bin")


@refused("not allowed")
def external_data_in_a_folder(folder: Path) -> str:
    return _external(folder, ".")


@refused("too short")
def external_data_beyond_the_end(folder: Path) -> str:
    (folder / "w.bin").write_bytes(bytes(16))
    return _external(folder, "w.bin", offset=str(2**62))


@refused("no number from 0 on")
def external_data_before_the_beginning(folder: Path) -> str:
    (folder / "w.bin").write_bytes(bytes(16))
    return _external(folder, "w.bin", offset="-8")


@refused("no number from 0 on")
def external_data_at_no_number(folder: Path) -> str:
    (folder / "w.bin").write_bytes(bytes(16))
    return _external(folder, "w.bin", offset="many")


@refused("not allowed")
def external_data_with_a_nul_in_its_name(folder: Path) -> str:
    return _external(folder, "\0embedded", offset="0", length="16")


# sizes ----------------------------------------------------------------------------------------------------------------


def _weighted(folder: Path, weight: onnx.TensorProto) -> str:
    return saved(folder, model([helper.make_node("Add", ["x", "w"], ["y"], name="n")], initializers=[weight]))


@refused("'w'")
def a_weight_of_2_to_the_62(folder: Path) -> str:
    return _weighted(folder, tensor("w", [2**31, 2**31], bytes(16)))


@refused("'w'")
def a_weight_whose_size_overflows_to_its_data(folder: Path) -> str:
    return _weighted(folder, tensor("w", [2**32, 2**32, 4], bytes(16)))


@refused("'w'")
def a_weight_with_a_negative_dim(folder: Path) -> str:
    return _weighted(folder, tensor("w", [-4], bytes(16)))


@refused("'w'")
def a_weight_with_too_little_data(folder: Path) -> str:
    return _weighted(folder, tensor("w", [4], bytes(12)))


@refused("'w'")
def a_weight_with_too_much_data(folder: Path) -> str:
    return _weighted(folder, tensor("w", [4], bytes(20)))


@refused("'w'")
def a_large_weight_with_too_little_data(folder: Path) -> str:
    return _weighted(folder, tensor("w", [4096], bytes(8192)))


@refused("'w'")
def a_weight_of_numbers_with_too_few(folder: Path) -> str:
    made = TensorProto(name="w", data_type=FLOAT, dims=[4], float_data=[1.0])
    return _weighted(folder, made)


@refused("'w'")
def a_weight_of_2_to_the_40_without_data(folder: Path) -> str:
    return _weighted(folder, tensor("w", [2**40]))


@refused("'w'")
def a_weight_of_no_type(folder: Path) -> str:
    return _weighted(folder, tensor("w", [4], bytes(16), dtype=0))


@refused("")
def a_weight_of_an_unknown_type(folder: Path) -> str:
    return _weighted(folder, tensor("w", [4], bytes(16), dtype=4711))


@bounded
def an_input_of_2_to_the_62(folder: Path) -> str:
    huge: list[int | str] = [2**62]
    return saved(folder, model([helper.make_node("Relu", ["x"], ["y"])], [value("x", huge)], [value("y", huge)]))


@bounded
def an_input_whose_size_overflows(folder: Path) -> str:
    huge: list[int | str] = [2**32, 2**32, 3]
    nodes = [helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Flatten", ["t"], ["y"])]
    return saved(folder, model(nodes, [value("x", huge)], [value("y", None)]))


# what folding would make of it ----------------------------------------------------------------------------------------


def _explosion(
    folder: Path, op: str, inputs: list[str], initializers: list[onnx.TensorProto], **attributes: object
) -> str:
    nodes = [
        helper.make_node(op, inputs, ["big"], name="n", **attributes),  # type: ignore[arg-type]
        helper.make_node("Shape", ["big"], ["s"]),
        helper.make_node("ReduceSum", ["s"], ["r"], keepdims=0),
        helper.make_node("Cast", ["r"], ["c"], to=FLOAT),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    return saved(folder, model(nodes, initializers=initializers))


_ONE = onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")
_HUGE = 2**36


@bounded
def constant_of_a_huge_shape(folder: Path) -> str:
    return _explosion(folder, "ConstantOfShape", ["shape"], [constant("shape", [_HUGE])])


@bounded
def expand_to_a_huge_shape(folder: Path) -> str:
    return _explosion(folder, "Expand", ["one", "shape"], [_ONE, constant("shape", [_HUGE])])


@bounded
def tile_many_times(folder: Path) -> str:
    return _explosion(folder, "Tile", ["one", "shape"], [_ONE, constant("shape", [_HUGE])])


@bounded
def a_long_range(folder: Path) -> str:
    numbers = [constant(name, np.asarray(number)) for name, number in (("start", 0), ("end", _HUGE), ("step", 1))]
    return _explosion(folder, "Range", ["start", "end", "step"], numbers)


@bounded
def a_wide_pad(folder: Path) -> str:
    return _explosion(folder, "Pad", ["one", "pads"], [_ONE, constant("pads", [0, _HUGE])])


@bounded
def a_huge_resize(folder: Path) -> str:
    return _explosion(folder, "Resize", ["one", "", "", "sizes"], [_ONE, constant("sizes", [_HUGE])], mode="nearest")


@bounded
def a_deep_one_hot(folder: Path) -> str:
    numbers = [constant("i", [0]), constant("depth", np.asarray(_HUGE)), constant("values", [0, 1])]
    return _explosion(folder, "OneHot", ["i", "depth", "values"], numbers)


@bounded
def a_shape_whose_size_overflows(folder: Path) -> str:
    return _explosion(folder, "ConstantOfShape", ["shape"], [constant("shape", [2**32, 2**32, 16])])


@bounded
def squares_of_squares_of_a_product(folder: Path) -> str:
    """An outer product, of which one is made, and so on: 16 elements become 2**64."""
    nodes = []
    name = "v"
    for index in range(4):
        nodes += [
            helper.make_node("Reshape", [name, "column"], [f"c{index}"]),
            helper.make_node("Reshape", [name, "row"], [f"r{index}"]),
            helper.make_node("Mul", [f"c{index}", f"r{index}"], [f"p{index}"]),
            helper.make_node("Reshape", [f"p{index}", "flat"], [f"v{index}"]),
        ]
        name = f"v{index}"
    nodes += [
        helper.make_node("ReduceSum", [name], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    numbers = [constant("column", [-1, 1]), constant("row", [1, -1]), constant("flat", [-1])]
    start = onnx.numpy_helper.from_array(np.ones(16, np.float32), "v")
    return saved(folder, model(nodes, initializers=[start, *numbers]))


# structure ------------------------------------------------------------------------------------------------------------


@refused("")
def sub_graphs_thousands_deep(folder: Path) -> str:
    """Written by hand: the message is deeper than what protobuf's own reader and writer take."""

    def field(number: int, contents: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(contents)) + contents

    graph = field(1, field(1, b"x") + field(2, b"y") + field(4, b"Relu"))
    for _ in range(3000):
        attribute = field(1, b"then_branch") + field(6, graph) + varint(20 << 3) + varint(5)
        graph = field(1, field(1, b"x") + field(2, b"y") + field(4, b"If") + field(5, attribute))
    opset = field(8, varint(2 << 3) + varint(18))
    (folder / "m.onnx").write_bytes(varint(1 << 3) + varint(10) + opset + field(7, graph))
    return "m.onnx"


@bounded
def sub_graphs_that_just_pass(folder: Path) -> str:
    """As deep as protobuf reads them."""
    condition = onnx.numpy_helper.from_array(np.asarray(True), "c")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "g", [], [value("t", [4])])
    for index in range(20):
        node = helper.make_node(
            "If", ["c"], [f"o{index}"], then_branch=graph, else_branch=graph if index < 8 else _leaf()
        )
        graph = helper.make_graph([node], f"g{index}", [], [value(f"o{index}", [4])])
    nodes = [*graph.node, helper.make_node("Relu", [graph.output[0].name], ["y"])]
    return saved(folder, model(nodes, initializers=[condition]))


def _leaf() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "leaf", [], [value("n", [4])])


@bounded
def a_chain_of_many_nodes(folder: Path) -> str:
    names = ["x", *(f"t{index}" for index in range(4000)), "y"]
    nodes = [helper.make_node("Sin", [a], [b]) for a, b in itertools.pairwise(names)]
    return saved(folder, model(nodes))


def _function(name: str, *calls: str) -> onnx.FunctionProto:
    names = ["a", *(f"t{index}" for index in range(len(calls) - 1)), "b"]
    nodes = [
        helper.make_node(call, [before], [after], domain="f" if call != "Neg" else "")
        for call, before, after in zip(calls, names, names[1:], strict=False)
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, ["a"], ["b"], nodes, opsets)


@refused("calls itself")
def a_function_that_calls_itself(folder: Path) -> str:
    nodes = [helper.make_node("F", ["x"], ["y"], domain="f")]
    return saved(folder, model(nodes, functions=[_function("F", "F", "Neg")]))


@refused("calls itself")
def functions_that_call_each_other(folder: Path) -> str:
    nodes = [helper.make_node("F", ["x"], ["y"], domain="f")]
    functions = [_function("F", "G", "Neg"), _function("G", "H"), _function("H", "F")]
    return saved(folder, model(nodes, functions=functions))


@refused("stands for")
def functions_that_double_thirty_times(folder: Path) -> str:
    functions = [_function("F0", "Neg", "Neg")]
    functions += [_function(f"F{index}", f"F{index - 1}", f"F{index - 1}") for index in range(1, 30)]
    return saved(folder, model([helper.make_node("F29", ["x"], ["y"], domain="f")], functions=functions))


@refused("cycle")
def nodes_in_a_cycle(folder: Path) -> str:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    return saved(folder, model([*nodes, helper.make_node("Relu", ["b"], ["y"])]))


# names ----------------------------------------------------------------------------------------------------------------


def _renamed(folder: Path, old: bytes, new: bytes) -> str:
    data = model([helper.make_node("Relu", ["x"], ["y"], name="node_name")]).SerializeToString()
    assert len(old) == len(new) and old in data
    (folder / "m.onnx").write_bytes(data.replace(old, new))
    return "m.onnx"


@refused("")
def a_name_that_is_not_utf_8(folder: Path) -> str:
    return _renamed(folder, b"node_name", b"node\xff\xfe\xfd\xfc\xfb")


@refused("")
def an_operator_that_is_not_utf_8(folder: Path) -> str:
    return _renamed(folder, b"Relu", b"\xff\xfe\xfd\xfc")


@refused("")
def a_value_defined_twice(folder: Path) -> str:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])]
    return saved(folder, model(nodes))


@refused("")
def two_inputs_of_one_name(folder: Path) -> str:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    return saved(folder, model(nodes, [value("x", [4]), value("x", [4])]))


@bounded
def nodes_of_one_name(folder: Path) -> str:
    nodes = [helper.make_node("Sin", ["x"], ["t"], name="n"), helper.make_node("Cos", ["t"], ["y"], name="n")]
    return saved(folder, model(nodes))


@bounded
def a_name_that_leaves_the_folder(folder: Path) -> str:
    nodes = [helper.make_node("Sin", ["x"], ["../../t"], name="../../../n")]
    return saved(folder, model([*nodes, helper.make_node("Cos", ["../../t"], ["y"])]))


@refused("\\x1b[2J")
def a_name_that_controls_the_terminal(folder: Path) -> str:
    return saved(folder, model([helper.make_node("Relu", ["x", "x"], ["y"], name="a\x1b[2Jb")]))


@bounded
def an_operator_that_controls_the_terminal(folder: Path) -> str:
    return saved(folder, model([helper.make_node("Unheard\x1b[31mOf", ["x"], ["y"])]))


# lies -----------------------------------------------------------------------------------------------------------------


@bounded
def inner_shapes_that_contradict(folder: Path) -> str:
    nodes = [helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Neg", ["t"], ["y"])]
    return saved(folder, model(nodes, infos=[value("t", [7, 7])]))


@bounded
def inner_types_that_contradict(folder: Path) -> str:
    nodes = [helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Neg", ["t"], ["y"])]
    return saved(folder, model(nodes, infos=[value("t", [4], INT64)]))


@bounded
def an_output_that_contradicts(folder: Path) -> str:
    return saved(folder, model([helper.make_node("Relu", ["x"], ["y"])], outputs=[value("y", [2**60, 3])]))
