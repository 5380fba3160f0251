"""Weights in fewer bits: each becomes integers, and a DequantizeLinear, or what computes on the integers.

Symmetric, so zeros stay zeros. A scale belongs to an output channel (int8), or to 32 neighbours along the summed axis
(int4), whose largest magnitude it maps to the largest integer. Recurrent layers always have int8, and a scale for each
row of the gates, which both directions share; ONNX Runtime makes floats of that as it opens the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from exporter.protos import all_nodes, attributes_of, drop_unread, fresh_names, graphs_of, read_instead, set_nodes
from exporter.quantization.integers import Rounded, on_integers
from exporter.quantization.layers import RECURRENT, Layer
from exporter.quantization.precisions import Precision

BLOCK = 32

Stored = tuple[NDArray[np.int8], NDArray[np.float32]]
"""Integers of the shape of a weight, and their scales."""


def weights_quantized(
    model: ModelProto, layers: Sequence[Layer], precision: Precision, stored: Mapping[str, Stored], bits: int = 8
) -> ModelProto:
    """The model with the weights of these layers stored as integers.

    A Gemm becomes a MatMul and an Add: ONNX Runtime computes on the integers of a MatMul's weight, and makes floats of
    a Gemm's in every run.

    Args:
        model: stays as it is.
        layers: those to take.
        precision: int8-weight, int4-weight or int8-dynamic; recurrent layers have int8 with all.
        stored: integers and scales by name of the weight; others are rounded to the nearest.
        bits: of an integer, where ``precision`` has eight; recurrent layers always have.
    """
    made = ModelProto()
    made.CopyFrom(model)
    work = _Work(made, precision, stored, bits, {layer.node: layer for layer in layers}, fresh_names(made))
    for graph in reversed(list(graphs_of(made.graph))):  # those inside first: nodes are copied
        rounded: Rounded = {}
        set_nodes(graph, [new for node in graph.node for new in work.nodes_for(node, rounded)])
    drop_unread(made, {name for name, _, _ in work.done})
    made.graph.initializer.extend(work.constants)
    set_nodes(made.graph, [*work.before, *made.graph.node])
    return made


@dataclass
class _Work:
    """What is being made of a model.

    Attributes:
        model, precision, stored, bits: see ``weights_quantized``.
        layers: those to take, by name of their node.
        unused: makes names.
        before: nodes that come first.
        constants: new ones.
        done: integers and scales, by name of the weight, whether they are turned, and the axis of channels.
        floats: the floats of these.
    """

    model: ModelProto
    precision: Precision
    stored: Mapping[str, Stored]
    bits: int
    layers: Mapping[str, Layer]
    unused: Callable[[str], str]
    before: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    done: dict[tuple[str, bool, int], tuple[str, str, dict[str, int]]] = field(default_factory=dict)
    floats: dict[tuple[str, bool, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors = {t.name: t for t in self.model.graph.initializer if t.data_type == TensorProto.FLOAT}
        axes: dict[str, set[int]] = {}
        for node in all_nodes(self.model.graph):
            if layer := self.layers.get(node.name):
                axes.setdefault(layer.weight, set()).add(_channel_axis(layer, node))
        self.chosen = {n: found for n, found in self.stored.items() if len(axes.get(n, ())) == 1}  # along that axis

    def nodes_for(self, node: NodeProto, rounded: Rounded) -> list[NodeProto]:
        """What becomes of a node."""
        layer = self.layers.get(node.name)
        if layer is None:
            return [node]
        if node.op_type != "MatMul" and not _is_product(node):
            names = node.input[1:3] if layer.op in RECURRENT else [layer.weight]
            new = NodeProto()
            new.CopyFrom(node)
            read_instead([new], {n: self.float_of(n, layer, node, False) for n in names if n in self.tensors})
            return [new]
        turned = bool(attributes_of(node).get("transB"))
        out = node.output[0]
        bias = node.input[2] if len(node.input) > 2 else ""
        result = self.unused(f"{out}_product") if bias else out
        if self.precision.dynamic:
            integers, scale, _ = self.codes_of(layer.weight, layer, node, turned)
            nodes = on_integers(node, integers, scale, result, rounded, self.unused)
        else:
            weight = self.float_of(layer.weight, layer, node, turned)
            nodes = [helper.make_node("MatMul", [node.input[0], weight], [result], node.name)]
        if bias:
            nodes.append(helper.make_node("Add", [result, bias], [out], self.unused(f"{node.name}_bias")))
        return nodes

    def codes_of(self, name: str, layer: Layer, node: NodeProto, turned: bool) -> tuple[str, str, dict[str, int]]:
        """Names of a weight's integers and scales, and how a DequantizeLinear is to take them."""
        axis = _channel_axis(layer, node)
        key = name, turned, axis
        if key not in self.done:
            values = numpy_helper.to_array(self.tensors[name])
            four = self.precision.bits == 4 and layer.op not in RECURRENT
            if four:
                axis = 1 - axis
                integers, scales = self.chosen.get(name) or blocked(values, axis, 4)
            else:
                bits = 8 if layer.op in RECURRENT else self.bits
                integers, scales = self.chosen.get(name) or per_channel(values, axis, bits)
            how = {"block_size": min(BLOCK, values.shape[axis])} if four else {}
            if turned:
                axis, integers, scales = 1 - axis, np.ascontiguousarray(integers.T), np.ascontiguousarray(scales.T)
            names = self.unused(f"{name}_quantized"), self.unused(f"{name}_scale")
            kind = TensorProto.INT4 if four else TensorProto.INT8
            self.constants += [_tensor(integers, names[0], kind), numpy_helper.from_array(scales, names[1])]
            self.done[key] = *names, {"axis": axis, **how}
        return self.done[key]

    def float_of(self, name: str, layer: Layer, reader: NodeProto, turned: bool) -> str:
        """Name of the floats that a weight's integers stand for."""
        key = name, turned, _channel_axis(layer, reader)
        if key not in self.floats:
            integers, scales, how = self.codes_of(name, layer, reader, turned)
            result = self.floats[key] = self.unused(f"{name}_float")
            node = helper.make_node("DequantizeLinear", [integers, scales], [result], result)
            node.attribute.extend(helper.make_attribute(key, value) for key, value in how.items())
            self.before.append(node)
        return self.floats[key]


def _is_product(node: NodeProto) -> bool:
    """Whether a Gemm is a MatMul of what it reads, of its weight perhaps turned, and an Add."""
    given = attributes_of(node)
    plain = given.get("alpha", 1) == 1 and (len(node.input) < 3 or given.get("beta", 1) == 1)
    return node.op_type == "Gemm" and plain and not given.get("transA")


def fits(layer: Layer, precision: Precision) -> bool:
    """Whether a layer's weight can be stored so: some precisions need a matrix, but for recurrent layers."""
    return not precision.matrices or len(layer.shape) == 2 or layer.op in RECURRENT


def _channel_axis(layer: Layer, node: NodeProto) -> int:
    """The axis of a weight that counts outputs."""
    if layer.op == "Conv":
        return 0
    if layer.op in ("ConvTranspose", *RECURRENT):
        return 1
    if layer.op == "Gemm":
        return 0 if attributes_of(node).get("transB") else 1
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
