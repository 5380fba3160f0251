"""Plans in sequence: a pruned model is pruned again, and two plans become one that does the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from exporter import Plan, UsageError, compose, find_groups, load, rewrite, save, verify
from exporter.blocks import find_blocks
from exporter.cli import main
from exporter.edits import complete
from exporter.model_file import from_model
from tests.exporter.test_depth import random_deep_plan
from tests.exporter.test_rules import random_plan
from tests.processor import exact_products
from tests.rows.all import ROWS
from tests.rows.depth import ROWS as DEEP
from tests.rows.networks import ROWS as NETWORKS

CUTTABLE = [row for row in ROWS if row.widths]


def gentle_plan(groups, rng):
    """At least half of the units of every group stay: something is left to cut."""
    masks = []
    for group in groups:
        mask = np.zeros(group.width, bool)
        mask[rng.choice(group.width, rng.integers((group.width + 1) // 2, group.width + 1), replace=False)] = True
        masks.append(mask)
    return complete(groups, masks, {"seed": 0})


def contents(graph):
    """Initializers and nodes of a graph, as bytes."""
    tensors = {t.name: t.SerializeToString(deterministic=True) for t in graph.model.graph.initializer}
    return tensors, [n.SerializeToString(deterministic=True) for n in graph.model.graph.node]


def assert_composes(graph, plans):
    """Plans one after the other, and put into one: the same model, proved against the first."""
    pruned, whole = graph, None
    for plan in plans:
        pruned = rewrite(pruned, plan)
        whole = plan if whole is None else compose(whole, plan)
    assert Plan.from_json(whole.to_json()) == whole
    once = rewrite(graph, whole)
    assert contents(once) == contents(pruned)
    verify(once, graph, whole, runs=2)


@pytest.mark.parametrize("row", CUTTABLE, ids=lambda row: row.name)
def test_pruned_models_are_pruned_again(row, tmp_path):
    """Through files; the last step is proved by itself, and so is the whole sequence."""
    onnx.save(row.model, tmp_path / "0.onnx")
    rng = np.random.default_rng(1)
    first = graph = load(tmp_path / "0.onnx")
    plans = []
    times = 4 if row in NETWORKS else 2
    for number in range(1, times + 1):
        groups = find_groups(graph, row.io)
        if not len(groups):
            break
        plans.append(gentle_plan(groups, rng) if number < times else random_plan(groups, rng))
        before, graph = graph, rewrite(graph, plans[-1])
        save(graph, tmp_path / f"{number}.onnx")
        graph = load(tmp_path / f"{number}.onnx", graph.binding.shapes)
    assert len(plans) > 1 or max(row.widths) == 2
    with exact_products(row.model):
        verify(graph, before, plans[-1], runs=2)
        assert_composes(first, plans)


@pytest.mark.parametrize("row", [r for r in DEEP if len(r.blocks) > 1], ids=lambda row: row.name)
def test_dropped_blocks_compose(row):
    graph = pruned = from_model(row.model)
    rng = np.random.default_rng(2)
    plans = []
    for number in range(3):
        groups = find_groups(pruned)
        if number != 1 and not len(find_blocks(groups)):
            break
        plans.append(gentle_plan(groups, rng) if number == 1 else random_deep_plan(pruned, rng))
        before, pruned = pruned, rewrite(pruned, plans[-1])
        verify(pruned, before, plans[-1], runs=2)
    assert sum(len(p.drop) for p in plans) > 0
    assert_composes(graph, plans)


@pytest.mark.parametrize("name", ["digits_cnn", "digits_vit"])
def test_shipped_models(name, tmp_path):
    """Pruned by the command line three times over, depth and width; proved step by step and from end to end."""
    steps = [("--ratio", "0.3", "--align", "1"), ("--layers", "1"), ("--macs", "0.7", "--score", "l1")]
    dense = path = Path(__file__).parents[2] / "models" / f"{name}.onnx"
    plans = []
    for number, options in enumerate(steps):
        out, plan = tmp_path / f"{number}.onnx", tmp_path / f"{number}.json"
        assert main(["prune", str(path), "-o", str(out), "-q", "--save-plan", str(plan), *options]) == 0
        assert main(["verify", str(path), str(out), "-q", "--plan", str(plan)]) == 0
        path = out
        plans += ["--plan", str(plan)]
    assert main(["verify", str(dense), str(path), "-q", *plans]) == 0
    assert main(["verify", str(dense), str(path), "-q", *plans[:4]]) == 1
    assert main(["verify", str(dense), str(path), "-q", *plans[2:], *plans[:2]]) == 2


def test_plans_in_the_wrong_order_are_refused():
    graph = from_model(DEEP[3].model)
    rng = np.random.default_rng(0)
    one = gentle_plan(find_groups(graph), rng)
    two = random_plan(find_groups(rewrite(graph, one)), rng)
    with pytest.raises(UsageError, match="do not follow each other"):
        compose(two, one)


def test_a_removed_constant_is_not_cut_later():
    graph = from_model(DEEP[3].model)
    one = random_deep_plan(graph, np.random.default_rng(0), widths=False)
    groups = find_groups(graph)
    two = complete(groups, [np.arange(g.width) > 0 for g in groups], {})
    with pytest.raises(UsageError, match="the first removes"):
        compose(one, two)


def test_groups_keep_what_both_keep():
    graph = from_model(next(r for r in NETWORKS if r.name == "attention-fused-qkv").model)
    groups = find_groups(graph)
    one = complete(groups, [np.arange(g.width) != 0 for g in groups], {"step": 1}, ["a"])
    later = find_groups(rewrite(graph, one))
    two = complete(later, [np.arange(g.width) != 1 for g in later], {"step": 2}, ["b"])
    whole = compose(one, two)
    assert {g.name: g.keep for g in whole.groups} == {g.name: (1, *range(3, g.width)) for g in groups}
    assert whole.options == {"steps": [{"step": 1}, {"step": 2}]}
    assert whole.notes == ("a", "b")
    assert whole.model == one.model
