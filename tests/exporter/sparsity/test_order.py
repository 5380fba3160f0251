"""The search for an order: what it says it keeps is kept, and an order that is known to be good is found."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.sparsity.magnitude import strongest
from exporter.sparsity.order import find_order, kept


def scores(rows=32, columns=48, seed=0):
    return np.abs(np.random.default_rng(seed).standard_normal((rows, columns))).astype(np.float32)


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (3, 4), (2, 8)])
def test_kept_is_what_stays(keep, of):
    s = scores()
    mask = strongest(s.reshape(-1, of, 1), keep)
    assert np.isclose(kept(s, keep, of), s.reshape(-1, of, 1)[mask].sum())


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (3, 4), (1, 2), (2, 8)])
@pytest.mark.parametrize("columns", [16, 48])
def test_an_order_keeps_more_and_each_column_once(keep, of, columns):
    s = scores(columns=columns)
    order = find_order(s, keep, of)
    assert sorted(order) == list(range(columns))
    assert kept(s, keep, of, order) > kept(s, keep, of)


def test_no_exchange_of_two_columns_is_left():
    s = scores(16, 16)
    order = find_order(s, 2, 4)
    best = kept(s, 2, 4, order)
    for a in range(16):
        for b in range(a):
            other = order.copy()
            other[[a, b]] = order[[b, a]]
            assert kept(s, 2, 4, other) <= best * (1 + 1e-5)


def test_a_hidden_order_is_found():
    """Every row has two large columns of each run, so nothing large need be lost."""
    rng = np.random.default_rng(0)
    s = 0.01 * scores(64, 24)
    for row in s.reshape(64, 6, 4):
        for run in row:
            run[rng.choice(4, 2, replace=False)] += 1
    mixed = s[:, rng.permutation(24)]
    order = find_order(mixed, 2, 4, rounds=300)
    assert kept(mixed, 2, 4, order) > 0.97 * kept(s, 2, 4)
    assert kept(mixed, 2, 4) < 0.9 * kept(s, 2, 4)


def test_the_more_time_the_more_is_kept_and_a_seed_decides():
    s = scores(64, 64)
    assert kept(s, 2, 4, find_order(s, 2, 4, rounds=50)) >= kept(s, 2, 4, find_order(s, 2, 4))
    assert (find_order(s, 2, 4) == find_order(s, 2, 4)).all()
