"""Moments: least squares from sums equals least squares on the rows."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.calibration.moments import Moments

GROUPS, ROWS, K, OUTPUTS = 2, 300, 5, 3


def rows(seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((GROUPS, ROWS, K)) @ rng.standard_normal((GROUPS, K, K)) + offset
    y = x @ rng.standard_normal((GROUPS, K, OUTPUTS)) + rng.standard_normal((GROUPS, ROWS, OUTPUTS)) - offset
    return x.astype(np.float32), y.astype(np.float32)


def moments(x, y, *cuts):
    made = Moments()
    for a, b in zip((0, *cuts), (*cuts, x.shape[1]), strict=True):
        made.add((x[:, a:b], y[:, a:b]))
    return made


def wide(*arrays):
    return [a.astype(np.float64) for a in arrays]


@pytest.mark.parametrize("offset", [0, 3, 1000], ids=["centred", "shifted", "far"])
def test_sums_are_those_of_all_rows(offset):
    """In batches of any size, empty ones among them."""
    x, y = rows(offset=offset)
    found = moments(x, y, 0, 7, 7, 200)
    x, y = wide(x, y)
    assert found.rows == ROWS
    assert found.xx == pytest.approx(x.transpose(0, 2, 1) @ x, rel=1e-5)
    assert found.xy == pytest.approx(x.transpose(0, 2, 1) @ y, rel=1e-4, abs=1e-2)
    assert found.yy == pytest.approx(np.square(y).sum(1), rel=1e-5)
    assert found.x == pytest.approx(x.sum(1), rel=1e-5, abs=1e-2)
    assert found.y == pytest.approx(y.sum(1), rel=1e-5, abs=1e-2)


@pytest.mark.parametrize("offset", [0, 3, 1000], ids=["centred", "shifted", "far"])
def test_a_large_mean_does_not_drown_what_varies(offset):
    x, y = rows(offset=offset)
    found = moments(x, y, 100).centred(intercept=True)
    x, y = wide(x, y)
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    scale = x.std() ** 2
    assert np.abs(found.xx - x.transpose(0, 2, 1) @ x / ROWS).max() < 1e-4 * scale
    assert np.abs(found.xy - x.transpose(0, 2, 1) @ y / ROWS).max() < 1e-4 * scale * y.std()
    assert np.abs(found.yy - np.square(y).mean(1)).max() < 1e-3 * y.var()


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("damping", [1e-12, 0.1])
def test_the_fit_is_that_of_least_squares(intercept, damping):
    """Held to the present weights: the ridge is a share of the mean second moment."""
    x, y = rows(offset=0.5)
    centred = moments(x, y).centred(intercept)
    present = np.random.default_rng(9).standard_normal((GROUPS, K, OUTPUTS))
    found, bias = centred.solver(damping).fit(centred.xy, present), None
    x, y = wide(x, y)
    mean = (x.mean(1, keepdims=True), y.mean(1, keepdims=True)) if intercept else (0, 0)
    ridge = np.sqrt(damping * np.mean(np.square(x - mean[0])) * ROWS)
    for g in range(GROUPS):
        left = np.concatenate([(x - mean[0])[g], ridge * np.eye(K)])
        right = np.concatenate([(y - mean[1])[g], ridge * present[g]])
        assert found[g] == pytest.approx(np.linalg.lstsq(left, right)[0], rel=1e-3, abs=1e-3)
    bias = centred.bias(found)
    residual = y - x @ found - bias[:, None]
    assert np.abs(residual.mean(1)).max() < 1e-3 or not intercept
    assert intercept or (bias == 0).all()
    assert centred.error(found) == pytest.approx(np.square(residual).mean(1).sum(), rel=1e-4)
    assert centred.error(present) > centred.error(found)


def test_moments_add_up():
    x, y = rows()
    parts = moments(x[:, :120], y[:, :120]) + moments(x[:, 120:], y[:, 120:])
    whole = moments(x, y)
    assert parts.rows == whole.rows
    for name in ("xx", "xy", "yy", "x", "y"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-4, abs=1e-2)


def test_outputs_can_be_added_apart():
    """For other targets of the same inputs."""
    x, y = rows()
    whole = moments(x, y)
    apart = Moments(whole.rows, whole.xx, np.zeros(()), np.zeros(()), whole.x, np.zeros(()))
    apart.add_outputs(x[:, :100], y[:, :100])
    apart.add_outputs(x[:, 100:], y[:, 100:])
    for name in ("xx", "xy", "x", "y"):
        assert getattr(apart, name) == pytest.approx(getattr(whole, name), rel=1e-5)


def test_no_rows_are_no_error():
    x, y = rows()
    centred = moments(x[:, :0], y[:, :0]).centred(intercept=True)
    assert centred.error(np.ones((GROUPS, K, OUTPUTS))) == 0
    assert np.isfinite(centred.solver(0.1).fit(centred.xy, np.ones((GROUPS, K, OUTPUTS)))).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_rows_that_are_no_numbers_do_not_count(wrong):
    x, y = rows()
    want = moments(np.delete(x, [3, 50, 51], 1), np.delete(y, [3, 50, 51], 1))
    x[0, 3, 1], x[1, 50, 0], y[0, 51, 2] = wrong, wrong, wrong
    found = moments(x, y, 40)
    assert found.rows == want.rows == ROWS - 3
    for name in ("xx", "xy", "yy", "x", "y"):
        assert getattr(found, name) == pytest.approx(getattr(want, name), rel=1e-4, abs=1e-2)


def test_large_numbers_count():
    """Their sum overflows 32 bits."""
    x, y = rows()
    assert moments(x + np.float32(3e38), y).rows == ROWS


def test_the_slope_along_the_ridge_is_that_of_differences():
    x, y = rows(offset=0.5)
    other = moments(*rows(offset=0.2)).centred(intercept=True)
    centred = moments(x, y).centred(intercept=True)
    present = np.random.default_rng(9).standard_normal((GROUPS, K, OUTPUTS))
    for damping in (0.01, 0.1, 1.0):
        solver = centred.solver(damping)
        weights = solver.fit(centred.xy, present)
        near = [centred.solver(damping * f).fit(centred.xy, present) for f in (0.999, 1.001)]
        step = 0.002 * solver.ridge
        drift = solver.drift(weights, present)
        np.testing.assert_allclose(drift, (near[1] - near[0]) / step, rtol=1e-3, atol=1e-6)
        assert other.slope(weights, drift) == pytest.approx(
            (other.error(near[1]) - other.error(near[0])) / step, rel=1e-3
        )
