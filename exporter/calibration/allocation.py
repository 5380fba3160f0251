"""Share a budget among groups so that the damage is least."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from exporter.errors import GoalError

Counts = NDArray[np.int64]

_ROUNDS = 30
_BISECTIONS = 60


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
        raise GoalError(
            "the budget cannot be reached: with every group at its smallest width "
            f"{measure(least) / measure(dense):.3f} is left.\n"
            "Lower --align or --min-width, widen --granularity, or ask for more to be left."
        )
    problem = _Problem(dense, allowed, damage, measure, target)
    found = [problem.fill(problem.greedy()), problem.fill(problem.relaxed())]
    return min(found, key=problem.total)


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
        """From the dense widths down, by the step of least damage for what it saves."""
        counts = self.dense.copy()
        now = self.measure(counts)
        while now > self.target:
            best: tuple[float, int, int] | None = None
            for n, options in self.allowed.items():
                here = self._place(n, counts)
                if not here:
                    continue
                per_unit = (now - self.measure(self._moved(counts, n, int(options[here - 1])))) / (
                    options[here] - options[here - 1]
                )
                if per_unit <= 0:
                    continue
                saved = per_unit * (options[here] - options[:here])
                rates = (self.damage[n][:here] - self.damage[n][here]) / saved
                rate = float(rates.min())
                if best is None or rate < best[0]:
                    best = rate, n, here - 1
            if best is None:
                break
            counts[best[1]] = self.allowed[best[1]][best[2]]
            now = self.measure(counts)
        return counts

    def relaxed(self) -> Counts:
        """By a price for each unit of cost; marginal costs are taken at the widths of the round before."""
        counts = self.dense.copy()
        best = None
        for _ in range(_ROUNDS):
            marginal = {n: self._marginal(counts, n) for n in self.allowed}
            low, high = 1e-18, 1e6
            for _ in range(_BISECTIONS):
                price = float(np.sqrt(low * high))
                if self.measure(self._at(price, marginal)) > self.target:
                    low = price
                else:
                    high = price
            fresh = self._at(high, marginal)
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
        """Widen groups again while the budget has room, by what helps most for its cost."""
        now = self.measure(counts)
        while True:
            best: tuple[float, Counts, float] | None = None
            for n, options in self.allowed.items():
                here = self._place(n, counts)
                for up in range(here + 1, len(options)):
                    wider = self._moved(counts, n, int(options[up]))
                    cost = self.measure(wider)
                    if cost > self.target:
                        break
                    gain = (self.damage[n][here] - self.damage[n][up]) / max(cost - now, 1e-9)
                    if gain > 0 and (best is None or gain > best[0]):
                        best = gain, wider, cost
            if best is None:
                return counts
            counts, now = best[1], best[2]
