"""Images of another size."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from optc.backends.triton.groups import Coordinates, Group, Value
from optc.backends.triton.layout import Index, variable
from optc.backends.triton.lower import Lowering, Rule, Unsupported
from optc.ir.dims import Dim, equal
from optc.ir.ops import int_attr, ints_attr, operand

_MODES = ("nearest", "linear", "cubic")
_PLACES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
#: The last version of Resize that knew no other coordinates than those of Upsample.
_OLD = 10


def resized(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Resize and Upsample of the last axis or the last two."""
    x, output = lowering.needed(node, 0), node.outputs[0]
    shape = lowering.shape(output)
    if x.register not in ("fp32", "i8", "u8", "i16", "u16"):
        raise Unsupported(f"{x.dtype.name.lower()} is not supported")
    if len(shape) not in (3, 4) or not all(map(equal, x.shape[:2], shape[:2])):
        raise Unsupported("only images, whose last one or two axes change, are supported")
    old = node.op_type == "Upsample" or lowering.facts.opset() <= _OLD
    mode, place, nearest = (
        node.attributes[name].as_string() if name in node.attributes and not (old and name != "mode") else default
        for name, default in (
            ("mode", "nearest"),
            ("coordinate_transformation_mode", "asymmetric" if old else "half_pixel"),
            ("nearest_mode", "floor" if old else "round_prefer_floor"),
        )
    )
    policy = node.attributes.get("keep_aspect_ratio_policy")
    asks = int_attr(node, "antialias", 0) or int_attr(node, "exclude_outside", 0)
    if mode not in _MODES or place not in _PLACES or asks or (policy and policy.as_string() != "stretch"):
        raise Unsupported(f"mode {mode} with {place} coordinates and these options is not supported")
    scales = _scales(lowering, node, len(shape), old)
    group = images(lowering, node, "resize", x, shape)
    group.constants = {
        "MODE": mode,
        "COORDINATES": place,
        "ROUNDING": nearest,
        "SCALE_H": scales[-2] if len(shape) == 4 else 1.0,
        "SCALE_W": scales[-1],
        "CUBIC": node.attributes["cubic_coeff_a"].as_float() if "cubic_coeff_a" in node.attributes else -0.75,
    }
    lowering.anchor(output, group, pixel(shape, *(variable(name, size) for name, size in group.space.items())))


def _scales(lowering: Lowering, node: onnx_ir.Node, rank: int, old: bool) -> Sequence[float]:
    """Output over input per axis; 0 for the quotient of the sizes."""
    if "scales" in node.attributes:
        return node.attributes["scales"].as_floats()
    given = operand(node, 1 if old else 2)
    if given is None or lowering.facts.shape(given) == (0,):
        return (0.0,) * rank
    known = lowering.facts.const(given)
    if known is None:
        raise Unsupported("its scales are computed")
    values = [float(scale) for scale in known]
    axes = ints_attr(node, "axes")
    if axes is None:
        return values
    named = dict(zip((axis % rank for axis in axes), values, strict=True))
    return [named.get(axis, 1.0) for axis in range(rank)]


def images(lowering: Lowering, node: onnx_ir.Node, kernel: str, x: Value, shape: Sequence[Dim]) -> Group:
    """A new group without constants that makes images of images, or rows of pixels of such.

    Args:
        lowering: The lowering.
        node: The node.
        kernel: The kernel.
        x: (N, C, H, W) or (N, C, W).
        shape: That of the result.
    """
    size, result = _size(x.shape), _size(shape)
    space = {"n": shape[0], "c": shape[1], "oh": result[0], "ow": result[1]}
    reduced = {"h": size[0], "w": size[1]}
    n, c, h, w = (variable(name, {**space, **reduced}[name]) for name in ("n", "c", "h", "w"))
    lowering.stored(x)  # every pixel is read more than once
    sizes = dict(zip(("BATCH", "CHANNELS", "H", "W", "OUT_H", "OUT_W"), (*shape[:2], *size, *result), strict=True))
    read = lowering.element(x, pixel(x.shape, n, c, h, w))
    name = node.name or node.outputs[0].name or ""
    return lowering.builder.add(Group(kernel, space, sizes, results={"LOAD": read}, reduced=reduced, nodes=[name]))


def _size(shape: Sequence[Dim]) -> tuple[Dim, Dim]:
    """Height and width; a row of pixels is one high."""
    return (shape[2], shape[3]) if len(shape) == 4 else (1, shape[2])


def pixel(shape: Sequence[Dim], n: Index, c: Index, h: Index, w: Index) -> Coordinates:
    """The coordinates of a pixel in a tensor of a shape."""
    return (n, c, h, w) if len(shape) == 4 else (n, c, w)


RULES: dict[str, Rule] = {"Resize": resized, "Upsample": resized}
