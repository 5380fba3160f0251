"""From a graph to groups: run the rules, solve the facts, and collect the units that span the same axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.analysis import analyse
from exporter.axis_table import AxisTable, distinct, frozen_axes, table_of
from exporter.graph import Graph, check_graph
from exporter.interface import free_axes
from exporter.naming import first_of, joints_of, kind_of, names_of
from exporter.partitions import different
from exporter.pauses import no_collection
from exporter.rules.site import Analysis
from exporter.slots import ONE, Axis, Fixed, Ids, Reason
from exporter.solve import Solution, solve
from exporter.spans import Span

KERNEL = "kernel window"


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
    """An axis of a constant, or of the interface, of which ``count`` of ``size`` slots must stay."""

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
        io: axes of graph inputs and outputs that may shrink, by name.
        places: position in the graph of the layer that produces the units of each group first.
    """

    graph: Graph
    groups: list[Group]
    frozen: list[Frozen]
    analysis: Analysis
    solution: Solution
    group_of: Ids
    unit_of: Ids
    io: Mapping[str, tuple[int, ...]]
    places: list[int] = field(default_factory=list)

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


def find_groups(graph: Graph, io: Sequence[str] = ()) -> Groups:
    """Find what can be removed from a graph, and why the rest cannot.

    Args:
        graph: as ``load`` returned it.
        io: ``GLOB:AXIS`` patterns of graph inputs and outputs that may shrink (``past_key*:1``); all others stay.

    Returns:
        The groups (possibly none), and the frozen axes of constants with their reasons.

    Raises:
        UsageError: a pattern matches nothing, or its axis is out of range or dynamic; or this is no graph.
    """
    check_graph(graph)
    with no_collection():
        return _find(graph, free_axes(graph, io))


def _find(graph: Graph, free: Mapping[str, tuple[int, ...]]) -> Groups:
    analysis = analyse(graph, free)
    table = table_of(analysis.axes.items())
    while True:
        groups, widths = _collect(graph, analysis, solve(analysis.facts), free, table)
        units = _units_of(groups, table)
        exposed, unrouted = _could_be_emptied(units, groups.solution, widths), _unrouted(analysis, groups.solution)
        if not exposed and not unrouted:
            groups.frozen = _frozen(groups, frozen_axes(table, groups.solution))
            groups.groups = _describe(groups, units, widths)
            _finish(groups)
            return groups
        why = Reason("a selection of slots that a cut could empty")
        for slot in exposed:
            analysis.facts.freeze(slot, why)
        for slots, reason in unrouted:
            analysis.facts.freeze(slots, reason)


@dataclass(frozen=True, eq=False)
class _Units:
    """What sits at every position of a table of axes.

    Attributes:
        table: the axes.
        group: groups, shape (positions, k), padded with -1.
        unit: unit within each of these, of the same shape.
        alike: whether all positions of an array are of the same groups, shape (arrays,).
    """

    table: AxisTable
    group: Ids
    unit: Ids
    alike: NDArray[np.bool_]


def _units_of(groups: Groups, table: AxisTable) -> _Units:
    group, unit = groups.units(table.slots)
    return _Units(table, group, np.asfortranarray(unit), table.uniform(group))


def _unrouted(analysis: Analysis, solution: Solution) -> list[tuple[Ids, Reason]]:
    """Slots that a softmax compares and that could go, but are no experts of a router."""
    if not analysis.compared:
        return []
    routed = np.zeros(analysis.facts.count + 1, np.bool_)
    for axis in analysis.routed:
        routed[solution.parts_of(axis)] = True
    routed[-1] = True  # the padding of parts
    found = []
    for axis, reason in analysis.compared:
        stray = ~routed[solution.parts_of(axis)].all(1)
        if stray.any():
            found.append((axis[stray], reason))
    return found


def _could_be_emptied(units: _Units, solution: Solution, widths: Sequence[int]) -> list[Ids]:
    """One slot of every axis of which no unit of each group need be left.

    Every group keeps a unit, so an axis that holds the whole grid of some groups keeps a slot. One that holds a part
    of a grid, as a constant selection from it may, need not.
    """
    exposed: list[Ids] = []
    if units.group.shape[1] < 2:
        return exposed
    table, full, seen = units.table, cache(_is_full), set[bytes]()
    starts, alike = table.starts.tolist(), units.alike.tolist()
    several = table.all(units.group[:, 1] >= 0) & (np.diff(table.starts) > 0)
    for n in np.flatnonzero(several).tolist():
        axis = table.arrays[n]
        if (content := solution.root[axis].tobytes()) in seen:  # tied to one looked at, position by position
            continue
        seen.add(content)
        rows = slice(starts[n], starts[n + 1])
        if not _holds_a_grid(units.group[rows], units.unit[rows], widths, alike[n], full):
            exposed.append(axis[:1])
    return exposed


