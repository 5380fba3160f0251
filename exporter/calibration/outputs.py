"""What the outputs of two models are compared by.

A detector's output puts boxes in pixels and scores between 0 and 1 into one tensor, of which the boxes are all the
variance; another gives the best rows of these, in the order of nearly equal scores. So an output is compared by the
tensors that it is put together of, each relative to its own variance. Where its size says how much was found, the
outputs of two models have no rows in common, and what was chosen from is compared.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ModelError
from exporter.graph import Graph, Node
from exporter.rounding import FLOATS
from exporter.symbols import factors
from runtime.backends.maps import Keys, keys_of, number_type

A = TypeVar("A", bound=np.generic)

_SIZES = ("Shape", "Size")
_PUT_TOGETHER = {"Identity": 1, "Transpose": 1, "Reshape": 1, "Flatten": 1, "Squeeze": 1, "Unsqueeze": 1, "TopK": 1,
                 "Gather": 2, "GatherElements": 2, "GatherND": 2, "Concat": None}  # fmt: skip
"""Operators that only put together and select, and how many of their inputs tell what; of a choice also what chose."""

_FINDING = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose outputs are as long as the values of their inputs make them."""


def computed_outputs(graph: Graph) -> list[str]:
    """Names of the outputs that are no constants."""
    return [n for n in graph.outputs if n not in graph.constants]


def float_outputs(graph: Graph) -> list[str]:
    """Names of those among them that hold floating-point numbers, also as a dictionary for each sample."""
    declared = {v.name: v.type.tensor_type.elem_type or number_type(v.type) for v in graph.model.graph.output}
    return [n for n in computed_outputs(graph) if graph.inferred.dtype.get(n, declared[n]) in FLOATS]


def compared(graph: Graph) -> dict[str, float]:
    """What the outputs are compared by, and the weight of each tensor; outputs weigh alike.

    Outputs of floating point are compared by what they are put together of. Where there are none, what whole numbers
    among them come from counts: the logits behind an ArgMax.

    Raises:
        ModelError: no output comes from floating-point numbers.
    """
    weights: dict[str, float] = {}
    floats = float_outputs(graph)
    for name in floats or computed_outputs(graph):
        parts = parts_of(graph, name) if floats else _sources(graph, name)
        for part in parts:
            weights[part] = weights.get(part, 0.0) + 1 / len(parts)
    if not weights:
        raise ModelError("no output of this model comes from floating-point numbers: inputs tell nothing about it.")
    return weights


def parts_of(graph: Graph, output: str) -> list[str]:
    """What an output of floating point is compared by: the tensors it is put together of, itself where it is one.

    Of one that is a dictionary for each sample, what these are made of; of one that is as long as what is found, what
    that is chosen from.
    """
    found = _sources(graph, output)
    instead = output not in graph.inferred.dtype or output in _as_found(graph)
    return found if len(found) > 1 or (found and instead) else [output]


def common(one: NDArray[A], other: NDArray[A]) -> tuple[NDArray[A], NDArray[A]]:
    """What two arrays have in common: the first entries of each axis, of unlike ranks of all.

    A decoder that stops when it is done takes fewer steps in one model than in another.
    """
    if one.ndim != other.ndim:
        one, other = one.reshape(-1), other.reshape(-1)
    there = tuple(slice(0, min(sizes)) for sizes in zip(one.shape, other.shape, strict=True))
    return one[there], other[there]


def floats_behind(graph: Graph, output: str) -> list[str]:
    """The floating-point tensors that an output of whole numbers or booleans comes from; none of any other."""
    whole = output not in graph.constants and output not in float_outputs(graph)
    return _sources(graph, output) if whole else []


def classes_of(graph: Graph, output: str | None = None) -> Keys:
    """What the columns of an output stand for, the first of floating point by default; empty where nothing says so."""
    name = output if output is not None else next(iter(float_outputs(graph)), "")
    return keys_of(graph.model.graph).get(name, ())


def _sources(graph: Graph, output: str) -> list[str]:
    """Floating-point tensors of the main graph that an output is put together of, or chosen by."""
    found: list[str] = []
    todo, seen, as_found = [output], set[str](), _as_found(graph)
    while todo:
        name = todo.pop()
        node = graph.producer.get(name)
        if name in seen or name in graph.constants or node is None:
            continue
        seen.add(name)
        if graph.inferred.dtype.get(name) not in FLOATS:
            todo += node.inputs if node.op not in _SIZES else ()
        elif name in as_found:
            todo += node.inputs
        elif node.op in _PUT_TOGETHER and not _selects_always_the_same(node, graph):
            todo += node.inputs[: _PUT_TOGETHER[node.op]]
        elif node.depth == 0:
            found.append(name)
    return sorted(found)


def _as_found(graph: Graph) -> set[str]:
    """Tensors of the main graph whose sizes do not follow from those of the inputs, because of what some node finds."""
    dims = graph.static.dims
    given = {size for name in graph.inputs for size in dims.get(name, ())}

    def follows(name: str) -> bool:
        sizes = dims.get(name)
        return sizes is not None and all(isinstance(d, int) or given.issuperset(factors(d)) for d in sizes)

    found = set[str]()
    for node in graph.nodes:
        if node.depth == 0 and (node.op in _FINDING or found.intersection(node.inputs)):
            found.update(name for name in node.outputs if name and not follows(name))
    return found


def _selects_always_the_same(node: Node, graph: Graph) -> bool:
    """Whether what a node leaves out is never told."""
    return node.op.startswith("Gather") and node.inputs[1] in graph.constants
