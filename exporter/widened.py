"""16-bit models in 32 bits: bfloat16 to run it where there is no arithmetic for it, float16 to prove it in pieces. Each
such number is a float32 number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, TypeProto

from exporter.graph import Graph
from exporter.inferred import Inferred
from exporter.normalise import inline_data, normalise
from exporter.protos import graphs_of

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "softmax_precision", "stash_type")


def is_narrow(graph: Graph) -> bool:
    """Say whether any tensor of a graph holds bfloat16 numbers."""
    kinds = [*graph.inferred.dtype.values(), *(t.data_type for t in graph.constants.values())]
    return TensorProto.BFLOAT16 in kinds


def widened(graph: Graph) -> Graph:
    """The same graph with float32 wherever it has bfloat16: weights, inputs, outputs, casts.

    Args:
        graph: stays as it is.

    Returns:
        A graph with the same names that belongs to no file.
    """
    model = inline_data(graph.model, graph.folder)
    widen(model)
    wide = normalise(model, graph.folder, replace(graph.source, path=None, size=0), graph.binding.shapes)
    wide.calls = graph.calls
    return wide


def widen(model: ModelProto, kinds: Sequence[int] = (TensorProto.BFLOAT16,)) -> None:
    """Make tensors of some element types float32 ones, in place; constants lie in the model."""
    for graph in graphs_of(model.graph):
        _widen(graph, kinds)


def widened_types(inferred: Inferred, kinds: Sequence[int]) -> Inferred:
    """What is known of tensors, once those of some element types are float32 ones."""
    dtypes = {name: TensorProto.FLOAT if kind in kinds else kind for name, kind in inferred.dtype.items()}
    return replace(inferred, dtype=dtypes)


def _widen(graph: GraphProto, kinds: Sequence[int]) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor, kinds)
    for value in (*graph.input, *graph.output, *graph.value_info):
        _widen_type(value.type, kinds)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t, kinds)
            elif attribute.name in _TYPE_ATTRIBUTES and attribute.i in kinds:
                attribute.i = TensorProto.FLOAT


def _widen_tensor(tensor: TensorProto, kinds: Sequence[int]) -> None:
    if tensor.data_type in kinds:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def _widen_type(kind: TypeProto, kinds: Sequence[int]) -> None:
    for holder in (kind.sequence_type, kind.optional_type) if not kind.HasField("tensor_type") else ():
        if holder.HasField("elem_type"):
            _widen_type(holder.elem_type, kinds)
    if kind.HasField("tensor_type") and kind.tensor_type.elem_type in kinds:
        kind.tensor_type.elem_type = TensorProto.FLOAT
