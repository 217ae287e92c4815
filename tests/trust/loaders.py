"""All that reads files or texts which others wrote, with good ones to damage."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir

from optc import reproducer
from optc.backends.base import ValueSpec
from optc.backends.triton import artifact
from optc.backends.triton.memory import place
from optc.backends.triton.plan import Argument, Buffer, KernelEntry, Launch, Plan, Tensor, Variant
from optc.inputs import input_specs, symbols
from optc.ir import dims
from optc.ir.facts import Facts
from optc.ir.model import load
from optc.ir.targets import parse_targets
from optc.options import Options
from optc.passes.levels import builtin_levels
from optc.passes.pipeline import parse_pipeline
from optc.passes.registry import pass_registry
from optc.shapes import dim_sizes
from optc.sources import load_samples

from .damage import Damage, bytewise, protobuf, tree
from .graphs import graph


@dataclass(frozen=True)
class Loader:
    """Something that reads.

    Attributes:
        weight: How often it is attacked, relative to the others.
        seeds: Makes good inputs, in a folder of its own.
        read: Writes an input into a folder and reads it as optc does.
        damages: Ways to damage an input.
    """

    weight: float
    seeds: Callable[[Path], list[bytes]]
    read: Callable[[bytes, Path], object]
    damages: Sequence[Damage]


# models ---------------------------------------------------------------------------------------------------------------


def _models(folder: Path) -> list[bytes]:
    return [graph(seed, 4).SerializeToString() for seed in range(24)]


def _load_model(data: bytes, folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(data)
    model = load(path)
    input_specs(model)
    symbols(model)
    facts = Facts(model)
    for node in model.graph:
        for value in node.outputs:
            facts.shape(value)
            facts.const(value)


def _texts_of_models(folder: Path) -> list[bytes]:
    return [onnx.printer.to_text(graph(seed, 4)).encode() for seed in range(12)]


def _load_text(data: bytes, folder: Path) -> None:
    path = folder / "model.onnxtxt"
    path.write_bytes(data)
    load(path)


def _split_models(folder: Path) -> list[bytes]:
    """A model and its data in one text: the length of the first, then both."""
    path = folder / "whole.onnx"
    weights = {f"w{n}": np.arange(64 * (n + 1), dtype=np.float32) for n in range(3)}
    nodes = [onnx.helper.make_node("Add", [f"v{n}" if n else "x", f"w{n}"], [f"v{n + 1}"]) for n in range(3)]
    value = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "v3")]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", value[:1], value[1:], tensors), ir_version=9)
    onnx.save(model, path, save_as_external_data=True, location="whole.data", size_threshold=0)
    skeleton = path.read_bytes()
    return [len(skeleton).to_bytes(4, "little") + skeleton + (folder / "whole.data").read_bytes()]


def _load_split(data: bytes, folder: Path) -> None:
    length = int.from_bytes(data[:4], "little")
    path = folder / "split.onnx"
    path.write_bytes(data[4 : 4 + length])
    (folder / "whole.data").write_bytes(data[4 + length :])
    for value in load(path).graph.initializers.values():
        if value.const_value is not None:
            value.const_value.numpy()


def _split_fields(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Damage to the model or to its data, each a file of its own."""
    length = int.from_bytes(data[:4], "little")
    skeleton, rest = data[4 : 4 + length], data[4 + length :]
    if rng.random() < 0.8:
        skeleton = rng.choice([protobuf, bytewise])(skeleton, rng, [skeleton])
    else:
        rest = bytewise(rest, rng, [rest])
    return len(skeleton).to_bytes(4, "little") + skeleton + rest


# archives -------------------------------------------------------------------------------------------------------------


