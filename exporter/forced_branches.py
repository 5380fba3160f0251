"""Both ways of every If, and into every Loop: inputs take one of them, and a proof must not depend on which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from exporter.graph import Graph, Node, op_of, opsets_of
from exporter.protos import all_nodes, graphs_of, key_of, set_nodes, subgraphs

Way = Mapping[str, bool]
"""What is forced, by key (first output): the branch an If takes; that a Loop is entered. The last one is what is tried,
the others lead there."""

LIMIT = 32
"""Most ways that are tried."""

_ITERATIONS = 2
_COUNT, _SHIFT = "secateur.way.count", "secateur.way.shift"
_WITH_WHERE = 9
"""The first operator set in which a number of rounds can be compared and chosen."""


def ways(graph: Graph) -> list[Way]:
    """Ways that together enter every branch of every If and every Loop that inputs may pass by; at most ``LIMIT``."""
    found: list[Way] = []
    for way in _ways(graph, [n for n in graph.nodes if n.depth == 0], {}):
        if len(found) == LIMIT:
            break
        found.append(way)
    return found


def _ways(graph: Graph, nodes: Sequence[Node], outer: Way) -> Iterator[Way]:
    for node in nodes:
        for body in node.bodies:
            taken = body.name != "else_branch"
            way = outer
            if node.op == "If" and node.inputs and node.inputs[0] in graph.static.known:
                if bool(graph.static.known[node.inputs[0]].any()) is not taken:
                    continue  # no input leads there
            elif node.op == "If" or (node.op == "Loop" and not _is_entered(graph, node)):
                way = {**outer, node.key: taken}
            inside = False
            for deeper in _ways(graph, body.nodes, way):
                inside = True
                yield deeper
            if not inside and way is not outer:
                yield way


def _is_entered(graph: Graph, node: Node) -> bool:
    """Say whether a Loop runs at least once, whatever the inputs are."""
    counts = [graph.static.known.get(name) for name in node.inputs[:2] if name]
    return all(c is not None and bool(c.astype(np.int64).min(initial=1) > 0) for c in counts)


def force(model: ModelProto, way: Way, short: bool = False) -> bytes:
    """Bytes of a model that takes this way whatever its inputs are.

    Args:
        model: holds its weights inside; it stays as it is.
        way: the branches to take; none for those the inputs lead to.
        short: let Loops around a branch that is forced end after as many rounds as forced ones. What goes round again
            where no input leads may move ever further with rounding.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    values = {_COUNT: np.array(_ITERATIONS, np.int64)}
    for taken in (False, True):
        name = f"secateur.way.{taken}"
        values[name] = np.array(taken)
        for node in all_nodes(copy.graph):
            key = key_of(node)
            if way.get(key) is not taken:
                continue
            if node.op_type == "If":
                node.input[0] = name
            elif node.op_type == "Loop":
                node.input[0] = node.input[0] and _COUNT
                node.input[1] = node.input[1] and name
    if short:
        _end_early(copy, lambda loop: key_of(loop) not in way and _holds(loop, way))
    _add_constants(copy, values)
    return bytes(copy.SerializeToString())


def first_rounds(model: ModelProto, shift: float = 0.0) -> ModelProto | None:
    """The model with Loops that end after two rounds; None where it has none that can be made so.

    A decoder that reads what it chose makes, in the end, a difference of everything out of one in the last place; two
    models whose first rounds agree, from the same states, are the same.

    Args:
        model: it stays as it is.
        shift: added to all states that are 32-bit numbers: weights that only states read show nothing where these begin
            with zero.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    if not _end_early(copy, lambda _: True):
        return None
    if shift:
        for graph in graphs_of(copy.graph):
            set_nodes(graph, [new for node in graph.node for new in _shifted(node)])
    _add_constants(copy, {_COUNT: np.array(_ITERATIONS, np.int64), _SHIFT: np.array(shift, np.float32)})
    return copy


def _shifted(node: NodeProto) -> list[NodeProto]:
    """A node, and before it, where it is a Loop, what is added to its states."""
    if op_of(node) != "Loop":
        return [node]
    made: list[NodeProto] = []
    for place, state in enumerate(next(iter(subgraphs(node))).input[2:], 2):
        if state.type.tensor_type.elem_type == TensorProto.FLOAT and node.input[place]:
            name = f"secateur.way.{key_of(node)}.state{place}"
            made.append(helper.make_node("Add", [node.input[place], _SHIFT], [name]))
            node.input[place] = name
    return [*made, node]


def _end_early(model: ModelProto, chosen: Callable[[NodeProto], bool]) -> bool:
    """Let some Loops take two rounds at most, in place; whether there is any."""
    found, can_compare = False, opsets_of(model).get("", 0) >= _WITH_WHERE
    for graph in reversed(list(graphs_of(model.graph))):
        nodes: list[NodeProto] = []
        for node in graph.node:
            if op_of(node) == "Loop" and chosen(node) and (can_compare or not node.input[0]):
                found = True
                if node.input[0]:
                    less, count = (f"secateur.way.{key_of(node)}.{part}" for part in ("less", "count"))
                    nodes.append(helper.make_node("Less", [node.input[0], _COUNT], [less]))
                    nodes.append(helper.make_node("Where", [less, node.input[0], _COUNT], [count]))
                    node.input[0] = count
                else:
                    node.input[0] = _COUNT
            nodes.append(node)
        set_nodes(graph, nodes)
    return found


def _holds(loop: NodeProto, way: Way) -> bool:
    return any(key_of(node) in way for body in subgraphs(loop) for node in all_nodes(body))


def _add_constants(model: ModelProto, values: Mapping[str, NDArray[np.generic]]) -> None:
    """Add those that are read: ONNX Runtime refuses others before IR version 4."""
    read = {name for node in all_nodes(model.graph) for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items() if n in read)


def name_of(graph: Graph, way: Way) -> str:
    """How messages call a way."""
    key = list(way)[-1]
    node = graph.producer[key]
    what = "body" if node.op == "Loop" else "then branch" if way[key] else "else branch"
    return f"the {what} of {node.label}"
