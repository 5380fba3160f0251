"""Take residual branches out of a graph: whoever read the sum reads its other operand, and what only the branch needed
goes. Knows which branches, not why."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import ModelProto, NodeProto

from exporter.functions import Calls
from exporter.graph import Graph, op_of
from exporter.plan import Drop
from exporter.protos import all_nodes, graphs_of, key_of, reads, set_nodes, subgraphs


@dataclass(frozen=True)
class Link:
    """One node of the main graph as the removal sees it: its key, what it reads (inside subgraphs too), what it makes.

    Attributes:
        proto: the node.
        key: its first output.
        reads: names of tensors.
        outputs: names of tensors.
    """

    proto: NodeProto
    key: str
    reads: frozenset[str]
    outputs: tuple[str, ...]


def links(model: ModelProto) -> list[Link]:
    """The nodes of a model's main graph, in order."""
    return [
        Link(n, key_of(n), frozenset(reads(n)), tuple(o for o in n.output if o)) for n in model.graph.node if n.output
    ]


def stand_ins(drops: Sequence[Drop]) -> dict[str, str]:
    """What takes the place of each sum whose branch goes, chains of them followed to their end."""
    direct = {d.node: d.keeps for d in drops}
    result = {}
    for name in direct:
        end, steps = name, 0
        while end in direct and steps <= len(direct):
            end, steps = direct[end], steps + 1
        result[name] = end
    return result


def survivors(nodes: Sequence[Link], outputs: Collection[str], drops: Sequence[Drop]) -> set[str]:
    """Keys of the nodes that the outputs still need once the branches are gone.

    Args:
        nodes: all nodes, in topological order.
        outputs: names of the graph outputs.
        drops: the branches that go.
    """
    instead = stand_ins(drops)
    interface = {name for d in drops for name in d.interface}
    wanted = {instead.get(o, o) for o in outputs if o not in interface}
    alive: set[str] = set()
    for link in reversed(nodes):
        if link.key not in instead and any(o in wanted for o in link.outputs):
            alive.add(link.key)
            wanted.update(instead.get(name, name) for name in link.reads)
    return alive


def take_out(model: ModelProto, drops: Sequence[Drop], constants: Collection[str]) -> None:
    """Take branches out of a model in place, with the nodes and constants nothing needs any more.

    Args:
        model: owned by the caller; its nodes are in topological order.
        drops: the branches. A sum that is a graph output keeps its name, as a copy of what takes its place.
        constants: names of all constants it had, those already left out included.
    """
    if not drops:
        return
    before = links(model)
    instead = stand_ins(drops)
    interface = {name for d in drops for name in d.interface}
    outputs = [v.name for v in model.graph.output]
    alive = survivors(before, outputs, drops)
    nodes = []
    for link in before:
        if link.key in instead and link.key in outputs:
            copy = onnx.helper.make_node("Identity", [instead[link.key]], [link.key], link.proto.name)
            copy.doc_string = link.proto.doc_string
            nodes.append(copy)
        elif link.key in alive:
            _reread(link.proto, instead)
            nodes.append(link.proto)
    set_nodes(model.graph, nodes)
    for values in (model.graph.input, model.graph.output):
        for value in [v for v in values if v.name in interface]:
            values.remove(value)
    unread = {name for link in before for name in link.reads} - {n for link in links(model) for n in link.reads}
    unread -= {v.name for v in model.graph.output}
    for tensor in [t for t in model.graph.initializer if t.name in unread]:
        model.graph.initializer.remove(tensor)
    # an input that held the default of such a constant goes with it; any other stays, though nothing reads it
    for value in [v for v in model.graph.input if v.name in unread.intersection(constants)]:
        model.graph.input.remove(value)


def _reread(node: NodeProto, instead: Mapping[str, str]) -> None:
    """Let a node, and the subgraphs in it, read other tensors."""
    for i, name in enumerate(node.input):
        node.input[i] = instead.get(name, name)
    for graph in subgraphs(node):
        for value in graph.output:
            value.name = instead.get(value.name, value.name)
        for inner in graph.node:
            _reread(inner, instead)


def renewed_calls(calls: Calls, drops: Sequence[Drop]) -> Calls:
    """Calls of local functions without the branches: those that read a sum read what takes its place."""
    if not drops:
        return calls
    instead = stand_ins(drops)
    nodes = [NodeProto.FromString(n.SerializeToString()) for n in calls.nodes]
    bodies = [[NodeProto.FromString(n) for n in body] for body in calls.bodies]
    for node in (*nodes, *(n for body in bodies for n in body)):
        _reread(node, instead)
    return replace(calls, nodes=nodes, bodies=[[n.SerializeToString(deterministic=True) for n in b] for b in bodies])


def forget_unmade(model: ModelProto) -> None:
    """Drop, in place, what is declared of tensors that no longer exist, in subgraphs too."""
    made = {name for node in all_nodes(model.graph) for name in node.output}
    made |= {t.name for t in model.graph.initializer}
    for graph in graphs_of(model.graph):
        for stale in [v for v in graph.value_info if v.name not in made]:
            graph.value_info.remove(stale)
        for annotation in [a for a in graph.quantization_annotation if a.tensor_name not in made]:
            graph.quantization_annotation.remove(annotation)


def sum_fault(graph: Graph, node: NodeProto) -> str:
    """Why a node is no sum of which a branch could go; empty where it is one."""
    if op_of(node) not in ("Add", "Sum") or len(node.input) != 2:
        return "is not a sum of two tensors"
    if node.input[0] == node.input[1] or any(name in graph.constants for name in node.input):
        return "adds one tensor to itself or to a constant"
    shapes = [graph.shape(name) for name in (*node.input, *node.output)]
    if None in shapes or len(set(shapes)) != 1:
        return "does not add two tensors of equal shape"
    return ""
