"""The tables of :mod:`optc.ir.opset` against ONNX's own schemas, and what nodes are adapted to."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import onnxruntime
import pytest

from optc.ir.errors import PassError
from optc.ir.model import load
from optc.ir.opset import CHANGED, KEPT, NEWEST, OLDEST, REFUSED, obstacle, raise_opset
from optc.ir.rewriter import Rewriter
from optc.ir.saving import to_proto

_SCHEMAS: dict[str, list[onnx.defs.OpSchema]] = {}
for _schema in onnx.defs.get_all_schemas_with_history():
    if _schema.domain == "" and _schema.since_version <= NEWEST:
        _SCHEMAS.setdefault(_schema.name, []).append(_schema)
#: (operator, version) -> its schemas before and from that version on.
STEPS = {
    (op, new.since_version): (old, new)
    for op, schemas in _SCHEMAS.items()
    for old, new in pairwise(sorted(schemas, key=lambda schema: schema.since_version))
    if new.since_version > OLDEST
}
KEPT_STEPS = sorted((op, version) for op, versions in KEPT.items() for version in versions)


def test_every_step_is_in_one_table():
    listed = [*KEPT_STEPS, *CHANGED, *REFUSED]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(STEPS)


def _differences(old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> list[str]:
    """What a node that is valid for the old schema could miss in the new one, or find changed."""
    found = ["deprecated"] if new.deprecated else []
    types = [{c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints} for schema in (old, new)]
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    for before, after in ((old.inputs, new.inputs), (old.outputs, new.outputs)):
        found += [f"{one.name} is gone" for one in before[len(after) :]]
        found += [f"{one.name} is needed" for one in after[len(before) :] if one.option not in (optional, variadic)]
        for a, b in zip(before, after, strict=False):
            if a.option != b.option and b.option != optional:
                found.append(f"{b.name} is {b.option}")
            if not types[0].get(a.type_str, {a.type_str}) <= types[1].get(b.type_str, {b.type_str}):
                found.append(f"{b.name} takes fewer types")
    for name, attr in old.attributes.items():
        if name not in new.attributes:
            found.append(f"{name} is gone")
        elif new.attributes[name].type != attr.type or (new.attributes[name].required and not attr.required):
            found.append(f"{name} is another")
        elif not attr.required and _default(new.attributes[name]) != _default(attr):
            found.append(f"the default of {name} changed")
    found += [
        f"{name} is needed" for name, attr in new.attributes.items() if attr.required and name not in old.attributes
    ]
    return found


def _default(attr) -> bytes:
    return attr.default_value.SerializeToString()


@pytest.mark.parametrize(("op", "version"), KEPT_STEPS)
def test_kept_steps_only_add(op, version):
    assert _differences(*STEPS[op, version]) == []


@pytest.mark.parametrize(("op", "version"), [("ReduceMax", 18), ("Softmax", 13), ("Unsqueeze", 13), ("GridSample", 20)])
def test_the_check_of_kept_steps_can_fail(op, version):
    assert _differences(*STEPS[op, version])


def test_defaults_of_what_was_added_do_nothing():
    """A new attribute with a default does what the operator did before; each was looked at."""
    added = {
        (name, _plain(new.attributes[name].default_value))
        for op, version in KEPT_STEPS
        for old, new in [STEPS[op, version]]
        for name in set(new.attributes) - set(old.attributes)
        if _default(new.attributes[name])
    }
    assert added == {
        ("allowzero", 0),
        ("axis", 1),  # of a scale per channel, where before there was one scale only
        ("batch_dims", 0),
        ("block_size", 0),
        ("ceil_mode", 0),
        ("layout", 0),
        ("mode", b"DCR"),
        ("output_dtype", 0),
        ("precision", 0),
        ("reduction", b"none"),
        ("saturate", 1),  # for 8-bit floats, which are new as well
        ("select_last_index", 0),
        ("largest", 1),
        ("sorted", 1),
        ("start", 0),
        ("storage_order", 0),
    }


def _plain(attribute):
    return onnx.helper.get_attribute_value(attribute)


# nodes ----------------------------------------------------------------------------------------------------------------


def _model(opset: int, body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]>\n{body}')


def _raised(model: onnx.ModelProto, version: int = NEWEST) -> onnx.ModelProto:
    loaded = load(model)
    raise_opset(Rewriter(loaded), version)
    result = to_proto(loaded)
    onnx.checker.check_model(result, full_check=True)
    assert {entry.domain: entry.version for entry in result.opset_import}[""] == version
    return result


def _run(model: onnx.ModelProto) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    return session.run(None, {i.name: rng.standard_normal((2, 3, 4), np.float32) for i in session.get_inputs()})


@pytest.mark.parametrize(
    ("opset", "node", "ops"),
    [
        (11, "y = ReduceMean <axes = [1, 2], keepdims = 0> (x)", ["ReduceMean"]),
        (17, "y = ReduceMax <axes = [-1]> (x)", ["ReduceMax"]),
        (13, "y = ReduceL2 <keepdims = 0> (x)", ["ReduceL2"]),
        (12, "y = ReduceSum <axes = [0]> (x)", ["ReduceSum"]),
        (11, "a = Unsqueeze <axes = [0, 2]> (x)  y = Squeeze <axes = [2]> (a)", ["Unsqueeze", "Squeeze"]),
        (12, "a = Unsqueeze <axes = [0, 2]> (x)  y = Squeeze (a)", ["Unsqueeze", "Squeeze"]),
        (11, "y, z = Split <axis = 2, split = [1, 3]> (x)", ["Split"]),
        (12, "y, z = Split <axis = 2> (x)", ["Split"]),
        (13, "y, z = Split <axis = 2> (x)", ["Split"]),
        (12, "y = Softmax <axis = 2> (x)", ["Softmax"]),
        (7, "y = LogSoftmax <axis = 2> (x)", ["LogSoftmax"]),
        (11, "y = Hardmax <axis = -1> (x)", ["Hardmax"]),
        (10, "y = Clip <min = -0.5, max = 0.25> (x)", ["Clip"]),
        (10, "y = Clip <max = 0.25> (x)", ["Clip"]),
        (10, "y = Pad <pads = [0, 1, 0, 0, 0, 2], value = 1.5> (x)", ["Pad"]),
        (10, 'y = Pad <mode = "reflect", pads = [0, 1, 0, 0, 0, 2]> (x)', ["Pad"]),
        (9, "y = Slice <starts = [1, 0], ends = [3, -1], axes = [1, 2]> (x)", ["Slice"]),
        (9, "y = Slice <starts = [1], ends = [2]> (x)", ["Slice"]),
        (9, "y, z = TopK <k = 2> (x)", ["TopK"]),
        (9, "y = Erf (x)", ["Erf"]),
        (7, "y = Dropout <ratio = 0.4> (x)", ["Dropout"]),
        (11, "y = Dropout <ratio = 0.4> (x)", ["Dropout"]),
        (12, "y = MaxPool <kernel_shape = [2]> (x)", ["MaxPool"]),
        (11, 'y = AveragePool <kernel_shape = [3], auto_pad = "SAME_UPPER"> (x)', ["AveragePool"]),
    ],
)
def test_adapted_nodes_compute_the_same(opset, node, ops):
    outputs = ["y", "z"] if "y, z" in node else ["y"]
    results = ", ".join(f"{'int64' if 'TopK' in node and name == 'z' else 'float'}[] {name}" for name in outputs)
    model = _model(opset, f"g (float[2,3,4] x) => ({results}) {{ {node} }}")
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    wanted = _run(model)
    for output, array in zip(model.graph.output, wanted, strict=True):
        output.type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=dim) for dim in array.shape)
    raised = _raised(model)
    assert [n.op_type for n in raised.graph.node] == ops
    for a, b in zip(wanted, _run(raised), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sub_graphs_are_raised_too():
    model = _model(
        13,
        """g (float[2,3,4] x) => (float[2,1,4] y) {
            none = ReduceSum <keepdims = 0> (x)
            zero = Sub (none, none)
            yes = Equal (zero, none)
            y = If (yes) <
                then_branch = a () => (float[2,1,4] p) { p = ReduceMax <axes = [1]> (x) },
                else_branch = b () => (float[2,1,4] q) { q = ReduceMin <axes = [1]> (x) }
            >
        }""",
    )
    for a, b in zip(_run(model), _run(_raised(model)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("opset", "outputs", "node", "reason"),
    [
        (11, "float[2,3,4] y", "Softmax <axis = 1> (x)", "'y' (Softmax): opset 13: before, all axes from `axis` on"),
        (10, "float[2,3,4] y, bool[2,3,4] m", "Dropout (x)", "'y' (Dropout): opset 12: its mask is read"),
        (12, "float[2,3,2] y", "MaxPool <kernel_shape = [2], ceil_mode = 1> (x)", "'y' (MaxPool): opset 22: what the"),
        (9, "float[2,3,4] y", "Upsample (x, k)", "'y' (Upsample): opset 10 has it no more"),
        (16, "float[2,3,4] y", "Gelu (x)", "'y' (Gelu): ONNX has no such operator in opset 16"),
        (12, "float[2,3,4] y", "x", "'e' (Erf): opset 13: the type of its input must be a float"),
    ],
)
def test_what_is_in_the_way_is_named_and_nothing_changes(opset, outputs, node, reason):
    names = ", ".join(output.split()[1] for output in outputs.split(", "))
    body = f"[y] {names} = {node}" if node != "x" else "y = Identity (x) i = Shape (x) [e] e = Erf (i)"
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g (float[2,3,4] x, float[3] k) => ({outputs}) {{ {body} }}'
    model = onnx_ir.from_onnx_text(text)
    rewriter = Rewriter(model)
    before = onnx_ir.to_proto(model).SerializeToString()
    assert (obstacle(model, rewriter.facts, NEWEST) or "").startswith(reason)
    with pytest.raises(PassError):
        raise_opset(rewriter, NEWEST)
    assert onnx_ir.to_proto(model).SerializeToString() == before


def test_old_and_future_opsets_are_left_alone():
    for opset, version in ((6, 23), (17, 24), (23, 20)):
        loaded = load(_model(opset, "g (float[2,3,4] x) => (float[2,3,4] y) { y = Relu (x) }"))
        assert "cannot be raised" in (obstacle(loaded, Rewriter(loaded).facts, version) or "")
