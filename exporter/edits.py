"""From kept units to a complete plan: what is taken from every constant, and which numbers in the file follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.graph import Before, Graph, Node
from exporter.groups import Groups
from exporter.plan import AxisTake, ConstantTake, GatherEdit, Plan, PlannedGroup, SizeEdit
from exporter.plan_check import fingerprint
from exporter.removal import stand_ins
from exporter.rules.site import find_slot
from exporter.shuffles import Shuffle, move
from exporter.slots import Axis, Fixed, Ids, Slot

Mask = NDArray[np.bool_]
Use = tuple[str, int]


def complete(groups: Groups, keep: Sequence[Mask], options: Mapping[str, Any], notes: Sequence[str] = ()) -> Plan:
    """Work out every edit.

    Args:
        groups: the analysis.
        keep: for each group which units stay, shape (width,).
        options: how the choice was made, recorded in the plan.
        notes: what the reader should know of it, recorded too.
    """
    alive = _Alive(groups, list(keep))
    moved = _shuffles(groups, alive)
    counts, sizes = size_edits(groups, lambda ids: int(alive.mask(ids).sum()), moved.sizes)
    plan = Plan(
        model=fingerprint(groups.graph),
        options=options,
        notes=tuple(notes),
        groups=tuple(
            PlannedGroup(
                g.name,
                g.kind,
                g.width,
                tuple(int(u) for u in np.flatnonzero(k)),
                tuple(sorted({(s.tensor, s.axis) for s in g.spans})),
            )
            for g, k in zip(groups, keep, strict=True)
        ),
        take=constant_takes(groups, lambda _, axes: alive.axes(axes), counts),
        hide=_hidden(groups, alive) | moved.hide,
        sizes=sizes,
        gathers=(*_gathers(groups, alive), *moved.gathers),
        io=groups.io,
    )
    before = groups.graph.before
    return plan if before is None else _for_whole(plan, before)


def _for_whole(plan: Plan, before: Before) -> Plan:
    """The plan for the graph from which branches were taken out before the analysis."""
    constants = before.graph.constants
    return replace(
        plan,
        model=fingerprint(before.graph),
        take={name: plan.take.get(name, ConstantTake(removed=True)) for name in constants} | dict(plan.take),
        # a sum whose branch goes holds what its other operand holds
        hide={**plan.hide, **{y: plan.hide[x] for y, x in stand_ins(before.drops).items() if x in plan.hide}},
        drop=before.drops,
    )


class _Alive:
    """Surviving positions of axes; None for an axis that keeps all."""

    def __init__(self, groups: Groups, keep: list[Mask]) -> None:
        count = groups.analysis.facts.count
        # one flag per slot, so that every axis is a single lookup
        self._flags = groups.alive(np.arange(count, dtype=np.int64), keep)

    def mask(self, ids: Ids) -> Mask:
        return np.asarray(self._flags[ids])

    def take(self, axis: Axis) -> AxisTake | None:
        if isinstance(axis, Fixed):
            return None
        mask = self._flags[axis]
        if mask.all():
            return None
        return AxisTake(axis.size, tuple(int(i) for i in np.flatnonzero(mask)))

    def axes(self, axes: Sequence[Axis]) -> dict[int, AxisTake]:
        taken = {k: self.take(axis) for k, axis in enumerate(axes)}
        return {k: t for k, t in taken.items() if t is not None}


def constant_takes(
    groups: Groups,
    axes_of: Callable[[str, Sequence[Axis]], dict[int, AxisTake]],
    counts: Mapping[Use, tuple[int, ...]],
) -> dict[str, ConstantTake]:
    """What becomes of every constant: the first use keeps the name, uses that differ read a clone.

    Args:
        groups: the analysis.
        axes_of: what is taken along the axes of one use of a constant, given its name and the slots of its axes.
        counts: new values of constants that count slots, by use.
    """
    graph, analysis = groups.graph, groups.analysis
    slots: dict[str, dict[Use, dict[int, AxisTake]]] = {}
    for use, key in analysis.use.items():
        slots.setdefault(key[0], {})[use] = axes_of(key[0], analysis.axes[key])
    result: dict[str, ConstantTake] = {}
    taken = set(graph.constants) | set(graph.producer) | set(graph.inputs) | graph.given
    for name in graph.constants:
        uses = {(user.key, i): slots.get(name, {}).get((user.key, i), {}) for user, i in graph.users.get(name, ())}
        variants: list[tuple[ConstantTake, list[Use]]] = []
        if name in graph.outputs or not uses:
            variants.append((ConstantTake(), []))
        for use in sorted(uses, key=lambda u: _position(graph, u)):
            cut = ConstantTake(uses[use], counts.get(use))
            for known, members in variants:
                if known == cut:
                    members.append(use)
                    break
            else:
                variants.append((cut, [use]))
        result[name] = variants[0][0]
        for number, (cut, members) in enumerate(variants[1:], 1):
            clone = f"{name}.clone{number}"
            while clone in taken:
                clone += "_"
            taken.add(clone)
            result[clone] = replace(cut, clone_of=name, uses=tuple(members))
    return result


def _position(graph: Graph, use: tuple[str, int]) -> tuple[int, int]:
    return graph.producer[use[0]].index, use[1]


def _hidden(groups: Groups, alive: _Alive) -> dict[str, dict[int, AxisTake]]:
    result: dict[str, dict[int, AxisTake]] = {}
    for key, axes in groups.analysis.axes.items():
        name = key[0]
        if name not in groups.graph.constants:
            taken = alive.axes(axes)
            if taken:
                result[name] = result.get(name, {}) | taken
    return result


def size_edits(
    groups: Groups, count: Callable[[Ids], int], more: Sequence[tuple[Slot, int]] = ()
) -> tuple[dict[Use, tuple[int, ...]], tuple[SizeEdit, ...]]:
    """New values of what counts slots, where any changes: constants by their use, and the rest as edits.

    Args:
        groups: the analysis.
        count: how many there are of some slots.
        more: numbers that were worked out already.
    """
    graph = groups.graph
    wanted: dict[Slot, dict[int | None, int]] = {}
    changed: set[Slot] = set()
    counted = [(r.slot, count(r.ids), r.ids.size) for r in groups.analysis.facts.resizes]
    for slot, left, dense in [*counted, *((slot, left, -1) for slot, left in more)]:
        place = slot._replace(element=None)
        wanted.setdefault(place, {})[slot.element] = left
        if left != dense:
            changed.add(place)
    constants: dict[Use, tuple[int, ...]] = {}
    edits: list[SizeEdit] = []
    for place in sorted(changed, key=lambda p: (graph.producer[p.node].index, p.input or 0, p.attribute or "")):
        present = _present(graph, place)
        for element, left in wanted[place].items():
            if present is not None and element is not None:
                present[element] = left
        value = tuple(present) if present is not None else wanted[place][None]
        node = graph.producer[place.node]
        if place.input is not None and place.input < len(node.inputs) and node.inputs[place.input]:
            assert isinstance(value, tuple)
            constants[place.node, place.input] = value
        else:
            edits.append(SizeEdit(place.node, place.input, place.attribute, value))
    return constants, tuple(edits)


def _present(graph: Graph, slot: Slot) -> list[int] | None:
    """The vector as it stands in the file; None for a scalar attribute."""
    node = graph.producer[slot.node]
    if slot.attribute is not None:
        value = node.attributes.get(slot.attribute)
        if value is None and slot.default is not None:
            return list(slot.default)
        return [int(v) for v in value] if isinstance(value, (list, tuple)) else None
    assert slot.input is not None
    if slot.input < len(node.inputs) and node.inputs[slot.input]:
        return [int(v) for v in graph.array(node.inputs[slot.input]).ravel()]
    return list(slot.default or ())


def _gathers(groups: Groups, alive: _Alive) -> list[GatherEdit]:
    edits = []
    for take in groups.analysis.facts.takes:
        mask = alive.mask(take.ids)
        if not mask.all():
            indices = _renewed(take.indices, mask)
            edits.append(GatherEdit((take.node,), take.source, take.result, take.axis, indices))
    return edits


def _renewed(indices: Ids, mask: Mask) -> tuple[int, ...]:
    """Indices into an axis as they are after the positions outside the mask are gone; those that go are left out."""
    place = np.cumsum(mask) - 1
    return tuple(int(place[i]) for i in indices if mask[i])


@dataclass
class _Moved:
    """Edits of the chains of data movement that are analysed as one selection."""

    hide: dict[str, dict[int, AxisTake]] = field(default_factory=dict)
    sizes: list[tuple[Slot, int]] = field(default_factory=list)
    gathers: list[GatherEdit] = field(default_factory=list)


def _shuffles(groups: Groups, alive: _Alive) -> _Moved:
    moved = _Moved()
    for shuffle in groups.analysis.shuffles:
        axes = groups.analysis.axes[shuffle.source,]
        cut = alive.axes(axes)
        if not cut:
            continue
        resized = _carry(groups.graph, shuffle, cut)
        if resized is not None:
            moved.hide |= resized.hide
            moved.sizes += resized.sizes
            continue
        mask = np.ones(axes[shuffle.axis].size, bool)
        if shuffle.axis in cut:
            mask = np.isin(np.arange(mask.size), cut[shuffle.axis].keep)
        indices = _renewed(shuffle.indices, mask)
        keys = tuple(n.key for n in shuffle.nodes)
        moved.gathers.append(GatherEdit(keys, shuffle.source, shuffle.result, shuffle.axis, indices))
    return moved


def _carry(graph: Graph, shuffle: Shuffle, cut: Mapping[int, AxisTake]) -> _Moved | None:
    """Carry a cut through a chain by giving its reshapes new sizes; None where what is left is no grid."""
    shape = graph.shape(shuffle.source)
    assert shape is not None
    mask: Mask = np.ones(shape, bool)
    for axis, take in cut.items():
        gone = np.setdiff1d(np.arange(take.size), take.keep)
        mask[(slice(None),) * axis + (gone,)] = False
    moved = _Moved()
    for node in shuffle.nodes:
        after = move(graph, node, mask)
        if after is None:
            return None
        kept = [after.any(tuple(a for a in range(after.ndim) if a != k)) for k in range(after.ndim)]
        sizes = [int(k.sum()) for k in kept]
        if int(after.sum()) != int(np.prod(sizes)) or 0 in sizes:
            return None
        if node.op == "Reshape" and not _resize_target(graph, node, sizes, moved):
            return None
        if node.op == "Gather" and not _whole_along(mask, _axis(node, mask.ndim)):
            return None
        if node is not shuffle.nodes[-1]:
            taken = {
                k: AxisTake(m.size, tuple(int(i) for i in np.flatnonzero(m))) for k, m in enumerate(kept) if not m.all()
            }
            if taken:
                moved.hide[node.outputs[0]] = taken
        mask = after
    return moved


def _axis(node: Node, rank: int) -> int:
    return int(node.attributes.get("axis", 0)) % rank


def _whole_along(mask: Mask, axis: int) -> bool:
    """Say whether a grid of kept positions keeps every index of an axis."""
    return bool(mask.any(tuple(a for a in range(mask.ndim) if a != axis)).all())


def _resize_target(graph: Graph, node: Node, sizes: Sequence[int], moved: _Moved) -> bool:
    """Give a Reshape inside a chain its new sizes; False where one of them is computed at run time."""
    target, before = graph.static.vector(node.inputs[1]), graph.shape(node.outputs[0])
    if target is None or before is None:
        return False
    for k, (element, old, new) in enumerate(zip(target, before, sizes, strict=True)):
        if old == new or element in (-1, 0):
            continue
        slot = find_slot(graph, node, 1, k)
        if slot is None:
            return False
        moved.sizes.append((slot, new))
    return True
