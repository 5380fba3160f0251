"""From kept units to a complete plan: what is taken from every constant, and which numbers in the file follow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import UsageError
from exporter.graph import Graph
from exporter.groups import Groups
from exporter.plan import AxisTake, ConstantTake, Fingerprint, GatherEdit, Plan, PlannedGroup, SizeEdit
from exporter.slots import Axis, Fixed, Ids, Slot

Mask = NDArray[np.bool_]


def complete(groups: Groups, keep: Sequence[Mask], options: Mapping[str, Any]) -> Plan:
    """Work out every edit.

    Args:
        groups: the analysis.
        keep: for each group which units stay, shape (width,).
        options: how the choice was made, recorded in the plan.
    """
    alive = _Alive(groups, list(keep))
    return Plan(
        model=fingerprint(groups.graph),
        options=options,
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
        hide=_hidden(groups, alive),
        sizes=_sizes(groups, alive),
        gathers=_gathers(groups, alive),
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


def _sizes(groups: Groups, alive: _Alive) -> tuple[SizeEdit, ...]:
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
    edits = []
    for place in sorted(changed, key=lambda p: (graph.producer[p[0]].index, p[1] or 0, p[2] or "")):
        node, index, attribute = place
        present = _present(graph, Slot(node, index, attribute, default=defaults[place]))
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


def _gathers(groups: Groups, alive: _Alive) -> tuple[GatherEdit, ...]:
    edits = []
    for take in groups.analysis.facts.takes:
        source, result = alive.mask(take.source_ids), alive.mask(take.result_ids)
        if source.all() and result.all():
            continue
        place = {int(s): i for i, s in enumerate(take.source_ids[source])}
        indices = tuple(place[int(s)] for s in take.result_ids[result])
        edits.append(GatherEdit(take.nodes, take.source, take.result, take.axis, indices))
    return tuple(edits)


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
    return Fingerprint(name, graph.source.sha256, digest.hexdigest(), dict(graph.feed_shapes))


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
