"""TensorRT's timing cache, kept between builds: how fast each kernel was, on one GPU with one version of TensorRT.

It turns minutes of a second build into seconds. It is an aid and never a reason to fail: what cannot be read is left
alone, and a build that finds nothing measures again.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from optc.backends.cache import cache_folder
from optc.backends.cuda import Device
from optc.ir.errors import OutputError
from optc.ir.writing import replacing


def place(trt: Any, device: Device) -> Path:
    """Where the cache for a GPU and the version of TensorRT is kept."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", device.name).strip("-")
    return cache_folder("timing") / f"{name}-sm{device.capability[0]}{device.capability[1]}-trt{trt.__version__}.cache"


def attach(config: Any, path: Path, fallback: Path | None) -> bool:
    """Give a build the cache that is kept, else one that came with the model, else an empty one.

    Args:
        config: The builder's configuration.
        path: What is kept.
        fallback: What came with the model.

    Returns:
        Whether there was anything to start from.
    """
    for source in (path, fallback):
        with contextlib.suppress(OSError):
            blob = source.read_bytes() if source is not None else b""
            if blob and _set(config, blob):
                return True
    _set(config, b"")
    return False


def keep(config: Any, path: Path) -> None:
    """Keep what a build measured, together with what other builds have written in the meantime."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    with contextlib.suppress(OSError):
        other = config.create_timing_cache(path.read_bytes())
        if other is not None:
            cache.combine(other, False)
    with contextlib.suppress(OSError, OutputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as (file,):
            file.write_bytes(memoryview(cache.serialize()))


def _set(config: Any, blob: bytes) -> bool:
    """Whether TensorRT takes a cache; one of another GPU or version is refused."""
    cache = config.create_timing_cache(blob)
    return cache is not None and bool(config.set_timing_cache(cache, False))
