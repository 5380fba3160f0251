"""A module that chooses what the original chose, so that row by row they can be compared; see
``exporter.calibration.choices``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from exporter.autograd import OnnxModule
from exporter.calibration.choices import choices
from exporter.graph import Graph, Node


def choosers(original: Graph, graph: Graph, labelled: bool) -> dict[str, Node]:
    """Nodes of a graph that are to choose what an original does, by the tensor that says what; none where there are
    labels, which are of what the graph itself chooses."""
    return {} if labelled else {name: graph.producer[name] for name in choices(original, graph)}


@contextmanager
def choosing(module: OnnxModule, known: Mapping[Node, Tensor]) -> Iterator[None]:
    """Let nodes of a module choose what is known; the values of a TopK are the module's own."""
    plain = dict(module.instead)
    module.instead.update({node.key: _instead(node, chosen) for node, chosen in known.items()})
    try:
        yield
    finally:
        module.instead = plain


def _instead(node: Node, chosen: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    axis = node.attributes.get("axis", -1)
    return lambda x, *_, **__: (x.gather(axis, chosen), chosen) if node.op == "TopK" else (chosen,)
