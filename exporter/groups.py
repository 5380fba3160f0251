"""From a graph to groups: run the rules, solve the facts, and collect the units that span the same axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.graph import Graph, Node, is_parameter
from exporter.rules import RULES
from exporter.rules.registry import Analysis, Site
from exporter.shuffles import Shuffle, find_shuffles
from exporter.slots import ONE, Axis, Fixed, Ids, Reason, SlotError, Take
from exporter.solve import Solution, solve

KERNEL = "kernel window"


@dataclass(frozen=True)
class Span:
    """One axis that a group spans.

    Attributes:
        tensor: name of the tensor.
        axis: the axis.
        use: for a constant whose uses may part, (node key, input index) of this use; else None.
        units: for every position of the axis the unit that sits there, or -1; shape (size,).
        constant: whether the tensor is a constant of the file.
        contracted: whether a node sums over this axis of a constant (the unit's consumer side).
    """

    tensor: str
    axis: int
    use: tuple[str, int] | None
    units: Ids
    constant: bool
    contracted: bool


@dataclass(frozen=True, eq=False)
class Group:
    """Units that span the same axes: one row of the report, one decision of the planner.

    Attributes:
        name: the first thing that produces the units, unique in the graph.
        kind: ``channels``, ``neurons``, ``hidden``, ``heads``, ``head_dims``, ``conv_groups``, ``norm_groups``.
        width: number of units.
        spans: every axis of every tensor it touches.
        partners: names of the groups it forms product axes with (heads and head dimensions).
    """

    name: str
    kind: str
    width: int
    spans: tuple[Span, ...]
    partners: tuple[str, ...]

    @property
    def parameters(self) -> tuple[Span, ...]:
        """Spans of constants."""
        return tuple(s for s in self.spans if s.constant)


@dataclass(frozen=True)
class Frozen:
    """An axis of a constant of which ``count`` of ``size`` slots must stay."""

    tensor: str
    axis: int
    count: int
    size: int
    reason: Reason


@dataclass(eq=False)
class Groups:
    """Everything the analysis found about a graph. Iterates over its groups.

    Attributes:
        graph: the graph analysed.
        groups: in the order in which the graph produces them.
        frozen: axes of constants that must stay, with the reason.
        analysis: the facts behind it.
        solution: the solved classes.
        group_of: group of every unit class by slot id, -1 for none; shape (slots,).
        unit_of: number of every unit class within its group; shape (slots,).
    """

    graph: Graph
    groups: list[Group]
    frozen: list[Frozen]
    analysis: Analysis
    solution: Solution
    group_of: Ids
    unit_of: Ids

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> Group:
        return self.by_name[name]

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """Groups by name."""
        return {g.name: g for g in self.groups}

    def units(self, ids: Ids) -> tuple[Ids, Ids]:
        """(group, unit) numbers behind each slot, both of shape (slots, k), padded with -1."""
        parts = self.solution.parts_of(ids)
        group = np.where(parts >= 0, self.group_of[parts], -1)
        return group, np.where(group >= 0, self.unit_of[parts], -1)

    def alive(self, ids: Ids, keep: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Which slots survive when group ``g`` keeps the units where ``keep[g]`` is true; shape (slots,)."""
        offsets = np.cumsum([0, *(len(k) for k in keep)])
        flags = np.concatenate([*keep, np.ones(1, bool)])
        group, unit = self.units(ids)
        place = np.where(group >= 0, offsets[group] + unit, len(flags) - 1)
        return np.asarray(flags[place].all(1))


def find_groups(graph: Graph) -> Groups:
    """Find what can be removed from a graph, and why the rest cannot.

    Args:
        graph: as ``load`` returned it.

    Returns:
        The groups (possibly none), and the frozen axes of constants with their reasons.
    """
    analysis = analyse(graph)
    solution = solve(analysis.facts)
    return _collect(graph, analysis, solution)


def analyse(graph: Graph) -> Analysis:
    """State the facts of every node."""
    analysis = Analysis(graph)
    for name in graph.inputs:
        shape = graph.shape(name)
        if shape is not None:
            why = Reason("graph input", f"input '{name}'")
            analysis.axes[name,] = [Fixed(s, why) for s in shape]
    shuffles = find_shuffles(graph)
    inside = {n.index for s in shuffles for n in s.nodes}
    ends: dict[int, list[Shuffle]] = {}
    for shuffle in shuffles:
        ends.setdefault(shuffle.nodes[0].index, []).append(shuffle)
    for node in graph.nodes:
        if node.op == "Constant" and node.key in graph.constants:
            continue
        if node.index not in inside:
            _apply(analysis, node)
        for shuffle in ends.get(node.index, ()):
            _apply_shuffle(analysis, shuffle)
    for name in graph.outputs:
        _freeze_all(analysis, name, Reason("graph output", f"output '{name}'"))
    return analysis


def _apply(analysis: Analysis, node: Node) -> None:
    """Run the rule of one node; freeze everything it touches where there is none or it does not apply."""
    site = Site(analysis, node)
    checkpoint = len(analysis.facts.resizes), len(analysis.facts.takes), len(analysis.work)
    try:
        if node.op not in RULES:
            kind = "control flow is not analysed" if node.captured or _has_graph(node) else f"no rule for {node.op}"
            raise SlotError(kind)
        RULES[node.op](site)
    except SlotError as error:
        del analysis.facts.resizes[checkpoint[0] :], analysis.facts.takes[checkpoint[1] :], analysis.work[checkpoint[2] :]
        why = Reason(str(error), node.label)
        for i, name in enumerate(node.inputs):
            if name and name in analysis.graph.constants and analysis.graph.shape(name) is not None:
                for axis in site.axes(i):
                    analysis.facts.freeze(axis, why)
            elif name:
                _freeze_all(analysis, name, why)
        for o, name in enumerate(node.outputs):
            if name:
                site.leave(o, str(error))
    else:
        site.close()
    for name in node.captured:
        _freeze_all(analysis, name, Reason("read inside a subgraph", node.label))


def _has_graph(node: Node) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.proto.attribute)


