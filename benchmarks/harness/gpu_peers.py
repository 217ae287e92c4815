"""What the GPU benchmark measures: optc's artifacts, and beside them PyTorch's (and JAX's) way to compute the same.

Runs on the machine with the GPU; torch is imported when it is asked for. Nothing here was run on a GPU yet.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.gpu_artifacts import filled, stored
from harness.gpu_cases import CASES, Case
from harness.gpu_models import MODELS

#: Relative L2 error that an output may have: of models in 32 bits, whose products may run in TF32, and in 16.
ALLOWED = {"float32": 5e-3, "float16": 1e-2}

Run = Callable[[], Any]


def error(outputs: Mapping[str, Any], wanted: Mapping[str, np.ndarray]) -> float:
    """The largest relative L2 error of an output."""
    worst = 0.0
    for name, array in wanted.items():
        found = np.asarray(outputs[name], np.float64)
        reference = array.astype(np.float64)
        if found.shape != array.shape or not np.isfinite(found).all():
            return float("inf")
        worst = max(worst, float(np.linalg.norm(found - reference) / max(np.linalg.norm(reference), 1e-6)))
    return worst


def check(artifact: Path, device: str) -> dict[str, float]:
    """Run a small artifact in every way there is, against stored outputs.

    Returns:
        The worst error by way; raises ValueError where one is too large.
    """
    from optc.backends.triton.runtime import TritonRunner  # noqa: PLC0415

    feeds, wanted = stored(artifact.with_suffix(".npz"))
    allowed = min(ALLOWED.get(array.dtype.name, 0.0) for array in wanted.values())
    found: dict[str, float] = {}
    with TritonRunner(artifact, device) as runner:
        for way in ("launched", "recorded", "replayed") if device == "cuda" else (device,):
            found[way] = error(runner.run(feeds), wanted)
        if device == "cuda" and importlib.util.find_spec("torch") is not None:
            torch = importlib.import_module("torch")
            tensors = {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
            left = runner.run_on_device(tensors)
            found["in place"] = error({name: torch.from_dlpack(x).cpu() for name, x in left.items()}, wanted)
            outputs = {name: torch.empty_like(torch.from_dlpack(x)) for name, x in left.items()}
            run = runner.bind(tensors, outputs, stream=torch.cuda.current_stream().cuda_stream)
            run()
            run()
            found["bound"] = error({name: x.cpu() for name, x in outputs.items()}, wanted)
    wrong = {way: value for way, value in found.items() if not value <= allowed}
    if wrong:
        raise ValueError(f"relative error beyond {allowed}: {wrong}")
    return found


class Ours:
    """An artifact that is bound to tensors; a context manager."""

    def __init__(self, artifact: Path, feeds: Mapping[str, np.ndarray]) -> None:
        self._artifact, self._given = artifact, feeds

    def __enter__(self) -> Run:
        from optc.backends.triton.runtime import TritonRunner  # noqa: PLC0415

        torch = importlib.import_module("torch")
        with filled(self._artifact) as whole:
            self._runner = TritonRunner(whole, "cuda")
        takes = {tensor.name for tensor in self._runner.artifact.plan.inputs}
        self._feeds = {name: torch.from_numpy(array).cuda() for name, array in self._given.items() if name in takes}
        left = self._runner.run_on_device(self._feeds)
        self._outputs = {name: torch.empty_like(torch.from_dlpack(array)) for name, array in left.items()}
        del left
        return self._runner.bind(self._feeds, self._outputs, stream=torch.cuda.current_stream().cuda_stream)

    def __exit__(self, *error: Any) -> None:
        self._runner.close()


def clock(run: Run, times: int) -> float:
    """Milliseconds of one run among some back to back, by the GPU's clock."""
    torch = importlib.import_module("torch")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / times


