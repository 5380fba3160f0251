"""Give each use of a small quantized constant its own DequantizeLinear, as each use of a plain one has its own slots.

Exporters merge equal constants, so the zero biases of several layers may be one initializer. The analysis lets its uses
part; behind one DequantizeLinear they could not, and all these layers would be cut alike. A matrix with several users
is shared on purpose and stays so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnx import ModelProto, NodeProto

from exporter.fold import FreshName
from exporter.graph import op_of
from exporter.inferred import Dims
from exporter.node_shapes import View
from exporter.protos import reads, set_nodes

_STEPS = frozenset({"DequantizeLinear", "com.microsoft::DequantizeLinear", "Cast"})
_OPERATORS = frozenset(op.rpartition("::")[2] for op in _STEPS)


def has_steps(views: Iterable[View]) -> bool:
    """Say whether there is a node that ``part_uses`` may clone."""
    return any(view.op in _OPERATORS and view.name in _STEPS for view in views)


def part_uses(model: ModelProto, sizes: Mapping[str, Dims], fresh: FreshName) -> bool:
    """Clone, in place, the nodes that make a vector from constants alone and have several users.

    Args:
        model: nodes in topological order.
        sizes: shape of every constant by name.
        fresh: makes an unused tensor name.

    Returns:
        Whether there was one.
    """
    outputs = {v.name for v in model.graph.output}
    users: dict[str, list[tuple[NodeProto, int]]] = {}
    inside: set[str] = set()
    for node in model.graph.node:
        inside |= reads(node) - set(node.input)
        for i, name in enumerate(node.input):
            users.setdefault(name, []).append((node, i))
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        name = node.output[0] if len(node.output) == 1 else ""
        if op_of(node) not in _STEPS or name in outputs | inside or not _is_vector(node, sizes):
            continue
        for user, i in users.get(name, [])[1:]:
            clone = NodeProto()
            clone.CopyFrom(node)
            clone.output[0] = user.input[i] = fresh(f"{name}.use")
            clone.name = clone.output[0] if node.name else ""
            nodes.append(clone)
    changed = len(nodes) > len(model.graph.node)
    if changed:
        set_nodes(model.graph, nodes)
    return changed


def _is_vector(node: NodeProto, sizes: Mapping[str, Dims]) -> bool:
    """Say whether a node reads constants alone, the first of which varies along one axis at most."""
    if not node.input or node.input[0] not in sizes or any(name and name not in sizes for name in node.input):
        return False
    return sum(s != 1 for s in sizes[node.input[0]]) == 1
