"""The solver: what it chooses costs no more than what is cheaper to find, and fits exactly on what it chose."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from exporter.sparsity import solver
from exporter.sparsity.patterns import SCHEDULES


def problem(columns=24, outputs=6, seed=0):
    """Damped moments of correlated inputs, and the targets of a dense layer."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, columns)) @ (np.eye(columns) + 0.5 * rng.standard_normal((columns, columns)))
    w = rng.standard_normal((columns, outputs))
    a = x.T @ x / len(x) + 1e-3 * np.eye(columns)
    return a, a @ w, w


def loss(a, b, w):
    return float(np.einsum("ko,ko", w, a @ w - 2 * b))


@pytest.mark.parametrize(("columns", "of", "positions"), [(8, 4, 1), (24, 4, 3), (18, 2, 9)])
def test_runs_are_neighbours_along_the_inputs(columns, of, positions):
    runs = solver.runs_of(columns, of, positions)
    assert sorted(runs.reshape(-1)) == list(range(columns))
    for run in runs:
        assert (np.diff(run) == 1).all()
        assert run[0] % (columns // positions) % of == 0


def test_the_surgeon_finds_the_best_set_of_one_run():
    """With a single run its cost is exact: least squares on what stays, for every set."""
    a, b, w = problem(4, 5)
    mask = solver.surgeon(np.linalg.inv(a), w, solver.runs_of(4, 4, 1), 2)
    for k in range(5):
        sets = {}
        for stay in combinations(range(4), 2):
            only = np.zeros((4, 1), bool)
            only[list(stay)] = True
            sets[stay] = loss(a, b[:, [k]], solver.refit(a, b[:, [k]], only, w[:, [k]]))
        assert tuple(np.flatnonzero(mask[:, k])) == min(sets, key=sets.get)


@pytest.mark.parametrize(("keep", "of", "positions"), [(2, 4, 1), (1, 4, 2), (4, 8, 1), (1, 12, 2)])
def test_each_step_costs_less(keep, of, positions):
    """Largest weights as they are, fitted, chosen by the surgeon and fitted, chosen anew run by run."""
    a, b, w = problem(48)
    runs = solver.runs_of(48, of, positions)
    largest = solver.mask_by_score(np.abs(w), runs, keep)
    chosen = solver.surgeon(np.linalg.inv(a), w, runs, keep)
    fitted = solver.refit(a, b, chosen, w)
    moved = solver.descend(a, b, fitted, runs, keep, 4)
    final = solver.refit(a, b, moved != 0, moved)
    losses = [loss(a, b, v) for v in (np.where(largest, w, 0), solver.refit(a, b, largest, w), moved, final)]
    assert losses[1] < losses[0]
    assert losses[2] <= loss(a, b, fitted) + 1e-9
    assert losses[3] <= losses[2] + 1e-9
    assert losses[3] < losses[1]
    for v in (np.where(largest, 1, 0), chosen, final != 0):
        assert (v[runs].sum(1) <= keep).all()
        assert (v[runs].sum(1) == keep).mean() > 0.99


def test_a_sweep_leaves_each_run_at_its_best_given_the_others():
    a, b, w = problem(8, 3)
    runs = solver.runs_of(8, 4, 1)
    found = np.where(np.tile([[True], [True], [False], [False]], (2, 3)), w, 0)
    for _ in range(20):
        found = solver.descend(a, b, found, runs, 2, 5)
        found = solver.refit(a, b, found != 0, found)
    for k, run in product(range(3), runs):
        others = np.setdiff1d(np.arange(8), run)
        for stay in combinations(run, 2):
            candidate = found[:, k].copy()
            candidate[run] = 0
            rest = b[list(stay), k] - a[np.ix_(stay, others)] @ found[others, k]
            candidate[list(stay)] = np.linalg.solve(a[np.ix_(stay, stay)], rest)
            assert loss(a, b[:, [k]], found[:, [k]]) <= loss(a, b[:, [k]], candidate[:, None]) + 1e-8


def test_conjugate_gradients_come_to_the_same(monkeypatch):
    a, b, w = problem(40)
    mask = np.random.default_rng(1).random(w.shape) < 0.5
    exact = solver.refit(a, b, mask, w)
    monkeypatch.setattr(solver, "_EXACT_FLOPS", 0)
    found = solver.refit(a, b, mask, w, close=1e-9)
    assert not found[~mask].any()
    assert np.abs(found - exact).max() < 1e-3 * np.abs(exact).max()
    rough, usual = (solver.refit(a, b, mask, w, close) for close in (solver.NEAR, solver.CLOSE))
    explained = float(np.vdot(exact, b))
    for v, most in ((rough, 1e-2), (usual, 1e-4), (found, 1e-6)):
        assert -1e-9 * explained < loss(a, b, v) - loss(a, b, exact) < most * explained


def test_a_fit_to_what_is_there_already_changes_nothing():
    a, b, w = problem()
    assert np.allclose(solver.refit(a, b, np.ones(w.shape, bool), w), w)


@pytest.mark.parametrize("gone", [60, 120, 200])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_unstructured_takes_exactly_so_many_and_better_ones_than_the_smallest(gone, schedule):
    a, b, w = problem(40)
    start = solver.unstructured_start(a, b, w, np.linalg.inv(a), gone, schedule[0])
    found = solver.unstructured(a, b, start, gone, schedule)
    assert (found == 0).sum() == gone
    order = np.argsort(np.abs(w), axis=None)
    largest = np.ones(w.size, bool)
    largest[order[:gone]] = False
    assert loss(a, b, found) < loss(a, b, solver.refit(a, b, largest.reshape(w.shape), w))
