"""If nodes whose condition is the same in every run: the branch that is taken becomes part of the graph around it.

TorchScript exports are full of them: ``squeeze`` becomes an If on the size of an axis.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, ModelProto, NodeProto

from exporter.protos import graphs_of, set_nodes, subgraphs
from exporter.values import Known, is_standard


def take_known_branches(model: ModelProto, known: Mapping[str, Known]) -> bool:
    """Replace, in place, every If with a known condition by the branch it takes.

    Args:
        model: its names are unique in all subgraphs together, and its constants are in the main graph.
        known: values by name.

    Returns:
        Whether there was one.
    """
    changed = False
    for graph in reversed(list(graphs_of(model.graph))):
        if not any(node.op_type == "If" for node in graph.node):
            continue
        nodes: list[NodeProto] = []
        for node in graph.node:
            branch = _taken(node, known)
            nodes.extend([node] if branch is None else _inline(node, branch))
            changed |= branch is not None
        set_nodes(graph, nodes)
    return changed


def _taken(node: NodeProto, known: Mapping[str, Known]) -> GraphProto | None:
    if node.op_type != "If" or not is_standard(node) or not node.input:
        return None
    condition = known.get(node.input[0])
    if condition is None or condition.size != 1:
        return None
    name = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
    branch = next((a.g for a in node.attribute if a.name == name), None)
    return branch if branch is not None and len(branch.output) == len(node.output) else None


def _inline(node: NodeProto, branch: GraphProto) -> list[NodeProto]:
    """Nodes of a branch, its results handed on under the names of the If's."""
    copy = GraphProto.FromString(branch.SerializeToString())
    names = {v.name: outside for v, outside in zip(copy.output, node.output, strict=True) if outside}
    for inner in copy.node:
        rename(inner, names)
    return list(copy.node)


def rename(node: NodeProto, names: Mapping[str, str]) -> None:
    """Rename, in place, tensors of a node and of the subgraphs in it."""
    for field in (node.input, node.output):
        for i, name in enumerate(field):
            field[i] = names.get(name, name)
    for graph in subgraphs(node):
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = names.get(value.name, value.name)
        for inner in graph.node:
            rename(inner, names)
