"""Plans in sequence: one plan for the first model that does what two do one after the other.

Everything a plan says is about positions, so kept indices compose by indexing: ``keep = first.keep[second.keep]``. What
needs care is what the first rewrite made: clones, which become clones of the first model's constants; constants that
hold sizes, which go back into edits of sizes; selections, whose indices follow what is left of their source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from exporter.errors import UsageError
from exporter.plan import AxisTake, ConstantTake, GatherEdit, Plan, PlannedGroup, SizeEdit
from exporter.removal import stand_ins
from runtime.nouns import counted

Axes = Mapping[int, AxisTake]
Use = tuple[str, int]


def compose(first: Plan, second: Plan) -> Plan:
    """Put two plans into one.

    Args:
        first: a plan for a model.
        second: a plan for the model that ``first`` leads to.

    Returns:
        A plan for the first model. Its rewrite is that of ``second`` applied to that of ``first``, and it is proved
        against the first model. A group that only the second plan knows is listed as that plan saw it.

    Raises:
        UsageError: the second plan is not for the model that the first leads to.
    """
    drops = (*first.drop, *second.drop)
    take = _takes(first, second)
    hide: dict[str, Axes] = {name: _axes(name, axes, second.hide.get(name, {})) for name, axes in first.hide.items()}
    hide |= {name: axes for name, axes in second.hide.items() if name not in hide}
    instead = stand_ins(drops)
    hide = {name: axes for name, axes in hide.items() if name not in instead}
    hide |= {name: hide[end] for name, end in instead.items() if end in hide}
    return Plan(
        model=first.model,
        options={"steps": [dict(first.options), dict(second.options)]},
        notes=(*first.notes, *second.notes),
        groups=_groups(first.groups, second.groups),
        take=take,
        hide=hide,
        sizes=_sizes(first, second),
        gathers=_gathers(first, second),
        io={n: tuple(sorted({*first.io.get(n, ()), *second.io.get(n, ())})) for n in {**first.io, **second.io}},
        drop=drops,
    )


def _axes(name: str, first: Axes, second: Axes) -> dict[int, AxisTake]:
    """Cuts of one tensor, one after the other."""
    result = dict(first)
    for axis, then in second.items():
        before = first.get(axis)
        if before is None:
            result[axis] = then
            continue
        if then.size != len(before.keep):
            raise UsageError(
                f"the plans do not follow each other: the first leaves {counted(len(before.keep), 'slot')} of '{name}' "
                "along axis "
                f"{axis}, the second expects {then.size}. Give them in the order in which they were carried out."
            )
        result[axis] = AxisTake(before.size, tuple(before.keep[i] for i in then.keep))
    return result


# -- constants --------------------------------------------------------------------------------------------------


def _takes(first: Plan, second: Plan) -> dict[str, ConstantTake]:
    result = dict(first.take)
    starts = {edit.result: edit.nodes[0] for edit in first.gathers}
    for name, then in second.take.items():
        origin = then.clone_of or name
        before = first.take.get(origin)
        if before is None:
            continue  # made by the first rewrite: sizes and selections take care of it
        if before.removed:
            raise UsageError(f"the plans do not follow each other: the first removes '{origin}', the second cuts it.")
        whole = before.clone_of or (origin if then.clone_of else None)
        if then.removed:
            if before.clone_of is None:
                result[name] = ConstantTake(removed=True)
            else:
                del result[name]  # its source is accounted for by itself
            continue
        uses = before.uses
        if then.clone_of:
            uses = tuple((starts.get(key, key), 0) if i == 0 else (key, i) for key, i in then.uses)
        axes, values = _constant(origin, before, then)
        result[name] = ConstantTake(axes, values, whole, uses if whole else ())
    moved = {use for name, take in result.items() if name not in first.take for use in take.uses}
    return {
        name: replace(take, uses=tuple(u for u in take.uses if u not in moved)) if name in first.take else take
        for name, take in result.items()
    }


def _constant(
    name: str, before: ConstantTake, then: ConstantTake
) -> tuple[dict[int, AxisTake], tuple[int, ...] | None]:
    values = before.values if then.values is None else then.values
    axes = _axes(name, before.axes, then.axes)
    if values is not None and axes:
        raise UsageError(f"these plans cannot be put into one: '{name}' counts slots in one and is cut by the other.")
    return axes, values


# -- numbers and selections -------------------------------------------------------------------------------------


def _sizes(first: Plan, second: Plan) -> tuple[SizeEdit, ...]:
    edits = {(e.node, e.input, e.attribute): e for e in first.sizes}
    for key, edit in list(edits.items()):
        if edit.input is None:
            continue
        # the first rewrite put these sizes into a constant, which the second may have renewed
        made = f"{edit.node}.sizes"
        then = [t for n, t in second.take.items() if n not in first.take and (n == made or _numbered(n, made))]
        if len(then) == 1 and then[0].values is not None:
            edits[key] = replace(edit, value=then[0].values)
    edits |= {(e.node, e.input, e.attribute): e for e in second.sizes}
    return tuple(edits.values())


def _numbered(name: str, wish: str) -> bool:
    """Say whether a name was made from a wish that was taken."""
    return name.startswith(f"{wish}.") and name[len(wish) + 1 :].isdigit()


def _gathers(first: Plan, second: Plan) -> tuple[GatherEdit, ...]:
    later = {e.result: e for e in second.gathers}
    result = []
    for edit in first.gathers:
        then = later.pop(edit.result, None)
        if then is not None and then.nodes != (edit.result,):
            # the selection the first made ends a chain that is replaced as a whole
            nodes = tuple(dict.fromkeys(n for k in then.nodes for n in (edit.nodes if k == edit.result else (k,))))
            result.append(replace(then, nodes=nodes))
            continue
        left = second.hide.get(edit.source, {}).get(edit.axis)
        if left is None and edit.source in second.take:
            left = second.take[edit.source].axes.get(edit.axis)
        indices = edit.indices
        if left is not None:
            place = {slot: i for i, slot in enumerate(left.keep)}
            indices = tuple(place[i] for i in indices if i in place)
        source = edit.source if then is None else then.source
        result.append(replace(edit, indices=indices, source=source))
    return (*result, *later.values())


# -- groups -----------------------------------------------------------------------------------------------------


def _groups(first: Sequence[PlannedGroup], second: Sequence[PlannedGroup]) -> tuple[PlannedGroup, ...]:
    """Groups of the first plan, with what the second keeps of them; then those only the second knows and cuts."""
    rest = {g.name: g for g in second}
    result = []
    for group in first:
        then = rest.get(group.name)
        if then is None or then.width != len(group.keep):
            spans = set(group.spans)
            same = [g for g in rest.values() if g.width == len(group.keep) and spans.issuperset(g.spans)]
            then = same[0] if len(same) == 1 else None
        if then is not None:
            del rest[then.name]
            group = replace(group, keep=tuple(group.keep[u] for u in then.keep))
        result.append(group)
    names = {g.name for g in result}
    for group in rest.values():
        if len(group.keep) < group.width:
            name = group.name
            while name in names:
                name += " (later)"
            result.append(replace(group, name=name))
            names.add(name)
    return tuple(result)
