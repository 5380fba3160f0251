"""Branches that would be decided once if inputs were fixed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from exporter.graph import Graph
from exporter.normalise import input_specs

_FEW = 8
"""Numbers in an input that may be a switch; more are data."""
_SIZES = ("Shape", "Size")


@dataclass(frozen=True)
class Undecided:
    """What decides branches in every run, and need not.

    Attributes:
        branches: Ifs whose condition follows from sizes and switches.
        sized: inputs with open axes, where sizes do.
        switches: inputs of a few whole numbers or truth values that do.
    """

    branches: int
    sized: tuple[str, ...]
    switches: tuple[str, ...]


def undecided(graph: Graph) -> Undecided:
    """Find the Ifs of a graph that fixed inputs would decide; those that go by data are none."""
    specs = {spec.name: spec for spec in input_specs(graph.model)}
    small = {
        name
        for name, spec in specs.items()
        if spec.dtype is not None and spec.dtype.kind in "iub" and math.prod(graph.binding.shapes[name]) <= _FEW
    }
    found: list[tuple[set[str], bool]] = []
    for node in graph.nodes:
        if node.op == "If":
            tensors, sizes = _sources(graph, node.inputs[0])
            if tensors <= small:
                found.append((tensors, sizes))
    switches = set[str]().union(*(tensors for tensors, _ in found))
    dynamic = [name for name, spec in specs.items() if not all(isinstance(d, int) for d in spec.shape)]
    by_size = any(sizes for _, sizes in found)
    return Undecided(len(found), tuple(dynamic) if by_size else (), tuple(n for n in specs if n in switches))


def _sources(graph: Graph, name: str) -> tuple[set[str], bool]:
    """The inputs, of the graph or of a loop's body, whose values a tensor is made of; whether sizes are, too."""
    tensors, sizes, seen, waiting = set[str](), False, set[str](), [name]
    while waiting:
        at = waiting.pop()
        if at in seen or at in graph.constants:
            continue
        seen.add(at)
        node = graph.producer.get(at)
        if node is None or node.bodies:
            tensors.add(at)  # what comes out of control flow is taken for data
        elif node.op in _SIZES:
            sizes = True
        else:
            waiting += [given for given in node.inputs if given]
    return tensors, sizes
