"""From kept units to a complete plan: what is taken from every constant, and which numbers in the file follow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import UsageError
from exporter.graph import Graph, Node
from exporter.groups import Groups
from exporter.plan import AxisTake, ConstantTake, Fingerprint, GatherEdit, Plan, PlannedGroup, SizeEdit
from exporter.rules.site import find_slot
from exporter.shuffles import Shuffle, move
from exporter.slots import Axis, Fixed, Ids, Slot

Mask = NDArray[np.bool_]


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
    return Plan(
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
        take=_takes(groups, alive),
        hide=_hidden(groups, alive) | moved.hide,
        sizes=_sizes(groups, alive, moved.sizes),
        gathers=(*_gathers(groups, alive), *moved.gathers),
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


def _takes(groups: Groups, alive: _Alive) -> dict[str, ConstantTake]:
    """What becomes of every constant: the first use keeps the name, uses that differ read a clone."""
    graph, analysis = groups.graph, groups.analysis
    per_use: dict[str, list[tuple[tuple[str, int], dict[int, AxisTake]]]] = {}
    for (node, i), key in analysis.use.items():
        per_use.setdefault(key[0], []).append(((node, i), alive.axes(analysis.axes[key])))
    result: dict[str, ConstantTake] = {}
    taken_names = set(graph.constants) | set(graph.producer) | set(graph.inputs)
    for name in graph.constants:
        uses = dict(per_use.get(name, ()))
        whole = [(u.key, i) for u, i in graph.users.get(name, ()) if (u.key, i) not in uses]
        if whole or name in graph.outputs:
            uses.update({use: {} for use in whole})
        variants: list[tuple[dict[int, AxisTake], list[tuple[str, int]]]] = []
        for use, axes in sorted(uses.items(), key=lambda item: _position(graph, item[0])):
            for known, members in variants:
                if known == axes:
                    members.append(use)
                    break
            else:
                variants.append((axes, [use]))
        if name in graph.outputs or not variants:
            variants.sort(key=lambda v: bool(v[0]))
            if not variants or variants[0][0]:
                variants.insert(0, ({}, []))
        result[name] = ConstantTake(variants[0][0])
        for number, (axes, members) in enumerate(variants[1:], 1):
            clone = f"{name}.clone{number}"
            while clone in taken_names:
                clone += "_"
            taken_names.add(clone)
            result[clone] = ConstantTake(axes, name, tuple(members))
    return result


def _position(graph: Graph, use: tuple[str, int]) -> tuple[int, int]:
    return graph.producer[use[0]].index, use[1]


def _hidden(groups: Groups, alive: _Alive) -> dict[str, dict[int, AxisTake]]:
    result = {}
    for key, axes in groups.analysis.axes.items():
        name = key[0]
        if name not in groups.graph.constants:
            taken = alive.axes(axes)
            if taken:
                result[name] = taken
    return result


def _sizes(groups: Groups, alive: _Alive, more: Sequence[tuple[Slot, int]]) -> tuple[SizeEdit, ...]:
    """New values of every vector or number of the file that counts slots, where any changes."""
    graph = groups.graph
    wanted: dict[tuple[str, int | None, str | None], dict[int | None, int]] = {}
    defaults: dict[tuple[str, int | None, str | None], tuple[int, ...] | None] = {}
    changed: set[tuple[str, int | None, str | None]] = set()
    for resize in groups.analysis.facts.resizes:
        slot = resize.slot
        place = (slot.node, slot.input, slot.attribute)
        left = int(alive.mask(resize.ids).sum())
        wanted.setdefault(place, {})[slot.element] = left
        defaults[place] = slot.default or defaults.get(place)
        if left != resize.ids.size:
            changed.add(place)
    for slot, left in more:
        place = (slot.node, slot.input, slot.attribute)
        wanted.setdefault(place, {})[slot.element] = left
        changed.add(place)
    edits = []
    for place in sorted(changed, key=lambda p: (graph.producer[p[0]].index, p[1] or 0, p[2] or "")):
        node, index, attribute = place
        present = _present(graph, Slot(node, index, attribute, default=defaults.get(place)))
        if present is None:
            edits.append(SizeEdit(node, index, attribute, wanted[place][None]))
            continue
        for element, left in wanted[place].items():
            assert element is not None
            present[element] = left
        edits.append(SizeEdit(node, index, attribute, tuple(present)))
    return tuple(edits)


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


def fingerprint(graph: Graph) -> Fingerprint:
    """What tells this model from another."""
    digest = hashlib.sha256()
    for node in graph.nodes:
        if node.op == "Constant":
            continue
        digest.update(node.proto.SerializeToString(deterministic=True))
    for name, tensor in sorted(graph.constants.items()):
        digest.update(f"{name}:{tensor.data_type}:{list(tensor.dims)};".encode())
    name = graph.source.path.name if graph.source.path is not None else ""
    return Fingerprint(name, graph.source.sha256, digest.hexdigest(), dict(graph.binding.shapes))


def check_fits(plan: Plan, graph: Graph) -> str | None:
    """Check that a plan was made for this graph.

    Returns:
        A warning where only the weights differ, else None.

    Raises:
        UsageError: it was made for another model; the text says what differs.
    """
    mine = fingerprint(graph)
    if plan.model.structure == mine.structure:
        if plan.model.sha256 != mine.sha256:
            return f"the weights are not those the plan was made for ({plan.model.file}); its structure is"
        return None
    differences = []
    for name, take in plan.take.items():
        origin = take.clone_of or name
        if origin not in graph.constants:
            differences.append(f"the plan cuts '{origin}', which this model does not have")
            continue
        dims = list(graph.constants[origin].dims)
        for axis, kept in take.axes.items():
            if axis >= len(dims) or dims[axis] != kept.size:
                differences.append(f"'{origin}' is {dims} here, the plan expects {kept.size} along axis {axis}")
    planned = {t.clone_of or n for n, t in plan.take.items()}
    differences += [f"this model has '{n}', which the plan does not know" for n in graph.constants if n not in planned]
    if not differences:
        differences.append("the constants agree, but the nodes differ")
    more = len(differences) - 5
    listed = "\n  ".join(differences[:5]) + (f"\n  and {more} more" if more > 0 else "")
    raise UsageError(
        f"the plan was made for another model ({plan.model.file or 'in memory'}):\n  {listed}\n"
        "Make a plan for this model with: secateur prune MODEL -o OUT --save-plan P.json"
    )
