"""The order of nodes: every value is made before it is read."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from onnx import GraphProto, ModelProto, NodeProto

from exporter.errors import ModelError
from exporter.protos import graphs_of, reads, set_nodes


def in_order(nodes: Sequence[tuple[Collection[str], Collection[str]]]) -> bool:
    """Say whether nodes, given by the names each reads and makes, make every value before it is read."""
    later = {name for _, made in nodes for name in made if name}
    for read, made in nodes:
        if not later.isdisjoint(read):
            return False
        later.difference_update(made)
    return True


def sort_nodes(model: ModelProto) -> None:
    """Put the nodes into topological order, in place, keeping the present order where it is one already."""
    for graph in reversed(list(graphs_of(model.graph))):
        _sort(graph)


def _sort(graph: GraphProto) -> None:
    nodes = list(graph.node)
    read = [reads(node) for node in nodes]
    if in_order([(names, node.output) for names, node in zip(read, nodes, strict=True)]):
        return
    made = {name for node in nodes for name in node.output if name}
    needs = [names & made for names in read]
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
