"""Property: for random graphs and random plans of depth and width, the pruned graph equals the masked original, may be
pruned again, and two plans put into one do the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter import compose, find_groups, rewrite, verify
from exporter.blocks import find_blocks
from exporter.depth import drop
from exporter.edits import complete
from exporter.model_file import from_model
from tests.exporter.random_graphs import networks
from tests.exporter.test_depth import random_drops
from tests.exporter.test_sequence import contents

_RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


def random_step(graph, rng):
    """A plan of random blocks and random units; every third keeps all blocks, some groups stay whole."""
    groups = find_groups(graph)
    blocks = find_blocks(groups)
    drops = random_drops(blocks, rng) if len(blocks) and rng.random() < 0.67 else []
    if drops:
        groups = find_groups(drop(graph, drops))
    masks = []
    for group in groups:
        mask = np.full(group.width, rng.random() < 0.2)
        mask[rng.choice(group.width, rng.integers(1, group.width), replace=False)] = True
        masks.append(mask)
    return complete(groups, masks, {})


def check(model, seed):
    graph = from_model(model)
    rng = np.random.default_rng(seed)
    plan = random_step(graph, rng)
    pruned = rewrite(graph, plan)
    verify(pruned, graph, plan, runs=2, tolerance=1e-3)
    if plan.drop or any(len(g.keep) < g.width for g in plan.groups):
        assert pruned.parameters < graph.parameters or plan.drop
    later = random_step(pruned, rng)
    again = rewrite(pruned, later)
    whole = compose(plan, later)
    once = rewrite(graph, whole)
    assert contents(once) == contents(again)
    verify(once, graph, whole, runs=2, tolerance=1e-3)


@settings(max_examples=60, **_RELAXED)
@given(networks(), st.integers(0, 2**16))
def test_random_graphs_and_plans(model, seed):
    check(model, seed)


@pytest.mark.slow
@settings(max_examples=2000, **_RELAXED)
@given(networks(most=14), st.integers(0, 2**16))
def test_many_random_graphs_and_plans(model, seed):
    check(model, seed)
