"""Recurrent layers and Scans over the first steps of their sequences, where rounding has not grown yet."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from exporter.graph import op_of, opsets_of
from exporter.protos import attributes_of, fresh_names, reads, set_nodes

_RECURRENT = ("GRU", "LSTM", "RNN")
_STEPS = 2
"""The second is the first that a state reaches."""
_OPEN_SCAN = 9
"""The first operator set whose Scan has no batch axis."""
_SLICED_BY_INPUTS = 10
_LENGTHS = 4


def first_steps(model: ModelProto) -> tuple[ModelProto, list[str]] | None:
    """The model up to its recurrent layers and Scans, which are given two steps, and what these give then.

    What goes round many times may make a difference of everything out of one in the last place; two models whose first
    steps agree, from the same states, are the same.

    Returns:
        None where there are none in the main graph.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    opset, unused = opsets_of(copy).get("", 0), fresh_names(copy)
    nodes: list[NodeProto] = []
    found: list[str] = []
    for node in copy.graph.node:
        sequences = _sequences(node, opset)
        for place, axis in sequences.items():
            nodes += _cut(copy, node, place, axis, opset, unused("secateur.first"))
        if op_of(node) in _RECURRENT and len(node.input) > _LENGTHS and node.input[_LENGTHS]:
            most, fewer = unused("secateur.most"), unused("secateur.lengths")
            copy.graph.initializer.append(numpy_helper.from_array(np.array([_STEPS], np.int32), most))
            nodes.append(helper.make_node("Min", [node.input[_LENGTHS], most], [fewer]))
            node.input[_LENGTHS] = fewer
        if sequences:
            found += [name for name in node.output if name]
        nodes.append(node)
    if not found:
        return None
    wanted = set(found)
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted |= reads(node)
    set_nodes(copy.graph, reversed(kept))
    del copy.graph.output[:]
    copy.graph.output.extend(ValueInfoProto(name=name) for name in found)
    return copy, found


def _sequences(node: NodeProto, opset: int) -> dict[int, int]:
    """Inputs of a node that it goes along, and the axis of each."""
    given = attributes_of(node)
    if op_of(node) in _RECURRENT:
        return {0: 1 if given.get("layout", 0) else 0}
    if op_of(node) != "Scan" or opset < _OPEN_SCAN:
        return {}
    count = int(given["num_scan_inputs"])
    axes = given.get("scan_input_axes") or [0] * count
    return {len(node.input) - count + k: int(axis) for k, axis in enumerate(axes)}


def _cut(model: ModelProto, node: NodeProto, place: int, axis: int, opset: int, name: str) -> list[NodeProto]:
    """Let a node read the first steps of an input, in place; what makes them."""
    source, node.input[place] = node.input[place], name
    if opset < _SLICED_BY_INPUTS:
        return [helper.make_node("Slice", [source], [name], starts=[0], ends=[_STEPS], axes=[axis])]
    values = {f"{name}.{part}": np.array([value]) for part, value in {"from": 0, "to": _STEPS, "along": axis}.items()}
    model.graph.initializer.extend(numpy_helper.from_array(value, each) for each, value in values.items())
    return [helper.make_node("Slice", [source, *values], [name])]
