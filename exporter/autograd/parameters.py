"""Which constants of a graph are weights: floating-point tensors that training may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from exporter.graph import Graph

_NO_WEIGHTS: dict[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    "Clip": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "QuantizeLinear": frozenset({1, 2}),
    "RotaryEmbedding": frozenset({1, 2}),
    "com.microsoft::RotaryEmbedding": frozenset({2, 3}),
    "com.microsoft::GroupQueryAttention": frozenset({7, 8}),
    "Resize": frozenset({1, 2}),
    "Upsample": frozenset({1}),
    "Pad": frozenset({2}),
    "Range": frozenset({0, 1, 2}),
    "OneHot": frozenset({2}),
    "LSTM": frozenset({5, 6}),
    "GRU": frozenset({5}),
    "RNN": frozenset({5}),
    "Loop": frozenset(range(2, 64)),
    "Scan": frozenset(range(64)),
    "Pow": frozenset({1}),
    "STFT": frozenset({2}),
}
"""Inputs that hold statistics, scales, bounds, windows, tables of positions or initial states, by operator."""

_CIRCLE = 1e-3


def trainable(graph: Graph, arrays: Mapping[str, Any]) -> set[str]:
    """Names of the constants that are weights.

    Left out are numbers alone (a scale, an epsilon), unless a PRelu learns them; running statistics, quantization
    parameters, bounds, windows and initial states; masks; and the cosines and sines of a rotary embedding, which are
    two tables whose squares sum to one.

    Args:
        graph: the graph.
        arrays: values of its constants.
    """
    found = set()
    for name in graph.trained:
        values = arrays[name]
        if not isinstance(values, np.ndarray) or not _is_float(values):
            continue
        uses = graph.users.get(name, [])
        if values.size == 1 and not any(node.op == "PRelu" for node, _ in uses):
            continue
        if any(i not in _NO_WEIGHTS.get(node.op, ()) for node, i in uses):
            found.add(name)
    return found - _rotary_tables({n: arrays[n] for n in found})


def _is_float(values: np.ndarray[Any, Any]) -> bool:
    return values.dtype.name in ("float32", "float64", "float16", "bfloat16")


def _rotary_tables(arrays: Mapping[str, np.ndarray[Any, Any]]) -> set[str]:
    """Pairs of tables of one shape, of rank two or more, whose squares sum to one everywhere."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, values in arrays.items():
        if values.ndim >= 2 and values.size > 1 and float(np.abs(values[(0,) * (values.ndim - 1)]).max()) <= 1.001:
            by_shape.setdefault(values.shape, []).append(name)
    found: set[str] = set()
    for names in by_shape.values():
        for k, first in enumerate(names):
            for second in names[k + 1 :]:
                if first in found or second in found:
                    continue
                one, other = arrays[first], arrays[second]
                corner = (0,) * (one.ndim - 1)
                if _on_circle(one[corner], other[corner]) and _on_circle(one, other):
                    found |= {first, second}
    return found


def _on_circle(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    squares = np.square(one.astype(np.float32)) + np.square(other.astype(np.float32))
    return float(np.abs(squares - 1).max()) < _CIRCLE
