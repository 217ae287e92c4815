"""What an engine is made of: TensorRT's layers, and the nodes of the model that each one stands for.

TensorRT fuses nodes, and writes into each layer's metadata the ONNX nodes that went into it. optc in turn has written
into its nodes of which nodes of the original model they were made. Both together lead from a kernel in the engine back
to the user's model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir

from optc.ir.errors import BackendError
from optc.ir.rewriter import SOURCE_KEY

#: How TensorRT names a node in a layer's metadata; nodes of one fusion stand with control characters between them.
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1d-\x1f\[]|\s*$)")


@dataclass(frozen=True)
class Layer:
    """A layer of an engine.

    Attributes:
        name: TensorRT's name of it.
        kind: What it is ("CaskConvolution", "Reformat", "gemm", ...).
        nodes: Nodes of the ONNX file that it computes; none for layers that TensorRT added.
        sources: Nodes of the original model that these were made of.
        tactic: The kernel, as far as TensorRT tells.
        types: Types and formats of its outputs.
    """

    name: str
    kind: str = ""
    nodes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    tactic: str = ""
    types: tuple[str, ...] = ()


def layers(trt: Any, engine: Any, sources: Mapping[str, tuple[str, ...]]) -> tuple[Layer, ...]:
    """The layers of an engine, in the order in which they run.

    Args:
        trt: TensorRT.
        engine: A deserialized engine.
        sources: See :func:`sources_of`.

    Raises:
        BackendError: TensorRT says nothing of it that can be read.
    """
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return parse(text, sources)


def parse(text: str, sources: Mapping[str, tuple[str, ...]]) -> tuple[Layer, ...]:
    """The layers in the inspector's JSON.

    An engine that was built without details has its layers' names only.
    """
    try:
        found = json.loads(text)
        entries = found["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError("the engine inspector's answer cannot be read", hint="please report this") from error
    return tuple(_layer(entry, sources) for entry in entries)


def sources_of(model: onnx_ir.Model) -> dict[str, tuple[str, ...]]:
    """By the name of each node of a model, the names of the original's nodes that it was made of."""
    found = {}
    for node in model.graph.all_nodes():
        told = node.metadata_props.get(SOURCE_KEY, "")
        names = tuple(name for name in told.split(",") if name)
        found[node.name or ""] = names or ((node.name,) if node.name else ())
    return found


def _layer(entry: Any, sources: Mapping[str, tuple[str, ...]]) -> Layer:
    if not isinstance(entry, Mapping):
        return Layer(str(entry))
    nodes = tuple(dict.fromkeys(_NODE.findall(str(entry.get("Metadata", "")))))
    origins = dict.fromkeys(source for node in nodes for source in sources.get(node, (node,)))
    return Layer(
        name=str(entry.get("Name", "")),
        kind=str(entry.get("LayerType", "")),
        nodes=nodes,
        sources=tuple(origins),
        tactic=str(entry.get("TacticName", "")),
        types=tuple(_types(entry.get("Outputs", ()))),
    )


def _types(tensors: Iterable[Any]) -> Iterable[str]:
    """Type and format in words; TensorRT 10 tells both at once, 11 apart."""
    for tensor in tensors:
        if isinstance(tensor, Mapping):
            apart = [str(tensor[key]) for key in ("DataType", "Format") if key in tensor]
            yield " ".join(apart) or str(tensor.get("Format/Datatype", ""))
