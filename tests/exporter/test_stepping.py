"""Widths that change step by step cost what the cost model says of them, to the bit; axes and partitions in bulk."""

from __future__ import annotations

import numpy as np
import pytest

from exporter import find_groups
from exporter.axis_table import distinct, table_of
from exporter.cost import CostModel
from exporter.model_file import from_model
from exporter.partitions import unique_rows, with_rows
from exporter.slots import ONE, Fixed
from exporter.stepping import Stepping
from tests.rows.networks import ROWS

NETWORKS = [row for row in ROWS if len(find_groups(from_model(row.model)).groups) > 1][:6]


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("row", NETWORKS, ids=lambda row: row.name)
def test_steps_cost_what_the_model_says(row, kind):
    cost = CostModel(find_groups(from_model(row.model)))
    measure = cost.macs if kind == "macs" else cost.parameters_apart
    watched = [axis for _, _, axis in cost.constant_axes]
    under_way = Stepping(cost, kind, cost.widths, watched, 4)
    draw = np.random.default_rng(0)

    def agrees():
        sizes = cost.axis_sizes(under_way.counts)
        assert under_way.total() == measure(under_way.counts)
        assert [under_way.size(a) for a in range(len(sizes))] == list(sizes)
        assert under_way.broken == {a for a in watched if np.rint(sizes[a]) % 4}

    agrees()
    for _ in range(20):
        group = int(draw.integers(len(cost.widths)))
        before = under_way.counts.copy(), under_way.total()
        step = under_way.change(group, int(draw.integers(1, cost.widths[group] + 1)))
        agrees()
        if draw.random() < 0.5:
            under_way.undo(step)
            agrees()
            assert (under_way.counts == before[0]).all()
            assert under_way.total() == before[1]
    halves = {0: max(int(cost.widths[0]) // 2, 1), 1: 1}
    counts = under_way.counts.copy()
    assert under_way.total_with(halves) == measure([halves.get(g, int(c)) for g, c in enumerate(counts)])
    assert (under_way.counts == counts).all()
    assert measure(cost.widths) > under_way.total_with(halves) > 0


def test_a_table_of_axes():
    axes = {("a",): [np.arange(3), Fixed(2, ONE)], ("b",): [np.arange(0), np.array([5, 5])], ("c",): [np.array([7])]}
    axes["d",] = [axes["a",][0]]  # handed on: the same array
    table = table_of(axes.items())
    assert table.keys == [(("a",), 0, 0), (("b",), 0, 1), (("b",), 1, 2), (("c",), 0, 3), (("d",), 0, 0)]
    assert table.slots.tolist() == [0, 1, 2, 5, 5, 7]
    assert table.owner.tolist() == [0, 0, 0, 2, 2, 3]
    assert table.any(table.slots == 2).tolist() == [True, False, False, False]
    assert table.all(table.slots == 5).tolist() == [False, True, True, False]
    assert table.uniform(np.stack([table.slots, table.slots], 1)).tolist() == [False, True, True, True]
    assert distinct(np.array([[4, -1], [4, 2], [1, 2]])).tolist() == [1, 2, 4]


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_rows_replaced_in_part_are_those_replaced_as_a_whole(columns):
    draw = np.random.default_rng(1)
    whole = draw.integers(-1, 4, (40, columns))
    expected = [sorted({*row} - {-1}, reverse=True) for row in whole.tolist()]

    def filled(table):
        return [[v for v in row if v >= 0] for row in table.tolist()]

    table, at = unique_rows(whole), np.array([3, 17])
    assert filled(table) == expected
    fresh = unique_rows(np.array([[9, 8, 9, 7], [6, -1, -1, -1]]))
    replaced = with_rows(table, at, fresh)
    assert filled(replaced) == [[9, 8, 7] if n == 3 else [6] if n == 17 else row for n, row in enumerate(expected)]
    assert replaced.shape[1] == max(3, *map(len, expected))
