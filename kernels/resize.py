"""Images of another size: by the nearest pixel, or by linear or cubic interpolation."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from optc.kernels.base import Kernel
from optc.kernels.pixels import GRID, tile_of_pixels


@triton.constexpr_function
def _taps(mode):
    """How many pixels of an axis an output pixel is made of."""
    return {"nearest": 1, "linear": 2, "cubic": 4}[mode]


@triton.jit
def resize(
    args,
    BATCH,
    CHANNELS,
    H,
    W,
    OUT_H,
    OUT_W,
    LOAD: tl.constexpr,
    STORE: tl.constexpr,
    MODE: tl.constexpr,
    COORDINATES: tl.constexpr,
    ROUNDING: tl.constexpr,
    SCALE_H: tl.constexpr,
    SCALE_W: tl.constexpr,
    CUBIC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """ONNX's Resize of the last two axes, without anti-aliasing and regions.

    MODE is "nearest", "linear" or "cubic" (Keys 1981, with CUBIC as its parameter). COORDINATES says where an output
    pixel lies: "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners" or "asymmetric"; ROUNDING
    which one is nearest: "round_prefer_floor", "round_prefer_ceil", "floor" or "ceil". SCALE_H and SCALE_W are output
    over input; 0 stands for the quotient of the sizes. Beyond the edges lie the pixels of the edges.

    A program computes BLOCK_P pixels by BLOCK_C channels. LOAD(args, n, c, h, w, mask) returns (BLOCK_P, BLOCK_C) of
    any type that float32 holds; STORE(args, n, c, oh, ow, value, mask) gets float32. Coordinates are float32.
    """
    n, oh, ow, c, mask = tile_of_pixels(BATCH, CHANNELS, OUT_H, OUT_W, BLOCK_P, BLOCK_C)
    y = _source(oh, H, OUT_H, SCALE_H, COORDINATES)
    x = _source(ow, W, OUT_W, SCALE_W, COORDINATES)
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for down in tl.static_range(_taps(MODE)):
        h, weight_h = _tap(y, down, H, MODE, ROUNDING, CUBIC)
        for across in tl.static_range(_taps(MODE)):
            w, weight_w = _tap(x, across, W, MODE, ROUNDING, CUBIC)
            value = LOAD(args, n, c, h, w, mask).to(tl.float32)
            acc = value if MODE == "nearest" else acc + value * (weight_h * weight_w)
    STORE(args, n, c, oh, ow, acc, mask)


@triton.jit
def _source(out, SIZE, OUT_SIZE, SCALE: tl.constexpr, COORDINATES: tl.constexpr):
    """Where an output pixel lies in the input, in pixels."""
    place = out.to(tl.float32)
    size = tl.full(place.shape, SIZE, tl.float32)
    out_size = tl.full(place.shape, OUT_SIZE, tl.float32)
    scale = tl.div_rn(out_size, size) if SCALE == 0.0 else tl.full(place.shape, SCALE, tl.float32)
    if COORDINATES == "align_corners":
        return tl.div_rn(place * (size - 1.0), tl.maximum(out_size - 1.0, 1.0))
    elif COORDINATES == "asymmetric":
        return tl.div_rn(place, scale)
    else:
        middle = tl.div_rn(place + 0.5, scale)
        if COORDINATES == "half_pixel_symmetric":
            middle = size / 2.0 * (1.0 - tl.div_rn(out_size, scale * size)) + middle
        elif COORDINATES == "pytorch_half_pixel":
            middle = tl.where(out_size > 1.0, middle, 0.5)
        return middle - 0.5


@triton.jit
def _tap(place, TAP: tl.constexpr, SIZE, MODE: tl.constexpr, ROUNDING: tl.constexpr, CUBIC: tl.constexpr):
    """One of the pixels around a place on an axis, and what it counts."""
    if MODE == "nearest":
        weight = 1.0
        if ROUNDING == "round_prefer_floor":
            pixel = tl.ceil(place - 0.5)
        elif ROUNDING == "round_prefer_ceil":
            pixel = tl.floor(place + 0.5)
        elif ROUNDING == "floor":
            pixel = tl.floor(place)
        else:
            pixel = tl.ceil(place)
    else:
        low = tl.floor(place)
        part = place - low
        if MODE == "linear":
            pixel = low + TAP
            weight = part if TAP == 1 else 1.0 - part
        else:
            pixel = low + (TAP - 1)
            far = tl.abs(part - (TAP - 1))
            if TAP == 1 or TAP == 2:
                weight = ((CUBIC + 2.0) * far - (CUBIC + 3.0)) * far * far + 1.0
            else:
                weight = ((far - 5.0) * far + 8.0) * far * CUBIC - 4.0 * CUBIC
    return tl.minimum(tl.maximum(pixel.to(tl.int32), 0), SIZE - 1), weight


def reference(
    x: np.ndarray,
    out: tuple[int, int],
    mode: str,
    coordinates: str = "half_pixel",
    rounding: str = "round_prefer_floor",
    scales: tuple[float, float] = (0.0, 0.0),
    cubic: float = -0.75,
) -> np.ndarray:
    """Resizing by one matrix per axis: (BATCH, CHANNELS, H, W) -> (BATCH, CHANNELS, OUT_H, OUT_W), float32."""
    axes = []
    for size, to, scale in zip(x.shape[2:], out, scales, strict=True):
        scale = scale or to / size
        i = np.arange(to)
        place = {
            "half_pixel": (i + 0.5) / scale - 0.5,
            "half_pixel_symmetric": (i + 0.5) / scale - 0.5 + size / 2 * (1 - to / (scale * size)),
            "pytorch_half_pixel": (i + 0.5) / scale - 0.5 if to > 1 else i * 0.0,
            "align_corners": i * (size - 1) / max(to - 1, 1),
            "asymmetric": i / scale,
        }[coordinates]
        low, part = np.floor(place), place - np.floor(place)
        nearest = {
            "round_prefer_floor": np.ceil(place - 0.5),
            "round_prefer_ceil": np.floor(place + 0.5),
            "floor": low,
            "ceil": np.ceil(place),
        }[rounding]
        near = [(((cubic + 2) * d - (cubic + 3)) * d * d + 1) for d in (part, 1 - part)]
        far = [cubic * (((d - 5) * d + 8) * d - 4) for d in (1 + part, 2 - part)]
        taps = {
            "nearest": [(nearest, 1.0 + 0 * part)],
            "linear": [(low, 1 - part), (low + 1, part)],
            "cubic": [(low - 1, far[0]), (low, near[0]), (low + 1, near[1]), (low + 2, far[1])],
        }[mode]
        matrix = np.zeros((to, size))
        for pixel, weight in taps:
            np.add.at(matrix, (i, np.clip(pixel, 0, size - 1).astype(int)), weight)
        axes.append(matrix)
    return np.asarray(np.einsum("nchw,yh,xw->ncyx", x.astype(np.float64), *axes), np.float32)


RESIZE = Kernel(
    name="resize",
    function=resize,
    grid=GRID,
    sizes=("BATCH", "CHANNELS", "H", "W", "OUT_H", "OUT_W"),
    hooks={"LOAD": ("n", "c", "h", "w"), "STORE": ("n", "c", "oh", "ow")},
    constants={
        "MODE": None,
        "COORDINATES": "half_pixel",
        "ROUNDING": "round_prefer_floor",
        "SCALE_H": 0.0,
        "SCALE_W": 0.0,
        "CUBIC": -0.75,
        "BLOCK_P": None,
        "BLOCK_C": None,
    },
    reference=reference,
)
