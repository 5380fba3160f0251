"""Both ways of every If, and into every Loop: inputs take one of them, and a proof must not depend on which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from exporter.graph import Graph, Node
from exporter.protos import all_nodes, constant_of, key_of, subgraphs

Way = Mapping[str, bool]
"""What is forced, by key (first output): the branch an If takes; that a Loop is entered. The last one is what is tried,
the others lead there."""

LIMIT = 32
"""Most ways that are tried."""

_ITERATIONS = 2


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
        short: let Loops around a branch that is forced end after as many rounds as forced ones, where constants say
            how many there may be. What goes round again where no input leads may move ever further with rounding.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    count = "secateur.way.count"
    values = {count: np.array(_ITERATIONS, np.int64)}
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
                node.input[0] = node.input[0] and count
                node.input[1] = node.input[1] and name
    if short:
        for node in _loops_around(copy, way):
            node.input[0] = count
    read = {name for node in all_nodes(copy.graph) for name in node.input}
    # ONNX Runtime refuses constants that nothing reads before IR version 4
    copy.graph.initializer.extend(onnx.numpy_helper.from_array(v, n) for n, v in values.items() if n in read)
    return bytes(copy.SerializeToString())


def _loops_around(model: ModelProto, way: Way) -> Iterator[NodeProto]:
    """Loops that are not forced, hold what is, and may take more rounds than forced ones."""
    nodes = list(all_nodes(model.graph))
    most = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT64}
    most |= {n.output[0]: numpy_helper.to_array(t) for n in nodes if (t := constant_of(n)) is not None}
    for node in nodes:
        if node.op_type != "Loop" or key_of(node) in way:
            continue
        inside = {key_of(n) for body in subgraphs(node) for n in all_nodes(body)}
        count = most.get(node.input[0]) if node.input[0] else np.array(np.inf)
        if inside & way.keys() and count is not None and np.all(count > _ITERATIONS):
            yield node


def name_of(graph: Graph, way: Way) -> str:
    """How messages call a way."""
    key = list(way)[-1]
    node = graph.producer[key]
    what = "body" if node.op == "Loop" else "then branch" if way[key] else "else branch"
    return f"the {what} of {node.label}"
