"""Operators that move, join, cut and repeat."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from optc.recovery.engine.table import Call, Result, listed, operator


@operator("Reshape")
def reshape(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    wanted = listed(shape, call.integers("shape")) or []
    if not call.integer("allowzero", 0):
        wanted = [x.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.integer("axis", 1)
    axis += x.dim() if axis < 0 else 0
    return x.reshape(int(torch.Size(x.shape[:axis]).numel()), -1)


@operator("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.integers("perm") or list(reversed(range(x.dim()))))


@operator("Squeeze")
def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = listed(axes, call.integers("axes"))
    return x.squeeze() if given is None else x.squeeze(tuple(given))


@operator("Unsqueeze")
def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = listed(axes, call.integers("axes")) or []
    rank = x.dim() + len(given)
    for axis in sorted(axis + rank if axis < 0 else axis for axis in given):
        x = x.unsqueeze(axis)
    return x


@operator("Expand")
def expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, listed(shape, None) or []))


@operator("Concat")
def concat(call: Call, *parts: Tensor) -> Tensor:
    return torch.cat(parts, call.integer("axis", 0))


@operator("Split")
def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> Result:
    axis, pieces = call.integer("axis", 0), len(call.node.outputs)
    given = listed(sizes, call.integers("split"))
    if given is None:
        whole = -(-x.shape[axis] // pieces)
        given = [whole] * (pieces - 1) + [x.shape[axis] - whole * (pieces - 1)]
    return tuple(torch.split(x, given, axis))


@operator("Slice")
def slice_(call: Call, x: Tensor, *bounds: Tensor | None) -> Tensor:
    starts, ends, axes, steps = (
        listed(bounds[place] if place < len(bounds) else None, call.integers(name))
        for place, name in enumerate(("starts", "ends", "axes", "steps"))
    )
    assert starts is not None and ends is not None
    axes = axes if axes is not None else list(range(len(starts)))
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(axes), strict=True):
        # Python's bounds mean what ONNX's do, but for the first element of a walk backwards.
        size = x.shape[axis]
        chosen = range(size)[slice(start, end if step > 0 or end >= -size else None, step)]
        x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
    return x


@operator("Gather")
def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.integer("axis", 0)
    axis += x.dim() if axis < 0 else 0
    flat = indices.long().reshape(-1)
    taken = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat))
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@operator("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.integer("axis", 0)
    chosen = indices.long()
    return torch.gather(x, axis, torch.where(chosen < 0, chosen + x.shape[axis], chosen))


@operator("Tile")
def tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(listed(repeats, None) or [])


@operator("Pad")
def pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    mode = call.text("mode", "constant")
    given = listed(pads, call.integers("pads")) or []
    if mode != "constant":
        raise call.refuse(f"in the mode {mode!r} is not known")
    places = listed(axes, None) or list(range(x.dim()))
    sizes = [0] * (2 * x.dim())
    for index, place in enumerate(places):
        axis = place + x.dim() if place < 0 else place
        # torch lists the last axis first
        sizes[2 * (x.dim() - 1 - axis)] = given[index]
        sizes[2 * (x.dim() - 1 - axis) + 1] = given[index + len(places)]
    return F.pad(x, sizes, value=call.real("value", 0.0) if value is None else float(value.item()))


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    size = call.integer("blocksize", 1)
    n, c, h, w = x.shape
    if call.text("mode", "DCR") == "CRD":
        return x.reshape(n, c // size**2, size, size, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, -1, h * size, w * size)
    return x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * size, w * size)


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    size = call.integer("blocksize", 1)
    n, c, h, w = x.shape
    return (
        x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // size, w // size)
    )