def _zipped(damage: Mapping[str, Damage]) -> Damage:
    """Damage inside of an archive, whose checksums are right again after it."""

    def apply(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(sorted(members))
        kind = next((kind for ending, kind in damage.items() if name.endswith(ending)), bytewise)
        members[name] = kind(members[name], rng, [members[name]])
        if rng.random() < 0.1:
            members[rng.choice(["../x", "/x", " ", "x" * 300, "x.npy", "x.0.npy"])] = members.pop(name)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return out.getvalue()

    return apply


def _reproducers(folder: Path) -> list[bytes]:
    found = []
    for seed in range(3):
        path = folder / f"seed{seed}.zip"
        model = load(graph(seed, 4))
        reproducer.write(path, model, options=Options(shapes={"N": 2}), pipeline="dce", problems=["x"])
        found.append(path.read_bytes())
    return found


def _load_reproducer(data: bytes, folder: Path) -> None:
    path = folder / "reproducer.zip"
    path.write_bytes(data)
    with reproducer.opened(path) as (found, _):
        Options.of(**found.options)


_SPECS = (
    ValueSpec("x", onnx_ir.DataType.FLOAT, ("N", 3)),
    ValueSpec("ids", onnx_ir.DataType.INT64, ("N",)),
    ValueSpec("h", onnx_ir.DataType.FLOAT16, (2, 2)),
)


def _samples(folder: Path) -> list[bytes]:
    x, ids, h = np.ones((2, 3), np.float32), np.arange(2), np.zeros((2, 2), np.float16)
    stacked = {"x": np.stack([x, x]), "ids": np.stack([ids, ids]), "h": np.stack([h, h])}
    ragged = {f"{name}.{n}": array for n in range(2) for name, array in (("x", x), ("ids", ids), ("h", h))}
    found = []
    for arrays in ({"x": x, "ids": ids, "h": h}, stacked, ragged):
        out = io.BytesIO()
        np.savez(out, **arrays)
        found.append(out.getvalue())
    return found


def _load_samples(data: bytes, folder: Path) -> None:
    path = folder / "samples.npz"
    path.write_bytes(data)
    load_samples(path, _SPECS)


# artifacts ------------------------------------------------------------------------------------------------------------

_FILES = (artifact.MANIFEST, artifact.PLAN, artifact.WEIGHTS)


def _artifacts(folder: Path) -> list[bytes]:
    """A small artifact as JSON: what its files hold."""
    variant = Variant({"BLOCK": 64}, 4, 2, "k.cubin", "k", 0, (8, 8, 8), "12.0", 32, 0, 0, "the only one")
    entry = KernelEntry(
        "pointwise", "k.py", {"F": "f"}, ("*fp32",) * 3, {"n": None}, ("n",), ("n // BLOCK + 1",), {"sm_80": variant}
    )
    launch = Launch("k", (Argument(0), Argument(1), Argument(2)), {"n": "N*4"}, (0, 1), (2,), ("add",))
    plan = Plan(
        (Tensor("x", "FLOAT", ("N", "4"), 0),),
        (Tensor("y", "FLOAT", ("N", "4"), 3),),
        (Buffer("input", "N*4", "fp32"), Buffer("weight", "4", "fp32", "w"), Buffer("temporary", "N*4", "fp32"),
         Buffer("output", "N*4", "fp32")),
        {"k": entry},
        (launch, Launch("k", (Argument(2), Argument(1), Argument(3)), {"n": "N*4"}, (2, 1), (3,), ("again",))),
        {"N": (1, 8)},
    )  # fmt: skip
    out = folder / "seed.optc"
    with artifact.Writer(out) as writer:
        writer.add(artifact.PLAN, plan.to_json())
        writer.add_weights({"w": ("fp32", np.ones(4, np.float32))}, {"made_by": "a test"})
        writer.finish({"targets": {"sm_80": {"built_for": "a100", "driver": "525"}}})
    return [b"\0\0\0\0".join((out / name).read_bytes() for name in _FILES)]


def _load_artifact(data: bytes, folder: Path) -> None:
    out = folder / "damaged.optc"
    out.mkdir(exist_ok=True)
    for name, content in zip(_FILES, data.split(b"\0\0\0\0", 2), strict=False):
        (out / name).write_bytes(content)
    opened = artifact.open_artifact(out)
    opened.weights()
    plan = opened.plan
    plan.specs()
    place(
        plan,
        plan.bind(
            {tensor.name: [int(dim) if dim.isdecimal() else 2 for dim in tensor.shape] for tensor in plan.inputs}
        ),
    )


def _artifact_parts(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Damage to one file of an artifact; mostly with sizes and digests that fit what is damaged."""
    manifest, plan, weights = data.split(b"\0\0\0\0", 2)
    which = rng.randrange(3)
    if which == 0:
        manifest = tree(manifest, rng, others)
    elif which == 1:
        plan = rng.choice([tree, tree, bytewise])(plan, rng, [plan])
    else:
        length = int.from_bytes(weights[:8], "little")
        header, body = weights[8 : 8 + length], weights[8 + length :]
        header = tree(header, rng, others)
        weights = len(header).to_bytes(8, "little") + header + body
        weights = bytewise(weights, rng, [weights]) if rng.random() < 0.3 else weights
    if which and rng.random() < 0.9:
        told = json.loads(manifest)
        for name, content in ((artifact.PLAN, plan), (artifact.WEIGHTS, weights)):
            told["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = json.dumps(told).encode()
    return b"\0\0\0\0".join((manifest, plan, weights))


# texts ----------------------------------------------------------------------------------------------------------------


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape" if len(data) % 2 else "replace")


_REGISTRY = pass_registry()
_TARGETS = (Path(__file__).parents[2] / "ir" / "targets.toml").read_bytes()
_MODEL = onnx_ir.from_proto(
    onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,3] x, float[S] z) => (float[N,3] y) { y = Neg(x) }'
    )
)


def _pipelines(folder: Path) -> list[bytes]:
    texts = [level.text for level in builtin_levels().values()]
    texts += ['fixpoint<3>(simplify{only=[identity,"cast-chain"]},dce)', "emit{slow=true},fold{moved=false}"]
    return [text.encode() for text in texts if text]


def _targets(folder: Path) -> list[bytes]:
    tables = _TARGETS.decode().split("\n[")
    return [f"[{table}".encode() if at else table.encode() for at, table in enumerate(tables) if "kind" in table]


def _sizes(folder: Path) -> list[bytes]:
    return [b"N=8", b"x=4,3", b"S=2\nx=1,3", b"z=5"]


def _expressions(folder: Path) -> list[bytes]:
    return [b"N*4 + S", b"(N + 7) // 8 * 8", b"max(N, S) - 1", b"floor(N / 2)", b"batch * (past + 1)"]


def _read_expression(data: bytes, folder: Path) -> None:
    parsed = dims.parse(_text(data))
    with contextlib.suppress(ZeroDivisionError):
        dims.evaluate(parsed, dict.fromkeys(dims.symbols(parsed), 3))


LOADERS: Mapping[str, Loader] = {
    "model": Loader(8, _models, _load_model, (bytewise, protobuf, protobuf)),
    "model as text": Loader(2, _texts_of_models, _load_text, (bytewise,)),
    "model with external data": Loader(3, _split_models, _load_split, (_split_fields,)),
    "reproducer": Loader(1, _reproducers, _load_reproducer, (bytewise, _zipped({".json": tree, ".onnx": protobuf}))),
    "samples": Loader(2, _samples, _load_samples, (bytewise, _zipped({}))),
    "artifact": Loader(4, _artifacts, _load_artifact, (_artifact_parts, _artifact_parts, bytewise)),
    "pipeline": Loader(3, _pipelines, lambda data, _: parse_pipeline(_text(data), _REGISTRY), (bytewise,)),
    "targets": Loader(2, _targets, lambda data, _: parse_targets(_text(data), "damaged.toml"), (bytewise,)),
    "sizes": Loader(1, _sizes, lambda data, _: dim_sizes(_text(data).split("\n"), _MODEL), (bytewise,)),
    "size expression": Loader(2, _expressions, _read_expression, (bytewise,)),
}
