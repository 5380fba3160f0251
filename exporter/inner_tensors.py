"""Tensors inside of two models that a proof compares."""

from __future__ import annotations

import math
from collections.abc import Collection

from exporter.graph import Graph
from exporter.rounding import FLOATS

_ELEMENTS = 1 << 25


def inner_tensors(graph: Graph, pruned: Graph, codes: Collection[str]) -> list[str]:
    """Floating-point tensors both main graphs have, in their order, up to a bound on memory.

    Args:
        graph: the dense graph.
        pruned: the pruned one.
        codes: tensors that are handed over, and not among these.
    """
    chosen: list[str] = []
    outputs = set(graph.outputs)
    total = 0
    for node in (n for n in graph.nodes if n.depth == 0):
        for name in node.outputs:
            shape = graph.shape(name) if name else None
            if shape is None or graph.inferred.dtype.get(name) not in FLOATS:
                continue
            if name in outputs or name not in pruned.producer or name in graph.constants or name in codes:
                continue
            total += math.prod(shape)
            if total <= _ELEMENTS:
                chosen.append(name)
    return chosen
