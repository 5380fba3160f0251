"""Statistics: intervals hold what they say, and neither outliers nor one round decide."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runtime.robust import _student, hodges_lehmann, median_interval, needed, ratio_of, undisturbed


@pytest.mark.parametrize(("q", "samples"), [(50, 1), (89.9, 1), (90, 64), (98.9, 64), (99, 662), (99.9, 662)])
def test_samples_a_percentile_needs(q, samples):
    assert needed(q) == samples


def test_the_interval_of_the_median_holds_it_as_often_as_it_says():
    """95 % of 400 series of 41 samples of a lopsided distribution, whose median is 1."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        low, high = median_interval(np.exp(rng.exponential(1, 41) - math.log(2)))
        inside += low <= 1 <= high
    assert 370 <= inside <= 400


@pytest.mark.parametrize(("values", "interval"), [([3.0], (3, 3)), ([2.0, 1.0], (1, 2)), ([5.0, 1, 3, 2, 4], (1, 5))])
def test_few_values_give_all_they_have(values, interval):
    assert median_interval(np.array(values)) == interval


def test_more_samples_narrow_the_interval():
    values = np.random.default_rng(0).normal(1, 0.1, 3000)
    wide, narrow = (np.subtract(*median_interval(values[:n])[::-1]) for n in (100, 3000))
    assert narrow < wide / 4


@pytest.mark.parametrize(
    ("values", "estimate"), [([1.0], 1), ([1.0, 3.0], 2), ([1.0, 2, 3, 1000], 2.75), ([0.0, 0, 0, 6], 0)]
)
def test_hodges_lehmann(values, estimate):
    means = [(a + b) / 2 for i, a in enumerate(values) for b in values[i:]]
    assert hodges_lehmann(np.array(values)) == pytest.approx(np.median(means))
    assert hodges_lehmann(np.array(values)) == pytest.approx(estimate)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (7, 2.365), (30, 2.042)]
)
def test_quantiles_of_student(freedom, quantile):
    assert _student(freedom) == pytest.approx(quantile, rel=0.02)


def test_disturbed_pairs_are_left_out_where_others_remain():
    ratios, flags = np.arange(20.0), np.arange(20) % 2 == 0
    np.testing.assert_array_equal(undisturbed(ratios, flags), np.arange(1, 20, 2))
    np.testing.assert_array_equal(undisturbed(ratios, np.arange(20) < 15), ratios)  # five are too few


def rounds(truth, between, within, seed, count=5, pairs=60):
    rng = np.random.default_rng(seed)
    return [math.log(truth) + rng.normal(0, between) + rng.normal(0, within, pairs) for _ in range(count)]


@pytest.mark.parametrize(
    ("between", "within"),
    [
        pytest.param(0.0, 0.02, marks=pytest.mark.slow),
        pytest.param(0.01, 0.002, marks=pytest.mark.slow),
        (0.01, 0.02),
    ],
)
def test_the_interval_holds_the_truth_whatever_rounds_have_in_common(between, within):
    inside = sum(r.low <= 1.03 <= r.high for r in (ratio_of(rounds(1.03, between, within, s)) for s in range(25)))
    assert inside >= 22


def test_pairs_of_one_round_do_not_make_it_sure():
    """A thousand pairs in each of four rounds that differ by a percent know no more than four numbers."""
    found = ratio_of(rounds(1.0, 0.01, 0.001, 1, count=4, pairs=1000))
    assert found.high / found.low > 1.01


def test_all_pairs_of_a_long_round_count():
    """All but the first sixth differ; the estimate must see it."""
    values = np.r_[np.zeros(1500), np.full(8500, 0.1)]
    assert ratio_of([values]).value == pytest.approx(math.exp(0.1), rel=0.02)
