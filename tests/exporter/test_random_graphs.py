"""Property: for random graphs and random plans, the pruned graph equals the masked original."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter import find_groups, rewrite, verify
from exporter.model_file import from_model
from tests.exporter.random_graphs import networks
from tests.exporter.test_rules import random_plan

_RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


def check(model, seed):
    graph = from_model(model)
    groups = find_groups(graph)
    if not len(groups):
        return
    plan = random_plan(groups, np.random.default_rng(seed))
    pruned = rewrite(graph, plan)
    verify(pruned, graph, plan, runs=2, tolerance=1e-3)
    assert pruned.parameters < graph.parameters


@settings(max_examples=60, **_RELAXED)
@given(networks(), st.integers(0, 2**16))
def test_random_graphs_and_plans(model, seed):
    check(model, seed)


@pytest.mark.slow
@settings(max_examples=2000, **_RELAXED)
@given(networks(most=14), st.integers(0, 2**16))
def test_many_random_graphs_and_plans(model, seed):
    check(model, seed)
