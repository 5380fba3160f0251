"""Weights rounded by what they do to the output: never worse than to the nearest, and on the grid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from exporter.quantization import float8
from exporter.quantization.grid import Grid, fitted, nearest


def problem(columns, outputs, seed=0, rows=200):
    """Weights, and the damped moments of inputs that go together."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns)) @ rng.standard_normal((columns, columns)) + 3
    a = x.T @ x / rows
    return rng.standard_normal((columns, outputs)), a + 1e-2 * np.trace(a) / columns * np.eye(columns)


def loss(a, gap):
    return (gap * (a @ gap)).sum()


@pytest.mark.parametrize("grid", [Grid(8), Grid(4), Grid(4, 32), Grid(3, 7)])
def test_rounding_that_minds_the_output(grid):
    weights, a = problem(70, 9)
    weights[::5, 2:] = 0
    integers, scales = fitted(weights, a, grid)
    rounded = integers * grid.spread(scales, 70)
    assert integers.min() >= -grid.most - 1
    assert integers.max() <= grid.most
    assert (integers[::5, 2:] == 0).all()
    assert scales.shape == (-(-70 // (grid.block or 70)), 9)
    assert loss(a, rounded - weights) < 0.6 * loss(a, nearest(weights, grid) - weights)


def test_no_single_weight_is_better_elsewhere():
    weights, a = problem(12, 3)
    grid = Grid(4)
    integers, scales = fitted(weights, a, grid)
    steps = grid.spread(scales, 12)
    best = loss(a, integers * steps - weights)
    for place, move in itertools.product(np.ndindex(12, 3), (-1, 1)):
        other = integers.copy()
        other[place] = np.clip(other[place] + move, -grid.most - 1, grid.most)
        assert loss(a, other * steps - weights) >= best - 1e-6 * best


@pytest.mark.parametrize("unit", [1e-60, 1e-40, 1e40])
def test_units_of_the_inputs_do_not_matter(unit):
    """Moments of channels that hardly ever fire are beyond 32 bits."""
    weights, a = problem(40, 6)
    want, got = (fitted(weights, one, Grid(4, 32)) for one in (a, a * unit))
    assert (want[0] == got[0]).all()
    assert (want[1] == got[1]).all()


def test_few_weights_are_rounded_as_well_as_can_be():
    """All choices of three weights, compared: within a few per cent of the best with these scales."""
    grid = Grid(3)
    for seed in range(5):
        weights, a = problem(3, 1, seed)
        integers, scales = fitted(weights, a, grid)
        every = (
            np.array(c)[:, None] * scales for c in itertools.product(range(-grid.most - 1, grid.most + 1), repeat=3)
        )
        least = min(loss(a, choice - weights) for choice in every)
        assert loss(a, integers * scales - weights) <= 2 * least + 1e-9


def test_one_scale_for_a_whole_weight():
    weights, _ = problem(20, 4)
    rounded = nearest(weights, Grid(8, alike=True))
    step = np.abs(weights).max() / 127
    assert np.abs(rounded - weights).max() <= 0.501 * step
    assert np.allclose(rounded / step, np.rint(rounded / step))


def test_nothing_but_zeros():
    weights, a = np.zeros((5, 2)), np.eye(5)
    integers, scales = fitted(weights, a, Grid(8))
    assert not integers.any()
    assert (scales == 1).all()
    assert not float8.nearest(weights).any()


def test_float8_holds_the_largest():
    weights = np.array([[1000.0, -3.3, 1e-9]])
    rounded = float8.nearest(weights)
    assert rounded[0, 0] == 1000
    assert abs(rounded[0, 1] + 3.3) < 3.3 / 16
    assert rounded[0, 2] == 0
