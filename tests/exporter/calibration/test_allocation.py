"""Budgets shared among groups, against brute force over all combinations of widths."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from exporter.calibration.allocation import allocate
from exporter.errors import GoalError

WITHIN = 1.07
"""Most damage found, relative to the least there is, on average over instances; and
"""
WORST = 2.1
"""of a single instance."""


class Instance:
    """A chain of layers whose cost is the product of neighbouring widths, with convex or stepped damage."""

    def __init__(self, seed, groups=4, step=1, stepped=False):
        rng = np.random.default_rng(seed)
        self.dense = rng.integers(2, 5, groups) * 4
        self.sizes = rng.integers(1, 40, groups + 1)
        self.ends = rng.integers(2, 12, 2)
        self.allowed, self.damage = {}, {}
        for n, width in enumerate(self.dense):
            # about six choices each, the whole width among them
            every = max(step, int(width) // 6)
            options = np.unique([*range(max(every, 1), int(width), every), int(width)])
            share = 1 - options / width
            loss = rng.lognormal(0, 1.5) * share ** rng.uniform(1, 4)
            if stepped:
                loss = np.maximum.accumulate((loss * rng.choice([0, 1, 1], loss.size))[::-1])[::-1]
                loss[-1] = 0
            self.allowed[n], self.damage[n] = options, loss

    def cost(self, counts):
        widths = np.array([self.ends[0], *counts, self.ends[1]], float)
        return float((self.sizes * widths[:-1] * widths[1:]).sum())

    def total(self, counts):
        return sum(self.damage[n][list(self.allowed[n]).index(counts[n])] for n in self.allowed)

    def best(self, target):
        every = np.array(list(product(*(self.allowed[n] for n in self.allowed))))
        ends = (np.full((len(every), 1), end) for end in self.ends)
        widths = np.concatenate([next(ends), every, next(ends)], 1).astype(float)
        costs = (self.sizes * widths[:, :-1] * widths[:, 1:]).sum(1)
        places = (np.searchsorted(self.allowed[n], every[:, k]) for k, n in enumerate(self.allowed))
        totals = sum(self.damage[n][place] for n, place in zip(self.allowed, places, strict=True))
        return totals[costs <= target].min()

    def solve(self, share):
        target = share * self.cost(self.dense)
        return allocate(self.dense, self.allowed, self.damage, self.cost, target), target


@pytest.mark.parametrize("stepped", [False, True], ids=["convex", "stepped"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_close_to_the_best_there_is(share, stepped):
    ratios = []
    for seed in range(25):
        instance = Instance(seed, stepped=stepped)
        counts, target = instance.solve(share)
        assert instance.cost(counts) <= target
        assert all(counts[n] in instance.allowed[n] for n in instance.allowed)
        floor = 1e-3 * sum(d[0] for d in instance.damage.values())
        ratios.append((instance.total(counts) + floor) / (instance.best(target) + floor))
    assert min(ratios) > 0.999
    assert np.mean(ratios) < WITHIN, sorted(ratios)[-5:]
    assert max(ratios) < WORST, sorted(ratios)[-5:]


@pytest.mark.parametrize("step", [2, 4])
def test_only_widths_that_are_allowed(step):
    instance = Instance(3, step=step)
    counts, target = instance.solve(0.5)
    assert instance.cost(counts) <= target
    assert all(c % step == 0 for c in counts)
    assert (counts < instance.dense).any()


def test_groups_that_are_not_listed_stay():
    instance = Instance(1)
    del instance.allowed[2], instance.damage[2]
    counts, target = instance.solve(0.7)
    assert counts[2] == instance.dense[2]
    assert instance.cost(counts) <= target


def test_what_costs_nothing_to_cut_goes_first():
    """Half of the first group is dead; the second hurts at once."""
    dense, allowed = np.array([8, 8]), {n: np.arange(1, 9) for n in range(2)}
    damage = {0: np.array([9, 5, 2, 0, 0, 0, 0, 0.0]), 1: np.linspace(7, 0, 8)}
    counts = allocate(dense, allowed, damage, lambda c: float(c.sum()), 12)
    assert counts.tolist() == [4, 8]


def test_room_that_is_left_is_used():
    """One choice is far too narrow, the next just fits."""
    dense, allowed = np.array([10, 10]), {0: np.array([2, 10]), 1: np.array([1, 4, 7, 10])}
    damage = {0: np.array([1.0, 0]), 1: np.array([3, 2, 1, 0.0])}
    counts = allocate(dense, allowed, damage, lambda c: float(c.sum()), 14)
    assert counts.tolist() == [2, 10]


def test_a_budget_that_is_met_already_costs_nothing():
    instance = Instance(0)
    counts, _ = instance.solve(1.0)
    assert (counts == instance.dense).all()


def test_the_least_there_is_can_be_reached():
    instance = Instance(0)
    least = [int(a[0]) for a in instance.allowed.values()]
    counts = allocate(instance.dense, instance.allowed, instance.damage, instance.cost, instance.cost(least))
    assert counts.tolist() == least


def test_out_of_reach():
    instance = Instance(0)
    least = instance.cost([a[0] for a in instance.allowed.values()])
    with pytest.raises(GoalError, match="cannot be reached: with every group at its smallest width 0"):
        allocate(instance.dense, instance.allowed, instance.damage, instance.cost, 0.99 * least)


def test_two_runs_agree():
    instance = Instance(7)
    assert (instance.solve(0.4)[0] == instance.solve(0.4)[0]).all()


def test_damage_may_be_infinite():
    """Where an output would be no number any more."""
    dense, allowed = np.array([4, 4]), {n: np.arange(1, 5) for n in range(2)}
    damage = {0: np.array([np.inf, np.inf, np.inf, 0]), 1: np.array([3, 2, 1, 0.0])}
    counts = allocate(dense, allowed, damage, lambda c: float(c.sum()), 6)
    assert counts.tolist() == [4, 2]