def _apply_shuffle(analysis: Analysis, shuffle: Shuffle) -> None:
    axes = list(analysis.axes[shuffle.source,])
    whole = axes[shuffle.axis]
    if isinstance(whole, Fixed):
        axes[shuffle.axis] = Fixed(len(shuffle.indices), whole.why)
    else:
        axes[shuffle.axis] = whole[shuffle.indices]
        keys = tuple(n.key for n in shuffle.nodes)
        take = Take(keys, shuffle.source, shuffle.result, shuffle.axis, whole, whole[shuffle.indices])
        analysis.facts.takes.append(take)
    analysis.axes[shuffle.result,] = axes


def _freeze_all(analysis: Analysis, name: str, why: Reason) -> None:
    if name in analysis.graph.constants:
        # a constant that is read whole: every use of it stays as it is
        shape = analysis.graph.shape(name)
        for key in [k for k in analysis.axes if k[0] == name]:
            for axis in analysis.axes[key]:
                analysis.facts.freeze(axis, why)
        if shape is not None and (name,) not in analysis.axes:
            analysis.axes[name,] = [Fixed(s, why if s > 1 else ONE) for s in shape]
        return
    for axis in analysis.axes.get((name,), ()):
        analysis.facts.freeze(axis, why)


# -- grouping ---------------------------------------------------------------------------------------------------


