"""What nodes choose: taken from the original while layers are fitted to it, and outputs compared with its own.

A detector's decoder reads the rows whose scores are best. As soon as a layer is cut, nearly equal scores come in
another order and every row behind the choice is another one: no layer can be fitted to it, and it tells nothing of the
damage. So what the original chose is chosen. What the scores suffer is seen where they are made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from onnx import NodeProto
from onnx.helper import make_node

from exporter.calibration.runner import Runner
from exporter.graph import Graph, Node
from exporter.rounding import FLOATS
from runtime.samples import Samples

_GATHERS = 11
"""Version of ONNX from which GatherElements is there."""

INDICES = {"TopK": 1, "ArgMax": 0, "ArgMin": 0, "NonZero": 0, "NonMaxSuppression": 0}
"""Operators that choose rows, and which of their outputs says what was chosen."""


def choices(graph: Graph, changed: Graph) -> dict[str, Node | None]:
    """Tensors of the main graph that say what was chosen and is computed with, with the same meaning in both graphs.

    Args:
        graph: the original.
        changed: the other graph.

    Returns:
        By name what computes the node's other outputs in the changed graph, given this one; None where nothing reads
        them.
    """
    found: dict[str, Node | None] = {}
    for node in graph.nodes:
        if node.depth or node.op not in INDICES or not _from_layers(node.inputs, graph):
            continue
        name = node.outputs[INDICES[node.op]]
        if not _is_computed_with(name, graph):
            continue
        there = changed.producer.get(name)
        if there is None or there.op != node.op:
            continue
        if any(graph.shape(n) != changed.shape(n) for n in (*node.inputs, name) if n):
            continue
        if node.op == "NonZero" and any(user.op != "NonZero" for user, _ in changed.users.get(there.inputs[0], ())):
            continue  # others may count what it finds, by its own mask
        if node.op == "TopK" and _from_layers(node.inputs[1:], graph):
            continue  # nor may others know the changed graph's number
        if not any(o and o != name and (changed.users.get(o) or o in changed.outputs) for o in there.outputs):
            found[name] = None
        elif there.opset >= _GATHERS:
            found[name] = _values_of(there)
    return found


def _values_of(node: Node) -> Node:
    """What gives the values of a TopK, of which it is known what it chose."""
    proto = values_of(node.proto)
    attributes = {"axis": node.attributes.get("axis", -1)}
    return replace(
        node,
        proto=proto,
        op=proto.op_type,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes=attributes,
    )


def values_of(node: NodeProto) -> NodeProto:
    """The node that gives the values of a TopK whose indices are known."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    return make_node("GatherElements", [node.input[0], node.output[1]], [node.output[0]], axis=axis)


def _from_layers(names: Iterable[str], graph: Graph) -> bool:
    """Whether tensors depend on what layers compute: they are floating-point numbers, or made of some."""
    todo, seen = [name for name in names if name], set[str]()
    while todo:
        name = todo.pop()
        if name in seen or name in graph.constants:
            continue
        seen.add(name)
        maker = graph.producer.get(name)
        if maker is None or maker.op in ("Shape", "Size"):
            continue
        if graph.inferred.dtype.get(name) in FLOATS:
            return True
        todo += [name for name in maker.inputs if name]
    return False


def _is_computed_with(name: str, graph: Graph) -> bool:
    """Whether floating-point numbers come from a tensor; a class that is only given out changes nothing."""
    todo, seen = [name], set[str]()
    while todo:
        for node, _ in graph.users.get(todo.pop(), ()):
            for output in node.outputs:
                if graph.inferred.dtype.get(output) in FLOATS:
                    return True
                if output and output not in seen:
                    seen.add(output)
                    todo.append(output)
    return False


def choose_alike(runner: Runner, original: Graph, samples: Samples, batch: int) -> None:
    """Give a runner that is at the start what another graph chooses for the same samples.

    Args:
        runner: has run nothing.
        original: the other graph; the runner's own, if its weights are to be changed.
        samples, batch: what the runner was made with.
    """
    found = choices(original, runner.graph)
    if found:
        chosen = Runner(original, samples, batch)
        chosen.advance([*found])
        runner.take(chosen, found)
