"""Decide which units each group keeps: budgets, local and global ranking, and widths the device likes."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.cost import CostModel
from exporter.edits import complete
from exporter.errors import GoalError, ModelError, UsageError
from exporter.groups import Group, Groups
from exporter.importance import Scores, normalised
from exporter.plan import Plan

KINDS = ("channels", "neurons", "hidden", "heads", "head_dims", "conv_groups", "norm_groups")

_CONV_ALIGN = 16
_MATMUL_ALIGN = 8
_DIVISOR = 4
_FEW = 4
_MANY = 8
_GLOBAL_FLOOR = 0.1
_BISECTIONS = 40


@dataclass(frozen=True)
class Budget:
    """What to reach: ``ratio`` of the units removed, or at most a share of the dense ``macs`` or ``params`` left."""

    kind: str
    value: float


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
    options: Mapping[str, object] | None = None,
) -> Plan:
    """Choose the units to keep.

    Args:
        groups: the analysis.
        scores: importance by group name, arrays of shape (width,).
        ratio: remove this share of units, 0 < ratio < 1. Exactly one of ``ratio``, ``macs`` and ``params`` is given.
        macs: leave at most this share of the dense multiply-accumulates, 0 < macs < 1.
        params: leave at most this share of the dense parameters.
        scope: ``local`` removes the same share from every group; ``global`` ranks all units by their score relative to
            the mean of their group.
        align: widths become multiples of this; ``auto`` is 16 for groups that touch a convolution and 8 for others.
            A group narrower than that keeps the power of two it is divisible by. ``auto`` also keeps every weight axis
            divisible by 4 that was so before.
        min_width: no group keeps fewer units.
        granularity: kinds of groups to cut. By default all kinds, except that of groups which multiply to one axis
            (heads and head dimensions) only one is cut: heads, groups of a grouped convolution.
        keep: patterns of node, tensor or group names; a group that touches a match is kept whole.
        only: patterns; only groups that touch a match are cut.
        options: recorded in the plan.

    Returns:
        The complete plan.

    Raises:
        UsageError: a value is out of range, or a pattern matches nothing.
        ModelError: nothing can be pruned.
        GoalError: the budget cannot be reached.
    """
    budget = _budget(ratio, macs, params)
    _check(scope, align, min_width)
    chosen = _eligible(groups, granularity, keep, only, align)
    widths = _Widths(groups, chosen, scores, scope, align, min_width)
    counts = widths.for_budget(budget)
    masks = [_top(scores[g.name], int(n)) for g, n in zip(groups, counts, strict=True)]
    return complete(groups, masks, options or {})


def _budget(ratio: float | None, macs: float | None, params: float | None) -> Budget:
    given = [Budget(k, v) for k, v in (("ratio", ratio), ("macs", macs), ("params", params)) if v is not None]
    if len(given) != 1:
        raise UsageError("give exactly one budget: --ratio, --macs or --params.")
    if not 0 < given[0].value < 1 or not math.isfinite(given[0].value):
        meaning = "the share of units to remove" if given[0].kind == "ratio" else "the share that may be left"
        raise UsageError(f"--{given[0].kind} {given[0].value:g}: {meaning} must be between 0 and 1, both excluded.")
    return given[0]


def _check(scope: str, align: int | str, min_width: int) -> None:
    if scope not in ("local", "global"):
        raise UsageError(f"--scope {scope}: choose local or global.")
    if align != "auto" and (not isinstance(align, int) or align < 1):
        raise UsageError(f"--align {align}: choose auto or a whole number of at least 1.")
    if min_width < 1:
        raise UsageError(f"--min-width {min_width}: must be at least 1.")


def _top(scores: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """The ``count`` highest scores; of equal ones the first."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


# -- which groups -----------------------------------------------------------------------------------------------


def _eligible(
    groups: Groups, granularity: Sequence[str] | None, keep: Sequence[str], only: Sequence[str], align: int | str
) -> list[int]:
    if granularity is None:
        chosen = _one_per_product(groups, align)
    else:
        unknown = [k for k in granularity if k not in KINDS]
        if unknown:
            raise UsageError(f"--granularity {unknown[0]}: choose from {', '.join(KINDS)}.")
        chosen = [n for n, g in enumerate(groups) if g.kind in granularity]
    kept, wanted = _matching(groups, keep, "--keep"), _matching(groups, only, "--only")
    chosen = [n for n in chosen if n not in kept and (not only or n in wanted)]
    if not chosen:
        raise ModelError(_nothing(groups, granularity, keep, only))
    return chosen


