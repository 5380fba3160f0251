"""Sizes that meet demands: what is met stays, what is broken is solved, what cannot be solved is left."""

from __future__ import annotations

import pytest

from runtime.demands.settling import holds, settle
from runtime.demands.terms import larger, minus, number_of, over, plus, size_of, symbols_in, times

HALVED = plus(over(minus("H", 3), 2), 1)
SETTLED = {
    "met": ([(("C", 3),)], {"C": 3}, (), {}),
    "a number": ([(("C", 3),)], {"C": 16}, (), {"C": 3}),
    "held": ([(("C", 3),)], {"C": 16}, ("C",), {}),
    "a sum": ([(("T", plus("P", "S")),)], {"T": 16, "P": 16, "S": 16}, (), {"T": 32}),
    "a part of a sum": ([(("T", plus("P", "S")),)], {"T": 50, "P": 16, "S": 16}, ("T",), {"P": 34}),
    "both sides of an image": (
        [((plus(times("H", "W"), 1), 197),)], {"H": 224, "W": 224}, (), {"H": 14, "W": 14},
    ),
    "one side, where the other is held": ([((times("H", "W"), 60),)], {"H": 224, "W": 10}, ("W",), {"H": 6}),
    "the roundest": ([((over("H", 16), 14),)], {"H": 64}, (), {"H": 224}),
    "the roundest of what a stride leaves": ([((HALVED, 111),)], {"H": 64}, (), {"H": 224}),
    "at least": ([((larger("P", 70), "P"),)], {"P": 16}, (), {"P": 128}),
    "enough": ([((larger("P", 70), "P"),)], {"P": 81}, (), {}),
    "far away": ([((over(minus("S", 400), 320), 4999),)], {"S": 16}, (), {"S": 1_600_256}),
    "one of two ways": ([(("B", 1), ("S", 1))], {"B": 2, "S": 16}, (), {"B": 1}),
    "the other way": ([(("B", 1), ("S", 1))], {"B": 2, "S": 16}, ("B",), {"S": 1}),
    "no way": ([((times("H", 2), 7),)], {"H": 4}, (), {}),
    "what breaks another is not done": ([(("A", 5),), (("A", 5), ("B", "A"))], {"A": 4, "B": 4}, (), {"A": 5}),
    "contradictory": ([(("A", 5),), (("A", 6),)], {"A": 4}, (), {"A": 5}),
    "an unknown symbol": ([(("A", plus("X", 1)),)], {"A": 4}, (), {}),
    "one after the other": (
        [(("T", plus("P", "S")),), (("P", "Q"),), (("Q", 40),)], {"T": 16, "P": 16, "S": 16, "Q": 16}, (),
        {"Q": 40, "P": 40, "T": 56},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTLED)
def test_settled(name):
    demands, sizes, held, changed = SETTLED[name]
    assert settle(demands, sizes, held) == changed


def test_many_that_cannot_be_met_end_soon():
    demands = [((times("A", 2 * k), 2 * k + 1),) for k in range(1, 10_000)]
    assert settle(demands, {"A": 4}, ()) == {}


def test_nothing_is_said_of_what_is_not_known():
    assert holds((("A", 3),), {})
    assert holds(((over("A", "B"), 3),), {"A": 3, "B": 0})


TERMS = {
    "sum": (plus(plus("A", 2), 3), 12, 1),
    "sum from the left": (plus(2, "A"), 9, 1),
    "difference": (minus(plus("A", 2), 2), 7, 0),
    "of two": (minus("A", "B"), 5, 1),
    "product": (times(times(1, "A"), "B"), 14, 1),
    "with nothing": (times("A", 0), 0, 0),
    "quotient": (over("A", 2), 3, 1),
    "whole": (over("A", 1), 7, 0),
    "larger": (larger("B", "A"), 7, 1),
    "numbers": (plus(over(7, 2), 1), 4, 0),
    "sum by name": (size_of("A + B+1"), 10, 2),
}


@pytest.mark.parametrize("name", TERMS)
def test_terms(name):
    """What they come to for A = 7 and B = 2, and how many operations are left of them."""
    term, number, weight = TERMS[name]
    assert number_of(term, {"A": 7, "B": 2}) == number
    assert getattr(term, "weight", 0) == weight


def test_terms_of_the_unknown_are_unknown():
    assert [f(None, "A") for f in (plus, minus, times, over, larger)] == [None] * 5
    assert over("A", 0) is None
    assert symbols_in(None) == ()
    with pytest.raises(TypeError):
        plus("A", b"2")
