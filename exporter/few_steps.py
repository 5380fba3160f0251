"""Recurrent layers and Scans over a few steps of their sequences, where rounding has not grown yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from exporter.fold import live_nodes
from exporter.graph import op_of, opsets_of
from exporter.protos import all_nodes, attributes_of, fresh_names, graphs_of, set_nodes, subgraphs
from exporter.relative_difference import Array, is_float

_RECURRENT = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}
"""Recurrent layers, and the inputs that are states."""
_STEPS = 3
STATE_SHIFT = 0.5
"""Added to all states alike: weights that only states read would show nothing where these begin with zero."""
_OPEN_SCAN = 9
"""The first operator set whose Scan has no batch axis."""
_SLICED_BY_INPUTS = 10
_LENGTHS = 4


def starts_of(nodes: Iterable[NodeProto], opset: int, value: Callable[[str], Array | None]) -> dict[str, int]:
    """Where in its sequence the signal of the next steps is largest, for what goes along one: padding tells nothing.

    Args:
        nodes: of the dense graph, as they stand; those inside of them count too.
        opset: their operator set.
        value: of a tensor that is there before them; None for others.
    """
    found: dict[str, int] = {}
    for node in (inner for outer in nodes for inner in (outer, *_nested(outer))):
        for place, axis in _sequences(node, opset).items():
            array = value(node.input[place])
            if array is not None and is_float(array) and array.ndim > 1:
                size = np.abs(np.moveaxis(np.asarray(array, np.float64), axis, 0)).reshape(array.shape[axis], -1).sum(1)
                windows = np.convolve(size, np.ones(min(_STEPS, len(size))), "valid")
                found[node.output[0]] = max(found.get(node.output[0], 0), int(windows.argmax()))
    return found


def few_steps(model: ModelProto, starts: Mapping[str, int]) -> tuple[ModelProto, list[str]] | None:
    """The model up to its recurrent layers and Scans, which are given a few steps, and what these give then.

    What goes round many times may make a difference of everything out of one in the last place; two models that agree
    over a few steps, from the same states, are the same.

    Args:
        model: the model.
        starts: the first of the steps, by the first output of what goes along a sequence; 0 for others.

    Returns:
        None where there are none.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    cutter = _Cutter(copy, starts)
    found: set[str] = set()
    for graph in reversed(list(graphs_of(copy.graph))):  # those inside first
        cutter.cut(graph, found)
    names = [name for node in copy.graph.node if not found.isdisjoint(_inside(node)) for name in node.output if name]
    if not names:
        return None
    live = live_nodes(copy.graph.node, [False] * len(copy.graph.node), set(names))
    set_nodes(copy.graph, [node for node, keep in zip(copy.graph.node, live, strict=True) if keep])
    del copy.graph.output[:]
    copy.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return copy, names


def _nested(node: NodeProto) -> list[NodeProto]:
    return [inner for graph in subgraphs(node) for inner in all_nodes(graph)]


def _inside(node: NodeProto) -> set[str]:
    """First outputs of a node and of those in its subgraphs."""
    return {n.output[0] for n in (node, *_nested(node)) if n.output}


def _sequences(node: NodeProto, opset: int) -> dict[int, int]:
    """Inputs of a node that it goes along, and the axis of each."""
    if op_of(node) in _RECURRENT:
        return {0: 1 if attributes_of(node).get("layout", 0) else 0}
    if op_of(node) != "Scan" or opset < _OPEN_SCAN:
        return {}
    given = attributes_of(node)
    count = int(given["num_scan_inputs"])
    axes = given.get("scan_input_axes") or [0] * count
    return {len(node.input) - count + k: int(axis) for k, axis in enumerate(axes)}


class _Cutter:
    """Shortens what goes along sequences, in the graphs of one model."""

    def __init__(self, model: ModelProto, starts: Mapping[str, int]) -> None:
        self.model, self.starts = model, starts
        self.opset, self.unused = opsets_of(model).get("", 0), fresh_names(model)

    def cut(self, graph: GraphProto, found: set[str]) -> None:
        """Shorten those of a graph, in place; the first output of each is added to ``found``."""
        nodes: list[NodeProto] = []
        for node in graph.node:
            sequences = _sequences(node, self.opset)
            if sequences:
                found.add(node.output[0])
                for place, axis in sequences.items():
                    nodes.append(self._sliced(node, place, axis))
                if op_of(node) in _RECURRENT and len(node.input) > _LENGTHS:
                    node.input[_LENGTHS] = ""  # all are as long now
                places = _RECURRENT.get(op_of(node)) or range(min(sequences))
                shifted = [k for k in places if k < len(node.input) and node.input[k] and self._is_float(node, k)]
                nodes += [self._shifted(node, place) for place in shifted]
            nodes.append(node)
        set_nodes(graph, nodes)

    def _is_float(self, node: NodeProto, place: int) -> bool:
        """Whether a state is a 32-bit number: always in recurrent layers; of Scans the body says."""
        if op_of(node) in _RECURRENT:
            return True
        body = attributes_of(node)["body"]
        return bool(body.input[place].type.tensor_type.elem_type == TensorProto.FLOAT)

    def _constant(self, value: Array) -> str:
        name = self.unused("secateur.few")
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _shifted(self, node: NodeProto, place: int) -> NodeProto:
        source, node.input[place] = node.input[place], self.unused("secateur.few")
        return helper.make_node("Add", [source, self._constant(np.array(STATE_SHIFT, np.float32))], [node.input[place]])

    def _sliced(self, node: NodeProto, place: int, axis: int) -> NodeProto:
        start = self.starts.get(node.output[0], 0)
        source, node.input[place] = node.input[place], self.unused("secateur.few")
        bounds = {"starts": start, "ends": start + _STEPS, "axes": axis}
        if self.opset >= _SLICED_BY_INPUTS:
            names = [self._constant(np.array([value])) for value in bounds.values()]
            return helper.make_node("Slice", [source, *names], [node.input[place]])
        made = helper.make_node("Slice", [source], [node.input[place]])
        made.attribute.extend(helper.make_attribute(name, [value]) for name, value in bounds.items())
        return made
