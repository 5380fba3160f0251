"""Every operator rule: the groups it leads to, and random cuts proved equal to the masked original."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter import find_groups, load, rewrite, save, verify
from exporter.edits import complete
from exporter.rules import RULES
from tests.rows import Row
from tests.rows.all import ROWS

PLANS = 3


def random_plan(groups, rng):
    """Keep between one and all units of every group, at random; at least one unit goes."""
    masks = []
    for group in groups:
        mask = np.zeros(group.width, bool)
        mask[rng.choice(group.width, rng.integers(1, group.width), replace=False)] = True
        masks.append(mask)
    return complete(groups, masks, {})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row: Row, tmp_path):
    onnx.save(row.model, tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx")
    groups = find_groups(graph)
    assert sorted(g.width for g in groups) == sorted(row.widths)
    if row.frozen:
        assert any(row.frozen in f.reason.text for f in groups.frozen), {f.reason.text for f in groups.frozen}
    rng = np.random.default_rng(0)
    for _ in range(PLANS if row.widths else 0):
        plan = random_plan(groups, rng)
        pruned = rewrite(graph, plan)
        proof = verify(pruned, graph, plan)
        assert pruned.parameters < graph.parameters
        assert proof.change > 1e-2 or (row.inner and proof.inner)
        save(pruned, tmp_path / "pruned.onnx")


def test_every_rule_has_a_row():
    assert set(RULES) == {op for row in ROWS for op in row.covers}


def test_row_names_are_unique():
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
