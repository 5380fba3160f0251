"""What groups are called: the field's word for their units, and the name of the layer that produces them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from exporter.graph import Graph, Node
from exporter.spans import Span

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "FusedConv", "QLinearConv", "DeformConv"})
_MADE_UP = re.compile(r"^(val_|onnx::|node_|const_|Constant@|W__|unsqueeze|expand)|^[\W\d_]*$|^_\w?\d+$")
"""Names exporters make up; a name a person gave says more."""
_FACTORS = frozenset({"heads", "head_dims", "conv_groups", "norm_groups"})
"""Kinds that share their axes with another group of the same layer: their names say which they are."""
_SUFFIX = re.compile(r"[./_](weight|kernel|bias|in_proj_bias|w|b|ReadVariableOp|quantized)$|(_weight_quantized|:0)$")


def kind_of(graph: Graph, number: int, spans: Sequence[Span], partners: set[int], roles: Mapping[str, set[int]]) -> str:
    """What the field calls the units of a group, from what the nodes around them do.

    Args:
        graph: the graph.
        number: of the group, as in ``roles``.
        spans: what the group touches.
        partners: groups it forms product axes with.
        roles: remarks the rules made, as sets of group numbers.
    """
    if number in roles.get("batch", ()):
        return "heads"
    if number in roles.get("inner", ()):
        return "head_dims"
    if partners and number in roles.get("conv_group", ()):
        return "conv_groups"
    if partners and number in roles.get("norm_group", ()):
        return "norm_groups"
    matrices = {s.tensor for s in spans if s.constant and len(graph.shape(s.tensor) or ()) > 1}
    users = [{u.op.rpartition("::")[2] for u, _ in graph.users.get(name, ())} for name in matrices]
    convolutions = sum(bool(ops & _CONVOLUTIONS) for ops in users)
    if 2 * convolutions >= max(len(users), 1):  # the residual stream of a vision transformer starts at one convolution
        return "channels"
    return "hidden" if any(_joins(graph.producer.get(s.tensor), graph) for s in spans) else "neurons"


def _joins(node: Node | None, graph: Graph) -> bool:
    """Say whether a node adds two activations: a residual stream runs through it."""
    return node is not None and node.op == "Add" and all(i not in graph.constants for i in node.inputs)


def names_of(graph: Graph, spans: Sequence[Sequence[Span]], kinds: Sequence[str]) -> list[str]:
    """A unique name for each group, after the layer that produces its units first."""
    names: list[str] = []
    taken: set[str] = set()
    for mine, kind in zip(spans, kinds, strict=True):
        base = wish = _name(graph, mine)
        if kind in _FACTORS or wish in taken:
            wish = f"{base}:{kind}"
        number = 2
        while wish in taken:
            wish, number = f"{base}:{kind}#{number}", number + 1
        taken.add(wish)
        names.append(wish)
    return names


def place_of(graph: Graph, spans: Sequence[Span]) -> int:
    """Position in the graph of the layer that produces the units of a group first."""
    return _first_use(graph, _first(graph, _producing(spans)))


def _producing(spans: Sequence[Span]) -> list[Span]:
    return [s for s in spans if s.constant and not s.contracted] or list(spans)


def _first(graph: Graph, spans: Sequence[Span]) -> Span:
    matrices = [s for s in spans if len(graph.shape(s.tensor) or ()) > 1]
    return min(matrices or spans, key=lambda s: _first_use(graph, s))


def _name(graph: Graph, spans: Sequence[Span]) -> str:
    producing = _producing(spans)
    first = _first(graph, producing)
    place = _first_use(graph, first)
    if not _MADE_UP.match(first.tensor):
        return _short(first.tensor)
    node = graph.nodes[place] if place < len(graph.nodes) else None
    if node is not None and node.proto.name and not _MADE_UP.match(node.proto.name):
        return _short(node.proto.name.strip("/").removesuffix(f"/{node.proto.op_type}"))
    # a bias keeps the name its weight lost
    near = [s for s in producing if place <= _first_use(graph, s) <= place + 2 and not _MADE_UP.match(s.tensor)]
    return _short(near[0].tensor) if near else first.tensor


def _first_use(graph: Graph, span: Span) -> int:
    if span.use is not None:
        return graph.producer[span.use[0]].index
    users = graph.users.get(span.tensor, ())
    return min((u.index for u, _ in users), default=len(graph.nodes))


def _short(name: str) -> str:
    while True:
        shorter = _SUFFIX.sub("", name)
        if shorter == name or not shorter:
            return name
        name = shorter
