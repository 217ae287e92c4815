"""``optc inspect MODEL``: what a model is made of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click
import onnx_ir

from optc.backends.base import ValueSpec
from optc.backends.triton.artifact import open_artifact
from optc.backends.triton.parts import in_parts, read_parts
from optc.inputs import signature, symbols
from optc.ir.model import load
from optc.ir.names import join_op
from optc.ir.rewriter import RULE_KEY, SOURCE_KEY
from optc.machine import file_digest
from optc.report import ModelSummary
from optc.shapes import dim_sizes
from optc.tools.artifact import show_artifact
from optc.tools.console import show, table
from optc.tools.files import data_files
from optc.tools.parameters import FILE, common, shape_option
from optc.units import size_text


@click.command("inspect", short_help="Show what a model is made of.")
@click.argument("model", type=FILE)
@click.option("--nodes", is_flag=True, help="List the nodes, and what each was made from by which rules.")
@shape_option
@common
def command(model: Path, nodes: bool, shapes: tuple[str, ...]) -> None:
    """Show the inputs, outputs, operators, weights and versions of MODEL; of an artifact launches, tiles and memory.

    Sizes (--shape) settle how much memory an artifact with symbolic dims takes.
    """
    if model.is_dir():
        specs = read_parts(model).specs if in_parts(model) else open_artifact(model).plan.specs()
        show_artifact(model, dim_sizes(shapes, signature(specs)), nodes)
        return
    graph = load(model)
    summary = ModelSummary.of(graph, model)
    show(table(("", ""), _facts(graph, summary)), "")
    io = [("input", str(ValueSpec.of(value))) for value in graph.graph.inputs]
    io += [("output", str(ValueSpec.of(value))) for value in graph.graph.outputs]
    show(table(("", ""), io), "")
    show(table(("operator", "nodes"), summary.ops.items(), right=("nodes",)))
    if nodes:
        show("", _nodes(graph))


def _facts(graph: onnx_ir.Model, summary: ModelSummary) -> list[tuple[str, str]]:
    size = Path(summary.path or "").stat().st_size
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(graph.opset_imports.items()))
    types: Counter[str] = Counter()
    for inner in graph.graphs():
        for value in inner.initializers.values():
            if value.const_value is not None:
                types[value.const_value.dtype.name.lower()] += value.const_value.nbytes
    weights = ", ".join(f"{dtype} {size_text(nbytes)}" for dtype, nbytes in types.most_common())
    facts = [
        ("file", f"{summary.path}, {size_text(size)}, {file_digest(summary.path or '')}"),
        ("producer", " ".join(filter(None, (graph.producer_name, graph.producer_version))) or "?"),
        ("versions", f"IR {graph.ir_version}, opset {opsets}"),
        ("nodes", str(summary.nodes)),
        ("weights", f"{size_text(summary.weight_bytes)}{f' ({weights})' if weights else ''}"),
        ("external data", ", ".join(path.name for path in data_files(graph))),
        ("functions", ", ".join(f"{domain}::{name}" for domain, name, _ in graph.functions)),
        ("symbolic dims", ", ".join(symbols(graph))),
        ("metadata", ", ".join(f"{key}={value}" for key, value in graph.metadata_props.items())),
    ]
    return [(name, text) for name, text in facts if text]


def _nodes(graph: onnx_ir.Model) -> object:
    rows = []
    for inner in (graph.graph, *graph.graph.subgraphs()):
        for node in inner:
            op = join_op(node.domain, node.op_type)
            outputs = ", ".join(str(ValueSpec.of(value)) for value in node.outputs if value.name)
            origin = node.metadata_props.get(SOURCE_KEY, "")
            rows.append((node.name or "", op, outputs, node.metadata_props.get(RULE_KEY, ""), origin))
    return table(("node", "operator", "outputs", "rules", "made from"), rows)
