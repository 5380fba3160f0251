"""Layers that stay in float for what their weights are, or for what ONNX Runtime would make of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from exporter.graph import op_of
from exporter.protos import all_nodes, attributes_of, graphs_of
from exporter.quantization.layers import PRODUCTS, Layer
from exporter.quantization.precisions import Precision

_PASSING = ("Dropout", "Identity")
_NO_NUMBERS = "not all of its weights are finite numbers"
_OTHER_BIAS = "ONNX Runtime would take what is added to it for its bias, of another shape"


def unsuited(model: ModelProto, layers: Sequence[Layer], precision: Precision) -> dict[str, str]:
    """Why some of these layers stay in float, by the name of their node.

    Args:
        model: the float model.
        layers: those that may be quantized.
        precision: how.
    """
    tensors = {t.name: t for t in model.graph.initializer}
    broken = {layer.weight for layer in layers if not np.isfinite(numpy_helper.to_array(tensors[layer.weight])).all()}
    found = {layer.node: _NO_NUMBERS for layer in layers if layer.weight in broken}
    if precision.dynamic:
        added = _added(model)
        nodes = {node.name: node for node in all_nodes(model.graph)}
        for layer in (layer for layer in layers if layer.op in PRODUCTS):
            node = nodes[layer.node]
            outputs = layer.shape[0 if attributes_of(node).get("transB") else -1]
            if not all(_may_be_bias(shape, outputs) for shape in added.get(node.output[0], [])):
                found.setdefault(layer.node, _OTHER_BIAS)
    return found


def _added(model: ModelProto) -> dict[str, list[tuple[int, ...] | None]]:
    """Shapes of the constants that are added to each tensor; None of those that nodes make."""
    shapes: dict[str, tuple[int, ...] | None] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    found: dict[str, list[tuple[int, ...] | None]] = {}
    for graph in graphs_of(model.graph):
        same: dict[str, str] = {}
        for node in graph.node:
            if node.input and all(name in shapes for name in node.input):
                shapes |= dict.fromkeys(node.output)
            elif op_of(node) in _PASSING:
                same[node.output[0]] = same.get(node.input[0], node.input[0])
            for name, other in _summands(node):
                if other in shapes:
                    found.setdefault(same.get(name, name), []).append(shapes[other])
    return found


def _summands(node: NodeProto) -> list[tuple[str, str]]:
    pairs = list(zip(node.input, reversed(node.input), strict=True))
    return pairs if op_of(node) == "Add" and len(node.input) == 2 else []


def _may_be_bias(shape: tuple[int, ...] | None, outputs: int) -> bool:
    """Whether ONNX Runtime does well to take a constant for a bias, or leaves it alone: it takes single rows."""
    if shape is None:
        return False
    row = bool(shape) and 1 < shape[-1] == np.prod(shape)
    return not row or (len(shape) <= 2 and shape[-1] == outputs)
