"""From what is measured at some widths to what is predicted at all."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.calibration.sensitivity import predicted

DAMAGE = np.array([0.8, 0.4, 0.2, 0.1, 0.05, 0.0])


def test_one_measurement_gives_a_rate():
    assert predicted(DAMAGE, [(0.2, 0.5)]) == pytest.approx(2.5 * DAMAGE)


def test_two_measurements_are_met_and_between_them_a_power_runs():
    found = predicted(DAMAGE, [(0.1, 0.001), (0.4, 0.256)])
    assert found[[3, 1]] == pytest.approx([0.001, 0.256])
    assert found[2] == pytest.approx(0.016)  # the fourth power
    assert found[[4, 5]] == pytest.approx([0.0005, 0.0])  # below the first, in proportion
    assert found[0] == pytest.approx(0.512)  # beyond the last, in proportion


def test_no_effect_at_all_is_no_division_by_zero():
    assert np.isfinite(predicted(DAMAGE, [(0.0, 0.0), (0.3, 0.1)])).all()
