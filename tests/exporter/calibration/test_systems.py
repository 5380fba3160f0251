"""Systems of wide layers: 32 bits and blocks give what 64 bits give."""

import numpy as np
import pytest

from exporter.calibration import systems


@pytest.fixture(autouse=True)
def _blocks(monkeypatch):
    monkeypatch.setattr(systems, "_BLOCK", 48)


def _system(groups, columns, outputs, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, 3 * columns, columns)) * np.geomspace(1, 0.01, columns)
    xx = x.swapaxes(1, 2) @ x / (3 * columns)
    return xx + 1e-3 * np.trace(xx[0]) / columns * np.eye(columns), rng.standard_normal((groups, columns, outputs))


@pytest.mark.parametrize("columns", [40, 48, 96, 200])
@pytest.mark.parametrize("groups", [1, 3])
def test_what_64_bits_say(monkeypatch, columns, groups):
    system, wanted = _system(groups, columns, 7, columns)
    expected = np.linalg.solve(system, wanted)
    monkeypatch.setattr(systems, "WIDE", 1)
    found = systems.Factored(system).solve(wanted)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert not np.array_equal(found, expected)  # it did go the other way
    np.testing.assert_allclose(systems.product(system, found), wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_narrow_systems_have_all_digits():
    system, wanted = _system(2, 96, 5, 0)
    assert np.array_equal(systems.Factored(system).solve(wanted), np.linalg.solve(system, wanted))


@pytest.mark.parametrize("coarse", [False, True])
def test_one_system_serves_several_right_sides(coarse):
    system, wanted = _system(2, 120, 6, 2)
    factored = systems.Factored(system, coarse)
    for part in (wanted[:, :, :4], wanted[:, :, 4:]):
        expected = np.linalg.solve(system, part)
        found = factored.solve(part)
        np.testing.assert_allclose(found, expected, rtol=0, atol=(1e-4 if coarse else 1e-12) * np.abs(expected).max())
        assert coarse != np.array_equal(found, expected)


def test_what_is_given_stays():
    system, wanted = _system(1, systems.WIDE, 2, 1)
    before = system.copy(), wanted.copy()
    systems.Factored(system).solve(wanted)
    assert np.array_equal(before[0], system)
    assert np.array_equal(before[1], wanted)


@pytest.mark.parametrize(("kind", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-4)])
@pytest.mark.parametrize("columns", [40, 150, 333])
def test_an_inverse_has_the_digits_given(columns, kind, tolerance):
    system, _ = _system(2, columns, 1, columns)
    expected = np.linalg.inv(system)
    found = systems.inverse(system.astype(kind))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("columns", [150, 333])
def test_a_dominant_direction_costs_no_more_digits_than_the_condition(monkeypatch, columns):
    """Means that were not taken off, or rows that hardly vary: explicit inverses of blocks gave numbers without end."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
    values = np.geomspace(1, 1e-4, columns)
    values[0] = 0.3 * columns
    system = ((basis * values) @ basis.T)[None]
    system = systems.damped(system, 1e-4 * np.trace(system[0]) / columns)
    expected = rng.standard_normal((1, columns, 5))
    monkeypatch.setattr(systems, "WIDE", 1)
    wrong = systems.Factored(system).solve(system @ expected) - expected
    assert np.sum(wrong * (system @ wrong)) < 1e-4 * np.sum(expected * (system @ expected))
    for kind, tolerance in ((np.float64, 1e-9), (np.float32, 0.1)):
        found = systems.inverse(system.astype(kind))
        np.testing.assert_allclose(found[0].diagonal(), np.linalg.inv(system[0]).diagonal(), rtol=tolerance)


def test_what_32_bits_cannot_tell_from_singular_is_solved_in_64(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 60, 50))
    system = systems.damped(1e6 * x.swapaxes(1, 2) @ x @ np.ones((1, 50, 50)) @ x.swapaxes(1, 2) @ x, 1e-3)
    wanted = rng.standard_normal((1, 50, 3))
    expected = np.linalg.solve(system, wanted)
    monkeypatch.setattr(systems, "WIDE", 1)
    assert np.isfinite(systems.Factored(system).solve(wanted)).all()
    np.testing.assert_allclose(systems.Factored(system).solve(wanted), expected)
    assert np.isfinite(systems.inverse(system.astype(np.float32))).all()
