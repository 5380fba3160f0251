"""Weights of recurrent layers in 8 bits: integers, and a DequantizeLinear with a scale for each row of the gates."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto, NodeProto, helper, numpy_helper

from exporter.protos import fresh_names, reads
from exporter.quantization.layers import Layer
from exporter.quantization.weights import per_channel

_WEIGHTS = (1, 2)
"""Inputs of LSTM, GRU and RNN: what multiplies the input, and the state; [directions, gates * units, ...]."""


def recurrent_quantized(model: ModelProto, layers: Sequence[Layer]) -> None:
    """Store the weights of these layers as integers; both directions of a row share a scale.

    ONNX Runtime makes floats of them as it opens the file. What else reads a weight keeps the floats.

    Args:
        model: is changed.
        layers: those to take.
    """
    graph = model.graph
    chosen = {layer.node for layer in layers}
    nodes = [node for node in graph.node if node.name in chosen]
    tensors = {t.name: t for t in graph.initializer if t.data_type == t.FLOAT}
    unused = fresh_names(model)
    before: list[NodeProto] = []
    for name in dict.fromkeys(node.input[k] for node in nodes for k in _WEIGHTS if node.input[k] in tensors):
        integers, scale = per_channel(numpy_helper.to_array(tensors[name]), 1, 8)
        codes, scales, stands = (unused(f"{name}_{part}") for part in ("quantized", "scale", "float"))
        packed = numpy_helper.from_array(integers, codes)
        others = any(name in reads(node) for node in graph.node if node.name not in chosen)
        if others or any(value.name == name for value in graph.output):
            graph.initializer.append(packed)
        else:
            tensors[name].CopyFrom(packed)
        graph.initializer.append(numpy_helper.from_array(scale, scales))
        before.append(helper.make_node("DequantizeLinear", [codes, scales], [stands], stands, axis=1))
        for node in nodes:
            for k in _WEIGHTS:
                if node.input[k] == name:
                    node.input[k] = stands
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *rest])
