"""Calibrated scores against their formulas, on activations that ONNX Runtime computed."""

from __future__ import annotations

import numpy as np
import pytest

from exporter import UsageError, find_groups, score, score_names
from exporter.calibration.evidence import readings
from exporter.calibration.runner import Runner
from exporter.calibration.scores import CALIBRATED, calibrated_scores
from exporter.normalise import input_specs
from exporter.protos import add_outputs
from runtime.backends import open_session
from runtime.samples import samples_of
from tests.exporter.calibration import networks
from tests.onnx_builder import build, node, weights

COUNT = 96


def silent(line):
    assert line


def scores_of(groups, by, samples):
    return calibrated_scores(groups, range(len(groups)), by, Runner(groups.graph, samples, 32), silent)


def activations(graph, samples, *names):
    """Tensors on all samples in one run."""
    model = type(graph.model)()
    model.CopyFrom(graph.model)
    add_outputs(model, names)
    (feeds,) = samples.batches(len(samples))
    return [np.asarray(v, np.float64) for v in open_session(model.SerializeToString()).run(feeds, names).values()]


def by_formula(by, x, w, y):
    """Score of every unit; x [rows, units, columns], w [units, columns, outputs], y [rows, outputs]."""
    if by == "wanda":
        norms = np.sqrt(np.square(x).sum(0))
        return (np.abs(w) * norms[..., None]).sum((1, 2)) / np.sqrt(np.square(y).sum(0)).sum()
    if by == "flap":
        return (np.square(w) * x.var(0)[..., None]).sum((1, 2)) * len(x) / np.square(y).sum()
    brought = np.einsum("ruc,uco->ruo", x, w)
    return np.square(brought).sum((0, 2)) / np.square(y).sum()


FORMULAS = ["wanda", "flap", "energy"]


@pytest.mark.parametrize("by", FORMULAS)
def test_channels_read_by_a_convolution(by):
    """Each unit has nine columns: what the kernel sees of it."""
    graph = networks.loaded(networks.conv_net())
    samples = networks.samples(graph, COUNT)
    groups = find_groups(graph)
    a2, h3 = activations(graph, samples, "a2", "h3")
    windows = np.lib.stride_tricks.sliding_window_view(a2, (3, 3), (2, 3))  # [N, 24, 3, 3, 3, 3]
    x = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 24, 9)
    w = graph.array("w3").astype(np.float64).reshape(6, 24, 9).transpose(1, 2, 0)
    want = by_formula(by, x, w, h3.transpose(0, 2, 3, 1).reshape(-1, 6))
    found = scores_of(groups, by, samples)
    assert found["w2"] == pytest.approx(want, rel=1e-3)
    assert np.ptp(want) > 0.1 * want.mean()


@pytest.mark.parametrize("by", FORMULAS)
def test_readers_of_a_stream_add_up(by):
    """A hidden width is read by three layers."""
    graph = networks.loaded(networks.residual_mlp())
    samples = networks.samples(graph, COUNT)
    groups = find_groups(graph)
    (hidden,) = [n for n, g in enumerate(groups) if g.width == 16]
    want = 0
    for reading in readings(groups, [hidden])[hidden]:
        x, y = activations(graph, samples, reading.reader.source, reading.reader.result)
        w = graph.array(reading.reader.weight).astype(np.float64)
        want = want + by_formula(by, x[:, :, None], w[:, None], y)[np.argsort(reading.units)]
    assert len(readings(groups, [hidden])[hidden]) == 3
    assert scores_of(groups, by, samples)[groups.groups[hidden].name] == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("by", FORMULAS)
def test_heads_have_the_columns_of_their_dimensions(by):
    graph = networks.loaded(networks.transformer())
    samples = networks.samples(graph, COUNT)
    groups = find_groups(graph)
    of, f0 = activations(graph, samples, "of", "f0")
    w = graph.array("wo").astype(np.float64).reshape(2, 4, 8)
    want = by_formula(by, of.reshape(-1, 2, 4), w, f0.reshape(-1, 8))
    (heads,) = [g.name for g in groups if g.kind == "heads"]
    assert scores_of(groups, by, samples)[heads] == pytest.approx(want, rel=1e-3)


def test_reconstruction_knows_what_is_redundant():
    """Two neurons that are one: the first to go costs little, the other then counts most."""
    constants = networks.scaled(w1=(16, 12), w2=(12, 4))
    constants["w1"][:, 7] = constants["w1"][:, 3]
    constants["w2"][[3, 7]] = 2
    model = build([node("MatMul", "x w1", "h"), node("Relu", "h", "a"), node("MatMul", "a w2", "y")], {"x": ["N", 16]},
                  ["y"], constants)  # fmt: skip
    graph = networks.loaded(model)
    groups = find_groups(graph)
    samples = networks.samples(graph, 200)
    found = scores_of(groups, "reconstruction", samples)["w1"]
    assert found[[3, 7]].max() == found.max()
    assert found[[3, 7]].min() < 0.05 * found.max()
    assert len(set(found)) == 12
    assert set(np.argsort(scores_of(groups, "energy", samples)["w1"])[-2:]) == {3, 7}, "alone both count"


def test_every_score_has_a_name_that_others_can_read():
    assert set(CALIBRATED) == set(score_names.CALIBRATED)


@pytest.mark.parametrize("by", CALIBRATED)
def test_what_no_layer_reads_is_scored_by_magnitude(by):
    """The channels that an Einsum reads; and groups that are not asked for."""
    nodes = [
        node("MatMul", "x w1", "h"),
        node("Einsum", "h w2", "e", equation="nc,cd->nd"),
        node("MatMul", "e w3", "y"),
    ]
    graph = networks.loaded(build(nodes, {"x": ["N", 6]}, ["y"], weights(w1=(6, 12), w2=(12, 5), w3=(5, 3))))
    groups = find_groups(graph)
    samples, plain = networks.samples(graph, COUNT), score(groups, "l2")
    found = scores_of(groups, by, samples)
    assert (found["w1"] == plain["w1"]).all()
    assert not np.allclose(found["w2"], plain["w2"])
    numbers = [n for n, g in enumerate(groups) if g.name == "w1"]
    only = calibrated_scores(groups, numbers, by, Runner(graph, samples, 32), silent)
    assert (only["w2"] == plain["w2"]).all()


@pytest.mark.parametrize("by", CALIBRATED)
def test_inputs_that_are_all_zero_give_finite_scores(by):
    graph = networks.loaded(networks.conv_net())
    zeros = {"x": np.zeros((32, 3, 12, 12), np.float32)}
    for values in scores_of(find_groups(graph), by, samples_of([zeros], input_specs(graph.model))).values():
        assert np.isfinite(values).all()


def test_unknown_scores_are_refused():
    graph = networks.loaded(networks.conv_net())
    with pytest.raises(UsageError, match="Choose from: wanda, flap, energy, reconstruction"):
        scores_of(find_groups(graph), "taylor", networks.samples(graph, 32))
