"""Decide which units each group keeps: check the request, choose the groups to cut, and keep the best units of each."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.allocation import allocate
from exporter.cost import CostModel
from exporter.edits import complete
from exporter.errors import GoalError, ModelError, OutOfReach, UsageError
from exporter.factor_choice import one_per_product
from exporter.groups import Groups
from exporter.importance import Scores
from exporter.plan import Plan
from exporter.widths import AUTOMATIC, Budget, Widths
from runtime.meant import instead
from runtime.nouns import counted, out_of

KINDS = ("channels", "neurons", "hidden", "heads", "head_dims", "conv_groups", "norm_groups", "experts", "tokens")
OPT_IN = ("experts",)
"""Kinds that are cut only where they are asked for by name."""

Shares = dict[int, NDArray[np.float64]]
"""Damage at each width that a group may have, by its number."""

_GIVEN_BACK = 4
"""Most times that room which a bound did not see is given back."""
_REASONS = 3
_HALF = 0.5
"""Share of the units assumed to stay where the budget is one of multiply-accumulates or parameters."""


def make_plan(
    groups: Groups,
    scores: Scores,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    scope: str = "local",
    align: int | str = "auto",
    min_width: int = 1,
    granularity: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    damage: Mapping[str, NDArray[np.float64]] | None = None,
    options: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Choose the units to keep.

    Args:
        groups: the analysis.
        scores: importance by group name, arrays of shape (width,).
        ratio: remove this share of units, 0 < ratio < 1. Exactly one of ``ratio``, ``macs`` and ``params`` is given.
        macs: leave at most this share of the dense multiply-accumulates, 0 < macs < 1.
        params: leave at most this share of the dense parameters.
        scope: ``local`` removes the same share from every group; ``global`` ranks all units by their score relative to
            the mean of their group; ``damage`` meets ``macs`` or ``params`` with the least predicted damage.
        align: widths become multiples of this; ``auto`` is 16 for groups that touch a convolution and 8 for others.
            A group narrower than that keeps the power of two it is divisible by. ``auto`` also keeps every weight axis
            divisible by 4 that was so before. ``sparse`` is the same with 16 for all, for ``sparsify`` comes next.
        min_width: no group keeps fewer units.
        granularity: kinds of groups to cut. By default all kinds, except that of groups which multiply to one axis
            (heads and head dimensions) only one is cut; see ``exporter.factor_choice``.
        keep: patterns of node, tensor or group names; a group that touches a match is kept whole.
        only: patterns; only groups that touch a match are cut.
        damage: for the scope ``damage``, by group name the damage with ``k`` units kept at ``k - 1``, shape (width,);
            groups without stay whole if the budget allows it, else they are cut as by ``local``.
        options, notes: recorded in the plan.

    Returns:
        The complete plan.

    Raises:
        UsageError: a value is out of range, or a pattern matches nothing.
        ModelError: nothing can be pruned.
        GoalError: the budget cannot be reached.
    """
    return plan_within(
        CostModel(groups),
        scores,
        budget_of(ratio, macs, params),
        scope=scope,
        align=align,
        min_width=min_width,
        granularity=granularity,
        keep=keep,
        only=only,
        damage=damage,
        options=options,
        notes=notes,
    )


