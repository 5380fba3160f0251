"""16-bit models in 32 bits: bfloat16 to run it where there is no arithmetic for it, float16 to see what its rounding
hides. Each such number is a float32 number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, TypeProto

from exporter.graph import Graph, make_nodes
from exporter.inferred import Inferred
from exporter.normalise import inline_data
from exporter.protos import constant_tensors, graphs_of

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "precision", "softmax_precision", "stash_type")
_BFLOAT16 = (TensorProto.BFLOAT16,)


def is_narrow(graph: Graph, kinds: Sequence[int] = _BFLOAT16) -> bool:
    """Say whether any tensor of a graph is of one of some element types, bfloat16 unless others are named."""
    return not {*graph.inferred.dtype.values(), *(t.data_type for t in graph.constants.values())}.isdisjoint(kinds)


def holds_narrow(model: ModelProto) -> bool:
    """Say whether a model has a bfloat16 constant, input or output."""
    values = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    return not values.union(t.data_type for t in model.graph.initializer).isdisjoint(_BFLOAT16)


def widened(graph: Graph, kinds: Sequence[int] = _BFLOAT16) -> Graph:
    """The same graph with float32 wherever it has some element types: weights, inputs, outputs, casts.

    It is not analysed anew: a plan for the graph is one for what is returned, node by node.

    Args:
        graph: stays as it is.
        kinds: the element types.

    Returns:
        A graph with the same names that belongs to no file.

    Raises:
        ModelError: its weights are more than a protobuf message holds.
    """
    model = inline_data(graph.model, graph.folder)
    widen(model, kinds)
    return replace(
        graph,
        model=model,
        source=replace(graph.source, path=None, size=0),
        nodes=make_nodes(model.graph, graph.opsets),
        constants=constant_tensors(model),
        inferred=widened_types(graph.inferred, kinds),
        static=widened_types(graph.static, kinds),
    )


def widen(model: ModelProto, kinds: Sequence[int] = _BFLOAT16) -> None:
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
