"""The order of nodes: every value is made before it is read."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import GraphProto, ModelProto, NodeProto

from exporter.errors import ModelError
from exporter.node_shapes import View
from exporter.protos import graphs_of, reads, set_nodes


def in_order(views: Sequence[View]) -> bool:
    """Say whether the nodes of a graph, none of which runs a subgraph, make every value before it is read."""
    later = {name for view in views for name in view.outputs if name}
    for view in views:
        if not later.isdisjoint(view.inputs):
            return False
        later.difference_update(view.outputs)
    return True


def sort_nodes(model: ModelProto) -> None:
    """Put the nodes into topological order, in place, keeping the present order where it is one already."""
    for graph in reversed(list(graphs_of(model.graph))):
        _sort(graph)


def _sort(graph: GraphProto) -> None:
    nodes = list(graph.node)
    made = {name for node in nodes for name in node.output if name}
    later = set(made)
    for node in nodes:
        if not later.isdisjoint(reads(node)):
            break
        later.difference_update(node.output)
    else:
        return
    needs = [reads(node) & made for node in nodes]
    order: list[NodeProto] = []
    waiting = dict(enumerate(needs))
    blocked_by: dict[str, list[int]] = {}
    for i, names in waiting.items():
        for name in names:
            blocked_by.setdefault(name, []).append(i)
    stack = [i for i in reversed(range(len(nodes))) if not waiting[i]]
    while stack:
        i = stack.pop()
        order.append(nodes[i])
        for name in nodes[i].output:
            for j in blocked_by.get(name, ()):
                waiting[j].discard(name)
                if not waiting[j]:
                    stack.append(j)
    if len(order) != len(nodes):
        stuck = next(nodes[i] for i, names in waiting.items() if names)
        raise ModelError(f"the graph has a cycle through {stuck.op_type} '{stuck.name}'; it is not valid ONNX.")
    set_nodes(graph, order)