def plan_within(
    cost: CostModel,
    scores: Scores,
    budget: Budget,
    *,
    scope: str = "local",
    align: int | str = "auto",
    min_width: int = 1,
    granularity: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    damage: Mapping[str, NDArray[np.float64]] | None = None,
    options: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Choose the units to keep, with a cost model of one's own: ``exporter.latency.cost`` has one in seconds.

    Args:
        cost: counts what a budget of ``macs`` or ``params`` allows.
        scores, scope, align, min_width, granularity, keep, only, damage, options, notes: as for ``make_plan``.
        budget: what to reach.

    Raises:
        UsageError, ModelError, GoalError: as for ``make_plan``.
    """
    groups = cost.groups
    check(scope, budget, align, min_width)
    chosen = eligible(cost, budget, granularity, keep, only, align)
    if scope == "damage":
        counts, remarks = _judged_widths(cost, chosen, scores, budget, damage, align, min_width)
    else:
        counts, remarks = _widths_for(cost, chosen, scores, budget, scope, align, min_width)
    masks = [best_units(scores[g.name], int(n)) for g, n in zip(groups, counts, strict=True)]
    return complete(groups, masks, options or {}, [*notes, *remarks])


def _widths_for(
    cost: CostModel, chosen: list[int], scores: Scores, budget: Budget, scope: str, align: int | str, min_width: int
) -> tuple[NDArray[np.int64], list[str]]:
    """Widths for a budget, and what to say of them.

    Automatic alignment gives way, by halves, where the budget cannot be reached with it.
    """
    for relax in (1, 2, 4) if align in AUTOMATIC else (1,):
        try:
            counts = Widths(cost, chosen, scores, scope, align, min_width, relax).for_budget(budget)
        except GoalError as error:
            failure = error
            continue
        notes = []
        if relax > 1:
            notes.append(_relaxed(relax))
        groups = cost.groups
        whole = [groups.groups[n] for n in chosen if counts[n] == groups.groups[n].width]
        if budget.kind == "ratio" and scope == "local" and whole:
            notes.append(
                f"{out_of(len(whole), len(chosen), 'group', 'stays', 'stay')} whole, because alignment leaves no "
                f"narrower width ({whole[0].name}, {counted(whole[0].width, 'unit')}); --align 1 cuts "
                f"{'it' if len(whole) == 1 else 'them'} too"
            )
        return counts, notes
    raise failure


def _relaxed(relax: int) -> str:
    return f"alignment was relaxed to {counted(16 // relax, 'channel')}: the budget cannot be reached with 16"


def _judged_widths(
    cost: CostModel,
    chosen: list[int],
    scores: Scores,
    budget: Budget,
    damage: Mapping[str, NDArray[np.float64]] | None,
    align: int | str,
    min_width: int,
) -> tuple[NDArray[np.int64], list[str]]:
    """Widths with the least damage, and what to say of them.

    Groups of unknown damage stay whole, or, where the budget cannot be reached without them, are cut like every group
    of the scope ``local``.
    """
    if damage is None:
        raise UsageError("--scope damage needs calibration inputs: give --calib.")
    groups = cost.groups.groups
    judged = [n for n in chosen if groups[n].name in damage]
    rest = [n for n in chosen if groups[n].name not in damage]
    if not judged:
        raise ModelError("no linear layer reads a group that may be cut: choose another --scope than damage.")
    if not rest:
        return least_damage(cost, judged, damage, budget, align, min_width)
    try:
        counts, remarks = least_damage(cost, judged, damage, budget, align, min_width)
        which = counted(len(rest), "group, which stays whole", "groups, which stay whole")
    except OutOfReach:
        dense = cost.widths.copy()
        dense[rest] = _widths_for(cost, chosen, scores, budget, "local", align, min_width)[0][rest]
        counts, remarks = least_damage(cost, judged, damage, budget, align, min_width, dense)
        which = counted(len(rest), "group, which is", "groups, which are")
        which += " cut as by --scope local: the others alone cannot reach the budget"
    return counts, [f"no linear layer reads {which} ({groups[rest[0]].name})", *remarks]


def least_damage(
    cost: CostModel,
    chosen: list[int],
    damage: Mapping[str, NDArray[np.float64]],
    budget: Budget,
    align: int | str,
    min_width: int,
    dense: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], list[str]]:
    """Widths that meet a budget with the least damage; automatic alignment gives way where it cannot be met.

    Args:
        cost: counts what the budget allows.
        chosen: numbers of the groups that may be cut.
        damage: by group name, for each of them; see ``make_plan``.
        budget: of ``macs`` or ``params``.
        align, min_width: see ``make_plan``.
        dense: widths to start from, and to leave the other groups at; by default the whole ones.

    Returns:
        Units that every group keeps, shape (groups,), and what to say of them.

    Raises:
        GoalError: the budget cannot be reached.
    """
    groups = cost.groups
    measure = cost.macs if budget.kind == "macs" else cost.parameters_apart  # which falls wherever units go
    whole = (cost.macs if budget.kind == "macs" else cost.parameters)(cost.widths)
    start = cost.widths if dense is None else dense
    for relax in (1, 2, 4) if align in AUTOMATIC else (1,):
        widths = Widths(cost, chosen, {g.name: np.ones(g.width) for g in groups}, "local", align, min_width, relax)
        shares = {n: damage[groups.groups[n].name][widths.allowed[n] - 1] for n in chosen}

        def allocated(goal: float, widths: Widths = widths, shares: Shares = shares) -> NDArray[np.int64]:
            return allocate(start, widths.allowed, shares, lambda c: measure(widths.repaired(c.copy())), goal)

        try:
            counts = _with_what_is_shared(allocated, widths, cost, budget, whole)
        except OutOfReach as error:
            failure = OutOfReach(f"--{budget.kind} {budget.value:g}", error.left * measure(start) / whole)
            continue
        relaxed = [_relaxed(relax)]
        return widths.repaired(counts), relaxed if relax > 1 else []
    raise failure


def _with_what_is_shared(
    allocated: Callable[[float], NDArray[np.int64]], widths: Widths, cost: CostModel, budget: Budget, whole: float
) -> NDArray[np.int64]:
    """Widths for a budget. Of parameters the search counts a vector for each layer that shares it, cut or not: what
    that was too much is given back, as long as the budget is met."""
    goal = budget.value * whole
    counts = allocated(goal)
    for _ in range(_GIVEN_BACK if budget.kind == "params" else 0):
        kept = widths.repaired(counts.copy())
        more = cost.parameters_apart(kept) - cost.parameters(kept)
        tried = allocated(goal + more) if more > 0 else counts
        if (tried == counts).all() or cost.parameters(widths.repaired(tried.copy())) > goal:
            break
        counts = tried
    return counts


NO_BUDGET = (
    "give exactly one budget: --ratio, --macs or --params (--macs 0.5 leaves at most half of the work), --latency or "
    "--max-drop; or say --layers or --plan.\nWhat suits this model: secateur advise MODEL"
)


def budget_of(ratio: float | None = None, macs: float | None = None, params: float | None = None) -> Budget:
    """The one budget that is given.

    Raises:
        UsageError: there are none or several, or it is out of range.
    """
    given = [Budget(k, v) for k, v in (("ratio", ratio), ("macs", macs), ("params", params)) if v is not None]
    if len(given) != 1:
        raise UsageError(
            NO_BUDGET if not given else f"give exactly one budget, not {' and '.join('--' + b.kind for b in given)}."
        )
    if not 0 < given[0].value < 1 or not math.isfinite(given[0].value):
        meaning = "the share of units to remove" if given[0].kind == "ratio" else "the share that may be left"
        percent = f" {given[0].value:g} % is {given[0].value / 100:g}." if 1 < given[0].value < 100 else ""
        raise UsageError(
            f"--{given[0].kind} {given[0].value:g}: {meaning} must be between 0 and 1, both excluded.{percent}"
        )
    return given[0]


def check(scope: str, budget: Budget, align: int | str, min_width: int) -> None:
    """Refuse values out of range, or that do not go together, with a UsageError."""
    if scope not in ("local", "global", "damage"):
        raise UsageError(f"--scope {scope}: choose local, global or damage.")
    if scope == "damage" and budget.kind == "ratio":
        raise UsageError("--scope damage needs a budget of --macs or --params; --ratio cuts every group alike.")
    if align not in AUTOMATIC and (not isinstance(align, int) or align < 1):
        raise UsageError(f"--align {align}: choose auto, sparse or a whole number of at least 1.")
    if min_width < 1:
        raise UsageError(f"--min-width {min_width}: must be at least 1.")


def check_kinds(granularity: Sequence[str], also: Sequence[str] = ()) -> None:
    """Refuse kinds of groups that there are not with a UsageError; ``also`` are names that would do too."""
    unknown = [k for k in granularity if k not in (*KINDS, *also)]
    if unknown:
        raise UsageError(f"--granularity {unknown[0]}: {instead(unknown[0], (*also, *KINDS))}")


def best_units(scores: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Which units have the ``count`` highest scores, shape (width,); of equal ones the first."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


# -- which groups -----------------------------------------------------------------------------------------------


def eligible(
    cost: CostModel,
    budget: Budget,
    granularity: Sequence[str] | None,
    keep: Sequence[str],
    only: Sequence[str],
    align: int | str,
) -> list[int]:
    """Numbers of the groups that may be cut for a budget.

    Raises:
        UsageError: an unknown kind, or a pattern that matches nothing.
        ModelError: none is left.
    """
    groups = cost.groups
    share = 1 - budget.value if budget.kind == "ratio" else _HALF
    if granularity is None:
        chosen = [n for n in one_per_product(groups, cost, align, share) if groups.groups[n].kind not in OPT_IN]
    else:
        check_kinds(granularity)
        chosen = [n for n, g in enumerate(groups) if g.kind in granularity]
    kept, wanted = touched(groups, keep, "--keep"), touched(groups, only, "--only")
    chosen = [n for n in chosen if n not in kept and (not only or n in wanted)]
    if not chosen:
        raise ModelError(_nothing(groups, granularity, keep, only))
    return chosen


def _nothing(groups: Groups, granularity: Sequence[str] | None, keep: Sequence[str], only: Sequence[str]) -> str:
    if not len(groups):
        if not groups.frozen:
            return "nothing in this model can be pruned: it has no layer whose weight is a constant tensor."
        reasons = Counter(f.reason.text for f in groups.frozen)
        where = {f.reason.text: f.reason.where for f in reversed(groups.frozen)}
        listed = "".join(f"\n  {t}: {counted(n, 'axis')}, {where[t]}" for t, n in reasons.most_common(_REASONS))
        return (
            f"nothing in this model can be pruned: every axis of every weight is frozen.{listed}\n"
            "See each with: secateur inspect MODEL"
        )
    present = sorted({g.kind for g in groups})
    narrowed = [name for name, value in (("--granularity", granularity), ("--keep", keep), ("--only", only)) if value]
    return (
        f"{' and '.join(narrowed)} leave{'' if len(narrowed) > 1 else 's'} no group to prune. "
        f"This model has {counted(len(groups), 'group')}, of kind {', '.join(present)}.\n"
        "List them with: secateur inspect MODEL"
    )


def touched(groups: Groups, patterns: Sequence[str], option: str) -> set[int]:
    """Numbers of the groups that touch a node or tensor whose name matches one of the patterns.

    Raises:
        UsageError: a pattern matches nothing that can be pruned; the text names the option it was given with.
    """
    if not patterns:
        return set()
    graph = groups.graph
    names: list[set[str]] = []
    for group in groups:
        mine = {group.name} | {s.tensor for s in group.spans}
        for span in group.spans:
            mine |= {node.proto.name for node, _ in graph.users.get(span.tensor, ())}
            if span.tensor in graph.producer:
                mine.add(graph.producer[span.tensor].proto.name)
        names.append(mine)
    found: set[int] = set()
    for pattern in patterns:
        hits = {n for n, mine in enumerate(names) if any(fnmatch.fnmatchcase(name, pattern) for name in mine)}
        if not hits:
            everything = set(graph.producer) | set(graph.constants) | {n.proto.name for n in graph.nodes}
            exists = any(fnmatch.fnmatchcase(name, pattern) for name in everything)
            problem = "matches nothing that can be pruned" if exists else "matches no node or tensor of the model"
            raise UsageError(f"{option} '{pattern}' {problem}.\nList what there is with: secateur inspect MODEL")
        found |= hits
    return found
