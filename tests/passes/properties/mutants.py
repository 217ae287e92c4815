"""Models a little different from a seed: other shapes, types and constants, other readers, other wiring.

A mutation takes a model and a source of chance, and changes the model in place or leaves it alone where it has nothing
to work on. What comes out need not be valid: whether ONNX Runtime takes the mutant is the judge's question.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from optc.ir.pattern import COMMUTATIVE

#: Types that float models come in.
FLOAT_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_FLOATS = (TensorProto.FLOAT, *FLOAT_TYPES)
#: What a constant's value is multiplied by, or what is added to it.
_NUDGES: tuple[tuple[float, float], ...] = ((1.01, 0.0), (1.0, 1e-3), (-1.0, 0.0), (2.0, 0.0), (0.0, 0.0))
#: Operators that can stand for each other.
_KIN = (
    ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"),
    ("Relu", "Sigmoid", "Tanh", "Erf", "Neg", "Abs", "Identity", "Softplus", "HardSwish", "Sqrt", "Exp"),
    ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceSumSquare"),
    ("And", "Or", "Xor"),
    ("Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"),
    ("MaxPool", "AveragePool"),
    ("GlobalAveragePool", "GlobalMaxPool"),
    ("Softmax", "LogSoftmax"),
    ("Squeeze", "Unsqueeze"),
    ("Reshape", "Expand", "Tile"),
    ("Floor", "Ceil", "Round"),
)


def mutate(model: onnx.ModelProto, rng: random.Random, most: int = 3) -> tuple[onnx.ModelProto, list[str]]:
    """A mutant, and the names of the mutations that it went through."""
    mutant = onnx.ModelProto()
    mutant.CopyFrom(model)
    names = [rng.choice(sorted(MUTATIONS)) for _ in range(rng.randint(0, most))]
    for name in names:
        MUTATIONS[name](mutant, rng)
    if names:
        forget(mutant)
    return mutant, names


def forget(model: onnx.ModelProto) -> None:
    """Drop what the model says of its values beyond the types: a mutation may have made it untrue."""
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    known = {name for node in all_nodes(model.graph) for name in node.output}
    for value in [v for v in model.graph.value_info if v.name in known]:
        model.graph.value_info.remove(value)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and its sub-graphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """All nodes, those of sub-graphs too."""
    return [node for one in graphs(graph) for node in one.node]


# operands ---------------------------------------------------------------------------------------------------------


def commute(model: onnx.ModelProto, rng: random.Random) -> None:
    """Swap the operands of some commutative nodes."""
    for node in all_nodes(model.graph):
        if node.op_type in COMMUTATIVE and len(node.input) == 2 and rng.random() < 0.5:
            node.input[0], node.input[1] = node.input[1], node.input[0]


def rewire(model: onnx.ModelProto, rng: random.Random) -> None:
    """Let one input of a node read something else that is computed before it."""
    node = _pick(rng, [n for n in model.graph.node if n.input])
    if node is None:
        return
    before = [value.name for value in model.graph.input]
    for other in model.graph.node:
        if other is node:
            break
        before += [name for name in other.output if name]
    index = rng.randrange(len(node.input))
    node.input[index] = rng.choice(before) if before else node.input[index]


def share(model: onnx.ModelProto, rng: random.Random) -> None:
    """Let an inner value be an output, or be read by one more node whose result is an output."""
    outputs = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in outputs]
    name = _pick(rng, names)
    if name is None:
        return
    try:
        known = onnx.shape_inference.infer_shapes(model)
    except Exception:
        return
    kind = next((v.type.tensor_type.elem_type for v in known.graph.value_info if v.name == name), 0)
    if not kind:
        return
    if rng.random() < 0.5:
        again = f"{name}_again"
        model.graph.node.append(helper.make_node("Identity", [name], [again], name=again))
        name = again
    model.graph.output.append(helper.make_tensor_value_info(name, kind, None))


def another_op(model: onnx.ModelProto, rng: random.Random) -> None:
    """Let a node be of another operator that takes as many operands."""
    places = [(node, kin) for node in all_nodes(model.graph) for kin in _KIN if node.op_type in kin]
    chosen = _pick(rng, places)
    if chosen is not None and chosen[0].domain in ("", "ai.onnx"):
        node, kin = chosen
        node.op_type = rng.choice([op for op in kin if op != node.op_type])


def duplicate(model: onnx.ModelProto, rng: random.Random) -> None:
    """Make a node twice; some of its readers read the other one."""
    node = _pick(rng, [n for n in model.graph.node if n.output and n.output[0]])
    if node is None:
        return
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.name = f"{node.name or node.op_type}_twin"
    others = {name: f"{name}_twin" for name in node.output if name}
    for index, name in enumerate(twin.output):
        twin.output[index] = others.get(name, name)
    for reader in model.graph.node:
        for index, name in enumerate(reader.input):
            if name in others and rng.random() < 0.5:
                reader.input[index] = others[name]
    at = list(model.graph.node).index(node)
    model.graph.node.insert(at + 1, twin)


def bypass(model: onnx.ModelProto, rng: random.Random) -> None:
    """Take a node out: what read its result reads one of its inputs."""
    ends = {value.name for value in model.graph.output}
    node = _pick(rng, [n for n in model.graph.node if len(n.output) == 1 and n.output[0] not in ends and any(n.input)])
    if node is None:
        return
    instead, gone = rng.choice([name for name in node.input if name]), node.output[0]
    model.graph.node.remove(node)
    for reader in all_nodes(model.graph):
        for index, name in enumerate(reader.input):
            if name == gone:
                reader.input[index] = instead


def cast_between(model: onnx.ModelProto, rng: random.Random) -> None:
    """Let a value go through another float type on its way to one reader."""
    node = _pick(rng, [n for n in model.graph.node if n.input])
    if node is None:
        return
    index = rng.randrange(len(node.input))
    if not node.input[index]:
        return
    back = next((v.type.tensor_type.elem_type for v in model.graph.input), TensorProto.FLOAT)
    names = [f"{node.input[index]}_{step}_{len(model.graph.node)}" for step in ("cast", "back")]
    nodes = [
        helper.make_node("Cast", [node.input[index]], names[:1], name=names[0], to=rng.choice(FLOAT_TYPES)),
        helper.make_node("Cast", names[:1], names[1:], name=names[1], to=back),
    ]
    node.input[index] = names[1]
    at = list(model.graph.node).index(node)
    for one in reversed(nodes):
        model.graph.node.insert(at, one)


# constants --------------------------------------------------------------------------------------------------------


def nudge(model: onnx.ModelProto, rng: random.Random) -> None:
    """Move a scalar constant a little: a float by a hundredth or a thousandth, an integer by one."""
    tensors = [t for t in _constants(model) if 0 < _size(t) <= 8]
    tensor = _pick(rng, tensors)
    if tensor is None:
        return
    array = numpy_helper.to_array(tensor).copy()
    index = rng.randrange(array.size)
    flat = array.reshape(-1)
    if array.dtype.kind in "iu":
        with np.errstate(over="ignore"):
            flat[index] += np.array(rng.choice([1, -1])).astype(array.dtype)
    elif array.dtype.kind == "b":
        flat[index] = not flat[index]
    else:
        factor, shift = rng.choice(_NUDGES)
        with np.errstate(all="ignore"):
            flat[index] = (flat[index].astype(np.float64) * factor + shift).astype(array.dtype)
    _store(tensor, flat.reshape(array.shape))


def nudge_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    """Move a number of an attribute a little, or swap two numbers of a list."""
    kinds = (onnx.AttributeProto.INT, onnx.AttributeProto.FLOAT, onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS)
    places = [a for n in all_nodes(model.graph) for a in n.attribute if a.type in kinds and a.name != "to"]
    attribute = _pick(rng, places)
    if attribute is None:
        return
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i += rng.choice([1, -1])
    elif attribute.type == onnx.AttributeProto.FLOAT:
        factor, shift = rng.choice(_NUDGES)
        attribute.f = attribute.f * factor + shift
    elif attribute.type == onnx.AttributeProto.FLOATS and attribute.floats:
        attribute.floats[rng.randrange(len(attribute.floats))] *= 1.01
    elif attribute.ints:
        first, second = (rng.randrange(len(attribute.ints)) for _ in range(2))
        if first == second:
            attribute.ints[first] += rng.choice([1, -1])
        else:
            attribute.ints[first], attribute.ints[second] = attribute.ints[second], attribute.ints[first]


def unfreeze(model: onnx.ModelProto, rng: random.Random) -> None:
    """Let a constant be an input of the model; it is fed what it was, or other numbers."""
    tensor = _pick(rng, [t for t in model.graph.initializer if t.data_type != TensorProto.STRING])
    if tensor is None or tensor.name in {value.name for value in model.graph.input}:
        return
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    model.graph.initializer.remove(tensor)


def raise_rank(model: onnx.ModelProto, rng: random.Random) -> None:
    """Give a constant of one element another number of dims."""
    tensor = _pick(rng, [t for t in _constants(model) if _size(t) == 1 and t.data_type in _FLOATS])
    if tensor is not None:
        rank = rng.choice([0, 1, 2, 5])
        _store(tensor, numpy_helper.to_array(tensor).reshape((1,) * rank))


def spread(model: onnx.ModelProto, rng: random.Random) -> None:
    """Let a scalar be a vector of numbers that differ."""
    tensor = _pick(rng, [t for t in _constants(model) if _size(t) == 1 and t.data_type in _FLOATS])
    sizes = sorted({dim.dim_value for v in model.graph.input for dim in _dims(v) if dim.dim_value > 1})
    if tensor is None or not sizes:
        return
    array = np.tile(numpy_helper.to_array(tensor).reshape(-1), rng.choice(sizes))
    with np.errstate(over="ignore"):
        array[-1] = (array[-1].astype(np.float64) * 1.5).astype(array.dtype)
    _store(tensor, array)


# shapes -----------------------------------------------------------------------------------------------------------


def resize(model: onnx.ModelProto, rng: random.Random) -> None:
    """Let one number that dims have be another one, in inputs, weights and integers such as targets of a Reshape."""
    sizes = {dim.dim_value for v in model.graph.input for dim in _dims(v)}
    sizes |= {dim for tensor in model.graph.initializer for dim in tensor.dims}
    old = _pick(rng, sorted(size for size in sizes if size > 1))
    if old is None:
        return
    new = rng.choice([size for size in (1, 2, 3, 4, 6, 7, 16) if size != old])
    for value in model.graph.input:
        for dim in _dims(value):
            if dim.dim_value == old:
                dim.dim_value = new
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.data_type == TensorProto.INT64 and array.ndim == 1:
            _store(tensor, np.where(array == old, new, array))
        elif old in array.shape:
            _store(tensor, np.resize(array, [new if dim == old else dim for dim in array.shape]))


def loosen(model: onnx.ModelProto, rng: random.Random) -> None:
    """Take from some dims of the inputs what is said of them: a size, or that they are the same as others."""
    counter = 0
    for value in model.graph.input:
        for dim in _dims(value):
            counter += 1
            if rng.random() < 0.5:
                # The judge reads the old size from the name, so that it can feed what fitted before.
                old = dim.dim_value or dim.dim_param
                dim.Clear()
                dim.dim_param = f"u{counter}_{old}"


def flatten_batch(model: onnx.ModelProto, rng: random.Random) -> None:
    """Let symbolic dims be numbers."""
    size = rng.choice([1, 2, 3])
    for value in model.graph.input:
        for dim in _dims(value):
            if dim.dim_param:
                dim.Clear()
                dim.dim_value = size


# types ------------------------------------------------------------------------------------------------------------


def retype(model: onnx.ModelProto, rng: random.Random) -> None:
    """Compute in another float type: every single precision tensor, constant and cast becomes one of it."""
    as_type(model, rng.choice(FLOAT_TYPES))


def as_type(model: onnx.ModelProto, kind: int, source: int = TensorProto.FLOAT) -> None:
    """Let single precision (or another type) be another type, throughout."""
    for graph in graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == source:
                value.type.tensor_type.elem_type = kind
        for tensor in graph.initializer:
            _convert(tensor, source, kind)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == source:
                    attribute.i = kind
                elif attribute.HasField("t"):
                    _convert(attribute.t, source, kind)
                elif source == TensorProto.FLOAT and attribute.name in ("value_float", "value_floats"):
                    numbers = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                    attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(_cast(numbers, kind))))


def _convert(tensor: onnx.TensorProto, source: int, kind: int) -> None:
    if tensor.data_type == source:
        _store(tensor, _cast(numpy_helper.to_array(tensor), kind))


def _cast(numbers: Any, kind: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(numbers).astype(helper.tensor_dtype_to_np_dtype(kind))


# inside -----------------------------------------------------------------------------------------------------------

MUTATIONS: dict[str, Callable[[onnx.ModelProto, random.Random], None]] = {
    function.__name__: function
    for function in (
        commute,
        rewire,
        another_op,
        duplicate,
        bypass,
        cast_between,
        share,
        nudge,
        nudge_attribute,
        unfreeze,
        raise_rank,
        spread,
        resize,
        loosen,
        flatten_batch,
        retype,
    )
}


def _pick(rng: random.Random, options: Sequence[Any]) -> Any:
    return options[rng.randrange(len(options))] if options else None


def _dims(value: onnx.ValueInfoProto) -> Sequence[onnx.TensorShapeProto.Dimension]:
    return value.type.tensor_type.shape.dim


def _size(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims))


def _constants(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    tensors = [tensor for graph in graphs(model.graph) for tensor in graph.initializer]
    tensors += [a.t for n in all_nodes(model.graph) if n.op_type == "Constant" for a in n.attribute if a.HasField("t")]
    return [tensor for tensor in tensors if tensor.data_type != TensorProto.STRING]


def _store(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    name, kind = tensor.name, tensor.data_type
    if array.dtype != helper.tensor_dtype_to_np_dtype(kind) and array.dtype.kind in "iub":
        array = array.astype(helper.tensor_dtype_to_np_dtype(kind))
    tensor.CopyFrom(numpy_helper.from_array(array, name))
