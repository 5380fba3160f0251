"""The fit of a wide layer by its rows: what the moments give, without them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from exporter import find_groups, make_plan, rewrite, score
from exporter.calibration import compensation
from exporter.calibration import fit as one_fit
from exporter.calibration.by_rows import ByRows
from exporter.calibration.compensation import compensate
from exporter.calibration.evidence import Sample, moments_of
from exporter.calibration.moments import to_fit_and_judge
from exporter.model_file import from_model
from tests.exporter.calibration import networks
from tests.onnx_builder import build, node


def layer(groups, count, held, columns=24, outputs=5, offset=3.0):
    """Samples of a layer that weights explain but for noise, and weights near those."""
    rng = np.random.default_rng(groups + count)
    truth = rng.standard_normal((groups, columns, outputs))
    found = []
    for _ in range(3):
        x = rng.standard_normal((groups, count, columns)).astype(np.float32) + np.float32(offset)
        y = (x @ truth + rng.standard_normal((groups, count, outputs)) + 2).astype(np.float32)
        found.append(Sample(x, y, held, ()))
    return found, truth + 0.3 * rng.standard_normal(truth.shape)


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("held", [0, 2])
@pytest.mark.parametrize(("groups", "count"), [(1, 5), (1, 40), (3, 7)])
def test_the_same_as_by_moments(groups, count, held, intercept, every):
    """More columns than rows and fewer, with and without held-out rows and a bias."""
    samples, present = layer(groups, count, held)
    bias = np.full((groups, 5), 0.7) if intercept else None
    found = ByRows(samples, present, bias)
    moments = moments_of(samples)
    fit, judge = to_fit_and_judge(moments, intercept)
    assert found.rows == 3 * (count - held)
    assert found.before == pytest.approx(judge.error(present, bias), rel=1e-4)
    assert found.energy == pytest.approx(judge.yy.sum(), rel=1e-4)
    for damping in (1e-2, 1.0):
        solver = fit.solver(damping)
        weights = solver.fit(fit.xy, present)
        tried = found.tried(damping)
        wrong = judge.error(weights, fit.bias(weights) if intercept else None)
        assert tried.error == pytest.approx(wrong, rel=1e-3, abs=1e-6 * found.energy)
        about = (sum(moments[1:], moments[0]) if every and held else moments[0]).centred(intercept)
        want = about.solver(damping).fit(about.xy, present)
        got, offset = found.weights(damping, every)
        np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())
        if intercept:
            np.testing.assert_allclose(offset, about.bias(want), atol=2e-3 * np.abs(about.bias(want)).max())
        else:
            assert offset is None


def test_the_slope_is_that_of_the_error():
    """By a small step of the damping."""
    found = ByRows(*layer(1, 9, 3), np.zeros((1, 5)))
    step = 1e-3
    low, middle, high = (found.tried(d) for d in (0.1 - step, 0.1, 0.1 + step))
    per_damping = (high.error - low.error) / (2 * step)
    assert np.sign(middle.slope) == np.sign(per_damping)
    x = np.concatenate([s.x[0, s.part(False)] for s in layer(1, 9, 3)[0]])
    ridge = np.square(x - x.mean(0)).mean()  # what a damping of 1 is
    assert middle.slope * ridge == pytest.approx(per_damping, rel=0.02)


def test_rows_without_numbers_do_not_count():
    """A sample that overflows does not spoil what the others tell."""
    samples, present = layer(1, 9, 3)
    spoilt = Sample(np.full_like(samples[0].x, np.nan), samples[0].y, 3, ())
    bias = np.zeros((1, 5))
    want, got = ByRows(samples, present, bias), ByRows([samples[0], spoilt, *samples[1:]], present, bias)
    assert (got.rows, got.before) == (want.rows, want.before)
    np.testing.assert_array_equal(got.weights(0.1, True)[0], want.weights(0.1, True)[0])
    assert ByRows([spoilt], present, bias).rows == 0


@pytest.mark.parametrize("name", ["conv_net", "residual_mlp", "transformer"])
def test_whole_networks_are_fitted_as_well(name, monkeypatch):
    """Every layer by its rows instead of by its moments."""
    monkeypatch.setattr(compensation, "find_pairs", lambda *_: {})
    monkeypatch.setattr(one_fit, "_LIMITED_WORK", 0)
    graph = from_model(getattr(networks, name)())
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups, "l2"), ratio=0.5, align=1)
    pruned, samples = rewrite(graph, plan), networks.samples(graph, 64)
    want = compensate(pruned, graph, plan, samples, 32)[1]
    monkeypatch.setattr(one_fit.Fit, "_has_few_rows", lambda _: True)
    got = compensate(pruned, graph, plan, samples, 32)[1]
    assert [r.weight for r in got] == [r.weight for r in want]
    np.testing.assert_allclose([r.before for r in got], [r.before for r in want], rtol=0.02, atol=1e-6)
    np.testing.assert_allclose([r.after for r in got], [r.after for r in want], rtol=0.02, atol=1e-6)
    assert sum(r.after < r.before for r in got) >= len(got) / 2


@pytest.mark.parametrize(("columns", "count", "by_rows"), [(30, 256, False), (300, 256, True), (10, 256, False)])
def test_wide_layers_of_few_rows_are_fitted_by_these(columns, count, by_rows, monkeypatch):
    """Wide ones of many rows and narrow ones by their moments."""
    monkeypatch.setattr(one_fit, "_MOST_COLUMNS", 12)
    monkeypatch.setattr(compensation, "find_pairs", lambda *_: {})
    used = []
    plain = ByRows.__init__
    monkeypatch.setattr(ByRows, "__init__", lambda self, *given: used.append(1) or plain(self, *given))
    constants = networks.scaled(w1=(6, 2 * columns), w2=(2 * columns, 3), b2=(3,))
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "a"), node("Gemm", "a w2 b2", "y")]
    graph = from_model(build(nodes, {"x": ["N", 6]}, ["y"], constants))
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups, "l2"), ratio=0.5, align=1)
    (refit,) = compensate(rewrite(graph, plan), graph, plan, networks.samples(graph, count), 32)[1]
    assert bool(used) == by_rows
    assert refit.after < refit.before


@pytest.mark.parametrize("quick", [False, True])
def test_a_wide_layer_takes_little_memory(quick):
    """15,000 columns have moments of 1.8 GB, of which several are needed."""
    constants = networks.scaled(w1=(6, 30_000), w2=(30_000, 3), b2=(3,))
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "a"), node("Gemm", "a w2 b2", "y")]
    graph = from_model(build(nodes, {"x": ["N", 6]}, ["y"], constants))
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups, "l2"), ratio=0.5, align=1)
    pruned, samples = rewrite(graph, plan), networks.samples(graph, 64)
    tracemalloc.start()
    try:
        _, (refit,) = compensate(pruned, graph, plan, samples, 32, quick=quick)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6
    assert refit.after < 0.2 * refit.before
