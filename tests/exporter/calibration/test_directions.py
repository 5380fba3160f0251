"""A wide kernel through few directions: exact where its weights take no more, and the damage close to that of all."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.calibration import directions as module
from exporter.calibration.damage import predict
from exporter.calibration.data import calibration_of
from exporter.calibration.directions import Layout, find_directions
from exporter.calibration.evidence import evidence
from exporter.calibration.readers import find_readers, matrix
from exporter.calibration.readings import layout_of, readings
from exporter.calibration.runner import Runner
from exporter.groups import find_groups
from tests.exporter.calibration import networks

CHANNELS, POSITIONS, OUTPUTS = 6, 9, 5


def weights_of_rank(rank, groups=2, seed=0):
    """Weights of which every channel takes so many directions."""
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((groups, CHANNELS, POSITIONS, rank))
    whole = left @ rng.standard_normal((groups, CHANNELS, rank, OUTPUTS))
    return whole.swapaxes(1, 2).reshape(groups, -1, OUTPUTS)


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(module, "WIDE", 2 * CHANNELS)


@pytest.mark.usefixtures("narrow")
def test_weights_of_two_directions_are_kept_whole_by_two():
    weights = weights_of_rank(2)
    found = find_directions(weights, Layout(POSITIONS))
    assert found is not None
    assert found.columns == 2 * CHANNELS
    assert found.back(found.weights(weights)) == pytest.approx(weights)
    inputs = np.random.default_rng(1).standard_normal((2, 40, CHANNELS * POSITIONS)).astype(np.float32)
    assert found.rows(inputs).shape == (2, 40, 2 * CHANNELS)
    assert found.rows(inputs) @ found.weights(weights) == pytest.approx(inputs @ weights, abs=1e-3)


@pytest.mark.usefixtures("narrow")
def test_the_strongest_directions_are_kept():
    weights = weights_of_rank(2) + 1e-3 * weights_of_rank(POSITIONS, seed=1)
    found = find_directions(weights, Layout(POSITIONS))
    assert found is not None
    assert found.back(found.weights(weights)) == pytest.approx(weights, abs=0.02)


@pytest.mark.parametrize(("channels", "positions"), [(6, 9), (module.WIDE + 1, 1), (module.WIDE // 9, 9)])
def test_narrow_kernels_and_matrices_keep_all(channels, positions):
    assert find_directions(np.ones((1, channels * positions, 2)), Layout(positions)) is None


def test_the_damage_is_close_to_that_with_all_columns(monkeypatch):
    graph = networks.loaded(networks.conv_net())
    groups = find_groups(graph)
    numbers = [n for n, g in enumerate(groups.groups) if g.kind == "channels"]
    calibration = calibration_of(networks.samples(graph, 256), graph)
    whole = predict(groups, numbers, calibration, lambda _: None)
    monkeypatch.setattr(module, "WIDE", 100)
    few = predict(groups, numbers, calibration, lambda _: None)
    assert whole.damage.keys() == few.damage.keys()
    assert any((whole.damage[n] != few.damage[n]).any() for n in whole.damage)
    for name, damage in whole.damage.items():
        order = [np.argsort(scores[name]) for scores in (whole.scores, few.scores)]
        half = len(damage) // 2
        assert len(set(order[0][:half]) & set(order[1][:half])) >= 0.6 * half
        assert few.damage[name][half - 1] == pytest.approx(damage[half - 1], rel=0.6)


@pytest.mark.parametrize("wide", [40, 1024])
@pytest.mark.parametrize("how", ["nchw", "nhwc"])
def test_flattened_positions_are_those_of_a_kernel(how, wide, monkeypatch):
    """In whatever order they are flattened: the same choice, and the same weights at every level."""
    monkeypatch.setattr(module, "WIDE", wide)
    found = {}
    for form in ("conv", how):
        graph = networks.loaded(networks.flattened_net(form))
        groups = find_groups(graph)
        (number,) = (n for n, g in enumerate(groups.groups) if g.kind == "channels")
        (reading,) = readings(groups, [number])[number]
        assert reading.layout.positions == 16
        runner = Runner(graph, networks.samples(graph, 200), 50)
        found[form] = evidence(groups, [number], runner, lambda _: None)[number]
        weights = [matrix(reading.reader, known["w2"]) for _, known in found[form].levels]
        order = reading.layout.order
        found[form, "weights"] = [w if order is None else w[:, order] for w in weights]
    want, got = found["conv"], found[how]
    assert got.curve.order.tolist() == want.curve.order.tolist()
    np.testing.assert_allclose(got.curve.damage, want.curve.damage, rtol=1e-3, atol=1e-6)
    for one, other in zip(found["conv", "weights"], found[how, "weights"], strict=True):
        np.testing.assert_allclose(other, one, atol=1e-3)


def test_what_is_read_in_part_or_unevenly_has_no_positions():
    """Columns that belong to nothing, or channels of unequal numbers of columns."""
    graph = networks.loaded(networks.flattened_net("nchw"))
    (reader,) = (r for r in find_readers(graph) if r.weight == "w2")
    even = np.repeat(np.arange(10), 16)
    assert layout_of(reader, graph, [even]).positions == 16
    assert layout_of(reader, graph, [np.where(even == 3, -1, even)]).positions == 1
    assert layout_of(reader, graph, [np.where(even == 3, 4, even)]).positions == 1
    assert layout_of(reader, graph, [even, np.tile(np.arange(16), 10)]).positions == 1
    halves = [np.where(even < 5, even, -1), np.where(even < 5, -1, even)]
    assert layout_of(reader, graph, halves).positions == 16