def _holds_a_grid(
    group: Ids, unit: Ids, sizes: Sequence[int], alike: bool, full: Callable[[bytes, tuple[int, ...]], bool]
) -> bool:
    """Say whether the slots of an axis hold a whole grid of some groups; ``alike``: all are of the same groups."""
    if alike:
        row = group[0].tolist()
        columns = [k for k, g in enumerate(row) if g >= 0]
        return full(unit[:, columns].tobytes(), tuple([sizes[row[k]] for k in columns]))
    order = np.argsort(-group, axis=1, kind="stable")
    group, unit = np.take_along_axis(group, order, 1), np.take_along_axis(unit, order, 1)
    for members in np.unique(group, axis=0):
        widths = tuple(sizes[g] for g in members if g >= 0)
        if full(unit[(group == members).all(1)][:, : len(widths)].tobytes(), widths):
            return True
    return False


def _is_full(content: bytes, widths: tuple[int, ...]) -> bool:
    """Say whether rows of units, given by their bytes, hold every cell of a grid."""
    if not widths:
        return True
    units = np.frombuffer(content, np.int64).reshape(-1, len(widths))
    cells = math.prod(widths)
    if cells > len(units):
        return False
    present = np.zeros(cells, np.bool_)
    present[np.ravel_multi_index(tuple(units.T), widths)] = True
    return bool(present.all())


def _collect(
    graph: Graph, analysis: Analysis, solution: Solution, io: Mapping[str, tuple[int, ...]], table: AxisTable
) -> tuple[Groups, list[int]]:
    """Number the groups, of units that span the same axes equally often, and their units; returns their widths too."""
    count = analysis.facts.count
    group_of, unit_of = np.full(count, -1, np.int64), np.full(count, -1, np.int64)
    groups = Groups(graph, [], [], analysis, solution, group_of, unit_of, io)
    parts = solution.parts_of(table.slots)
    live = parts >= 0
    # every place at which a class takes part in a slot, in order
    classes, owner = parts[live], np.repeat(table.owner, live.sum(1))
    if not classes.size:
        return groups, []
    signature = np.zeros(count, np.uint64)
    weight = np.random.default_rng(0).integers(1, 1 << 63, len(table.arrays), dtype=np.uint64)
    np.add.at(signature, classes, weight[owner])
    first = np.full(count, classes.size, np.int64)
    first[classes[::-1]] = np.arange(classes.size)[::-1]
    begins = np.zeros(classes.size, np.bool_)
    begins[first[first < classes.size]] = True
    units = classes[begins]
    _, start, inverse = np.unique(signature[units], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(start))
    group_of[units] = rank[inverse]
    order = np.argsort(group_of[units], kind="stable")
    sorted_groups = group_of[units][order]
    begins = np.r_[0, np.flatnonzero(np.diff(sorted_groups)) + 1]
    sizes = np.diff(np.r_[begins, sorted_groups.size])
    unit_of[units[order]] = np.arange(sorted_groups.size) - np.repeat(begins, sizes)
    return groups, sizes.tolist()


def _describe(groups: Groups, units: _Units, sizes: Sequence[int]) -> list[Group]:
    """Give the groups their spans, kinds and names."""
    if not sizes:
        return []
    graph, analysis = groups.graph, groups.analysis
    table, group, unit = units.table, units.group, units.unit
    contracted = np.zeros(analysis.facts.count, bool)
    if analysis.contracted:
        contracted[np.concatenate(analysis.contracted)] = True
    summed = table.all(contracted[table.slots]).tolist()
    held: list[list[tuple[int, Ids, bool]]] = [[] for _ in table.arrays]
    """Of every array the groups it is of: the number, their units, and whether a node sums over these."""
    codes = distinct(np.where(group >= 0, table.owner[:, None] * len(sizes) + group, -1))
    starts, alike = table.starts.tolist(), units.alike.tolist()
    for place, number in zip(*(c.tolist() for c in np.divmod(codes, len(sizes))), strict=True):
        rows = slice(starts[place], starts[place + 1])
        at = group[starts[place]].tolist() if alike[place] else []
        if at.count(number) == 1:
            here, side = unit[rows, at.index(number)], summed[place]
        else:
            here = np.where(group[rows] == number, unit[rows], -1).max(1)
            side = bool(contracted[table.arrays[place][here >= 0]].all())
        held[place].append((number, here, side))
    spans: list[list[Span]] = [[] for _ in sizes]
    uses: dict[tuple[Any, ...], tuple[str, int]] = {k: u for u, k in analysis.use.items() if len(k) == 3}
    for key, axis, place in table.keys:
        constant, use = key[0] in graph.constants, uses.get(key)
        for number, here, side in held[place]:
            spans[number].append(Span(key[0], axis, use, here, constant, constant and side))
    once = units.alike[table.owner]
    once[table.starts[:-1][np.diff(table.starts) > 0]] = False
    partners = _partners(group[~once], len(sizes))
    roles = {role: _groups_at(groups, ids) for role, ids in analysis.roles.items()}
    joints = joints_of(graph)
    kinds = [kind_of(graph, n, spans[n], partners[n], roles, joints) for n in range(len(sizes))]
    firsts = [first_of(graph, mine) for mine in spans]
    names = names_of(graph, spans, kinds, firsts)
    groups.places = [place for _, place in firsts]
    return [
        Group(names[n], kinds[n], sizes[n], tuple(spans[n]), tuple(names[m] for m in sorted(partners[n])))
        for n in range(len(sizes))
    ]


