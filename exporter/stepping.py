"""Widths that change one group at a time: axis sizes and cost follow without being counted anew.

The numbers are those ``CostModel`` gives for the same widths, to the last bit: what a step touches is computed the same
way, and the rest stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from exporter.cost import CostModel, Keep
from exporter.slots import Ids


@dataclass(frozen=True, eq=False)
class Step:
    """What one change of a width replaced, so that it can be taken back."""

    group: int
    width: int
    sizes: NDArray[np.float64]
    values: NDArray[np.float64]


class Stepping:
    """Widths under way.

    Attributes:
        cost: counts the cost.
        counts: units every group keeps now; change them by ``change`` and ``undo`` only.
        broken: axes of ``divisible`` that the divisor does not divide now.
    """

    def __init__(
        self, cost: CostModel, kind: str, counts: Keep, divisible: Sequence[int] = (), divisor: int = 1
    ) -> None:
        """Start from widths.

        Args:
            cost: counts the cost.
            kind: ``macs``, or ``params`` for ``parameters_apart``.
            counts: units every group keeps at first.
            divisible: axes to watch, see ``broken``.
            divisor: of their sizes.
        """
        self.cost = cost
        self.counts = counts.copy()
        self._measure = cost.macs if kind == "macs" else cost.parameters_apart
        self._terms = cost.terms(kind)
        self._divisor = divisor
        self._segments = cost.segments
        self._shares = np.append(counts / np.maximum(cost.widths, 1), 1.0)
        self._sizes = np.append(cost.axis_sizes(counts), 1.0)  # the last for the padding
        self._values = np.empty(0) if self._terms is None else self._terms.each(self._sizes[:-1])
        axes = len(self._sizes) - 1
        self._starts = np.searchsorted(self._segments.axis, np.arange(axes + 1))
        self._touched: dict[int, tuple[Ids, Ids]] = {}
        self._watched = np.zeros(axes, np.bool_)
        self._watched[list(divisible)] = True
        self.broken: set[int] = set()
        self._watch(np.flatnonzero(self._watched))

    def size(self, axis: int) -> float:
        """Surviving size of an axis now."""
        return float(self._sizes[axis])

    def total(self) -> float:
        """The cost now."""
        return self._measure(self.counts) if self._terms is None else float(self._values.sum())

    def change(self, group: int, width: int) -> Step:
        """Let a group keep ``width`` units; returns what ``undo`` takes to put everything back."""
        axes, terms = self._touching(group)
        step = Step(group, int(self.counts[group]), self._sizes[axes], self._values[terms])
        self.counts[group] = width
        self._shares[group] = width / max(int(self.cost.widths[group]), 1)
        lengths = self._starts[axes + 1] - self._starts[axes]
        ends = np.cumsum(lengths)
        places = np.repeat(self._starts[axes] - ends + lengths, lengths) + np.arange(lengths.sum())
        left = self._segments.counts[places] * self._shares[self._segments.groups[places]].prod(1)
        owner = np.repeat(np.arange(len(axes)), lengths)
        self._sizes[axes] = np.bincount(owner, left, minlength=len(axes))
        if self._terms is not None:
            self._values[terms] = self._terms.factors[terms] * self._sizes[self._terms.axes[terms]].prod(1)
        self._watch(axes)
        return step

    def undo(self, step: Step) -> None:
        """Take the last change back."""
        axes, terms = self._touching(step.group)
        self.counts[step.group] = step.width
        self._shares[step.group] = step.width / max(int(self.cost.widths[step.group]), 1)
        self._sizes[axes] = step.sizes
        self._values[terms] = step.values
        self._watch(axes)

    def total_with(self, widths: Mapping[int, int]) -> float:
        """The cost if some groups kept other numbers of units."""
        steps = [self.change(n, width) for n, width in widths.items()]
        total = self.total()
        for step in reversed(steps):
            self.undo(step)
        return total

    @cached_property
    def _segments_of(self) -> _Places:
        return _Places(self._segments.groups, len(self.cost.widths))

    @cached_property
    def _terms_of(self) -> _Places:
        return _Places(np.empty((0, 0), np.int64) if self._terms is None else self._terms.axes, len(self._watched))

    def _watch(self, axes: Ids) -> None:
        watched = axes[self._watched[axes]]
        wrong = np.rint(self._sizes[watched]).astype(np.int64) % self._divisor != 0
        self.broken.difference_update(watched[~wrong].tolist())
        self.broken.update(watched[wrong].tolist())

    def _touching(self, group: int) -> tuple[Ids, Ids]:
        """Axes and terms whose size and value go with a group."""
        if group not in self._touched:
            axes = np.unique(self._segments.axis[self._segments_of.at(group)])
            found = [self._terms_of.at(axis) for axis in axes.tolist()] if self._terms is not None else []
            self._touched[group] = axes, np.unique(np.concatenate(found)) if found else axes[:0]
        return self._touched[group]


class _Places:
    """The rows of a table in which a number stands."""

    def __init__(self, table: Ids, count: int) -> None:
        self._order = np.argsort(table, axis=None, kind="stable")
        self._starts = np.searchsorted(table.reshape(-1)[self._order], np.arange(count + 1))
        self._columns = max(table.shape[1], 1)

    def at(self, number: int) -> Ids:
        return np.asarray(self._order[self._starts[number] : self._starts[number + 1]] // self._columns)
