"""Emission: claims by kernel census, by schema alone, and back to parts; nothing of the fused domain is left."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir
import pytest

from optc.backends import ort_kernels
from optc.backends.tensorrt import operators
from optc.ir.functions import FUSED_DOMAIN
from optc.ir.model import load
from optc.ir.names import split_op
from optc.ir.targets import builtin_targets
from optc.passes.emit.claims import CLAIMS, TENSORRT, Realisation, Recipe
from optc.passes.fusion.fuse import fusions
from optc.passes.fusion.qdq import KINDS, TO_FLOAT
from optc.passes.manager import PassManager
from optc.passes.pipeline import parse_pipeline
from optc.passes.registry import pass_registry
from optc.passes.rule import FusionRule

GELU = """
<ir_version: 8, opset_import: ["": {opset}]>
g ({dtype}[B,8] x) => ({dtype}[B,8] y)
<{dtype}[8] bias = {{{bias}}}, {dtype} root = {{{root}}}, {dtype} one = {{{one}}}, {dtype} half = {{{half}}}>
{{
   [add0] b = Add (x, bias)
   [div] d = Div (b, root)
   [erf] e = Erf (d)
   [add] a = Add (e, one)
   [mul1] m = Mul (b, a)
   [mul2] y = Mul (m, half)
}}
"""


def _gelu(opset: int = 17, dtype: str = "float") -> onnx.ModelProto:
    numbers = {"root": "1.4142135", "one": "1", "half": "0.5", "bias": ", ".join("12345678")}
    if dtype == "float16":
        numbers = {"root": "15784", "one": "15360", "half": "14336", "bias": ", ".join(["15360"] * 8)}
    return onnx.parser.parse_model(GELU.format(opset=opset, dtype=dtype, **numbers))


class Only:
    """A census in which only some operators have kernels."""

    def __init__(self, *ops: str) -> None:
        self.ops, self.asked = ops, []

    def supports(self, domain, op, opset_version, dtypes, provider):
        self.asked.append((domain, op, opset_version, dict(dtypes), provider))
        return (f"{domain}::{op}" if domain else op) in self.ops


def _emit(model, kernels=None, target="cpu", pipeline="fuse,emit"):
    services = {} if kernels is None else {"kernels": kernels}
    manager = PassManager(builtin_targets()[target], services, strict=True)
    result = manager.run(load(model), parse_pipeline(pipeline, pass_registry()))
    assert not any(node.domain == FUSED_DOMAIN for graph in result.model.graphs() for node in graph)
    assert not any(domain == FUSED_DOMAIN for domain, _, _ in result.model.functions)
    assert FUSED_DOMAIN not in result.model.graph.opset_imports
    return result


def _ops(result) -> list[str]:
    return [
        f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in result.model.graph if n.op_type != "Constant"
    ]


def test_first_kernel_that_there_is():
    assert _ops(_emit(_gelu(), Only("com.microsoft::BiasGelu", "com.microsoft::Gelu"))) == ["com.microsoft::BiasGelu"]


def test_unclaimed_op_falls_apart_into_claimed_ones():
    """Without BiasGelu the bias is an Add again, and the Gelu inside is still claimed."""
    assert _ops(_emit(_gelu(), Only("com.microsoft::Gelu"))) == ["Add", "com.microsoft::Gelu"]


def test_no_kernel_at_all():
    """Then the graph is what it was: nodes, names and provenance."""
    result = _emit(_gelu(), Only())
    original = load(_gelu())
    assert [(n.name, n.op_type, [v.name for v in n.outputs], dict(n.metadata_props)) for n in result.model.graph] == [
        (n.name, n.op_type, [v.name for v in n.outputs], dict(n.metadata_props)) for n in original.graph
    ]
    remarks = [remark for record in result.records for remark in record.remarks]
    assert [remark.what for remark in remarks] == ["1 x BiasGelu (float)", "1 x Gelu (float)"]
    assert all("CPUExecutionProvider" in remark.reason for remark in remarks)


@pytest.mark.parametrize(("opset", "ops"), [(19, ["Add", "Div", "Erf", "Add", "Mul", "Mul"]), (20, ["Add", "Gelu"])])
def test_without_a_census_only_standard_operators(opset, ops):
    assert _ops(_emit(_gelu(opset))) == ops


def test_standard_operator_needs_its_opset():
    """Even where the runtime has a kernel, a model of an older opset cannot name the operator."""
    kernels = Only("Gelu")
    assert "Gelu" not in _ops(_emit(_gelu(19), kernels))
    assert ("", "Gelu") not in [asked[:2] for asked in kernels.asked]
    assert _ops(_emit(_gelu(20), kernels)) == ["Add", "Gelu"]


def test_census_is_asked_for_the_types_and_the_provider():
    kernels = Only()
    _emit(_gelu(dtype="float16"), kernels, target="a100")
    domain, op, opset, dtypes, provider = kernels.asked[0]
    assert (domain, op, opset, provider) == ("com.microsoft", "BiasGelu", 1, "CUDAExecutionProvider")
    assert {name: dtype.name for name, dtype in dtypes.items()} == {"T": "FLOAT16"}


def test_slow_kernels_are_left_alone_unless_asked_for():
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[B,4] x) => (float[B,4] y) <float[4,4] w, float[4] b> {
           g = Gemm (x, w, b)
           y = Relu (g)
        }""")
    for value in model.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        tensor = onnx.helper.make_tensor(value.name, 1, shape, [0.5] * (4 ** len(shape)))
        model.graph.initializer.append(tensor)
    assert _ops(_emit(model, ort_kernels)) == ["Gemm", "Relu"]
    assert _ops(_emit(model, ort_kernels, pipeline="fuse,emit{slow=true}")) == ["com.microsoft::FusedGemm"]


def test_every_fused_op_has_a_row():
    made = {rule.op for rule in fusions().values() if isinstance(rule, FusionRule)}
    assert made | {kind.fused for kind in (*KINDS.values(), *TO_FLOAT.values())} == set(CLAIMS)


@pytest.mark.parametrize("op", sorted(CLAIMS))
def test_rows_name_real_operators(op):
    """Whatever a row names is known to the runtime that it is for, with the type variables that the row names."""
    for row in CLAIMS[op]:
        if isinstance(row, Recipe):
            for domain, name in map(split_op, row.ops):
                kernels = operators if row.only_on == {TENSORRT} else ort_kernels
                dtype = onnx_ir.DataType.FLOAT
                assert kernels.supports(domain, name, 1 if domain else max(row.since, 17), dtype)
            continue
        assert isinstance(row, Realisation)
        version = max(row.since, 17) if not row.domain else 1
        schema = ort_kernels._schema(row.domain, row.op, version)
        assert schema is not None, row.op
        assert set(row.types) <= set(schema.types), row.op
        assert max(row.outputs) < len(schema.outputs), row.op
