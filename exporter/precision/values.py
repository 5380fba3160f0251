"""Constants in half precision: converted at once, or, of a large model, when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto

from exporter.graph import Graph
from exporter.tensors import Array

_DTYPES: dict[int, Any] = {
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
_ENDLESS = 1e30
_AT_ONCE = 1 << 22
"""Numbers converted at a time."""


def convert_values(values: Array, low: int) -> Array:
    """Values in half precision; what stands for infinity becomes the largest number there is, with its sign.

    Args:
        values: of any shape.
        low: FLOAT16 or BFLOAT16.
    """
    flat = np.asarray(values).reshape(-1)
    result = np.empty(flat.size, _DTYPES[low])
    for start in range(0, flat.size, _AT_ONCE):
        wide = np.asarray(flat[start : start + _AT_ONCE], np.float32)
        if low == TensorProto.FLOAT16:
            endless = np.isfinite(wide) & (np.abs(wide) >= _ENDLESS)
            wide = np.where(endless, np.copysign(np.float32(np.finfo(np.float16).max), wide), wide)
        result[start : start + _AT_ONCE] = wide.astype(_DTYPES[low])
    return result.reshape(np.shape(values))


def placeholder(old: TensorProto, name: str, kind: int) -> TensorProto:
    """A tensor outside the model, of another type than the one it is made from, whose values somebody else brings."""
    tensor = TensorProto(name=name, data_type=kind, dims=old.dims, data_location=TensorProto.EXTERNAL)
    tensor.external_data.extend(old.external_data)
    return tensor


class Later(Mapping[str, Array]):
    """Constants that are converted when they are asked for, each time anew."""

    def __init__(self, graph: Graph, made: Mapping[str, str], convert: Callable[[Array], Array]) -> None:
        """``made``: names, and those of the graph's constants that they are made from."""
        self._graph, self._made, self._convert = graph, made, convert

    def __getitem__(self, name: str) -> Array:
        return self._convert(self._graph.array(self._made[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)
