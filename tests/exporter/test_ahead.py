"""The next ones are made while one is used: in order, no more than that, and errors come in their turn."""

from __future__ import annotations

import threading

import pytest

from exporter.ahead import made_ahead


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_all_come_in_their_order(count, ahead):
    made = []
    for k, (item, square) in enumerate(made_ahead(range(count), lambda n: made.append(n) or n * n, ahead)):
        assert (item, square) == (k, k * k)
        assert len(made) <= k + 1 + ahead
    assert sorted(made) == list(range(count))


def test_the_next_is_made_meanwhile():
    begun = [threading.Event() for _ in range(3)]
    for item, _ in made_ahead(range(3), lambda n: begun[n].set(), 1):
        assert all(event.wait(10) for event in begun[: item + 2])


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_comes_in_its_turn(ahead):
    seen = []
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        for item, _ in made_ahead([2, 1, 0, 3, 4, 5, 6], lambda n: 1 / n, ahead):
            seen.append(item)
    assert seen == [2, 1]


def test_no_more_are_made_once_nobody_asks():
    made = []
    for _ in made_ahead(range(100), made.append, 2):
        break
    assert len(made) <= 4
