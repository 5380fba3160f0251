"""The numbers of tensors, some at a time: how large they get, and constants in another type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from exporter.casts import to_half
from exporter.graph import Graph
from exporter.halves import is_endless
from exporter.normalise import is_large
from exporter.tensors import Array, is_external

_DTYPES: dict[int, Any] = {
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
LARGEST: dict[int, float] = {TensorProto.FLOAT16: 65504.0, TensorProto.BFLOAT16: 255 * 2.0**120}
"""The largest number of each type."""
ENDLESS = 1e30
"""Numbers beyond this stand for infinity (masks hold the lowest fp32 number); half precision has one too."""

_AT_ONCE = 1 << 20
"""Numbers looked at or converted at a time."""


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
        into = result[start : start + _AT_ONCE]
        if low == TensorProto.BFLOAT16:
            with np.errstate(over="ignore"):
                into[:] = wide.astype(_DTYPES[low])
            endless = np.isfinite(wide) & np.isinf(into)
        else:
            to_half(wide, into)
            if not is_endless(into):
                continue
            endless = np.isfinite(wide) & (np.abs(wide) >= ENDLESS)
        into[endless] = np.copysign(_DTYPES[low].type(LARGEST[low]), into[endless])
    return result.reshape(np.shape(values))


def largest(values: Array) -> float:
    """The largest magnitude of numbers below ``ENDLESS``; 0 where there is none."""
    flat = np.asarray(values).reshape(-1)
    found = 0.0
    for start in range(0, flat.size, _AT_ONCE):
        part = np.asarray(flat[start : start + _AT_ONCE], np.float32)
        size = _size(part)
        if not size < ENDLESS:  # some number, or NaN
            size = float(np.abs(part).max(initial=0.0, where=np.abs(part) < ENDLESS))
        found = max(found, size)
    return found


def _size(part: NDArray[np.float32]) -> float:
    """The largest magnitude of numbers; NaN if one is none. Several times as fast as looking at their magnitudes."""
    return max(float(part.max()), -float(part.min()))


class Retyped(Mapping[str, Array]):
    """Constants of a graph in another type.

    Of a graph too large for one message, those outside it are left there until somebody asks: these, by their new name,
    are what this mapping holds, and each is converted anew whenever it is asked for.
    """

    def __init__(self, graph: Graph, kind: int, convert: Callable[[Array], Array]) -> None:
        """``kind``: the type that ``convert`` gives."""
        self._graph, self._kind, self._convert = graph, kind, convert
        self._large, self._made = is_large(graph.model), dict[str, str]()

    def tensor(self, name: str, made: str) -> TensorProto:
        """A constant of the graph as a new one, called ``made``; its values come later if they are left outside."""
        old = self._graph.constants[name]
        if not (self._large and is_external(old)):
            return numpy_helper.from_array(self._convert(self._graph.array(name)), made)
        self._made[made] = name
        tensor = TensorProto(name=made, data_type=self._kind, dims=old.dims, data_location=TensorProto.EXTERNAL)
        tensor.external_data.extend(old.external_data)
        return tensor

    def __getitem__(self, name: str) -> Array:
        return self._convert(self._graph.array(self._made[name]))

    def __contains__(self, name: object) -> bool:
        return name in self._made

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)
