"""Large models: what was analysed must do what the file does, node by node."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import onnx
from onnx import ModelProto, NodeProto

from exporter.errors import GoalError
from exporter.excerpts import excerpt, run_excerpt
from exporter.fed_weights import Room
from exporter.graph import Graph, Node, opsets_of
from exporter.protos import drop_left_out, reads
from exporter.relative_difference import Array, difference, signal
from exporter.rounding import FLOATS
from exporter.unread import leave_out_unread


def nodes_of_file(graph: Graph) -> dict[str, NodeProto] | None:
    """The nodes of the file, by what they make; None where there is no file, or one with functions."""
    path = graph.source.path
    if path is None or not path.is_file():
        return None
    model = onnx.load_model(path, load_external_data=False)
    if model.functions:
        return None
    drop_left_out(model.graph)
    leave_out_unread(model, opsets_of(model))
    return {name: node for node in model.graph.node for name in node.output if name}


def check_nodes_read(
    graph: Graph,
    values: Sequence[Mapping[str, Array]],
    nodes: Sequence[Node],
    names: Sequence[str],
    file: Mapping[str, NodeProto],
    tolerance: float,
    room: Room,
) -> None:
    """The graph as analysed must do what the file does: the nodes are the same, or give the same.

    Args:
        graph: the graph.
        values: for each run, the tensors before them.
        nodes: of a piece.
        names: what is compared of it, as ``changed_of`` says.
        file: nodes of the file, by what they make.
        tolerance: largest accepted difference.
        room: where weights are while they run.

    Raises:
        GoalError: they do not.
    """
    if not names:
        return
    ours = excerpt(graph, [n.proto for n in nodes], names, values[0])
    model = onnx.load_model(str(graph.source.path), load_external_data=False)
    theirs = excerpt(_as_read(graph, model), _back(file, names, values[0]), names, values[0])
    want = run_excerpt(theirs.model, theirs, names, values[:1], str(graph.source.path), room)[0]
    have = run_excerpt(ours.model, ours, names, values[:1], "the model as read", room)[0]
    for name in names:
        error = difference(have[name], want[name], signal(want[name]))
        if error > tolerance:
            raise GoalError(
                f"tensor '{name}' of the model changed while it was being read (relative error {error:.2g}); "
                "this is a defect of Secateur, please report it with the model. Nothing was written."
            )


def changed_of(graph: Graph, nodes: Sequence[Node], file: Mapping[str, NodeProto]) -> list[str]:
    """What is compared of a piece; nothing where its nodes are those of the file."""
    if all(_same(n.proto, file.get(n.key)) and not _reads_folded(graph, n.proto, file) for n in nodes):
        return []
    return [o for n in nodes for o in n.outputs if o in file and graph.inferred.dtype.get(o) in FLOATS]


def read_later(
    graph: Graph, cuts: Sequence[Sequence[Node]], changed: Sequence[Sequence[str]], file: Mapping[str, NodeProto]
) -> list[set[str]]:
    """For each piece, what nodes of the file that stand for it and those after it read of what is there before them.

    Args:
        graph: the graph.
        cuts: its pieces.
        changed: what is compared of each.
        file: nodes of the file, by what they make.
    """
    there, found = set(graph.inputs), []
    for nodes, names in zip(cuts, changed, strict=True):
        behind = _back(file, names, there) if names else []
        found.append(there & set().union(*map(reads, behind)))
        there |= {o for node in nodes for o in node.outputs if o}
    for later in range(len(found) - 2, -1, -1):
        found[later] |= found[later + 1]
    return found


def _reads_folded(graph: Graph, node: NodeProto, file: Mapping[str, NodeProto]) -> bool:
    """Whether a node reads a constant that the file computes."""
    return any(n in graph.constants and n in file and file[n].op_type != "Constant" for n in reads(node))


def _same(node: NodeProto, other: NodeProto | None) -> bool:
    return other is not None and (
        node.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    )


def _back(file: Mapping[str, NodeProto], names: Sequence[str], known: Collection[str]) -> list[NodeProto]:
    """Nodes of the file that lead from known tensors to some others, in order."""
    found: dict[str, NodeProto] = {}
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        node = file.get(name)
        if node is None or node.output[0] in found or (name in known and name not in names):
            continue
        found[node.output[0]] = node
        wanted.extend(reads(node))
    places = {id(node): i for i, node in enumerate(file.values())}
    return sorted(found.values(), key=lambda n: places.get(id(n), 0))


def _as_read(graph: Graph, model: ModelProto) -> Graph:
    constants = {t.name: t for t in model.graph.initializer}
    return replace(graph, model=model, nodes=[], constants=constants)
