"""A module that chooses what the original chose, so that row by row they can be compared; see
``exporter.calibration.choices``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from exporter.autograd import OnnxModule
from exporter.graph import Node


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
