"""If nodes whose condition is the same in every run: the branch that is taken becomes part of the graph.

TorchScript exports are full of them: ``squeeze`` becomes an If on the size of an axis.
"""

from __future__ import annotations

import onnx
from onnx import GraphProto, ModelProto, NodeProto

from exporter.shapes import Inferred
from exporter.values import is_standard


def take_known_branches(model: ModelProto, found: Inferred) -> bool:
    """Replace, in place, every If of the main graph with a known condition by the branch it takes.

    Returns:
        Whether there was one.
    """
    chosen = {}
    for node in model.graph.node:
        condition = found.known.get(node.input[0]) if node.input else None
        if node.op_type == "If" and is_standard(node) and condition is not None and condition.size == 1:
            name = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
            chosen[node.output[0]] = next((a.g for a in node.attribute if a.name == name), None)
    chosen = {key: branch for key, branch in chosen.items() if branch is not None}
    if not chosen:
        return False
    taken = _names(model.graph)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        branch = chosen.get(node.output[0]) if node.output else None
        if branch is None:
            nodes.append(NodeProto.FromString(node.SerializeToString()))
        else:
            nodes.extend(_inline(model, node, branch, taken))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return True


def _inline(model: ModelProto, node: NodeProto, branch: GraphProto, taken: dict[str, int]) -> list[NodeProto]:
    """Nodes of a branch, its results named like the If's, its constants moved to the main graph."""
    copy = GraphProto.FromString(branch.SerializeToString())
    made = {name for inner in copy.node for name in inner.output if name} | {t.name for t in copy.initializer}
    names: dict[str, str] = {}
    passed_on: list[tuple[str, str]] = []
    for inside, outside in zip((v.name for v in copy.output), node.output, strict=True):
        if inside in made and inside not in names:
            names[inside] = outside
        else:
            passed_on.append((inside, outside))
    for name in made - names.keys():
        # the same name may be in use in another subgraph, which must not see this one
        if taken.get(name, 0) > 1:
            names[name] = f"{node.output[0]}/{name}"
    for inner in copy.node:
        rename(inner, names)
    for tensor in copy.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
        model.graph.initializer.append(tensor)
    result = list(copy.node)
    for inside, outside in passed_on:
        result.append(onnx.helper.make_node("Identity", [names.get(inside, inside)], [outside]))
    return result


def rename(node: NodeProto, names: dict[str, str]) -> None:
    """Rename, in place, tensors of a node and of the subgraphs in it."""
    for field in (node.input, node.output):
        for i, name in enumerate(field):
            field[i] = names.get(name, name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
                value.name = names.get(value.name, value.name)
            for inner in graph.node:
                rename(inner, names)


def _names(graph: GraphProto) -> dict[str, int]:
    """In how many graphs each tensor name is defined."""
    counts: dict[str, int] = {}
    own = {name for node in graph.node for name in node.output if name}
    own |= {t.name for t in graph.initializer} | {v.name for v in graph.input}
    for name in own:
        counts[name] = counts.get(name, 0) + 1
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                for name, count in _names(inner).items():
                    counts[name] = counts.get(name, 0) + count
    return counts
