"""Decide how many units each group keeps: budgets, local and global ranking, and widths the device likes."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.codes import in_blocks
from exporter.cost import CostModel
from exporter.errors import OutOfReach
from exporter.groups import Group, Groups
from exporter.importance import Scores, normalised
from exporter.stepping import Step, Stepping

AUTOMATIC = ("auto", "sparse")
"""Alignments that give way where a budget cannot be reached, but keep every axis divisible by 4 that was so."""

_SPARSE_STEP = 16
"""What TensorRT's sparse kernels want of the inputs of a layer; of its outputs they want 8."""
_DIVISOR = 4
_MANY = 8
_GLOBAL_FLOOR = 0.1
_BISECTIONS = 40


@dataclass(frozen=True)
class Budget:
    """What to reach: ``ratio`` of the units removed, or at most a share of the dense ``macs`` or ``params`` left."""

    kind: str
    value: float


class Widths:
    """Chooses how many units each group keeps."""

    def __init__(
        self,
        cost: CostModel,
        chosen: Sequence[int],
        scores: Scores,
        scope: str,
        align: int | str,
        min_width: int,
        relax: int = 1,
    ) -> None:
        groups = cost.groups
        self.cost = cost
        self.dense = self.cost.widths
        self.chosen = list(chosen)
        self.scope = scope
        self.auto = align in AUTOMATIC
        self.allowed = {
            n: allowed_widths(groups, groups.groups[n], align, min_width, scope, relax, cost.steps) for n in self.chosen
        }
        relative = normalised(scores)
        self.sorted_scores = {n: -np.sort(-relative[groups.groups[n].name]) for n in self.chosen}
        self.all_scores = np.sort(np.concatenate([self.sorted_scores[n] for n in self.chosen]))
        self._alike = self._classes()
        whole = self.cost.axis_sizes(self.dense)
        self.divisible = [
            axis
            for name, k, axis in self.cost.constant_axes
            if whole[axis] % _DIVISOR == 0 and not in_blocks(groups.graph, name, k)
        ]
        self._rank = {axis: place for place, axis in reversed(list(enumerate(self.divisible)))}

    def _classes(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64], float]]:
        """Numbers of the groups that have the same width and the same choice of narrower ones, that choice, and what
        tips the balance between two that are equally near: the narrower, but not where the difference is a good part
        of the group.
        """
        found: dict[tuple[int, bytes], list[int]] = {}
        for n in self.chosen:
            found.setdefault((int(self.dense[n]), self.allowed[n].tobytes()), []).append(n)
        classes = []
        for (width, _), numbers in found.items():
            options = self.allowed[numbers[0]]
            fine = width >= _MANY and (options[1:] - options[:-1] == 1).all()
            classes.append((np.array(numbers, np.int64), options, 1e-9 if fine else -1e-9))
        return classes

    def for_budget(self, budget: Budget) -> NDArray[np.int64]:
        """Widths that meet the budget, as close to it as alignment allows."""
        if budget.kind == "ratio":
            return self.at(budget.value)
        measure = self.cost.macs if budget.kind == "macs" else self.cost.parameters
        target = budget.value * measure(self.dense)
        lowest = measure(self.at(1.0))
        if lowest > target:
            raise OutOfReach(f"--{budget.kind} {budget.value:g}", lowest / measure(self.dense))
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if measure(self.at(middle)) <= target:
                high = middle
            else:
                low = middle
        below = self._fill(self.at(high), budget.kind, target)
        above = self._fill(self._shrink(self.at(low), budget.kind, target), budget.kind, target)
        return max(below, above, key=self._quality)

    def _quality(self, counts: NDArray[np.int64]) -> float:
        """How good widths are that meet the budget: the importance they keep, or how evenly they cut."""
        if self.scope == "global":
            return float(sum(self.sorted_scores[n][: counts[n]].sum() for n in self.chosen))
        shares = counts[self.chosen] / self.dense[self.chosen]
        return float(shares.min() - shares.max())

    def at(self, cut: float) -> NDArray[np.int64]:
        """Widths when a share ``cut`` of all units goes (1: as much as the limits allow)."""
        counts = self.dense.copy()
        threshold = -math.inf
        if self.scope == "global":
            place = min(round(cut * self.all_scores.size), self.all_scores.size)
            threshold = self.all_scores[place] if place < self.all_scores.size else math.inf
        for numbers, options, bias in self._alike:
            if self.scope == "global":
                wanted = np.array([(self.sorted_scores[n] >= threshold).sum() for n in numbers], np.float64)
            else:
                wanted = np.array([self.dense[numbers[0]] * (1 - cut)])
            nearest = np.argmin(np.abs(options - wanted[:, None]) + bias * options, axis=1)
            counts[numbers] = options[nearest]
        return self.repaired(counts)

    def repaired(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Widen groups until every weight axis is divisible by 4 again that was so before."""
        if not self.auto:
            return counts
        sizes = np.rint(self.cost.axis_sizes(counts)).astype(np.int64)
        if not (sizes[self.divisible] % _DIVISOR).any():
            return counts
        under_way = Stepping(self.cost, "params", counts, self.divisible, _DIVISOR)
        self._repair(under_way)
        counts[:] = under_way.counts
        return counts

    def _repair(self, under_way: Stepping) -> list[Step]:
        """Do what ``repaired`` does to widths under way; returns the steps taken."""
        steps: list[Step] = []
        for _ in range(8 if self.auto else 0):
            if not under_way.broken:
                break
            for axis in sorted(under_way.broken, key=self._rank.__getitem__):
                steps += self._widen(axis, under_way)
        return steps

    def _widen(self, axis: int, under_way: Stepping) -> list[Step]:
        """Give the widest single group on an axis the few units that make it divisible."""
        size = int(np.rint(under_way.size(axis)))
        candidates = [
            (self.dense[m[0]], m[0], c // self.dense[m[0]])
            for c, m in self.cost.members(axis)
            if len(m) == 1 and m[0] in self.allowed
        ]
        for _, n, per_unit in sorted(candidates, reverse=True):
            for more in range(1, _DIVISOR):
                wider = int(under_way.counts[n]) + more
                if (size + more * per_unit) % _DIVISOR == 0 and wider <= self.dense[n]:
                    return [under_way.change(n, wider)]
        return []

    def _fill(self, counts: NDArray[np.int64], kind: str, target: float) -> NDArray[np.int64]:
        """Spend what is left of the budget, one step of one group at a time."""
        under_way = Stepping(self.cost, kind, counts, self.divisible, _DIVISOR)
        order = {n: place for place, n in enumerate(set(self.chosen))}
        waiting: list[tuple[float, int, int]] = []

        def offer(n: int) -> None:
            now = int(under_way.counts[n])
            wider = self._wider(n, now)
            if wider is not None:
                heapq.heappush(waiting, (-self._gain(n, now, wider), order[n], n))

        for n in order:
            offer(n)
        while waiting:
            loss, _, n = heapq.heappop(waiting)
            now = int(under_way.counts[n])
            wider = self._wider(n, now)
            if wider is None:
                continue
            if -self._gain(n, now, wider) > loss:  # a repair widened it since: what is left gains less
                offer(n)
                continue
            steps = [under_way.change(n, wider), *self._repair(under_way)]
            if under_way.total() <= target:
                offer(n)
            else:  # no later step fits either, for widths only grow
                _take_back(under_way, steps)
        return under_way.counts

    def _wider(self, n: int, now: int) -> int | None:
        """The next width a group may have; None where it is whole."""
        later = np.searchsorted(self.allowed[n], now, side="right")
        return int(self.allowed[n][later]) if later < len(self.allowed[n]) else None

    def _shrink(self, counts: NDArray[np.int64], kind: str, target: float) -> NDArray[np.int64]:
        """Meet the budget by narrowing, one step of one group at a time, where it hurts least."""
        under_way = Stepping(self.cost, kind, counts, self.divisible, _DIVISOR)
        waiting: list[tuple[float, int, int, int]] = []

        def offer(place: int, n: int) -> None:
            now = int(under_way.counts[n])
            lower = self.allowed[n][self.allowed[n] < now]
            if lower.size:
                heapq.heappush(waiting, (self._gain(n, int(lower[-1]), now), place, n, int(lower[-1])))

        for place, n in enumerate(self.chosen):
            offer(place, n)
        while True:
            steps = self._repair(under_way)
            if under_way.total() <= target:
                return under_way.counts
            _take_back(under_way, steps)
            if not waiting:
                return self.at(1.0)
            _, place, n, narrower = heapq.heappop(waiting)
            under_way.change(n, narrower)
            offer(place, n)

    def _gain(self, n: int, now: int, then: int) -> float:
        """What a group gains between two widths: the importance of the units in between, or what it had lost."""
        if self.scope == "global":
            return float(self.sorted_scores[n][now:then].mean())
        return float(1 - now / self.dense[n])


def _take_back(under_way: Stepping, steps: Sequence[Step]) -> None:
    for step in reversed(steps):
        under_way.undo(step)


def allowed_widths(
    groups: Groups,
    group: Group,
    align: int | str,
    min_width: int,
    scope: str,
    relax: int = 1,
    steps: tuple[int, int] = CostModel.steps,
) -> NDArray[np.int64]:
    """Widths a group may have, ascending; its own is always one.

    Automatic alignment is to ``steps``, for convolutions and for matrix products, divided by ``relax``; for ``sparse``
    to multiples of 16 of these.
    """
    step = _step(groups, group, align, relax, steps)
    floor = max(min_width, math.ceil(_GLOBAL_FLOOR * group.width) if scope == "global" else 1)
    first = max(step, -(-floor // step) * step)
    options = [*range(first, group.width, step), group.width]
    return np.array(options, np.int64)


def _step(groups: Groups, group: Group, align: int | str, relax: int, steps: tuple[int, int]) -> int:
    """Units by which a group's width may change, so that the axes it is laid out on stay aligned.

    A head of 64 columns is aligned whatever the number of heads; a channel counts for one. So is a block of 32 weights
    that share a scale, which has one entry for them.
    """
    if align in AUTOMATIC and group.kind == "experts":
        return 1  # no kernel works along them
    if align in AUTOMATIC:
        usual = steps[0] if _touches_conv(groups, group) else steps[1]
        wanted = max((usual if align == "auto" else math.lcm(usual, _SPARSE_STEP)) // relax, _DIVISOR)
    else:
        wanted = int(align)
    single = [s for s in group.parameters if not in_blocks(groups.graph, s.tensor, s.axis)]
    counts = [np.bincount(s.units[s.units >= 0], minlength=group.width).max() for s in single or group.parameters]
    step = wanted // math.gcd(wanted, int(min(counts, default=1)))
    return step if group.width >= step else math.gcd(group.width, step)


def _touches_conv(groups: Groups, group: Group) -> bool:
    users = groups.graph.users
    return any("Conv" in node.op for s in group.parameters for node, _ in users.get(s.tensor, ()))
