"""The openvino backend: runs models on CPUs with OpenVINO, and emits its IR (``.xml`` and ``.bin``) or ONNX files.

OpenVINO fuses by itself what ONNX Runtime wants to find in operators of its own domain, so graphs for it are written
in plain ONNX; Q/DQ pairs become integer kernels in its low precision transformations. It is optional: nothing here
imports it before it is used.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx_ir

from optc.backends import openvino_kernels
from optc.backends.base import Artifact, OpSignature, Probe, ValueSpec
from optc.backends.openvino_library import INSTALL, core, installed_version, last_words, library
from optc.backends.openvino_runner import (
    DEFAULT_PRECISION,
    PRECISIONS,
    OpenVinoRunner,
    interface_of,
    interface_text,
    parse_interface,
)
from optc.ir.errors import BackendError, OutputError, UsageError
from optc.ir.functions import runnable
from optc.ir.metadata import MADE_FOR, PRECISION_KEY
from optc.ir.model import load
from optc.ir.saving import save
from optc.ir.targets import Target

#: What stands for an ONNX Runtime execution provider in a target.
PROVIDER = "OpenVINO"
_RT_INFO = "optc"
_ELSEWHERE = "use --backend=onnxruntime"


class OpenVinoBackend:
    """Emits OpenVINO's IR, or ONNX files for it, and runs both."""

    name = "openvino"
    kernels = openvino_kernels

    def probe(self) -> Probe:
        """Whether OpenVINO is installed; it is not imported for that."""
        version = installed_version()
        if version is None:
            return Probe(False, "OpenVINO, which runs the graph, is not installed", INSTALL)
        return Probe(True, f"openvino {version}, on CPUs; 64-bit integers are computed in 32 bits")

    def on(self, target: Target) -> Target:
        """The target as this backend runs it.

        Raises:
            BackendError: OpenVINO is missing, or is not for this target.
        """
        if not self.probe().ready:
            raise BackendError("OpenVINO, which the openvino backend runs with, is not installed", hint=INSTALL)
        if target.kind != "cpu":
            raise BackendError(f"the openvino backend runs on CPUs, not on {target.name!r}", hint="use --target=cpu")
        return replace(target, provider=PROVIDER)

    def here(self, target: Target) -> bool:
        """Always: it runs on any CPU."""
        return True

    def claims(self, op: OpSignature | onnx_ir.Node, target: Target | None = None) -> bool:
        """Whether OpenVINO reads the op as it stands."""
        signature = op if isinstance(op, OpSignature) else OpSignature.of(op)
        return installed_version() is not None and openvino_kernels.reads(
            signature.domain, signature.op_type, signature.version
        )

    def problem(self, model: onnx_ir.Model) -> str | None:
        """Why OpenVINO cannot run a model; None where nothing is known to be in the way."""
        return openvino_kernels.problem(model)

    def runner(
        self,
        model: onnx_ir.Model,
        *,
        plain: bool = False,
        few_runs: bool = False,
        threads: int | None = None,
        precision: str | None = None,
    ) -> OpenVinoRunner:
        """A model in memory, opened as its artifact would be; ``plain`` and ``few_runs`` make no difference here."""
        inputs, outputs = _interface(model)
        precision = precision or model.metadata_props.get(PRECISION_KEY, DEFAULT_PRECISION)
        with _read(model) as read:
            return OpenVinoRunner(read, inputs, outputs, precision=precision, threads=threads)

    def emit(self, model: onnx_ir.Model, target: Target, out: Path) -> Artifact:
        """Write ``out``: OpenVINO's IR where it ends in ``.xml``, with the weights in ``.bin`` beside it; else ONNX.

        An ONNX file says in its metadata that it was made for OpenVINO, and opens in other runtimes as well.
        """
        if out.suffix.lower() == ".xml":
            files = _write_ir(model, out)
        else:
            marked = _with_producer(model)
            marked.metadata_props[MADE_FOR] = self.name
            files = tuple(save(marked, out))
        return Artifact(self.name, files[0], files)

    def open(self, path: Path, **options: Any) -> OpenVinoRunner:
        """Open an IR or an ONNX file.

        Args:
            path: The ``.xml`` or ``.onnx`` file.
            options: ``threads``, and ``precision`` ("f32", "bf16", "f16"), which is else what the file says.

        Raises:
            BackendError: The file cannot be read, or OpenVINO is not installed.
            UsageError: There is no such option.
        """
        threads, precision = options.pop("threads", None), options.pop("precision", None)
        unknown = [name for name, value in options.items() if value is not None]
        if unknown:
            raise UsageError(f"the openvino backend has no option {unknown[0]!r}", hint="it has: threads, precision")
        if precision not in (None, *PRECISIONS):
            raise UsageError(f"there is no precision {precision!r}", hint=f"there are: {', '.join(PRECISIONS)}")
        path = Path(path)
        if not path.is_file():
            raise BackendError("no such file", where=os.fspath(path), hint="check the path")
        if path.suffix.lower() != ".xml":
            graph = load(path)
            if not graph.producer_name:
                return self.runner(graph, threads=threads, precision=precision)
            stored, model = graph.metadata_props.get(PRECISION_KEY), _read_file(path, os.fspath(path))
            inputs, outputs = _interface(graph)
        else:
            inputs, outputs, model, stored = _opened_ir(path)
        precision = precision or stored or DEFAULT_PRECISION
        return OpenVinoRunner(model, inputs, outputs, precision=precision, threads=threads, where=os.fspath(path))


