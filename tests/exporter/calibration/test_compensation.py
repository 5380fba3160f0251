"""Compensation: what is left gives more of what the whole gave, on inputs it was not fitted to."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter import find_groups, make_plan, rewrite, score
from exporter.calibration import fit as one_fit
from exporter.calibration import joint
from exporter.calibration.compensation import compensate
from exporter.model_file import from_model
from exporter.normalise import input_specs
from runtime.backends import open_session
from runtime.samples import samples_of
from tests.exporter.calibration import networks
from tests.onnx_builder import build, node, weights

BATCH = 32


def outputs(graph, samples):
    """The output y of a graph for all samples."""
    session = open_session(graph.model.SerializeToString())
    return np.concatenate([session.run(f)["y"] for f in samples.batches(64)]).astype(np.float64)


class Cut:
    """A model cut to half of its groups by magnitude, before and after compensation."""

    def __init__(self, model, *, count=256, by="l2", batch=BATCH, **options):
        self.graph = from_model(model)
        groups = find_groups(self.graph)
        self.plan = make_plan(groups, score(groups, by), **{"ratio": 0.5, "align": 1, **options})
        self.pruned = rewrite(self.graph, self.plan)
        self.samples = networks.samples(self.graph, count)
        self.lines: list[str] = []
        self.fixed, self.refits = compensate(self.pruned, self.graph, self.plan, self.samples, batch, self.lines.append)

    def error(self, graph):
        """Square error of the outputs relative to their variance, on other inputs."""
        got, want = (outputs(g, networks.samples(self.graph, 256, seed=9)) for g in (graph, self.graph))
        return np.square(got - want).mean() / np.var(want)

    def changed(self):
        """Names of the constants that are not what they were, all being of the same shape and type."""
        before, after = ({t.name: t for t in g.model.graph.initializer} for g in (self.pruned, self.fixed))
        assert list(before) == list(after)
        for name, tensor in after.items():
            assert (list(tensor.dims), tensor.data_type) == (list(before[name].dims), before[name].data_type)
        return {n for n in after if onnx.numpy_helper.to_array(after[n]).tobytes() !=
                onnx.numpy_helper.to_array(before[n]).tobytes()}  # fmt: skip


FITS = {
    "conv": (networks.conv_net, 0.3),
    "residual": (networks.residual_mlp, 0.3),
    "depthwise": (networks.depthwise_net, 0.3),
    "transformer": (networks.transformer, 0.5),
    "fixed-batch": (lambda: networks.transformer(fixed=4), 0.5),
    "normalised": (networks.normalised_net, 0.3),
    "half": (lambda: networks.conv_net(np.float16), 0.3),
}
"""Models, and what is left of the error at most."""


@pytest.fixture(scope="module", params=FITS)
def fit(request):
    make, share = FITS[request.param]
    return Cut(make()), share


def test_the_error_shrinks(fit):
    cut, share = fit
    before, after = cut.error(cut.pruned), cut.error(cut.fixed)
    assert before > 0.01
    assert after < share * before


def test_shapes_and_types_stay(fit):
    cut, _ = fit
    assert cut.changed()
    onnx.checker.check_model(cut.fixed.model, full_check=True)
    assert cut.pruned.model.graph.node == cut.fixed.model.graph.node


def test_each_reader_is_reported(fit):
    cut, _ = fit
    assert cut.lines
    assert all(r.after <= r.before for r in cut.refits)
    assert any(r.damping is not None for r in cut.refits)
    assert {r.weight for r in cut.refits if r.damping is not None} <= cut.changed()


def test_the_bias_of_a_batch_normalization_serves_as_the_layers():
    """Nothing else of the BatchNormalization moves."""
    cut = Cut(networks.normalised_net())
    assert {"w2", "s2"} <= cut.changed() <= {"w1", "w2", "w3", "s1", "s2"}


def test_a_file_with_batch_normalization_is_fitted_as_the_folded_one():
    """Where both lose the same units, both give the same in the end, up to rounding."""
    normalised, folded = (Cut(networks.normalised_net(fold=f), by="random") for f in (False, True))
    assert normalised.refits
    np.testing.assert_allclose(
        [(r.before, r.after) for r in normalised.refits], [(r.before, r.after) for r in folded.refits], rtol=1e-3
    )
    samples = networks.samples(normalised.graph, 32, seed=9)
    got, want = outputs(normalised.fixed, samples), outputs(folded.fixed, samples)
    assert np.abs(got - want).max() < 1e-3 * want.std()


@pytest.mark.parametrize("make", [networks.conv_net, networks.residual_mlp])
def test_two_runs_agree_to_the_bit(make):
    first, second = (Cut(make(), count=64).fixed.model.SerializeToString() for _ in range(2))
    assert first == second


def test_the_graphs_given_stay():
    cut = Cut(networks.residual_mlp(), count=64)
    assert (cut.graph.array("w1") == from_model(networks.residual_mlp()).array("w1")).all()
    again = rewrite(cut.graph, cut.plan)
    assert again.model.SerializeToString() == cut.pruned.model.SerializeToString()


def test_a_reader_that_noise_feeds_keeps_its_weights():
    """Independent inputs: none that stays can stand in for one that went."""
    constants = {"w1": np.eye(16, dtype=np.float32), **networks.scaled(w2=(16, 3))}
    nodes = [node("MatMul", "x w1", "h"), node("MatMul", "h w2", "y")]
    cut = Cut(build(nodes, {"x": ["N", 16]}, ["y"], constants), count=64)
    rng = np.random.default_rng(3)
    noise = samples_of([{"x": rng.standard_normal((400, 16)).astype(np.float32)}], input_specs(cut.graph.model))
    fixed, (refit,) = compensate(cut.pruned, cut.graph, cut.plan, noise, BATCH)
    (before,), (after,) = ([t for t in g.model.graph.initializer if t.name == "w2"] for g in (cut.pruned, fixed))
    moved = onnx.numpy_helper.to_array(after) - onnx.numpy_helper.to_array(before)
    assert np.abs(moved).max() < 0.2 * np.abs(onnx.numpy_helper.to_array(before)).max()
    assert refit.after > 0.9 * refit.before


@pytest.mark.parametrize(("name", "count", "best"), [("residual", 40, 0), ("conv", 256, 1), ("conv", 24, 2)])
def test_of_all_dampings_the_best_is_found(name, count, best, monkeypatch):
    """Less than the usual one where rows tell all, more where they are few."""
    found = Cut(FITS[name][0](), count=count).refits[0]
    errors = []
    for damping in one_fit._DAMPINGS:
        with monkeypatch.context() as patch:
            patch.setattr(one_fit, "_DAMPINGS", (damping,))
            patch.setattr(one_fit, "_USUAL", 0)
            errors.append(Cut(FITS[name][0](), count=count).refits[0].after)
    assert int(np.argmin(errors)) == best
    assert found.after == errors[best]


def test_many_outputs_are_fitted_some_at_a_time(monkeypatch):
    """Each block with a damping of its own, so that the error is no larger."""
    constants = networks.scaled(w0=(6, 20), w1=(20, 64)) | {"b1": np.linspace(-1, 1, 64, dtype=np.float32)}
    nodes = [node("MatMul", "x w0", "a"), node("Relu", "a", "h"), node("Gemm", "h w1 b1", "y")]
    model = build(nodes, {"x": ["N", 6]}, ["y"], constants)
    at_once = Cut(model)
    monkeypatch.setattr(one_fit, "_AT_ONCE", 1)
    cut = Cut(model)
    (whole,), (blocks,) = at_once.refits, cut.refits
    assert blocks.after <= whole.after < 0.5 * whole.before
    assert blocks.before == pytest.approx(whole.before)
    assert {"w1", "b1"} <= cut.changed()
    assert cut.error(cut.fixed) == pytest.approx(at_once.error(at_once.fixed), rel=0.05)


def test_nothing_moves_without_a_change():
    """A layer whose inputs are what they were is left alone."""
    constants = networks.scaled(w0=(6, 8), w1=(8, 20), w2=(20, 8), w3=(8, 3))
    nodes = [node("MatMul", "x w0", "a"), node("Relu", "a", "b"), node("MatMul", "b w1", "h"), node("Relu", "h", "i"),
             node("MatMul", "i w2", "j"), node("MatMul", "j w3", "y")]  # fmt: skip
    cut = Cut(build(nodes, {"x": ["N", 6]}, ["y"], constants), keep=["w0"])
    assert "w2" in cut.changed()
    assert "w0" not in cut.changed()
    assert {r.weight for r in cut.refits} == {"w2", "w3"}


def test_shared_weights_stay():
    """One matrix for two layers: no fit of one would suit the other."""
    constants = networks.scaled(w0=(6, 12), w1=(12, 12), b1=(12,), w2=(12, 3))
    nodes = [node("MatMul", "x w0", "a"), node("Relu", "a", "b"), node("MatMul", "b w1", "h"), node("Relu", "h", "i"),
             node("MatMul", "i w1", "j"), node("Relu", "j", "k"), node("MatMul", "k w2", "y")]  # fmt: skip
    model = build(nodes, {"x": ["N", 6]}, ["y"], {k: v for k, v in constants.items() if k != "b1"})
    cut = Cut(model)
    assert "w1" not in cut.changed()
    assert "w2" in cut.changed()
    assert cut.error(cut.fixed) < cut.error(cut.pruned)


def test_a_bias_takes_up_a_constant():
    """The units that go are constant: the bias of the reader makes up for them to round-off."""
    constants = networks.scaled(w1=(6, 12), w2=(12, 3), b2=(3,)) | {"b1": np.zeros(12, np.float32)}
    constants["w1"][:, 6:] = 0
    constants["b1"][6:] = np.linspace(1, 6, 6)
    constants["w2"][6:] = 1
    nodes = [node("Gemm", "x w1 b1", "h"), node("Relu", "h", "a"), node("Gemm", "a w2 b2", "y")]
    model = build(nodes, {"x": ["N", 6]}, ["y"], constants)
    graph = from_model(model)
    groups = find_groups(graph)
    small = {"w1": np.r_[np.ones(6), np.zeros(6)]}
    plan = make_plan(groups, small, ratio=0.5, align=1)
    pruned = rewrite(graph, plan)
    fixed, _ = compensate(pruned, graph, plan, networks.samples(graph, 128), BATCH)
    plain, got, want = (outputs(g, networks.samples(graph, 64, seed=9)) for g in (pruned, fixed, graph))
    assert np.abs(plain - want).min() > 10
    assert np.abs(got - want).max() < 1e-3 * want.std()


def test_weights_in_constant_nodes_are_fitted_too():
    constants = networks.scaled(w1=(6, 12), w2=(12, 3))
    held = [node("Constant", "", n, value=onnx.numpy_helper.from_array(v)) for n, v in constants.items()]
    nodes = [*held, node("MatMul", "x w1", "h"), node("Relu", "h", "a"), node("MatMul", "a w2", "y")]
    cut = Cut(build(nodes, {"x": ["N", 6]}, ["y"]))
    assert cut.error(cut.fixed) < 0.8 * cut.error(cut.pruned)


def test_inputs_that_are_no_numbers_do_no_harm():
    """Some inputs overflow: the fit must not write what is no number, or leave it to be found out."""
    cut = Cut(networks.residual_mlp(), count=64)
    feeds = {"x": np.full((64, 6), np.inf, np.float32)}
    _, refits = compensate(cut.pruned, cut.graph, cut.plan, samples_of([feeds], input_specs(cut.graph.model)), BATCH)
    assert all(r.damping is None for r in refits)


def test_integers_inside_do_no_harm():
    """A table of rows, selected by ids."""
    constants = {**weights(table=(20, 12)), **networks.scaled(w1=(12, 24), b1=(24,), w2=(24, 12), wy=(12, 4))}
    nodes = [
        node("Gather", "table ids", "s"), node("MatMul", "s w1", "m"), node("Add", "m b1", "h"), node("Relu", "h", "a"),
        node("MatMul", "a w2", "f"), node("Add", "f s", "t"), node("MatMul", "t wy", "y"),
    ]  # fmt: skip
    graph = from_model(build(nodes, {"ids": ["N", 5]}, ["y"], constants, kinds={"ids": "i"}))
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1)
    pruned = rewrite(graph, plan)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 20, (256, 5))
    fixed, _ = compensate(pruned, graph, plan, samples_of([{"ids": ids}], input_specs(graph.model)), BATCH)
    others = samples_of([{"ids": rng.integers(0, 20, (64, 5))}], input_specs(graph.model))
    plain, got, want = (outputs(g, others) for g in (pruned, fixed, graph))
    assert np.square(got - want).mean() < 0.6 * np.square(plain - want).mean()


def test_where_nothing_is_lost_nothing_moves():
    """The units that go were multiplied by zero."""
    constants = networks.scaled(w1=(6, 12), w2=(12, 3), b2=(3,))
    constants["w1"][:, 6:] *= 0.01
    constants["w2"][6:] = 0
    nodes = [node("MatMul", "x w1", "h"), node("Tanh", "h", "a"), node("Gemm", "a w2 b2", "y")]
    cut = Cut(build(nodes, {"x": ["N", 6]}, ["y"], constants))
    assert cut.error(cut.pruned) < 1e-9
    assert cut.error(cut.fixed) < 1e-9
    for name in ("w2", "b2"):
        assert np.abs(cut.fixed.array(name) - cut.pruned.array(name)).max() < 1e-3


@pytest.mark.parametrize(
    ("batch", "room", "batches", "taken"), [(1, 1 << 30, 32, 32), (1, 1, 8, 8), (32, 1 << 30, 7, 38), (32, 1, 7, 13)]
)
def test_layers_are_fitted_together_on_few_large_samples(batch, room, batches, taken, monkeypatch):
    """A sample with many positions brings many rows; of 200, as many as are asked for are taken, however they come."""
    monkeypatch.setattr(one_fit, "_JOINT_ROWS", 1200)
    monkeypatch.setattr(one_fit, "_JOINT_BYTES", room)
    seen, plain = [], joint.Joint.fit

    def looking(self, batches, known):
        seen.append((len(batches), sum(len(b.target) for b in batches)))
        return plain(self, batches, known)

    monkeypatch.setattr(joint.Joint, "fit", looking)
    cut = Cut(networks.conv_net(), count=200, batch=batch)
    assert seen[0] == (batches, taken)
    assert cut.error(cut.fixed) < 0.5 * cut.error(cut.pruned)
