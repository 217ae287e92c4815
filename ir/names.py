"""How operators, functions and nodes are spelled in texts."""

from __future__ import annotations

import onnx_ir


def split_op(op: str) -> tuple[str, str]:
    """``"com.microsoft::Gelu"`` as (domain, op)."""
    domain, _, name = op.rpartition("::")
    return domain, name


def join_op(domain: str, name: str) -> str:
    """The reverse of :func:`split_op`."""
    return f"{domain}::{name}" if domain else name


def function_name(key: onnx_ir.OperatorIdentifier) -> str:
    """A function's name, with its overload if it has one."""
    domain, name, overload = key
    return join_op(domain, name) + (f":{overload}" if overload else "")


def label(node: onnx_ir.Node) -> str:
    """How messages name a node: its name and op."""
    return f"{node.name!r} ({join_op(node.domain, node.op_type)})"