def _interface(model: onnx_ir.Model) -> tuple[list[ValueSpec], list[ValueSpec]]:
    """What has to be fed, and what comes out."""
    inputs = [value for value in model.graph.inputs if (value.name or "") not in model.graph.initializers]
    return [ValueSpec.of(value) for value in inputs], [ValueSpec.of(value) for value in model.graph.outputs]


@contextmanager
def _read(model: onnx_ir.Model) -> Iterator[Any]:
    """A graph as OpenVINO's own, which may refer to a file that is there only inside of the context.

    It goes by way of a file, as weights of any size are streamed into it without a copy in memory.
    """
    model = _with_producer(runnable(model))
    with tempfile.TemporaryDirectory(prefix="optc-openvino-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "model.onnx")
        save(model, path)
        yield _read_file(path, None)


def _with_producer(model: onnx_ir.Model) -> onnx_ir.Model:
    """A copy that OpenVINO takes for an ONNX file: it looks at the first three fields, and wants no two of a kind."""
    copy = model.clone()
    copy.producer_name = copy.producer_name or "optc"
    return copy


def _read_file(path: Path, where: str | None) -> Any:
    try:
        return core().read_model(os.fspath(path))
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(f"OpenVINO cannot read it: {last_words(error)}", where=where, hint=_ELSEWHERE) from error


def _opened_ir(path: Path) -> tuple[list[ValueSpec], list[ValueSpec], Any, str | None]:
    """Interface, OpenVINO's model and precision of an IR."""
    where = os.fspath(path)
    _check_ir(path)
    model = _read_file(path, where)
    interface, precision = _rt_info(model, "interface"), _rt_info(model, "precision")
    if interface is None:
        return *interface_of(model), model, precision
    try:
        return *parse_interface(interface), model, precision
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError("what optc wrote into the file about its interface is damaged", where=where) from error


def _check_ir(path: Path) -> None:
    """Refuse what is no IR before OpenVINO tries all its readers on it, and tells of each on the console."""
    try:
        _, root = next(ElementTree.iterparse(path, events=("start",)))
    except (ElementTree.ParseError, StopIteration, OSError) as error:
        raise BackendError(f"not one of OpenVINO's files: {error}", where=os.fspath(path)) from error
    if root.tag != "net":
        raise BackendError(f"not one of OpenVINO's files: it holds a <{root.tag}>", where=os.fspath(path))


def _rt_info(model: Any, key: str) -> str | None:
    place = [_RT_INFO, key]
    return str(model.get_rt_info(place).astype(str)) if model.has_rt_info(place) else None


def _write_ir(model: onnx_ir.Model, out: Path) -> tuple[Path, ...]:
    """Write the IR beside its place, then rename it; weights keep their types."""
    files = (out, out.with_suffix(".bin"))
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as folder, _read(model) as read:
        read.set_rt_info(interface_text(*_interface(model)), [_RT_INFO, "interface"])
        read.set_rt_info(model.metadata_props.get(PRECISION_KEY, DEFAULT_PRECISION), [_RT_INFO, "precision"])
        written = Path(folder, out.name)
        try:
            library().save_model(read, os.fspath(written), compress_to_fp16=False)
        except Exception as error:
            raise OutputError(f"OpenVINO cannot write it: {last_words(error)}", where=os.fspath(out)) from error
        try:
            for target in reversed(files):
                os.replace(written.with_suffix(target.suffix), target)
        except OSError as error:
            raise OutputError.of(error, out) from error
    return files