def _nothing(groups: Groups, granularity: Sequence[str] | None, keep: Sequence[str], only: Sequence[str]) -> str:
    if not len(groups):
        return (
            "nothing in this model can be pruned: every axis of every weight is frozen.\n"
            "See why with: secateur inspect MODEL"
        )
    present = sorted({g.kind for g in groups})
    narrowed = [name for name, value in (("--granularity", granularity), ("--keep", keep), ("--only", only)) if value]
    return (
        f"{' and '.join(narrowed)} leave no group to prune. This model has {len(groups)} groups: {', '.join(present)}.\n"
        "List them with: secateur inspect MODEL"
    )


def _one_per_product(groups: Groups, align: int | str) -> list[int]:
    """All groups, but one of those that multiply to an axis: cutting two would cut the axis twice.

    Heads go before head dimensions, and of heads those that span most (KV groups before query heads). Within the groups
    of a grouped convolution a channel goes before a whole group, unless alignment forbids it; the groups of a group
    normalisation go before the channels within, which leaves the statistics of those that stay as they were.
    """

    def rank(group: Group) -> tuple[int, int, int]:
        if group.kind == "heads":
            order = 0
        elif group.kind == "head_dims":
            order = 4
        elif not group.partners:
            order = 1
        elif group.kind == "norm_groups":
            order = 1 if group.width >= _FEW else 3
        elif group.kind == "conv_groups":
            order = 3
        else:
            order = 2 if len(_allowed(groups, group, align, 1, "local")) > 1 else 4
        return order, -len(group.parameters), -group.width

    chosen: set[str] = set()
    for group in sorted(groups, key=rank):
        if not chosen.intersection(group.partners):
            chosen.add(group.name)
    return [n for n, g in enumerate(groups) if g.name in chosen]


def _matching(groups: Groups, patterns: Sequence[str], option: str) -> set[int]:
    """Groups that touch a node or tensor whose name matches."""
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


# -- how wide ---------------------------------------------------------------------------------------------------


