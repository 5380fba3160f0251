"""Every operator rule: the groups it leads to, and random cuts proved equal to the masked original."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter import find_groups, load, rewrite, save, verify
from exporter.cost import CostModel
from exporter.edits import complete
from exporter.rules import FROZEN, RULES
from runtime.model_files import nodes_in
from runtime.work import macs_of
from tests.processor import exact_products
from tests.rows import Row
from tests.rows.all import ROWS
from tests.rows.attention import ONE_TABLE

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
    groups = find_groups(graph, row.io)
    assert sorted(g.width for g in groups) == sorted(row.widths)
    if row.frozen:
        assert any(row.frozen in f.reason.text for f in groups.frozen), {f.reason.text for f in groups.frozen}
    rng = np.random.default_rng(0)
    for _ in range(PLANS if row.widths else 0):
        plan = random_plan(groups, rng)
        pruned = rewrite(graph, plan)
        with exact_products(row.model):
            proof = verify(pruned, graph, plan)
        assert pruned.parameters < graph.parameters
        assert proof.change > 1e-2 or (row.inner and proof.inner)
        save(pruned, tmp_path / "pruned.onnx")


LOOPS = {"Loop", "Scan"}
"""A profile adds up what every iteration does."""


@pytest.mark.parametrize("row", [row for row in ROWS if not LOOPS & set(row.covers)], ids=lambda row: row.name)
def test_profiles_count_the_same_work(row: Row):
    if row.name == "RNN-no-hidden-size":
        pytest.skip("ONNX Runtime does not run it")
    graph = load(row.model)
    cost = CostModel(find_groups(graph))
    counted = [
        macs_of(n, [graph.shape(i) if i else None for i in n.input], [graph.shape(o) if o else None for o in n.output])
        for n in nodes_in(graph.model.graph.node)
    ]
    assert sum(counted) == round(cost.macs(cost.widths))


NEWER_THAN_ONNX_RUNTIME = {"CausalConvWithState", "LinearAttention", "SwiGLU"}
"""Operators of sets 27 and 28, which ONNX Runtime cannot load: test_standard.py proves them with onnx's evaluator."""


def test_every_rule_has_a_row():
    covered = {op for row in ROWS for op in row.covers}
    assert set(RULES) - covered == NEWER_THAN_ONNX_RUNTIME
    assert covered <= set(RULES) | set(FROZEN)


def test_row_names_are_unique():
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))


def test_one_rotary_table_for_all_samples(tmp_path):
    """Analysed with a batch of two, which ONNX Runtime refuses, and proved with one."""
    onnx.save(ONE_TABLE.model, tmp_path / "model.onnx")
    assert sorted(g.width for g in find_groups(load(tmp_path / "model.onnx"))) == sorted(ONE_TABLE.widths)
    graph = load(tmp_path / "model.onnx", {"x": (1, 6, 5)})
    plan = random_plan(find_groups(graph), np.random.default_rng(0))
    assert verify(rewrite(graph, plan), graph, plan).change > 1e-2
