"""What groups are called: the field's word for their units, and the name of the layer that produces them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence, Set
from itertools import takewhile

from exporter.graph import Graph, Node
from exporter.spans import Span

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "FusedConv", "QLinearConv", "DeformConv"})
_MADE_UP = re.compile(r"^(val_|onnx::|node_|const_|Constant@|W__|unsqueeze|expand)|^[\W\d_]*$|^_\w?\d+$")
"""Names exporters make up; a name a person gave says more."""
_FACTORS = frozenset({"heads", "head_dims", "conv_groups", "norm_groups"})
"""Kinds that share their axes with another group of the same layer: their names say which they are."""
_JOINING = {
    "Add": (0, 1),
    "QLinearAdd": (0, 3),
    "SkipLayerNormalization": (0, 1),
    "SkipSimplifiedLayerNormalization": (0, 1),
}
"""Operators that add two activations, and where these are."""
_SUFFIX = re.compile(r"[./_](weight|kernel|bias|in_proj_bias|w|b|ReadVariableOp|quantized)$|(_weight_quantized|:0)$")


def joints_of(graph: Graph) -> frozenset[str]:
    """Tensors that are the sum of two activations: a residual stream runs through them."""
    return frozenset(name for node in graph.nodes if _joins(node, graph) for name in node.outputs)


def kind_of(
    graph: Graph,
    number: int,
    spans: Sequence[Span],
    partners: set[int],
    roles: Mapping[str, set[int]],
    joints: Set[str],
) -> str:
    """What the field calls the units of a group, from what the nodes around them do.

    Args:
        graph: the graph.
        number: of the group, as in ``roles``.
        spans: what the group touches.
        partners: groups it forms product axes with.
        roles: remarks the rules made, as sets of group numbers.
        joints: as ``joints_of`` found them.
    """
    if number in roles.get("token", ()):
        return "tokens"
    if number in roles.get("expert", ()):
        return "experts"
    if number in roles.get("batch", ()):
        return "heads"
    if number in roles.get("inner", ()):
        return "head_dims"
    if partners and number in roles.get("conv_group", ()):
        return "conv_groups"
    if partners and number in roles.get("norm_group", ()):
        return "norm_groups"
    constants = {s.tensor for s in spans if s.constant}
    matrices = [name for name in constants if len(graph.shape(name) or ()) > 1]
    users = [{u.op.rpartition("::")[2] for u, _ in graph.users.get(name, ())} for name in matrices]
    convolutions = sum(not ops.isdisjoint(_CONVOLUTIONS) for ops in users)
    if 2 * convolutions >= max(len(users), 1):  # the residual stream of a vision transformer starts at one convolution
        return "channels"
    return "hidden" if not joints.isdisjoint([s.tensor for s in spans]) else "neurons"


def _joins(node: Node, graph: Graph) -> bool:
    """Say whether a node adds two activations."""
    operands = _JOINING.get(node.op.rpartition("::")[2])
    taken = [node.inputs[i] for i in operands if i < len(node.inputs)] if operands is not None else []
    return bool(taken) and not any(name in graph.constants for name in taken)


def names_of(
    graph: Graph, spans: Sequence[Sequence[Span]], kinds: Sequence[str], firsts: Sequence[tuple[Span, int]]
) -> list[str]:
    """A unique name for each group, after the layer that produces its units first, as ``first_of`` found it."""
    names: list[str] = []
    taken: set[str] = set()
    for mine, kind, first in zip(spans, kinds, firsts, strict=True):
        base = wish = _name(graph, mine, *first)
        if kind in _FACTORS or wish in taken:
            wish = f"{base}:{kind}"
        number = 2
        while wish in taken:
            wish, number = f"{base}:{kind}#{number}", number + 1
        taken.add(wish)
        names.append(wish)
    return names


def block_names(graph: Graph, blocks: Sequence[tuple[str, Collection[str], Collection[str]]]) -> list[str]:
    """A unique name for each residual block: what the names of its weights, modules or nodes begin with.

    Args:
        graph: the graph.
        blocks: of each the key of its sum, its constants, and the keys of its nodes.
    """
    names: list[str] = []
    for key, constants, nodes in blocks:
        weights = [n for n in constants if n in graph.trained]
        matrices = [n for n in weights if len(graph.constants[n].dims) > 1]
        named = [_short(n) for n in matrices or weights if not _MADE_UP.match(n)]
        modules = [_module(user) for n in matrices for user, _ in graph.users.get(n, ())]
        layers = [graph.producer[n].proto.name.strip("/") for n in nodes]
        layers = [n for n in layers if ("/" in n or "." in n) and not _MADE_UP.match(n)]
        base = _common(named) or _common(modules) or _common(layers) or graph.producer[key].proto.name or key
        wish, number = base, 2
        while wish in names:
            wish, number = f"{base}#{number}", number + 1
        names.append(wish)
    return names


def _module(node: Node) -> str:
    """The module PyTorch's exporter says a node comes from; empty where it does not."""
    told = (p.value for p in node.proto.metadata_props if p.key == "pkg.torch.onnx.name_scopes")
    scopes: str = next((value for value in told if isinstance(value, str)), "")  # bytes: it is not UTF-8
    return (["", *re.findall(r"'([^']*)'", scopes)])[-2] if scopes else ""


def _common(names: Sequence[str]) -> str:
    """The longest run of whole parts with which all of the names begin."""
    parts = [re.split(r"([./])", name) for name in names]
    same = [p[0] for p in takewhile(lambda p: len(set(p)) == 1, zip(*parts, strict=False))]
    while same and same[-1] in (".", "/"):
        same.pop()
    return "".join(same)


def first_of(graph: Graph, spans: Sequence[Span]) -> tuple[Span, int]:
    """The layer that produces the units of a group first: its span, and its position in the graph."""
    producing = _producing(spans)
    matrices = [s for s in producing if len(graph.shape(s.tensor) or ()) > 1]
    places = [_first_use(graph, span) for span in matrices or producing]
    place = min(places)
    return (matrices or producing)[places.index(place)], place


def _producing(spans: Sequence[Span]) -> list[Span]:
    return [s for s in spans if s.constant and not s.contracted] or list(spans)


def _name(graph: Graph, spans: Sequence[Span], first: Span, place: int) -> str:
    if not _MADE_UP.match(first.tensor):
        return _short(first.tensor)
    node = graph.nodes[place] if place < len(graph.nodes) else None
    if node is not None and node.proto.name and not _MADE_UP.match(node.proto.name):
        return _short(node.proto.name.strip("/").removesuffix(f"/{node.proto.op_type}"))
    # a bias keeps the name its weight lost
    near = [s for s in _producing(spans) if place <= _first_use(graph, s) <= place + 2 and not _MADE_UP.match(s.tensor)]
    return _short(near[0].tensor) if near else first.tensor


def _first_use(graph: Graph, span: Span) -> int:
    if span.use is not None:
        return _reader(graph, graph.producer[span.use[0]])
    return min([_reader(graph, user) for user, _ in graph.users.get(span.tensor, ())], default=len(graph.nodes))


def _reader(graph: Graph, node: Node) -> int:
    """Position of a node, or of what reads the weight that it makes from codes."""
    if node.op == "DequantizeLinear" and all(not n or n in graph.constants for n in node.inputs):
        return min((u.index for u, _ in graph.users.get(node.key, ())), default=node.index)
    return node.index


def _short(name: str) -> str:
    while True:
        shorter = _SUFFIX.sub("", name)
        if shorter == name or not shorter:
            return name
        name = shorter