def _collect(graph: Graph, analysis: Analysis, solution: Solution) -> Groups:
    """Group units by the axes they span, counting how often."""
    keys: list[tuple[tuple[Any, ...], int]] = []
    arrays: list[Ids] = []
    for key, axes in analysis.axes.items():
        for k, axis in enumerate(axes):
            if not isinstance(axis, Fixed):
                keys.append((key, k))
                arrays.append(axis)
    count = analysis.facts.count
    group_of, unit_of = np.full(count, -1, np.int64), np.full(count, -1, np.int64)
    groups = Groups(graph, [], [], analysis, solution, group_of, unit_of)
    groups.frozen = _frozen(groups)
    if not arrays:
        return groups
    lengths = np.array([a.size for a in arrays])
    owner = np.repeat(np.arange(len(arrays)), lengths)
    parts = solution.parts_of(np.concatenate(arrays))
    column_owner, classes = _occurrences(owner, parts)
    if not classes.size:
        return groups
    signature = np.zeros(count, np.uint64)
    weight = np.random.default_rng(0).integers(1, 1 << 63, len(arrays), dtype=np.uint64)
    np.add.at(signature, classes, weight[column_owner])
    first = np.full(count, classes.size, np.int64)
    np.minimum.at(first, classes, np.arange(classes.size))
    units = np.unique(classes)
    units = units[np.argsort(first[units], kind="stable")]
    _, start, inverse = np.unique(signature[units], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(start))
    group_of[units] = rank[inverse]
    order = np.argsort(group_of[units], kind="stable")
    sorted_groups = group_of[units][order]
    begins = np.r_[0, np.flatnonzero(np.diff(sorted_groups)) + 1]
    sizes = np.diff(np.r_[begins, sorted_groups.size])
    unit_of[units[order]] = np.arange(sorted_groups.size) - np.repeat(begins, sizes)
    groups.groups = _describe(groups, keys, arrays, owner, parts, column_owner, classes, sizes)
    _drop_idle(groups)
    return groups


def _occurrences(owner: Ids, parts: Ids) -> tuple[Ids, Ids]:
    """(axis number, class) of every place at which a class takes part in a slot, in the order of the places."""
    rows, columns = np.nonzero(parts >= 0)
    return owner[rows], parts[rows, columns]


def _describe(
    groups: Groups,
    keys: list[tuple[tuple[Any, ...], int]],
    arrays: list[Ids],
    owner: Ids,
    parts: Ids,
    column_owner: Ids,
    classes: Ids,
    sizes: Ids,
) -> list[Group]:
    graph, analysis = groups.graph, groups.analysis
    pairs = np.unique(np.stack([groups.group_of[classes], column_owner], 1), axis=0)
    contracted = np.zeros(analysis.facts.count, bool)
    for ids in analysis.contracted:
        contracted[ids] = True
    uses: dict[tuple[Any, ...], tuple[str, int]] = {k: u for u, k in analysis.use.items() if len(k) == 3}
    spans: list[list[Span]] = [[] for _ in sizes]
    for number, place in pairs:
        (key, axis), ids = keys[place], arrays[place]
        group, unit = groups.units(ids)
        here = np.where(group == number, unit, -1).max(1)
        constant = key[0] in graph.constants
        side = bool(contracted[ids[here >= 0]].all())
        spans[number].append(Span(key[0], axis, uses.get(key), here, constant, constant and side))
    partners = _partners(groups, parts)
    roles = {role: _groups_at(groups, ids) for role, ids in analysis.roles.items()}
    names = _names(groups, spans)
    kinds = [_kind(graph, n, spans[n], partners[n], roles, analysis) for n in range(len(sizes))]
    return [
        Group(names[n], kinds[n], int(sizes[n]), tuple(spans[n]), tuple(names[m] for m in sorted(partners[n])))
        for n in range(len(sizes))
    ]


def _partners(groups: Groups, parts: Ids) -> list[set[int]]:
    number = int(groups.group_of.max()) + 1
    partners: list[set[int]] = [set() for _ in range(number)]
    if parts.shape[1] > 1:
        together = np.where(parts >= 0, groups.group_of[parts], -1)
        for row in np.unique(together[(together >= 0).sum(1) > 1], axis=0):
            members = {int(m) for m in row if m >= 0}
            for m in members:
                partners[m] |= members - {m}
    return partners


def _groups_at(groups: Groups, arrays: list[Ids]) -> set[int]:
    group, _ = groups.units(np.concatenate(arrays))
    return {int(g) for g in np.unique(group) if g >= 0}


