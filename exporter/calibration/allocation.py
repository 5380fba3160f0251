"""Share a budget among groups so that the damage is least."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from exporter.errors import OutOfReach

Counts = NDArray[np.int64]

_ROUNDS = 30
_BISECTIONS = 45


def allocate(
    dense: Counts,
    allowed: Mapping[int, Counts],
    damage: Mapping[int, NDArray[np.float64]],
    measure: Callable[[Counts], float],
    target: float,
) -> Counts:
    """Widths with the least damage whose cost is at most ``target``.

    A multiple-choice knapsack whose weights depend on the choice, since the cost of a layer is a product of two widths:
    solved by Lagrangian relaxation with the marginal cost of each group at the widths found so far, and by the greedy
    descent that takes the step of least damage for what it saves; the better of the two is returned, after steps back
    up that the budget still has room for.

    Args:
        dense: width of every group, shape (groups,).
        allowed: by group, the widths to choose from, ascending, the whole width included.
        damage: by group, the damage at each of these widths.
        measure: cost of widths.
        target: what may be left.

    Raises:
        GoalError: not even the smallest widths meet the target.
    """
    least = dense.copy()
    for n, options in allowed.items():
        least[n] = options[0]
    if measure(least) > target:
        raise OutOfReach("the budget", measure(least) / measure(dense))
    problem = _Problem(dense, allowed, damage, measure, target)
    found = [problem.fill(problem.greedy()), problem.fill(problem.relaxed())]
    return min(found, key=problem.total)


_Step = tuple[float, int, int]
"""How bad a step is, the group, and its width after."""


def _best(waiting: list[_Step], renewed: Callable[[int], _Step | None]) -> _Step | None:
    """Take the best of the steps waiting; None where there is none left.

    Args:
        waiting: a heap of steps that were as good when they were looked at last as they are now, or better.
        renewed: the step of a group as it is now; None where it has none any more.
    """
    while waiting:
        step = renewed(heapq.heappop(waiting)[1])
        if step is None:
            continue
        if not waiting or step <= waiting[0]:
            return step
        heapq.heappush(waiting, step)
    return None


class _Problem:
    def __init__(
        self,
        dense: Counts,
        allowed: Mapping[int, Counts],
        damage: Mapping[int, NDArray[np.float64]],
        measure: Callable[[Counts], float],
        target: float,
    ) -> None:
        self.dense, self.allowed, self.damage, self.measure, self.target = dense, allowed, damage, measure, target

    def total(self, counts: Counts) -> float:
        """Predicted damage."""
        return float(sum(self.damage[n][self._place(n, counts)] for n in self.allowed))

    def _place(self, n: int, counts: Counts) -> int:
        return int(np.searchsorted(self.allowed[n], counts[n]))

    def _moved(self, counts: Counts, n: int, width: int) -> Counts:
        moved = counts.copy()
        moved[n] = width
        return moved

    def greedy(self) -> Counts:
        """From the dense widths down, by the step of least damage for what it saves.

        A step saves less once others are narrower, so a rate that was found before is never too high: only the least of
        them is found again.
        """
        counts = self.dense.copy()
        now = self.measure(counts)
        waiting = self._unknown()
        while now > self.target and (step := _best(waiting, partial(self._narrowing, counts, now))) is not None:
            if step[0] == math.inf:
                break
            _, n, width = step
            counts[n] = width
            now = self.measure(counts)
            heapq.heappush(waiting, (-math.inf, n, 0))
        return counts

    def _unknown(self) -> list[_Step]:
        """A step of every group, to be looked at."""
        return [(-math.inf, n, 0) for n in self.allowed]

    def _narrowing(self, counts: Counts, now: float, n: int) -> _Step | None:
        """The least damage for what it saves at which a group can get narrower, the group, and its next width.

        None where it cannot.
        """
        options, here = self.allowed[n], self._place(n, counts)
        if not here:
            return None
        width = int(options[here - 1])
        per_unit = (now - self.measure(self._moved(counts, n, width))) / (options[here] - width)
        if per_unit <= 0:
            return math.inf, n, width
        rates = (self.damage[n][:here] - self.damage[n][here]) / (per_unit * (options[here] - options[:here]))
        return float(rates.min()), n, width

    def relaxed(self) -> Counts:
        """By a price for each unit of cost; marginal costs are taken at the widths of the round before."""
        counts = self.dense.copy()
        best = None
        for _ in range(_ROUNDS):
            marginal = {n: self._marginal(counts, n) for n in self.allowed}
            low, high = 1e-18, 1e6
            wide, fresh = self._at(low, marginal), self._at(high, marginal)
            for _ in range(_BISECTIONS):
                if (wide == fresh).all():
                    break
                price = float(np.sqrt(low * high))
                found = self._at(price, marginal)
                if self.measure(found) > self.target:
                    low, wide = price, found
                else:
                    high, fresh = price, found
            if self.measure(fresh) <= self.target and (best is None or self.total(fresh) < self.total(best)):
                best = fresh
            if (fresh == counts).all():
                break
            counts = ((fresh + counts) // 2) if best is not None else fresh
        return best if best is not None else self.greedy()

    def _marginal(self, counts: Counts, n: int) -> float:
        less = self._moved(counts, n, max(int(counts[n]) - 1, 1))
        more = self._moved(counts, n, min(int(counts[n]) + 1, int(self.dense[n])))
        return max((self.measure(more) - self.measure(less)) / max(int(more[n] - less[n]), 1), 0.0)

    def _at(self, price: float, marginal: Mapping[int, float]) -> Counts:
        counts = self.dense.copy()
        scale = self.measure(self.dense)
        for n, options in self.allowed.items():
            counts[n] = options[int(np.argmin(self.damage[n] + price * marginal[n] * options / scale))]
        return counts

    def fill(self, counts: Counts) -> Counts:
        """Widen groups again while the budget has room, by what helps most for its cost.

        A step costs more once others are wider, so a gain that was found before is never too low.
        """
        now = self.measure(counts)
        waiting = self._unknown()
        while (step := _best(waiting, partial(self._widening, counts, now))) is not None:
            _, n, width = step
            counts = self._moved(counts, n, width)
            now = self.measure(counts)
            heapq.heappush(waiting, (-math.inf, n, 0))
        return counts

    def _widening(self, counts: Counts, now: float, n: int) -> _Step | None:
        """The most that a group can gain for its cost, negative; the group, and the width. None where nothing fits."""
        options, here = self.allowed[n], self._place(n, counts)
        best: _Step | None = None
        for up in range(here + 1, len(options)):
            cost = self.measure(self._moved(counts, n, int(options[up])))
            if cost > self.target:
                break
            gain = (self.damage[n][here] - self.damage[n][up]) / max(cost - now, 1e-9)
            if gain > 0 and (best is None or -gain < best[0]):
                best = float(-gain), n, int(options[up])
        return best