class _Widths:
    """Chooses how many units each group keeps."""

    def __init__(
        self, groups: Groups, chosen: Sequence[int], scores: Scores, scope: str, align: int | str, min_width: int
    ) -> None:
        self.groups = groups
        self.cost = CostModel(groups)
        self.dense = self.cost.widths
        self.chosen = list(chosen)
        self.scope = scope
        self.auto = align == "auto"
        self.allowed = {n: _allowed(groups, groups.groups[n], align, min_width, scope) for n in self.chosen}
        relative = normalised(scores)
        self.sorted_scores = {n: -np.sort(-relative[groups.groups[n].name]) for n in self.chosen}
        self.all_scores = np.sort(np.concatenate([self.sorted_scores[n] for n in self.chosen]))
        self.divisible = [
            axis for _, _, axis in self.cost.constant_axes if self.cost.axis_sizes(self.dense)[axis] % _DIVISOR == 0
        ]

    def for_budget(self, budget: Budget) -> NDArray[np.int64]:
        """Widths that meet the budget, as close to it as alignment allows."""
        if budget.kind == "ratio":
            return self.at(budget.value)
        measure = self.cost.macs if budget.kind == "macs" else self.cost.parameters
        target = budget.value * measure(self.dense)
        lowest = measure(self.at(1.0))
        if lowest > target:
            raise GoalError(
                f"--{budget.kind} {budget.value:g} cannot be reached: with every group at its smallest width "
                f"{lowest / measure(self.dense):.3f} is left.\n"
                "Lower --align or --min-width, widen --granularity, or ask for more to be left."
            )
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if measure(self.at(middle)) <= target:
                high = middle
            else:
                low = middle
        return self._fill(self.at(high), self.at(low), measure, target)

    def at(self, cut: float) -> NDArray[np.int64]:
        """Widths when a share ``cut`` of all units goes (1: as much as the limits allow)."""
        counts = self.dense.copy()
        threshold = -math.inf
        if self.scope == "global":
            place = min(int(round(cut * self.all_scores.size)), self.all_scores.size)
            threshold = self.all_scores[place] if place < self.all_scores.size else math.inf
        for n in self.chosen:
            if self.scope == "global":
                wanted = float((self.sorted_scores[n] >= threshold).sum())
            else:
                wanted = self.dense[n] * (1 - cut)
            options = self.allowed[n]
            # of two equally near the narrower, but a group of few units rounds up
            bias = 1e-9 if self.dense[n] >= _MANY else -1e-9
            nearest = np.argmin(np.abs(options - wanted) + bias * options)
            counts[n] = options[nearest]
        return self._repair(counts)

    def _repair(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Widen groups until every weight axis is divisible by 4 again that was so before."""
        if not self.auto:
            return counts
        for _ in range(8):
            sizes = np.rint(self.cost.axis_sizes(counts)).astype(np.int64)
            broken = [axis for axis in self.divisible if sizes[axis] % _DIVISOR]
            if not broken:
                break
            for axis in dict.fromkeys(broken):
                self._widen(axis, counts)
        return counts

    def _widen(self, axis: int, counts: NDArray[np.int64]) -> None:
        """Give the widest single group on an axis the few units that make it divisible."""
        size = int(np.rint(self.cost.axis_sizes(counts)[axis]))
        candidates = [
            (self.dense[m[0]], m[0], c // self.dense[m[0]])
            for c, m in self.cost.members(axis)
            if len(m) == 1 and m[0] in self.allowed
        ]
        for _, n, per_unit in sorted(candidates, reverse=True):
            for more in range(1, _DIVISOR):
                if (size + more * per_unit) % _DIVISOR == 0 and counts[n] + more <= self.dense[n]:
                    counts[n] += more
                    return

    def _fill(
        self, counts: NDArray[np.int64], wider: NDArray[np.int64], measure: object, target: float
    ) -> NDArray[np.int64]:
        """Spend what is left of the budget, one step of one group at a time, most important units first."""
        assert callable(measure)
        open_ = set(self.chosen)
        while open_:
            best: tuple[float, int, NDArray[np.int64]] | None = None
            for n in list(open_):
                later = self.allowed[n][self.allowed[n] > counts[n]]
                if not later.size:
                    open_.discard(n)
                    continue
                trial = counts.copy()
                trial[n] = later[0]
                trial = self._repair(trial)
                if measure(trial) > target:
                    open_.discard(n)
                    continue
                gain = self._gain(n, int(counts[n]), int(later[0]), int(wider[n]))
                if best is None or gain > best[0]:
                    best = gain, n, trial
            if best is None:
                break
            counts = best[2]
        return counts

    def _gain(self, n: int, now: int, then: int, wanted: int) -> float:
        if self.scope == "global":
            return float(self.sorted_scores[n][now:then].mean())
        return (wanted - now) / self.dense[n]


def _allowed(groups: Groups, group: Group, align: int | str, min_width: int, scope: str) -> NDArray[np.int64]:
    """Widths a group may have, ascending; its own is always one."""
    step = _step(groups, group, align)
    floor = max(min_width, math.ceil(_GLOBAL_FLOOR * group.width) if scope == "global" else 1)
    first = max(step, -(-floor // step) * step)
    options = [*range(first, group.width, step), group.width]
    return np.array(options, np.int64)


def _step(groups: Groups, group: Group, align: int | str) -> int:
    """Units by which a group's width may change, so that the axes it is laid out on stay aligned.

    A head of 64 columns is aligned whatever the number of heads; a channel counts for one.
    """
    if align == "auto":
        wanted = _CONV_ALIGN if _touches_conv(groups, group) else _MATMUL_ALIGN
    else:
        wanted = int(align)
    counts = [np.bincount(s.units[s.units >= 0], minlength=group.width).max() for s in group.parameters]
    step = wanted // math.gcd(wanted, int(min(counts, default=1)))
    return step if group.width >= step else math.gcd(group.width, step)


def _touches_conv(groups: Groups, group: Group) -> bool:
    users = groups.graph.users
    return any("Conv" in node.op for s in group.parameters for node, _ in users.get(s.tensor, ()))
