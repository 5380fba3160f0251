"""Layers that can be fitted together: one, and those before it with nothing but element-by-element nodes between.

There is one before it in most networks; the gate and the values of a gated unit (Shazeer, "GLU variants improve
transformer", 2020) come from two, or from one whose result is split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import onnx

from exporter.calibration.readers import Reader
from exporter.graph import Graph, Node

_RECTIFIERS = ("Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip", "Elu", "Celu", "Selu", "Softplus", "HardSwish")
_SMOOTH = ("Sigmoid", "HardSigmoid", "Tanh", "Softsign", "Swish", "Mish", "Gelu", "Erf")
_ELEMENTWISE = frozenset((*_RECTIFIERS, *_SMOOTH, "Add", "Sub", "Mul", "Div", "Identity", "BatchNormalization"))


@dataclass(frozen=True)
class Start:
    """Where the element-by-element nodes between begin.

    Attributes:
        tensor: its name.
        first: number of the reader it comes from.
        split: the node that splits that reader's result; None where the tensor is the result.
    """

    tensor: str
    first: int
    split: Node | None


@dataclass(frozen=True)
class Pair:
    """Readers with nothing but element-by-element nodes between.

    Attributes:
        firsts: those before, two where one gates the other.
        second: the one behind.
        starts: what the nodes between begin with; the parts of a split are all there, in order.
        between: these nodes, in order, without those that split.
        again: the nodes to run again after the first ones have changed.
    """

    firsts: tuple[Reader, ...]
    second: Reader
    starts: tuple[Start, ...]
    between: tuple[Node, ...]
    again: tuple[Node, ...]

    @property
    def readers(self) -> tuple[Reader, ...]:
        """All of them, the second last."""
        return *self.firsts, self.second


def find_pairs(graph: Graph, readers: Sequence[Reader]) -> dict[str, Pair]:
    """Readers that can be fitted together, by the weight of the second."""
    by_result = {r.result: r for r in readers}
    found = {}
    for second in readers:
        pair = _pair(graph, second, by_result)
        if pair is not None:
            found[second.weight] = pair
    return found


def _pair(graph: Graph, second: Reader, by_result: Mapping[str, Reader]) -> Pair | None:
    between: dict[int, Node] = {}
    splits: dict[str, Node] = {}
    firsts: dict[str, Reader] = {}
    todo = [second.source]
    while todo:
        name = todo.pop()
        node = graph.producer.get(name)
        if name in by_result:
            firsts[name] = by_result[name]
        elif node is not None and node.op == "Split" and not node.depth and node.inputs[0] in by_result:
            splits[node.inputs[0]] = node
            firsts[node.inputs[0]] = by_result[node.inputs[0]]
        elif node is None or node.op not in _ELEMENTWISE or node.depth or len([o for o in node.outputs if o]) != 1:
            return None
        elif node.index not in between:
            between[node.index] = node
            todo += [n for n in node.inputs if n and n not in graph.constants]
    readers = sorted(firsts.values(), key=lambda r: r.node.index)
    nodes = tuple(between[i] for i in sorted(between))
    starts = tuple(
        Start(tensor, k, splits.get(r.result))
        for k, r in enumerate(readers)
        for tensor in (splits[r.result].outputs if r.result in splits else [r.result])
    )
    if not readers or len({r.weight for r in (*readers, second)}) <= len(readers) or second.node.op == "ConvTranspose":
        return None
    if not all(_simple(graph, r) for r in (*readers, second)):
        return None
    tensors = {*(s.tensor for s in starts), *(n.key for n in nodes)}
    if len({graph.shape(t) for t in tensors}) > 1 or not _alone(graph, tensors | firsts.keys(), second):
        return None
    again = {n.index: n for n in (*(n for r in readers for n in _made(graph, r)), *splits.values(), *nodes)}
    return Pair(tuple(readers), second, starts, nodes, tuple(again[i] for i in sorted(again)))


def _alone(graph: Graph, tensors: Set[str], second: Reader) -> bool:
    """Whether all these tensors are there for are each other and a reader."""
    if tensors & set(graph.outputs) or not all(graph.users.get(t) for t in tensors):
        return False
    return all(tensors & set(u.outputs) or u.key == second.node.key for t in tensors for u, _ in graph.users[t])


def _made(graph: Graph, reader: Reader) -> list[Node]:
    """The nodes of a reader, in order."""
    found = [graph.producer[reader.result]]
    while found[0] is not reader.node:
        name = next(n for n in found[0].inputs if n and n not in graph.constants)
        found.insert(0, graph.producer[name])
    return found


def _simple(graph: Graph, reader: Reader) -> bool:
    """Say whether a reader works in 32 bits, and its padding is written out."""
    auto = reader.node.attributes.get("auto_pad", "NOTSET")
    narrow = graph.constants[reader.weight].data_type != onnx.TensorProto.FLOAT
    return auto in ("NOTSET", "VALID") and not narrow
