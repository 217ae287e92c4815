"""Run in a process where ``tensorrt`` are the bindings: registers a bundle's plugins with TensorRT's own plugin layer,
and asks it, as a build would, for types, shapes, the kernel and the launch. Prints what came of it as JSON.

What is missing of TensorRT is the registry and the expressions of dims, which its libraries would make; here they are
Python objects with plain numbers in them. All else is the code of the wheel.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import tensorrt as trt

bundle, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])  # jobs: plugin -> sets of shapes of its inputs


class Registry:
    def __init__(self):
        self.creators = {}

    def register_creator(self, creator, namespace):
        self.creators[creator.name, creator.plugin_version, namespace] = creator

    def get_creator(self, name, version, namespace):
        return self.creators[name, version, namespace]


registry = Registry()
trt.get_plugin_registry = lambda: registry
trt.DimsExprs = lambda count: [None] * count  # the bindings' own holds addresses of C++ objects


class Number(trt.IDimensionExpr):
    """An expression of known value; made without a C++ object behind it."""

    def is_constant(self):
        return False

    def get_constant_value(self):
        return self.value


def number(value):
    made = Number.__new__(Number)
    made.value = value
    return made


class Builder:
    """What TensorRT computes with dims: https://docs.nvidia.com, DimensionOperation."""

    OPERATIONS = {  # noqa: RUF012
        "SUM": lambda a, b: a + b,
        "PROD": lambda a, b: a * b,
        "MAX": max,
        "MIN": min,
        "SUB": lambda a, b: a - b,
        "FLOOR_DIV": lambda a, b: a // b,
        "CEIL_DIV": lambda a, b: -(-a // b),
    }

    def constant(self, value):
        return number(value)

    def operation(self, op, first, second):
        return number(self.OPERATIONS[op.name](first.value, second.value))


from tensorrt.plugin import _tensor  # noqa: E402

from optc.backends.tensorrt import plugins  # noqa: E402
from optc.backends.tensorrt.recipe import Plugin  # noqa: E402


class Remembered(_tensor.SymExprImpl):
    """Keeps the Python object of an expression, of which the C++ part keeps the address only."""

    def __init__(self, expr):
        super().__init__(expr)
        self.number = expr._expr.value


_tensor.SymExprImpl = Remembered


def described(kind, shape):
    inner = trt.PluginTensorDesc()
    inner.type, inner.format, inner.dims = kind, trt.TensorFormat.LINEAR, trt.Dims(shape)
    made = trt.DynamicPluginTensorDesc()
    made.desc, made.min, made.opt, made.max = inner, trt.Dims(shape), trt.Dims(shape), trt.Dims(shape)
    return made


def asked(plugin, types, output_types, inputs):
    """The launch for some shapes, in the order of calls of a build."""
    exprs = [[number(dim) for dim in shape] for shape in inputs]
    outputs = [[dim.value for dim in shape] for shape in plugin.get_output_shapes(exprs, [], Builder())]
    tensors = [described(kind, shape) for kind, shape in zip(types, inputs, strict=True)]
    tensors += [described(kind, shape) for kind, shape in zip(output_types, outputs, strict=True)]
    count = len(inputs)
    assert len(plugin.get_supported_format_combinations(tensors, count)) == len(tensors)
    plugin.configure_plugin(tensors[:count], tensors[count:])
    plugin.get_valid_tactics()
    plugin.set_tactic(0)
    launch = SimpleNamespace()
    setter = type("Setter", (dict,), {})()
    plugin.get_launch_params(exprs, tensors, count, launch, setter, Builder())
    symbol, ptx = plugin.get_kernel([t.desc for t in tensors[:count]], [t.desc for t in tensors[count:]])
    return {
        "outputs": outputs,
        "grid": [launch.grid_x.number, launch.grid_y.number, launch.grid_z.number],
        "block": [launch.block_x.number, launch.block_y.number, launch.block_z.number],
        "shared": launch.shared_mem.number,
        "arguments": [setter[index].number for index in range(setter.nbSymExprs)],
        "symbol": symbol,
        "ptx": ptx.decode(),
    }


answers = {}
for name, shapes in jobs.items():
    file = f"plugins/{name}.json"
    for _ in range(2):  # a second build in the same process finds the plugin registered
        plugins.register(trt, None, bundle, [Plugin(f"optc::{name}", (file,))], (8, 0))
    told = json.loads((bundle / file).read_text())
    creator = registry.get_creator(name, "1", "optc")
    fields, request = trt.PluginFieldCollection([]), trt.QuickPluginCreationRequest.STRICT_AOT
    plugin = creator.create_plugin(name, "optc", fields, trt.TensorRTPhase.BUILD, request)
    types = [getattr(trt.DataType, plugins.TYPES[port["dtype"]]) for port in told["inputs"]]
    output_types = plugin.get_output_data_types(types, [len(port["dims"]) for port in told["inputs"]])
    launches = [asked(plugin, types, output_types, inputs) for inputs in shapes]
    answers[name] = {"types": [kind.name for kind in output_types], "launches": launches}
print(json.dumps(answers))