def module_run(name: str, batch: int, compiled: bool) -> Run:
    """A whole model in PyTorch, eager or by ``torch.compile``."""
    torch = importlib.import_module("torch")
    model = MODELS[name]
    module = model.module().half().cuda()
    feeds = [torch.from_numpy(array).cuda() for array in model.inputs(batch).values()]
    if model.kind == "image":
        module = module.to(memory_format=torch.channels_last)
        feeds = [tensor.contiguous(memory_format=torch.channels_last) for tensor in feeds]
    if compiled:
        module = torch.compile(module, mode="max-autotune")

    def run() -> Any:
        with torch.inference_mode():
            return module(*feeds)

    return run


def layer_runs(case: Case) -> dict[str, Run]:
    """A layer in PyTorch (cuBLAS, cuDNN, its attention) and, where it is installed, in JAX."""
    torch = importlib.import_module("torch")
    model = case.model("float16")
    onnx = importlib.import_module("onnx")
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    arrays = {**case.feeds(model), **weights}
    tensors = {name: torch.from_numpy(np.array(array)).cuda() for name, array in arrays.items()}
    compute = _torch_layer(torch, case, tensors)

    def run() -> Any:
        with torch.inference_mode():
            return compute()

    found = {"torch": run}
    if importlib.util.find_spec("jax") is not None and case.family in _JAX:
        found["jax"] = _jax_layer(case, arrays)
    return found


def _torch_layer(torch: Any, case: Case, at: Mapping[str, Any]) -> Run:
    functional, sizes = torch.nn.functional, case.values()
    if "conv" in case.family:
        x = at["x"].permute(0, 3, 1, 2)  # NHWC in memory, as ours has it
        w = at["w"].contiguous(memory_format=torch.channels_last)
        groups = sizes["c"] if case.family == "depthwise conv" else 1
        return lambda: functional.conv2d(
            x, w, at["wb"], stride=sizes["st"], padding=sizes["pad"], groups=groups
        ).relu_()
    rows = (sizes.get("n", 1),)
    return {
        "gemm": lambda: torch.matmul(at["x"], at["w"]),
        "gemm + bias + gelu": lambda: functional.gelu(torch.addmm(at["wb"], at["x"], at["w"])),
        "batched gemm": lambda: torch.bmm(at["x"], at["z"]),
        "attention": lambda: functional.scaled_dot_product_attention(at["x"], at["k"], at["v"]),
        "layernorm": lambda: functional.layer_norm(at["x"], rows, at["w"], at["wb"]),
        "add + layernorm": lambda: functional.layer_norm(at["x"] + at["z"], rows, at["w"], at["wb"]),
        "softmax": lambda: torch.softmax(at["x"], -1),
        "gelu": lambda: functional.gelu(at["x"]),
        "gather": lambda: functional.embedding(at["i"], at["w"]),
        "transpose": lambda: at["x"].transpose(1, 2).contiguous(),
    }[case.family]


_JAX = ("gemm", "attention", "softmax", "gelu")


def _jax_layer(case: Case, arrays: Mapping[str, np.ndarray]) -> Run:
    """Waits for each run, as JAX gives no stream to measure on: a call counts in full."""
    jax = importlib.import_module("jax")
    numpy = importlib.import_module("jax.numpy")
    given = {name: jax.device_put(array) for name, array in arrays.items()}
    if case.family == "attention":
        for name in "xkv":
            given[name] = numpy.swapaxes(given[name], 1, 2)
    compute = jax.jit(
        {
            "gemm": lambda at: at["x"] @ at["w"],
            "attention": lambda at: jax.nn.dot_product_attention(at["x"], at["k"], at["v"]),
            "softmax": lambda at: jax.nn.softmax(at["x"], -1),
            "gelu": lambda at: jax.nn.gelu(at["x"], approximate=False),
        }[case.family]
    )
    return lambda: compute(given).block_until_ready()


def layer_of(name: str) -> Case:
    """The layer of a name."""
    return next(case for case in CASES if case.name == name)
