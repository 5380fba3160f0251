"""The solver on bare slots: ties, products, refinement, and what it freezes."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pytest

from exporter.partitions import common_part, connected
from exporter.slots import ONE, Facts, Fixed, Reason, SlotError
from exporter.solve import solve

_STAY = Reason("must stay", "here")


class Case:
    """Facts under construction, and what the solution says of them."""

    def __init__(self):
        self.facts = Facts()

    @cached_property
    def solution(self):
        return solve(self.facts)

    def axis(self, size):
        return self.facts.fresh(size)

    def classes(self, ids):
        """Units behind each slot, as sets of class numbers; empty for a frozen one."""
        parts = self.solution.parts_of(ids)
        return [frozenset(int(p) for p in row if p >= 0) for row in parts]

    def units(self, *axes):
        return len({u for axis in axes for row in self.classes(axis) for u in row})


@pytest.fixture
def case():
    return Case()


def test_ties_are_transitive(case):
    a, b, c = case.axis(4), case.axis(4), case.axis(4)
    case.facts.tie(a, b)
    case.facts.tie(b, c[::-1])
    assert case.classes(a) == case.classes(c)[::-1]
    assert case.units(a, b, c) == 4


def test_freezing_one_slot_freezes_its_class_only(case):
    a, b = case.axis(3), case.axis(3)
    case.facts.tie(a, b)
    case.facts.freeze(b[1:2], _STAY)
    assert [bool(row) for row in case.classes(a)] == [True, False, True]


def test_tying_to_a_fixed_axis_freezes_with_its_reason(case):
    a = case.axis(3)
    case.facts.tie(a, Fixed(3, _STAY))
    solution = solve(case.facts)
    assert {case.facts.reasons[w] for w in solution.why[solution.root[a]]} == {_STAY}


def test_sizes_that_differ_are_refused(case):
    with pytest.raises(SlotError, match=r"different size \(3 and 4\)"):
        case.facts.tie(case.axis(3), case.axis(4))


def test_a_flat_slot_is_made_of_its_factors(case):
    flat = case.axis(6)
    rows, columns = case.facts.split(flat, [2, 3], "reshape")
    classes, row_units, column_units = case.classes(flat), case.classes(rows), case.classes(columns)
    assert classes[4] == row_units[1] | column_units[1]
    assert case.units(flat) == 5


def test_ties_within_a_factor_reach_the_other_factorisation(case):
    """A rotary embedding ties halves of the head dimensions; the attention after it factors the same axis anew."""
    flat = case.axis(16)
    for _ in range(2):
        _, dims = case.facts.split(flat, [2, 8], "reshape")
        if case.facts.ties == []:
            case.facts.tie(dims[:4], dims[4:])
    assert case.units(flat) == 2 + 4
    assert case.classes(dims)[:4] == case.classes(dims)[4:]


def test_merging_back_gives_the_same_units(case):
    flat = case.axis(6)
    again = case.facts.merge(case.facts.split(flat, [2, 3], "reshape"), "reshape")
    case.facts.tie(flat, again)
    assert case.units(flat, again) == 5


@pytest.mark.parametrize(
    ("one", "other", "units"),
    [
        pytest.param([12, 4], [4, 12], 4 + 3 + 4, id="12 x 4 and 4 x 12 meet in 4 x 3 x 4"),
        pytest.param([12, 64], [4, 3, 64], 4 + 3 + 64, id="a refinement"),
        pytest.param([2, 12], [6, 4], 2 + 3 + 4, id="2 x 12 and 6 x 4 meet in 2 x 3 x 4"),
        pytest.param([8, 3], [8, 3], 11, id="the same twice"),
        pytest.param([2, 3], [3, 2], 0, id="2 x 3 and 3 x 2 share no grid"),
        pytest.param([12, 64], [8, 96], 4 + 32, id="12 x 64 and 8 x 96 share 4 and 32; what is between them stays"),
    ],
)
def test_two_factorisations_of_one_axis(case, one, other, units):
    flat = case.axis(int(np.prod(one)))
    axes = [*case.facts.split(flat, one, "first"), *case.facts.split(flat, other, "second")]
    assert case.units(flat, *axes) == units


def test_a_shuffle_between_two_grouped_axes_leaves_three_factors(case):
    flat = case.axis(12)
    shuffled = flat.reshape(2, 6).T.reshape(-1)
    axes = [*case.facts.split(flat, [2, 6], "groups"), *case.facts.split(shuffled, [2, 6], "groups after")]
    assert case.units(flat, *axes) == 2 + 2 + 3


def test_a_frozen_factor_drops_out(case):
    flat = case.axis(6)
    rows, columns = case.facts.split(flat, [2, 3], "reshape")
    case.facts.freeze(rows, _STAY)
    assert case.units(flat) == 3
    assert case.classes(flat)[0] == case.classes(flat)[3] == case.classes(columns)[0]


def test_a_frozen_flat_slot_freezes_its_factors_only(case):
    flat = case.axis(6)
    rows, columns = case.facts.split(flat, [2, 3], "reshape")
    case.facts.freeze(flat[:1], _STAY)
    assert [bool(r) for r in case.classes(rows)] == [False, True]
    assert [bool(r) for r in case.classes(columns)] == [False, True, True]


def test_tied_columns_tie_the_factor(case):
    """A rotary embedding ties head dimension i with i + 2, whatever the head."""
    flat = case.axis(8)
    _, inner = case.facts.split(flat, [2, 4], "heads")
    case.facts.tie(inner, np.concatenate([inner[2:], inner[:2]]))
    assert case.units(inner) == 2


def test_tied_flat_slots_tie_their_factors(case):
    flat = case.axis(6)
    rows, columns = case.facts.split(flat, [2, 3], "reshape")
    case.facts.tie(flat[0:1], flat[4:5])
    assert case.units(rows) == 1 or not any(case.classes(rows))
    assert case.classes(columns)[0] == case.classes(columns)[1]


def test_a_partial_overlap_is_refined_or_frozen_never_wrong(case):
    """Two products that share half their slots: what remains is the same set of units seen from both."""
    flat = case.axis(8)
    first = case.facts.split(flat, [2, 4], "whole")
    second = case.facts.split(flat[:4], [2, 2], "half")
    classes = case.classes(flat)
    grid = [a | b for a in case.classes(first[0]) for b in case.classes(first[1])]
    part = [a | b for a in case.classes(second[0]) for b in case.classes(second[1])]
    assert classes == grid
    assert classes[:4] == part


def test_groups_of_a_concatenation_share_what_all_have_in_common(case):
    """Group normalisations of 192 channels, of the first 128 and of the last 64 of them: in groups of 24, 16 and 8.

    The 8 positions that all share remain, whatever remains of the groups.
    """
    flat = case.axis(192)
    case.facts.split(flat, [8, 24], "all")
    case.facts.split(flat[:128], [8, 16], "first")
    case.facts.split(flat[128:], [8, 8], "last")
    classes = case.classes(flat)
    positions = [frozenset.intersection(*classes[k::8]) for k in range(8)]
    assert len(set(positions)) == 8
    assert all(len(p) >= 1 for p in positions)


@pytest.mark.parametrize("seed", range(100))
def test_a_flat_slot_is_left_exactly_where_all_its_factors_are(seed):
    """Random factorisations of one axis and of runs of it, then random units removed."""
    rng = np.random.default_rng(seed)
    facts = Facts()
    flat = facts.fresh(int(rng.choice([12, 24, 30, 36, 48, 72])))
    products = []
    for _ in range(3):
        outer, inner = int(rng.integers(2, 7)), int(rng.integers(2, 7))
        start = int(rng.integers(0, flat.size))
        part = flat[start : start + outer * inner]
        if part.size == outer * inner:
            products.append((part, facts.split(part, [outer, inner], "reshape")))
    solution = solve(facts)
    units = np.unique(solution.parts_of(flat))
    gone = rng.choice(units[units >= 0], units.size // 2) if units.max() >= 0 else units

    def left(ids):
        return ~np.isin(solution.parts_of(ids), gone[gone >= 0]).any(1)

    for part, (outer, inner) in products:
        assert (left(part) == (left(outer)[:, None] & left(inner)).reshape(-1)).all()


def test_splitting_positions_that_repeat_keeps_them_fixed(case):
    channels = case.axis(3)
    flat = case.facts.merge([channels, Fixed(4, _STAY)], "flatten")
    outer, inner = case.facts.split(flat, [3, 4], "unflatten")
    assert not isinstance(outer, Fixed)
    assert (outer == channels).all()
    assert isinstance(inner, Fixed)


@pytest.mark.parametrize(
    ("before", "after", "sizes"),
    [
        ([4, 6], [24], [24]),
        ([24], [2, 3, 4], [2, 3, 4]),
        ([2, 3, 4], [6, 4], [6, 4]),
        ([2, 12], [8, 3], [8, 3]),
        ([5, 1, 7], [5, 7, 1], [5, 7, 1]),
        ([1], [1, 1], [1, 1]),
    ],
)
def test_regroup_keeps_sizes(case, before, after, sizes):
    axes = [case.axis(n) if n > 1 else Fixed(1, ONE) for n in before]
    assert [a.size for a in case.facts.regroup(axes, after, "reshape")] == sizes


def test_regroup_matches_the_smallest_runs(case):
    a, b = case.axis(2), case.axis(12)
    result = case.facts.regroup([a, b], [2, 3, 4], "reshape")
    assert result[0] is a
    assert case.units(a) == 2


def test_regroup_refuses_a_change_of_size(case):
    with pytest.raises(SlotError, match="changes the number of elements"):
        case.facts.regroup([case.axis(6)], [2, 4], "reshape")


def test_connected_components():
    parent = connected(6, np.array([0, 3, 4]), np.array([1, 4, 1]))
    assert parent.tolist() == [0, 0, 2, 0, 0, 5]


def test_a_long_chain_is_connected():
    n = 20_000
    order = np.random.default_rng(0).permutation(n)
    assert (connected(n, order[:-1], order[1:]) == 0).all()


def test_common_part_of_two_partitions():
    position = np.arange(24)
    assert len(set(common_part(position // 12, position // 4).tolist())) == 2
    assert len(set(common_part(position // 8, position % 3).tolist())) == 1
    assert common_part(position // 6, position // 6).tolist() == (position // 6).tolist()
