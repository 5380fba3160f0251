"""Which factors of product axes to cut when the user does not say: cutting two would cut the axis twice.

Heads go before head dimensions, where their number can be cut to about the share asked for: of three heads one or two
can stay, so half of the dimensions goes instead. Otherwise, of the sets of groups that share no axis, the one is cut
that saves the most multiply-accumulates: the channels on both sides of a grouped convolution rather than its groups, KV
groups rather than the query heads in each. Where two save the same, the groups of a group normalisation go before the
channels within them, which leaves the statistics of those that stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from exporter.cost import CostModel
from exporter.groups import Group, Groups
from exporter.stepping import Stepping
from exporter.widths import allowed_widths

Saving = Callable[[Sequence[int]], tuple[float, float, int]]

_EXHAUSTIVE = 12
_HALF = 0.5
_TOLERANCE = 0.125
"""How far the share of a group that can stay may be from the one asked for."""


def one_per_product(groups: Groups, cost: CostModel, align: int | str, share: float = 0.5) -> list[int]:
    """Numbers of the groups to cut, no two of which multiply to one axis.

    Args:
        groups: the analysis.
        cost: its cost model.
        align: alignment of widths; a group that it leaves no narrower width is not worth choosing.
        share: of the units that is to stay, as far as that is known beforehand.
    """
    chosen: list[int] = []
    numbers = {g.name: n for n, g in enumerate(groups)}
    options = {n: allowed_widths(groups, g, align, 1, "local", steps=cost.steps) for n, g in enumerate(groups)}

    macs, parameters = (Stepping(cost, kind, cost.widths) for kind in ("macs", "params"))

    def saved(members: Sequence[int]) -> tuple[float, float, int]:
        halves = {n: int(options[n][abs(options[n] - cost.widths[n] * _HALF).argmin()]) for n in members}
        norms = sum(groups.groups[n].kind == "norm_groups" for n in members)
        return -macs.total_with(halves), -parameters.total_with(halves), norms

    for family in _families(groups, numbers):
        candidates = family
        if len(family) > 1:
            heads = [n for n in family if groups.groups[n].kind == "heads"]
            free = [n for n in family if len(options[n]) > 1]
            near = [n for n in heads if n in free and _misses(options[n], share) <= _TOLERANCE]
            dims = [n for n in free if _misses(options[n], share) <= _TOLERANCE]
            candidates = near or (dims if heads else []) or [n for n in heads if n in free] or heads or free or family
        partners = {n: {numbers[p] for p in groups.groups[n].partners} for n in family}
        # what has no axis in common with the heads chosen is cut beside them
        others = [n for n in family if n not in candidates and len(options[n]) > 1]
        if len(others) > 1:
            others.sort(key=lambda n: saved([n]))
        sets = [_beside(members, others[::-1], partners) for members in _independent(candidates, partners, saved)]
        chosen += sets[0] if len(sets) == 1 else max((saved(members), members) for members in sets)[1]
    return sorted(chosen)


def _beside(members: Sequence[int], others: Sequence[int], partners: dict[int, set[int]]) -> list[int]:
    """A set without partners, with as many of the others as are partners of none in it."""
    result = list(members)
    for n in others:
        if not partners[n].intersection(result):
            result.append(n)
    return result


def _misses(options: NDArray[np.int64], share: float) -> float:
    """Distance between the share asked for and the nearest a group can be cut to; it has a narrower width."""
    return float(abs(options[:-1] / options[-1] - share).min())


def _families(groups: Groups, numbers: dict[str, int]) -> list[list[int]]:
    """Groups connected by being partners."""
    seen: set[int] = set()
    families = []
    for start in range(len(groups)):
        if start in seen:
            continue
        family, stack = [], [start]
        seen.add(start)
        while stack:
            group: Group = groups.groups[stack.pop()]
            family.append(numbers[group.name])
            fresh = {numbers[p] for p in group.partners} - seen
            seen |= fresh
            stack.extend(sorted(fresh))
        families.append(sorted(family))
    return families


def _independent(candidates: Sequence[int], partners: dict[int, set[int]], saved: Saving) -> Iterator[list[int]]:
    """Maximal sets without partners among them: all of them for a small family, else a greedy one."""
    if len(candidates) > _EXHAUSTIVE:
        picked: list[int] = []
        for n in sorted(candidates, key=lambda n: saved([n]), reverse=True):
            if not partners[n].intersection(picked):
                picked.append(n)
        yield picked
        return
    yield from _extend([], list(candidates), partners)


def _extend(picked: list[int], rest: list[int], partners: dict[int, set[int]]) -> Iterator[list[int]]:
    if not rest:
        yield picked
        return
    first, later = rest[0], rest[1:]
    yield from _extend([*picked, first], [n for n in later if n not in partners[first]], partners)
    if partners[first].intersection(later):  # leaving it out can only pay for one of its partners
        yield from _extend(picked, later, partners)
