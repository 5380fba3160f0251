"""Store zeros only once: sparse initializers, for the constants for which they take less room.

ONNX stores a sparse tensor as its values and a 64-bit index for each, so it pays from two thirds of zeros on for 32-bit
numbers and from four fifths on for 16-bit ones. ONNX Runtime writes it out when it loads the model.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto

from exporter.graph import Graph
from exporter.relative_difference import Output
from exporter.tensors import Array, nbytes
from runtime import feeds
from runtime.backends import SessionOptions, open_session
from runtime.errors import RunError

_FIRST_IR = 6
_INDEX_BYTES = 8
_TYPES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8})
"""What ONNX Runtime reads from a sparse initializer."""


def obstacle(graph: Graph) -> str:
    """Why a model can hold no sparse initializers; "" where it can."""
    if graph.model.ir_version < _FIRST_IR:
        return f"IR version {graph.model.ir_version} has no sparse initializers, {_FIRST_IR} is the first that has"
    if graph.source.external:
        return "the model keeps its weights in a file of their own"
    return ""


def saving(tensor: TensorProto, count: int) -> int:
    """Bytes that a constant saves as a sparse initializer; 0 where it saves none.

    Args:
        tensor: the constant.
        count: how many of its elements are not zero.
    """
    if tensor.data_type not in _TYPES or not count:
        return 0
    size, elements = nbytes(tensor), int(math.prod(tensor.dims))
    return max(size - count * (_INDEX_BYTES + size // elements), 0)


def store_sparse(graph: Graph, names: set[str]) -> list[str]:
    """Turn initializers into sparse ones, in place, where it pays; returns their names.

    Args:
        graph: its model is changed; it must not be analysed any more.
        names: initializers that may be turned.
    """
    model = graph.model
    declared = {v.name for v in model.graph.input} | {v.name for v in model.graph.output}
    done = []
    for tensor in [t for t in model.graph.initializer if t.name in names - declared]:
        values = onnx.numpy_helper.to_array(tensor)
        if saving(tensor, int(np.count_nonzero(values))):
            model.graph.sparse_initializer.append(_sparse(tensor, values))
            model.graph.initializer.remove(tensor)
            done.append(tensor.name)
    return done


def same_outputs(graph: Graph, dense: bytes, sparse: bytes) -> bool:
    """Whether ONNX Runtime takes the sparse file and gives the very outputs of the dense one, on seeded inputs."""
    allowed = feeds.constraints(graph.model.graph)
    try:
        sessions = [open_session(m, options=SessionOptions(optimize=False)) for m in (dense, sparse)]
        feed = feeds.seeded(sessions[0].inputs, graph.binding.shapes, 0, allowed)
        first, second = (s.run(feed) for s in sessions)
    except RunError:
        return False
    return all(_equal(first[n], second[n]) for n in first)


def _equal(one: Output, other: Output) -> bool:
    if isinstance(one, list) or isinstance(other, list):
        both = isinstance(one, list) and isinstance(other, list) and len(one) == len(other)
        return both and all(map(_equal, one, other))
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _sparse(tensor: TensorProto, values: Array) -> SparseTensorProto:
    flat = values.reshape(-1)
    where = np.flatnonzero(flat)
    made = SparseTensorProto(dims=tensor.dims)
    made.values.CopyFrom(onnx.numpy_helper.from_array(flat[where], tensor.name))
    made.values.doc_string = tensor.doc_string
    made.indices.CopyFrom(onnx.numpy_helper.from_array(where.astype(np.int64), f"{tensor.name}.indices"))
    return made
