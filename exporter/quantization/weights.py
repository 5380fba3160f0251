"""Weights in fewer bits, computed in float: each becomes integers and a DequantizeLinear.

Symmetric, so zeros stay zeros. A scale belongs to an output channel (int8), or to 32 neighbours along the summed axis
(int4), whose largest magnitude it maps to the largest integer. Recurrent layers always have int8, and a scale for each
row of the gates, which both directions share; ONNX Runtime makes floats of that as it opens the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from exporter.protos import fresh_names, read_instead, reads, set_nodes
from exporter.quantization.layers import RECURRENT, Layer
from exporter.quantization.precisions import Precision

BLOCK = 32

Stored = tuple[NDArray[np.int8], NDArray[np.float32]]
"""Integers of the shape of a weight, and their scales."""


def weights_quantized(
    model: ModelProto, layers: Sequence[Layer], precision: Precision, stored: Mapping[str, Stored]
) -> ModelProto:
    """The model with the weights of these layers stored as integers.

    Args:
        model: stays as it is.
        layers: those to take.
        precision: int8-weight or int4-weight; recurrent layers have int8 with both.
        stored: integers and scales by name of the weight; others are rounded to the nearest.
    """
    made = ModelProto()
    made.CopyFrom(model)
    nodes = {node.name: node for node in made.graph.node}
    chosen = {layer.node: nodes[layer.node] for layer in layers}
    tensors = {t.name: t for t in made.graph.initializer if t.data_type == TensorProto.FLOAT}
    wanted = {name: layer for layer in layers for name in _weights_of(layer, nodes[layer.node]) if name in tensors}
    unused = fresh_names(made)
    added, scales = [], []
    for name, layer in wanted.items():
        values = numpy_helper.to_array(tensors[name])
        axis = _channel_axis(layer, nodes[layer.node])
        fresh = {part: unused(f"{name}_{part}") for part in ("quantized", "scale", "float")}
        if precision.bits == 4 and layer.op not in RECURRENT:
            summed, kind = 1 - axis, TensorProto.INT4
            integers, scale = stored.get(name) or blocked(values, summed, 4)
            how = {"axis": summed, "block_size": min(BLOCK, values.shape[summed])}
        else:
            integers, scale = stored.get(name) or per_channel(values, axis, 8)
            how, kind = {"axis": axis}, TensorProto.INT8
        others = any(name in reads(node) for node in made.graph.node if node.name not in chosen)
        put(made, tensors[name], _tensor(integers, fresh["quantized"], kind), others)
        scales.append(numpy_helper.from_array(scale, fresh["scale"]))
        inputs = [fresh["quantized"], fresh["scale"]]
        added.append(helper.make_node("DequantizeLinear", inputs, [fresh["float"]], fresh["float"], **how))
        read_instead(chosen.values(), {name: fresh["float"]})
    made.graph.initializer.extend(scales)
    set_nodes(made.graph, [*added, *made.graph.node])
    return made


def put(model: ModelProto, weight: TensorProto, integers: TensorProto, others: bool) -> None:
    """Put integers in the place of a weight; beside it where ``others`` read its floats, or the model gives them."""
    if others or any(value.name == weight.name for value in model.graph.output):
        model.graph.initializer.append(integers)
    else:
        weight.CopyFrom(integers)


def _weights_of(layer: Layer, node: NodeProto) -> Sequence[str]:
    """Names of a layer's weights: what multiplies the input, and in a recurrent layer the state."""
    return node.input[1:3] if layer.op in RECURRENT else [layer.weight]


def fits(layer: Layer, precision: Precision) -> bool:
    """Whether a layer's weight can be stored so: four bits need a matrix, but for recurrent layers, which get eight."""
    return precision.bits == 8 or len(layer.shape) == 2 or layer.op in RECURRENT


def _channel_axis(layer: Layer, node: object) -> int:
    """The axis of a weight that counts outputs."""
    if layer.op == "Conv":
        return 0
    if layer.op in ("ConvTranspose", *RECURRENT):
        return 1
    if layer.op == "Gemm":
        transposed = any(a.name == "transB" and a.i for a in getattr(node, "attribute", ()))
        return 0 if transposed else 1
    return len(layer.shape) - 1


def per_channel(values: NDArray[np.float32], axis: int, bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers of the shape of ``values``, and a scale [channels] for each index of ``axis``."""
    others = tuple(k for k in range(values.ndim) if k != axis)
    scale = _scale(np.abs(values).max(axis=others), bits)
    shape = [1] * values.ndim
    shape[axis] = -1
    return _rounded(values / scale.reshape(shape), bits), scale


def blocked(values: NDArray[np.float32], axis: int, bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers of the shape of ``values``, a matrix, and a scale for each ``BLOCK`` neighbours along ``axis``."""
    size = values.shape[axis]
    block = min(BLOCK, size)
    starts = np.arange(0, size, block)
    scale = _scale(np.maximum.reduceat(np.abs(values), starts, axis=axis), bits)
    repeated = np.repeat(scale, block, axis=axis).take(range(size), axis=axis)
    return _rounded(values / repeated, bits), scale


def _scale(largest: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    found = largest.astype(np.float32) / np.float32(2 ** (bits - 1) - 1)
    return np.where(found > 0, found, np.float32(1)).astype(np.float32)


def _rounded(values: NDArray[np.float32], bits: int) -> NDArray[np.int8]:
    most = 2 ** (bits - 1) - 1
    return np.clip(np.rint(values), -most, most).astype(np.int8)


def _tensor(integers: NDArray[np.int8], name: str, kind: int) -> TensorProto:
    if kind == TensorProto.INT8:
        return numpy_helper.from_array(integers, name)
    flat = integers.ravel()
    pairs = np.append(flat, np.zeros(len(flat) % 2, np.int8)).reshape(-1, 2)
    packed = (pairs[:, 0] & 0xF) | ((pairs[:, 1] & 0xF) << 4)
    return helper.make_tensor(name, kind, integers.shape, packed.astype(np.uint8).tobytes(), raw=True)