def _kind(
    graph: Graph, n: int, spans: list[Span], partners: set[int], roles: dict[str, set[int]], analysis: Analysis
) -> str:
    """What the field calls these units, from what the nodes around them do."""
    if n in roles.get("batch", ()):
        return "heads"
    if n in roles.get("inner", ()):
        return "head_dims"
    operators = {u.op for s in spans for u, _ in graph.users.get(s.tensor, ()) if s.constant}
    if partners and n in roles.get("conv_group", ()):
        return "conv_groups"
    if partners and n in roles.get("norm_group", ()):
        return "norm_groups"
    if any(op.rpartition("::")[2] in ("Conv", "ConvTranspose", "ConvInteger", "FusedConv") for op in operators):
        return "channels"
    joins = sum(1 for s in spans if not s.constant and _is_join(graph, s.tensor))
    return "hidden" if joins else "neurons"


def _is_join(graph: Graph, tensor: str) -> bool:
    """Say whether a tensor adds two activations: a residual stream runs through it."""
    node = graph.producer.get(tensor)
    return node is not None and node.op == "Add" and all(i not in graph.constants for i in node.inputs)


def _names(groups: Groups, spans: list[list[Span]]) -> list[str]:
    """Name each group after the constant that produces it first, else after the first tensor."""
    graph = groups.graph
    names: list[str] = []
    taken: set[str] = set()
    for mine in spans:
        producing = [s for s in mine if s.constant and not s.contracted]
        matrices = [s for s in producing if graph.shape(s.tensor) is not None and len(graph.shape(s.tensor) or ()) > 1]
        chosen = min(matrices or producing or mine, key=lambda s: _first_use(graph, s))
        name = _short(chosen.tensor)
        wish, k = name, 2
        while wish in taken:
            wish, k = f"{name}#{k}", k + 1
        taken.add(wish)
        names.append(wish)
    return names


def _first_use(graph: Graph, span: Span) -> int:
    if span.use is not None:
        return graph.producer[span.use[0]].index
    users = graph.users.get(span.tensor, ())
    return min((u.index for u, _ in users), default=len(graph.nodes))


def _short(tensor: str) -> str:
    for suffix in (".weight", "_weight", ".kernel", "/kernel:0", ":0"):
        if tensor.endswith(suffix) and len(tensor) > len(suffix):
            return tensor[: -len(suffix)]
    return tensor


def _drop_idle(groups: Groups) -> None:
    """Leave out groups of one unit, of which none may go, and groups that own no parameter."""
    idle = [n for n, g in enumerate(groups.groups) if g.width == 1 or (not g.parameters and not g.partners)]
    if not idle:
        return
    renumber = np.full(len(groups.groups) + 1, -1, np.int64)
    kept = [n for n in range(len(groups.groups)) if n not in set(idle)]
    renumber[kept] = np.arange(len(kept))
    groups.group_of[:] = renumber[groups.group_of]
    groups.groups = [groups.groups[n] for n in kept]


def _frozen(groups: Groups) -> list[Frozen]:
    """Axes of constants with frozen slots, one row per reason."""
    rows: list[Frozen] = []
    why, root = groups.solution.why, groups.solution.root
    for key, axes in groups.analysis.axes.items():
        name = key[0]
        if name not in groups.graph.constants or not is_parameter(groups.graph.constants[name]):
            continue
        for k, axis in enumerate(axes):
            rows.extend(_frozen_axis(groups, name, k, axis, why, root))
    return rows


def _frozen_axis(
    groups: Groups, name: str, k: int, axis: Axis, why: NDArray[np.int32], root: Ids
) -> Iterator[Frozen]:
    if isinstance(axis, Fixed):
        if axis.why != ONE and axis.why.text != KERNEL:
            yield Frozen(name, k, axis.size, axis.size, axis.why)
        return
    reasons = why[root[axis]]
    empty = (groups.solution.parts_of(axis) < 0).all(1)
    reasons = np.where((reasons == Solution.NOT_FROZEN) & ~empty, -1, reasons)
    for number in np.unique(reasons[(reasons >= 0) & (reasons != Solution.NOT_FROZEN)]):
        reason = groups.analysis.facts.reasons[number]
        if reason.text != KERNEL and reason != ONE:
            yield Frozen(name, k, int((reasons == number).sum()), axis.size, reason)
