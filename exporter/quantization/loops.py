"""Constants that a Loop carries from round to round without changing them: its body can read them itself.

tf2onnx hands the weights of a recurrent layer round like that.
"""

from __future__ import annotations

from onnx import GraphProto, ModelProto, NodeProto, helper

from exporter.graph import op_of
from exporter.protos import all_nodes, graphs_of, read_instead, set_nodes, subgraphs

_FIRST = 2
"""Inputs of a Loop and of its body before the states."""


def free_constants(model: ModelProto) -> None:
    """Take constants out of the states of Loops, in place.

    Args:
        model: no name is used twice in it.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    for graph in graphs_of(model.graph):
        nodes: list[NodeProto] = []
        for node in graph.node:
            if op_of(node) == "Loop":
                nodes += _without(node, constants)
            nodes.append(node)
        set_nodes(graph, nodes)


def _without(loop: NodeProto, constants: set[str]) -> list[NodeProto]:
    """Take them out of one Loop; gives what makes its outputs that were theirs."""
    (body,) = subgraphs(loop)
    makers = {output: node for node in body.node for output in node.output}
    before = []
    for k in reversed(range(len(loop.input) - _FIRST)):
        name, state, place = loop.input[_FIRST + k], body.input[_FIRST + k].name, 1 + k
        returned = body.output[place].name
        maker = makers.get(returned)
        passed = returned == state or (maker is not None and op_of(maker) == "Identity" and maker.input[0] == state)
        if name not in constants or not passed or _gives(body, {state, returned}, place):
            continue
        read_instead(all_nodes(body), {state: name})
        if k < len(loop.output):
            if loop.output[k]:
                before.append(helper.make_node("Identity", [name], [loop.output[k]]))
            del loop.output[k]
        del loop.input[_FIRST + k], body.input[_FIRST + k], body.output[place]
    return before


def _gives(body: GraphProto, names: set[str], place: int) -> bool:
    """Whether a body, or what is in it, gives one of these names at another place too."""
    inside = [value.name for graph in graphs_of(body) for value in graph.output]
    inside.remove(body.output[place].name)
    return not names.isdisjoint(inside)
