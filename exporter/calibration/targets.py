"""What a layer is fitted to: its own output in the original, or that of the sum behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from exporter.calibration.evidence import moments_of, sampled
from exporter.calibration.moments import Moments
from exporter.calibration.readers import Reader, columns
from exporter.calibration.runner import Runner
from exporter.graph import Graph, Node
from exporter.protos import reads
from exporter.tensors import Array
from runtime import bounds

Limits = tuple[float, float]
"""Between which values a result matters as it is: below, any value below is as good, and above any above."""

WIDE: Limits = (-math.inf, math.inf)

_MOMENTS, _WEIGHTS = 8, 24
"""How many arrays in 64 bits as large as the moments [groups, K, K] of a layer, and as its weights, are held at once
while it is chosen and fitted."""


@dataclass(frozen=True)
class Target:
    """What a reader's result is fitted to: ``result + other = tensor`` of the dense graph.

    Attributes:
        tensor: name of the tensor of the dense graph.
        other: name of the activation of the pruned graph that is added, "" for none.
        limits: what those who read it let through: a Relu what is above zero, a Clip what is between its limits.
    """

    tensor: str
    other: str
    limits: Limits


def find_target(pruned: Graph, graph: Graph, reader: Reader, later: set[str]) -> Target:
    """Follow a result to the sum it goes into, if that is where it goes at once.

    What is added there must be final: nothing before it may be fitted later.

    Args:
        pruned: the graph that is fitted.
        graph: the graph it is fitted to.
        reader: of the first.
        later: names of the weights that are still to be fitted.
    """
    name, other = reader.result, ""
    users = pruned.users.get(name, [])
    if len(users) == 1 and users[0][0].op == "Add" and users[0][0].depth == 0 and name not in pruned.outputs:
        add, i = users[0]
        added = add.inputs[1 - i]
        same = added not in pruned.constants and pruned.shape(added) == pruned.shape(name)
        if same and add.key in graph.producer and not _constants_before(pruned, added) & later:
            name, other = add.key, added
    found = {_limits(pruned, node) for node, _ in pruned.users.get(name, [])}
    return Target(name, other, found.pop() if len(found) == 1 and name not in pruned.outputs else WIDE)


def has_room(graph: Graph, reader: Reader) -> bool:
    """Whether memory holds the moments of a layer, and what choosing and fitting its weights makes of them."""
    dims = graph.constants[reader.weight].dims
    moments = reader.groups * columns(reader, dims) ** 2
    free = bounds.available()
    return free is None or 8 * (_MOMENTS * moments + _WEIGHTS * math.prod(dims)) < free


def moments_towards(target: Target, reader: Reader, own: Runner, dense: Runner) -> tuple[Moments, Moments]:
    """Run two graphs to a layer: moments of what it reads in one and should give by the other, as ``moments_of``.

    Args:
        target: of the layer.
        reader: the layer, in the graph that is fitted.
        own: runs that graph.
        dense: runs the graph it is fitted to.
    """
    dense.advance([target.tensor])
    own.advance([reader.source, *([target.other] if target.other else [])])
    return moments_of(sampled(own, reader, _wanted(target, own, dense)))


def _wanted(target: Target, own: Runner, dense: Runner) -> Iterator[Array]:
    """What a layer should give, batch by batch."""
    if not target.other:
        yield from dense.values(target.tensor)
        return
    for want, added in zip(dense.values(target.tensor), own.values(target.other), strict=True):
        yield np.asarray(want, np.float32) - np.asarray(added, np.float32)


def _limits(graph: Graph, node: Node) -> Limits:
    """What a node lets through of its first input."""
    if node.op == "Relu":
        return 0.0, math.inf
    if node.op != "Clip":
        return WIDE
    ends = [node.attributes.get("min", -math.inf), node.attributes.get("max", math.inf)]
    for k, name in enumerate(node.inputs[1:3]):
        if name and name not in graph.constants:
            return WIDE
        if name:
            ends[k] = graph.array(name).item()
    return float(ends[0]), float(ends[1])


def _constants_before(graph: Graph, name: str) -> set[str]:
    """Constants that a tensor depends on."""
    found: set[str] = set()
    todo, seen = [name], {name}
    while todo:
        node = graph.producer.get(todo.pop())
        for other in reads(node.proto) if node is not None else ():
            if other in graph.constants:
                found.add(other)
            elif other not in seen:
                seen.add(other)
                todo.append(other)
    return found
