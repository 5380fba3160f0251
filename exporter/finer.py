"""Models as a proof compares them: computed as finely as the runtime can, so that rounding hides little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import AttributeProto, TensorProto

from exporter.graph import Graph, make_nodes
from exporter.protos import all_nodes
from exporter.relative_difference import Array, is_float
from exporter.widened import is_narrow, widened
from runtime import feeds
from runtime.backends import TensorSpec

_HALF = (TensorProto.FLOAT16,)
_LEVEL, _IN_32_BITS = "accuracy_level", 1
"""How roughly a kernel of com.microsoft may compute: beyond 1 it rounds what it reads (2, 3 to 16 bits, 4 to int8)."""


def rounds_roughly(graph: Graph) -> list[str]:
    """What rounds away more than a proof accepts, as its reader is told; empty where ``finer`` changes nothing."""
    said = ["compared in 32 bits, because 16 bits round away more than is accepted"] if is_narrow(graph, _HALF) else []
    rough = {level.i for level in _levels(graph) if level.i > _IN_32_BITS}
    if rough:
        levels = " and ".join(map(str, sorted(rough)))
        said.append(f"compared without what {_LEVEL} {levels} rounds inside nodes; what is written keeps it")
    return said


def finer(graph: Graph) -> Graph:
    """The same graph with float32 wherever it has float16, and without rounding inside nodes.

    Args:
        graph: stays as it is.

    Raises:
        ModelError: it would be too large to be run as a whole.
    """
    fine = widened(graph, _HALF)
    for level in _levels(fine):
        level.i = min(level.i, _IN_32_BITS)
    return replace(fine, nodes=make_nodes(fine.model.graph, fine.opsets))


def _levels(graph: Graph) -> list[AttributeProto]:
    return [a for node in all_nodes(graph.model.graph) for a in node.attribute if a.name == _LEVEL]


def in_types_of(inputs: Sequence[TensorSpec], feed: feeds.Feeds) -> dict[str, Array]:
    """Values in the types that a model takes, where they were made for one that computes more finely, or less."""
    types = {spec.name: spec.dtype for spec in inputs if spec.dtype is not None}
    return {n: np.asarray(v, types.get(n)) if is_float(v) else v for n, v in feed.items()}
