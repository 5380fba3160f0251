"""Tensors that decide: what is chosen by them is another where two values are so close that rounding orders them.

TopK over a detector's scores gives its rows in another order, an ArgMax another class, a comparison another branch of a
Where, as soon as sums are added up otherwise; everything after that differs, and no tolerance helps. So the nodes that
choose are given the values of the masked original, which are compared with the pruned model's own. If every such tensor
follows from what comes before it, and all that follows from the same choices agrees, the models are equal by induction.
"""

from __future__ import annotations

from exporter.graph import Graph, Node
from exporter.rounding import CODES, FLOATS, ROOM, shared_tensors

_NO_CHOICE = ("Shape", "Size", "IsNaN", "IsInf")
"""Operators that make whole numbers or truth values of floating-point tensors, and do not choose by their size."""
_STEPS = ("Sign", "Hardmax")


def chooses(node: Node, graph: Graph) -> bool:
    """Say whether a small difference of what a node reads can make a large one of what it makes.

    Quantizing does too, but is proved otherwise; see ``exporter.rounding``.
    """
    if node.op in _STEPS:
        return True
    kinds = {graph.inferred.dtype.get(name) for name in node.outputs if name}
    return node.op not in _NO_CHOICE and bool(kinds - {*FLOATS, *CODES, None})


def deciding_tensors(graph: Graph, pruned: Graph, limit: int = ROOM) -> list[str]:
    """Floating-point tensors that nodes of both main graphs compute and that some node chooses by, in their order.

    Args:
        graph: the dense graph.
        pruned: what was cut from it.
        limit: bytes of the dense graph's tensors up to which they are taken.
    """
    read = {name for node in graph.nodes if node.depth == 0 and chooses(node, graph) for name in node.inputs}
    return shared_tensors(
        graph, pruned, lambda _, name: name in read and graph.inferred.dtype.get(name) in FLOATS, limit
    )[0]
