"""Tensors whose data is not what they say are refused, wherever they stand."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optc.ir.errors import ModelError
from optc.ir.model import load
from optc.ir.tensor_protos import problem

WRONG: dict[str, Callable[[TensorProto], None]] = {
    "has no element type": lambda t: setattr(t, "data_type", 0),
    "has dims": lambda t: t.dims.__setitem__(0, -2),
    "has 65 dims": lambda t: t.dims.extend([1] * 63),
    "holds 24 bytes; its type and dims need 32": lambda t: t.dims.__setitem__(1, 4),
    "holds int32_data, not float_data": lambda t: t.int32_data.append(1),
    "holds 1 numbers; its type and dims need 6": lambda t: (t.ClearField("raw_data"), t.float_data.append(1.0)),
}


@pytest.mark.parametrize("words", WRONG)
@pytest.mark.parametrize("where", ["initializer", "attribute", "sub-graph"])
def test_refused(words: str, where: str) -> None:
    tensor = numpy_helper.from_array(np.ones((2, 3), np.float32), "c")
    WRONG[words](tensor)
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    nodes, kept = ([], [tensor]) if where == "initializer" else ([constant], [])
    y = helper.make_tensor_value_info("y", 1, None)
    if where == "sub-graph":
        branch = helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info("c", 1, None)])
        nodes, kept = [helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)], []
        x = helper.make_tensor_value_info("x", TensorProto.BOOL, [])
    else:
        nodes, x = [*nodes, helper.make_node("Add", ["x", "c"], ["y"])], helper.make_tensor_value_info("x", 1, [2, 3])
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], kept))
    with pytest.raises(ModelError, match=f"tensor 'c' {words}"):
        load(model)


@pytest.mark.parametrize(
    "kind",
    [
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        np.complex64,
        np.int8,
        np.uint64,
        np.bool_,
        ml_dtypes.int4,
        np.float64,
    ],
)
def test_good_ones_are_taken(kind: type) -> None:
    array = np.ones((3, 3), kind)
    raw = numpy_helper.from_array(array, "c")
    assert problem(raw) is None
    if array.dtype.kind != "b" and array.dtype.name != "int4":
        assert problem(helper.make_tensor("c", raw.data_type, [3, 3], array.reshape(-1))) is None


def test_texts() -> None:
    texts = helper.make_tensor("c", TensorProto.STRING, [2], [b"a", b"b"])
    assert problem(texts) is None
    texts.dims[0] = 3
    assert problem(texts) == "holds 2 texts, not 3"


def test_an_opset_that_cannot_be() -> None:
    x, y = (helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
    model = helper.make_model(helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y]))
    model.opset_import[0].version = 2**40
    with pytest.raises(ModelError, match="imports version"):
        load(onnx.load_from_string(model.SerializeToString()))


def test_of_a_domain_that_is_imported_twice_the_last_version_holds() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    imports = [onnx.helper.make_opsetid("", 0), onnx.helper.make_opsetid("", 17)]
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y]), opset_imports=imports, ir_version=8)
    assert load(proto).graph.opset_imports[""] == 17
