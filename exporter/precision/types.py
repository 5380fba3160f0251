"""Types of all tensors: where shape inference gave up, the operators' schemas still tell."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from exporter.graph import Graph, Node
from exporter.protos import domain_of

_NAMES = frozenset(TensorProto.DataType.keys())


def types_of(graph: Graph) -> dict[str, int]:
    """``TensorProto.DataType`` of every tensor, constants included, by name."""
    found = {**graph.inferred.dtype, **{n: t.data_type for n, t in graph.constants.items()}}
    for node in graph.nodes:
        if any(name and name not in found for name in node.outputs):
            for name, kind in (_by_branches(node, found) if node.op == "If" else _by_schema(node, found)).items():
                found.setdefault(name, kind)
    return found


def _by_branches(node: Node, known: dict[str, int]) -> dict[str, int]:
    """What an If gives has the types of what its branches return."""
    return {
        name: known[inner]
        for body in node.bodies
        for name, inner in zip(node.outputs, body.outputs, strict=False)
        if name and inner in known
    }


def _by_schema(node: Node, known: dict[str, int]) -> dict[str, int]:
    """A type variable of the schema stands for the same type wherever it occurs; other results have one type."""
    try:
        schema = onnx.defs.get_schema(node.proto.op_type, node.opset, domain_of(node.proto))
    except onnx.defs.SchemaError:
        return {}
    bound: dict[str, int] = {}
    for k, name in enumerate(node.inputs):
        formal = schema.inputs[min(k, len(schema.inputs) - 1)] if schema.inputs else None
        if formal is not None and name in known and formal.is_homogeneous:
            bound.setdefault(formal.type_str, known[name])
    allowed = {c.type_param_str: list(c.allowed_type_strs) for c in schema.type_constraints}
    result = {}
    for k, name in enumerate(node.outputs):
        formal = schema.outputs[min(k, len(schema.outputs) - 1)] if schema.outputs else None
        if formal is None or not name:
            continue
        kind = bound.get(formal.type_str) or _only(allowed.get(formal.type_str, [formal.type_str]))
        if kind is not None:
            result[name] = kind
    return result


def _only(texts: list[str]) -> int | None:
    """The one type of a list in which schemas write ``tensor(int64)``; None where there are several."""
    name = texts[0].removeprefix("tensor(").removesuffix(")").upper() if len(texts) == 1 else ""
    return TensorProto.DataType.Value(name) if name in _NAMES else None
