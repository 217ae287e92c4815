"""The kernel census says what onnxruntime does: checked against onnxruntime itself."""

from __future__ import annotations

import itertools

import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from optc.backends import ort_cuda, ort_kernels
from optc.backends.base import OpSignature
from optc.backends.ort import Session
from optc.ir.errors import BackendError

DTYPES = [
    onnx_ir.DataType[name]
    for name in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT64", "INT32", "INT8", "UINT8", "UINT16", "BOOL")
]
OPS = [
    *[
        ("", op, 1)
        for op in ("Relu", "Neg", "Erf", "Exp", "Sigmoid", "Gelu", "HardSwish", "Mish", "Floor", "Not", "Round")
    ],
    *[("", op, 2) for op in ("Add", "Mul", "MatMul", "Pow", "Min", "BitwiseAnd", "And")],
    *[("com.microsoft", op, 1) for op in ("FastGelu", "QuickGelu", "Gelu")],
]


def opens(domain: str, op: str, inputs: int, dtype: onnx_ir.DataType, opset: int) -> bool:
    names = ["a", "b"][:inputs]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], domain=domain)],
        "g",
        [helper.make_tensor_value_info(name, int(dtype), [2, 2]) for name in names],
        [helper.make_tensor_value_info("y", int(dtype), None)],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    try:
        Session(helper.make_model(graph, opset_imports=imports, ir_version=10), optimization="off", threads=1)
    except BackendError:
        return False
    return True


@pytest.mark.parametrize(("domain", "op", "inputs"), OPS)
@pytest.mark.parametrize("opset", [13, 17, 22])
def test_the_census_agrees_with_what_onnxruntime_opens(domain, op, inputs, opset):
    wrong = []
    for dtype in DTYPES:
        version = opset if domain == "" else 1
        said = ort_kernels.how(OpSignature(domain, op, version, (dtype,) * inputs, (dtype,)))
        if said == "function":  # the ops inside are not checked
            continue
        if (said is not None) != opens(domain, op, inputs, dtype, opset):
            wrong.append((dtype.name, said))
    # com.microsoft functions are inlined too, but the registry does not tell them from ops without a kernel.
    assert [entry for entry in wrong if not (domain and entry[1] is None)] == []


def test_a_few_facts():
    assert ort_kernels.supports("", "Add", 22, "float32")
    assert ort_kernels.supports("ai.onnx", "Add", 14, {"T": onnx_ir.DataType.INT8})
    assert not ort_kernels.supports("", "Add", 13, {"T": onnx_ir.DataType.INT8})
    assert not ort_kernels.supports("", "Add", 22, "bfloat16")
    assert not ort_kernels.supports("", "Gelu", 19)
    assert not ort_kernels.supports("", "NoSuchOp", 22)
    assert ort_kernels.supports("com.microsoft", "MatMulNBits", 1, {"T1": "float32", "T2": "uint8"})
    assert ort_kernels.supports("com.microsoft", "MatMulNBits", 1, {"A": "float32", "B": "uint8"})
    assert not ort_kernels.supports("com.microsoft", "MatMulNBits", 1, {"T1": "float32", "T2": "int8"})
    assert not ort_kernels.supports("com.microsoft", "MatMulNBits", 1, {"B": "int8"})


def test_a_type_variable_that_does_not_exist_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="no type variable X9; it has T1, T2"):
        ort_kernels.supports("com.microsoft", "MatMulNBits", 1, {"X9": "float32"})


def test_half_without_a_kernel_is_cast():
    half, single = onnx_ir.DataType.FLOAT16, onnx_ir.DataType.FLOAT
    assert ort_kernels.how(OpSignature("", "Erf", 13, (single,), (single,))) == "kernel"
    assert ort_kernels.how(OpSignature("", "Erf", 13, (half,), (half,))) == "cast"
    assert ort_kernels.how(OpSignature("", "Erf", 13, (onnx_ir.DataType.DOUBLE,))) is None


def test_ops_that_are_functions():
    # GroupNormalization has no CPU kernel; the standard defines it by other ops.
    single = onnx_ir.DataType.FLOAT
    assert ort_kernels.how(OpSignature("", "GroupNormalization", 21, (single,) * 3, (single,))) == "function"


def test_unknown_types_are_taken_to_fit():
    assert ort_kernels.how(OpSignature("", "Relu", 17, (None,), (None,))) == "kernel"


def test_variadic_operands_are_all_checked():
    single, text = onnx_ir.DataType.FLOAT, onnx_ir.DataType.COMPLEX64
    assert ort_kernels.how(OpSignature("", "Concat", 17, (single, single, single))) == "kernel"
    assert ort_kernels.how(OpSignature("", "Concat", 17, (single, single, text))) is None


def test_limits_are_those_at_which_onnxruntime_refuses():
    opset, ir_version = ort_kernels.max_opset(), ort_kernels.max_ir_version()
    assert opset >= 21
    assert ir_version >= 10
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    Session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version))
    for newer in ((opset + 1, ir_version), (opset, ir_version + 1)):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", newer[0])], ir_version=newer[1])
        with pytest.raises(BackendError):
            Session(model)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="the registry is asked")
def test_the_assumption_about_cuda():
    def supports(op, dtypes=None, domain="com.microsoft"):
        return ort_kernels.supports(domain, op, 1 if domain else 22, dtypes, provider=ort_kernels.CUDA)

    assert supports("MatMulNBits", {"T1": "float16", "T2": "uint8"})
    assert supports("SkipLayerNormalization", "bfloat16")
    assert not supports("GroupQueryAttention", "float32")
    assert not supports("QGemm")
    assert supports("Relu", "float16", domain="")
    assert not ort_kernels.supports("com.microsoft", "Gelu", 1, provider="OtherExecutionProvider")


def test_the_cuda_table_names_ops_and_type_variables_that_exist():
    schemas = ort_kernels._schemas()
    for op, types in ort_cuda.CUDA_CONTRIB.items():
        # Ops that only GPU builds register have no schema here.
        for schema in schemas.get(("com.microsoft", op), []):
            assert set(types) <= set(schema.types), op
            for name, texts in types.items():
                assert texts <= schema.types[name], (op, name)
    known = [op for op in ort_cuda.CUDA_CONTRIB if ("com.microsoft", op) in schemas]
    assert len(known) > 25


def test_the_census_is_read_once_and_fast():
    ort_kernels.supports("", "Add", 22, "float32")
    assert ort_kernels._kernels() is ort_kernels._kernels()
    assert len(list(itertools.chain.from_iterable(ort_kernels._kernels().values()))) > 500