def _partners(together: Ids, number: int) -> list[set[int]]:
    """Groups that take part in one slot with each of ``number`` groups, given the groups of slots, padded with -1."""
    partners: list[set[int]] = [set() for _ in range(number)]
    rows = together[(together >= 0).sum(1) > 1]
    changes = np.ones(len(rows), np.bool_)
    changes[1:] = (rows[1:] != rows[:-1]).any(1)
    for row in set(map(tuple, rows[changes].tolist())):
        members = {m for m in row if m >= 0}
        for m in members:
            partners[m] |= members - {m}
    return partners


def _groups_at(groups: Groups, arrays: list[Ids]) -> set[int]:
    group, _ = groups.units(np.concatenate(arrays))
    return set(distinct(group).tolist())


def _finish(groups: Groups) -> None:
    """Leave out groups of one unit, of which none may go, and groups that own no parameter; put the rest in order.

    What no node reads (the rest of a constant that is sliced) spans one axis only and is no group either.
    """
    kept = [n for n, g in enumerate(groups.groups) if g.width > 1 and len(g.spans) > 1 and (g.parameters or g.partners)]
    kept.sort(key=groups.places.__getitem__)
    renumber = np.full(len(groups.groups) + 1, -1, np.int64)
    renumber[kept] = np.arange(len(kept))
    groups.group_of[:] = renumber[groups.group_of]
    present = {groups.groups[n].name for n in kept}
    groups.groups = [_among(groups.groups[n], present) for n in kept]
    groups.places = [groups.places[n] for n in kept]


def _among(group: Group, present: set[str]) -> Group:
    """A group without the partners that are no group themselves."""
    if present.issuperset(group.partners):
        return group
    return replace(group, partners=tuple(p for p in group.partners if p in present))


def _frozen(groups: Groups, somewhere: set[tuple[tuple[Any, ...], int]]) -> list[Frozen]:
    """Axes of constants, and those of the interface that were to be free, with frozen slots; one row per reason.

    ``somewhere`` holds the keys of those that have any.
    """
    rows: list[Frozen] = []
    why, root = groups.solution.why, groups.solution.root
    for key, axes in groups.analysis.axes.items():
        name = key[0]
        if name not in groups.graph.constants:
            continue
        for k, axis in enumerate(axes):
            if (isinstance(axis, Fixed) or (key, k) in somewhere) and groups.graph.trains(name):
                rows.extend(_frozen_axis(groups, name, k, axis, why, root))
    for name, freed in groups.io.items():
        for k in freed:
            whole = dict(enumerate(groups.analysis.axes.get((name,), ())))
            whole |= dict(enumerate(groups.analysis.axes.get((name, "ids"), ())))
            if k in whole:
                rows.extend(_frozen_axis(groups, name, k, whole[k], why, root))
    return rows


def _frozen_axis(groups: Groups, name: str, k: int, axis: Axis, why: NDArray[np.int32], root: Ids) -> Iterator[Frozen]:
    if isinstance(axis, Fixed):
        if axis.why != ONE and axis.why.text != KERNEL:
            yield Frozen(name, k, axis.size, axis.size, axis.why)
        return
    reasons = why[root[axis]]
    frozen = reasons[reasons != Solution.NOT_FROZEN]
    for number in different(frozen).tolist():
        reason = groups.analysis.facts.reasons[number]
        if reason.text != KERNEL and reason != ONE:
            yield Frozen(name, k, int((reasons == number).sum()), axis.size, reason)
