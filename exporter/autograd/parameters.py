"""Which constants of a graph are weights: floating-point tensors that training may change."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto

from exporter.graph import Graph, Node, make_nodes
from exporter.inferred import Inferred
from exporter.protos import all_nodes, constant_tensors, fresh_names, key_of

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
        uses = list(_uses(graph, name))
        if values.size == 1 and not any(node.op == "PRelu" for node, _ in uses):
            continue
        if any(_is_weight(node.op, i) for node, i in uses):
            found.add(name)
    return found - _rotary_tables({n: arrays[n] for n in found})


def parted(graph: Graph, names: Collection[str]) -> Graph:
    """A graph in which no constant of ``names`` is a weight of one node and a statistic, a scale or a bound of another.

    Exporters merge equal tensors: the biases and the running means of a new network are the same zeros. The uses that
    are no weight get a copy, so that the weight can be trained.

    Args:
        graph: stays as it is; returned where there is no such constant.
        names: constants that are trained.
    """
    uses = {name: [(node, i, _is_weight(node.op, i)) for node, i in _uses(graph, name)] for name in names}
    both = sorted(name for name, found in uses.items() if len({weight for *_, weight in found}) > 1)
    if not both:
        return graph
    model = ModelProto()
    model.CopyFrom(graph.model)
    fresh = fresh_names(model)
    copies = {name: fresh(f"{name}.fixed") for name in both}
    held = constant_tensors(model)
    for name, copy in copies.items():
        model.graph.initializer.add().CopyFrom(held[name])
        model.graph.initializer[-1].name = copy
    instead = {(node.key, i): copies[name] for name in both for node, i, weight in uses[name] if not weight}
    for proto in all_nodes(model.graph):
        for i in range(len(proto.input)):
            proto.input[i] = instead.get((key_of(proto), i), proto.input[i])
    return dataclasses.replace(
        graph,
        model=model,
        nodes=make_nodes(model.graph, graph.opsets),
        constants=constant_tensors(model),
        inferred=_with_copies(graph.inferred, copies),
        static=_with_copies(graph.static, copies),
    )


def _uses(graph: Graph, name: str) -> Iterator[tuple[Node, int]]:
    """The nodes that read a constant, and by which input; an Identity, which some exporters put before the second use
    of a tensor, stands for those that read it."""
    for node, i in graph.users.get(name, []):
        if node.op == "Identity" and node.outputs[0] in graph.users:
            yield from _uses(graph, node.outputs[0])
        else:
            yield node, i


def _is_weight(op: str, i: int) -> bool:
    return i not in _NO_WEIGHTS.get(op, ())


def _with_copies(inferred: Inferred, copies: Mapping[str, str]) -> Inferred:
    dims = {copy: inferred.dims[name] for name, copy in copies.items() if name in inferred.dims}
    types = {copy: inferred.dtype[name] for name, copy in copies.items() if name in inferred.dtype}
    return dataclasses.replace(inferred, dims=inferred.dims | dims, dtype=inferred.dtype | types)


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
