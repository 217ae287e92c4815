"""The onnxruntime backend: opens and runs models in-process, and emits plain ``.onnx`` files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir
import onnxruntime

from optc.backends import ort_kernels
from optc.backends.base import Artifact, OpSignature, Probe, ValueSpec, check_names
from optc.backends.ort_errors import user_error
from optc.backends.ort_model import ModelLike, loadable
from optc.backends.ort_values import from_ort_value, is_native, parse_type, to_ort_value
from optc.ir.errors import BackendError
from optc.ir.saving import save
from optc.ir.targets import Target

Optimization = Literal["off", "basic", "extended", "all"]

_LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
#: A model that runs a few times is opened faster, and needs half the memory, without another copy of its weights in the
#: order in which kernels like them best.
_FEW_RUNS = {"session.disable_prepacking": "1"}
CPU = "CPUExecutionProvider"
_GPU_HINT = "install optc[gpu], which brings onnxruntime-gpu"
_PROVIDER_HINTS = {"CUDAExecutionProvider": _GPU_HINT, "TensorrtExecutionProvider": _GPU_HINT}


class Session:
    """A model opened in ONNX Runtime; a :class:`~optc.backends.base.Runner`.

    Args:
        model: A path, bytes, ``onnx.ModelProto`` or ``onnx_ir.Model``. A path has no size limit; a model in memory
            shares its weights with the session instead of being copied.
        optimization: How far onnxruntime may rewrite the graph itself.
        threads: Threads inside one operator; None leaves the choice to onnxruntime.
        providers: Execution providers in order of preference, each a name or ``(name, options)``.
        spinning: Whether idle threads spin: lower latency alone, but it starves whatever else runs.
        arena: Whether freed memory is kept for the next run.
        base_dir: The folder to which the external data of bytes and ModelProtos refer.
        save_optimized: Also write the graph as onnxruntime rewrote it to this path.
        custom_ops: Shared libraries with custom operators.
        config: Further session config entries.

    Raises:
        BackendError: The model cannot be opened; the message names the node where onnxruntime does.
    """

    def __init__(
        self,
        model: ModelLike,
        *,
        optimization: Optimization = "all",
        threads: int | None = None,
        providers: Sequence[Any] = (CPU,),
        spinning: bool = False,
        arena: bool = True,
        base_dir: str | os.PathLike[str] | None = None,
        save_optimized: str | os.PathLike[str] | None = None,
        custom_ops: Sequence[str] = (),
        config: Mapping[str, str] | None = None,
    ) -> None:
        _check_providers(providers)
        what = loadable(model, base_dir)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = _LEVELS[optimization]
        options.log_severity_level = 4  # fatal only: errors arrive as exceptions, and are not to be printed twice
        options.enable_cpu_mem_arena = arena
        options.enable_mem_pattern = arena
        if threads is not None:
            options.intra_op_num_threads = threads
        if save_optimized is not None:
            options.optimized_model_filepath = os.fspath(save_optimized)
        spin = "1" if spinning else "0"
        entries = {"session.intra_op.allow_spinning": spin, "session.inter_op.allow_spinning": spin}
        for key, value in {**entries, **what.config, **(config or {})}.items():
            options.add_session_config_entry(key, value)
        if what.names:
            options.add_external_initializers(what.names, what.values)
        try:
            for library in custom_ops:
                options.register_custom_ops_library(library)
            self._session = onnxruntime.InferenceSession(what.source, options, providers=list(providers))
        except Exception as error:
            raise user_error(error, what.where) from error
        self._where = what.where
        self._keep_alive = (what.values, what.buffers)
        self._inputs = tuple(_spec(arg) for arg in self._session.get_inputs())
        self._outputs = tuple(_spec(arg) for arg in self._session.get_outputs())
        self._native = all(is_native(spec.dtype) for spec in (*self._inputs, *self._outputs))

    @property
    def inputs(self) -> tuple[ValueSpec, ...]:
        """The inputs to feed. onnxruntime does not tell a scalar from an unknown rank: both have shape ()."""
        return self._inputs

    @property
    def outputs(self) -> tuple[ValueSpec, ...]:
        """The outputs, in order; shapes as for :attr:`inputs`."""
        return self._outputs

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers in use, which may be fewer than those asked for."""
        return tuple(self._session.get_providers())

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run once; see :meth:`optc.backends.base.Runner.run`.

        Args:
            feeds: One array per input, by name.
            outputs: Names of the outputs wanted; None means all.
        """
        check_names(feeds, self._inputs, self._where)
        names = [spec.name for spec in self._outputs] if outputs is None else list(outputs)
        try:
            results = self._session.run(names, dict(feeds)) if self._native else self._run_ort_values(names, feeds)
        except Exception as error:
            raise user_error(error, self._where) from error
        return dict(zip(names, results, strict=True))

    def _run_ort_values(self, names: list[str], feeds: Mapping[str, np.ndarray]) -> list[Any]:
        values = {
            spec.name: to_ort_value(np.asarray(feeds[spec.name]), spec.dtype)
            for spec in self._inputs
            if spec.dtype is not None
        }
        dtypes = {spec.name: spec.dtype for spec in self._outputs}
        results = self._session.run_with_ort_values(names, values)
        return [from_ort_value(value, dtypes[name]) for name, value in zip(names, results, strict=True)]


def optimized(model: ModelLike) -> onnx_ir.Model:
    """The graph that onnxruntime's CPU provider runs for a model, after all of its own rewriting.

    Large weights stay where they were written, which is gone: what is returned is there to be looked at, not to be run.

    Raises:
        BackendError: The model cannot be opened.
    """
    with tempfile.TemporaryDirectory(prefix="optc-") as folder:
        path = Path(folder) / "optimized.onnx"
        config = {
            "session.optimized_model_external_initializers_file_name": "weights",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
        Session(model, save_optimized=path, config=config)
        return onnx_ir.load(path)


def _spec(arg: onnxruntime.NodeArg) -> ValueSpec:
    kind, dtype = parse_type(arg.type)
    shape = (
        tuple(dim if isinstance(dim, int) else (dim or None) for dim in arg.shape) if arg.shape is not None else None
    )
    return ValueSpec(arg.name, dtype, shape if kind == "tensor" else None, kind)


def _check_providers(providers: Sequence[Any]) -> None:
    there = onnxruntime.get_available_providers()
    for entry in providers:
        name = entry if isinstance(entry, str) else entry[0]
        if name not in there:
            raise BackendError(
                f"the installed onnxruntime has no {name}",
                hint="install onnxruntime-gpu"
                if "CUDA" in name or "Tensorrt" in name
                else f"it has {', '.join(there)}",
            )


class OnnxRuntimeBackend:
    """Emits ``.onnx`` files and opens them with :class:`Session`."""

    name = "onnxruntime"
    kernels = ort_kernels

    def probe(self) -> Probe:
        """Ready wherever this module can be imported; the reason names the version and its limits."""
        return Probe(
            True,
            f"onnxruntime {onnxruntime.__version__}, opset <= {ort_kernels.max_opset()}, "
            f"IR version <= {ort_kernels.max_ir_version()}, {', '.join(onnxruntime.get_available_providers())}",
        )

    def claims(self, op: OpSignature | onnx_ir.Node, target: Target | None = None) -> bool:
        """Whether onnxruntime runs the op as it stands: by a kernel, with casts around one, or as a function."""
        signature = op if isinstance(op, OpSignature) else OpSignature.of(op)
        return ort_kernels.how(signature, target.provider if target else CPU) is not None

    def on(self, target: Target) -> Target:
        """The target as it is: it names the execution provider itself."""
        return target

    def here(self, target: Target) -> bool:
        """Whether the installed onnxruntime has the target's execution provider."""
        return target.provider in onnxruntime.get_available_providers()

    def problem(self, model: onnx_ir.Model) -> str | None:
        """Nothing that could be told without opening it."""
        return None

    def runner(self, model: onnx_ir.Model, *, plain: bool = False, few_runs: bool = False) -> Session:
        """A model in memory, opened as in production; ``plain`` without onnxruntime's own optimizations."""
        # What runs a few times, each at other sizes, gains nothing from memory that is kept and planned.
        optimization: Optimization = "off" if plain else "all"
        return Session(model, optimization=optimization, arena=not few_runs, config=_FEW_RUNS if few_runs else None)

    def emit(self, model: onnx_ir.Model, target: Target, out: Path) -> Artifact:
        """Write the model as ``.onnx`` (and ``.onnx.data`` beside it when it is large)."""
        files = tuple(save(model, out))
        return Artifact(self.name, files[0], files)

    def open(self, path: Path, **options: Any) -> Session:
        """Open a ``.onnx`` file; options as for :class:`Session`."""
        return Session(path, **options)
