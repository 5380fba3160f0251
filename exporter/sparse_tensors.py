"""Sparse initializers become plain ones when a model is read: what analyses weights need not know of them."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import ModelProto

from exporter.errors import ModelError

_MOST = 1 << 31


def densify(model: ModelProto) -> None:
    """Write out the sparse initializers of the main graph, in place.

    Raises:
        ModelError: indices lie outside their tensor, or it has more than two thousand million elements.
    """
    for sparse in model.graph.sparse_initializer:
        name = sparse.values.name
        count = math.prod(sparse.dims)
        values, indices = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
        if not 0 <= count <= _MOST:
            raise ModelError(f"sparse initializer '{name}' {list(sparse.dims)} is too large to be written out.")
        try:
            if indices.ndim == 2:
                indices = np.ravel_multi_index(tuple(indices.T), tuple(sparse.dims))
            dense = np.zeros(count, values.dtype)
            if indices.size and indices.min() < 0:
                raise IndexError("negative index")
            dense[indices] = values
        except (ValueError, IndexError) as error:
            raise ModelError(
                f"sparse initializer '{name}' {list(sparse.dims)} cannot be read: {error}.\n"
                "The file is damaged; export or copy it again."
            ) from error
        tensor = onnx.numpy_helper.from_array(dense.reshape(tuple(sparse.dims)), name)
        tensor.doc_string = sparse.values.doc_string
        model.graph.initializer.append(tensor)
    del model.graph.sparse_initializer[:]
