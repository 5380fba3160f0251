"""Scores from gradients, and learned masks: a unit that is worth nothing scores lowest, a budget is met."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from exporter import find_groups, load, prune  # noqa: E402
from exporter.cost import CostModel  # noqa: E402
from exporter.errors import ModelError, UsageError  # noqa: E402
from exporter.importance import score  # noqa: E402
from exporter.latency.cost import LatencyCost  # noqa: E402
from exporter.learned import LEARNED, MASKS, learned_scores  # noqa: E402
from exporter.model_file import from_model  # noqa: E402
from exporter.normalise import input_specs  # noqa: E402
from exporter.protos import add_outputs  # noqa: E402
from exporter.training import masks  # noqa: E402
from exporter.training.budget import share_of  # noqa: E402
from exporter.training.flow import flow_scores  # noqa: E402
from exporter.training.labels import loss_of  # noqa: E402
from exporter.training.losses import divergence, make_loss  # noqa: E402
from exporter.training.masks import MaskOptions, mask_scores  # noqa: E402
from exporter.training.outputs import Output, float_outputs  # noqa: E402
from exporter.training.scores import gradient_scores  # noqa: E402
from runtime.backends import open_session  # noqa: E402
from runtime.errors import BadRequest  # noqa: E402
from runtime.metrics import IGNORED  # noqa: E402
from runtime.profiling import NodeTime, Profile  # noqa: E402
from runtime.samples import samples_of  # noqa: E402
from runtime.staircase import KINDS, WIDTHS, Staircase  # noqa: E402
from tests.exporter.calibration import networks  # noqa: E402
from tests.exporter.calibration.test_choices import inputs  # noqa: E402
from tests.onnx_builder import build, node, weights  # noqa: E402

MODELS = Path(__file__).parents[3] / "models"
LOGITS = Output("y", "logits")


def network(softmax=False):
    """Eight units, of which the first three are worth nothing, though their weights are the largest."""
    constants = weights(w1=(4, 8), w2=(8, 3))
    constants["w1"][:, :3] *= 10
    constants["w2"][:3] = 0
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "z" if softmax else "y")]
    nodes += [node("Softmax", "z", "y", axis=1)] if softmax else []
    return from_model(build(nodes, {"x": ["N", 4]}, ["y"], constants))


def samples(graph, labels=False):
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((16, 4)).astype(np.float32), "y": rng.integers(0, 3, 16)} for _ in range(2)]
    return samples_of(feeds, input_specs(graph.model), labels="y" if labels else None)


def none(_: str) -> None:
    """No progress."""


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("by", ["taylor", "fisher", "gradient"])
def test_gradients_see_what_magnitudes_do_not(by, labels, softmax):
    graph = network(softmax)
    groups = find_groups(graph)
    found = gradient_scores(groups, samples(graph, labels), 16, by, none)[groups.groups[0].name]
    assert (found[:3] < 1e-9).all()
    assert (found[3:] > 1e-6).all()
    assert set(np.argsort(score(groups, "l2")[groups.groups[0].name])[-3:]) == {0, 1, 2}


def test_fisher_is_of_single_samples():
    """The mean over samples of the squared derivative, which a batch's derivative squared is not."""
    graph = network()
    groups = find_groups(graph)
    data = samples(graph, labels=True)
    fisher = gradient_scores(groups, data, 16, "fisher", none)[groups.groups[0].name]
    singles = [
        gradient_scores(groups, data.part(k, k + 1), 1, "taylor", none)[groups.groups[0].name] for k in range(32)
    ]
    assert np.allclose(fisher, np.square(singles).mean(0), rtol=1e-4)


def layers(*last, single=False, width=3):
    """Eight hidden units; every run may have a number beside it, and so be a sample of its own."""
    nodes = [node("Mul", "x scale", "k")] if single else []
    nodes += [node("MatMul", f"{'k' if single else 'x'} w1", "h"), node("Relu", "h", "r"),
              node("MatMul", "r w2", "z" if last else "y"), *last]  # fmt: skip
    inputs = {"scale": [], "x": ["T", 4]} if single else {"x": ["N", 4]}
    return find_groups(from_model(build(nodes, inputs, ["y"], weights(w1=(4, 8), w2=(8, width)))))


def learned(groups, feed, by, labels=None, batch=8):
    samples = samples_of([feed], input_specs(groups.graph.model), labels=labels)
    return learned_scores(groups, [0], by, Calibration(samples, batch), {"ratio": 0.5}, 0, none)


Calibration = namedtuple("Calibration", "fit batch")
ONE_BY_ONE = ["taylor", "fisher", "gradient", "grasp"]


@pytest.mark.parametrize("by", ONE_BY_ONE)
@pytest.mark.parametrize("reduced", [False, True])
def test_one_number_has_scores(by, reduced):
    """One for each sample, the last batch being one of these, and one for a whole run."""
    last = [node("ReduceMean", "z", "y", keepdims=0)] if reduced else []
    x = np.random.default_rng(0).standard_normal((17, 4)).astype(np.float32)
    for found in learned(layers(*last, width=1), {"x": x}, by).values():
        assert np.isfinite(found).all()
        assert found.any()


@pytest.mark.parametrize("by", ONE_BY_ONE)
@pytest.mark.parametrize("labels", [None, "label"])
def test_a_sample_may_be_a_run_of_its_own(by, labels):
    rng = np.random.default_rng(0)
    groups = layers(single=True)
    feeds = [{"scale": np.float32(1), "x": rng.standard_normal((5, 4)).astype(np.float32),
              "label": rng.integers(0, 3, 5)} for _ in range(4)]  # fmt: skip
    samples = samples_of(feeds, input_specs(groups.graph.model), labels=labels)
    assert samples.store.single
    for found in learned_scores(groups, [0], by, Calibration(samples, 8), {"ratio": 0.5}, 0, none).values():
        assert np.isfinite(found).all()
        assert found.any()


NORMS = {
    "ReduceL2": [node("ReduceL2", "z one", "n", keepdims=1), node("Clip", "n least", "c"), node("Div", "z c", "y")],
    "LpNormalization": [node("LpNormalization", "z", "y", axis=1, p=2)],
    "LpPool": [node("Unsqueeze", "z one", "u"), node("GlobalLpPool", "u", "y")],
    "Sqrt": [node("Mul", "z z", "s"), node("ReduceSum", "s", "t", keepdims=1), node("Sqrt", "t", "y")],
}


@pytest.mark.parametrize("by", ONE_BY_ONE)
@pytest.mark.parametrize("norm", NORMS)
def test_norms_of_nothing_have_scores(by, norm):
    """A sample of zeros, whose norm has no derivative."""
    constants = weights(w1=(4, 8), w2=(8, 3)) | {"one": np.array([1], np.int64), "least": np.float32(1e-12)}
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "z"), *NORMS[norm]]
    x = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    x[3] = 0
    for found in learned(
        find_groups(from_model(build(nodes, {"x": ["N", 4]}, ["y"], constants))), {"x": x}, by
    ).values():
        assert np.isfinite(found).all()
        assert found.any()


@pytest.mark.parametrize(("value", "message"), [(0, "every score is zero"), (np.nan, "8 of 8 scores are no finite")])
@pytest.mark.parametrize("by", ["taylor", "grasp"])
def test_scores_that_say_nothing_are_refused(by, value, message):
    x = np.full((16, 4), value, np.float32)
    with pytest.raises(ModelError, match=f"--score {by}: {message}"):
        learned(layers(), {"x": x}, by)


@pytest.mark.parametrize("by", MASKS)
def test_masks_close_useless_units_first(by):
    graph = network()
    groups = find_groups(graph)
    options = MaskOptions("ratio", 0.6, steps=120)
    found = mask_scores(groups, [0], samples(graph), by, options, none)[groups.groups[0].name]
    assert max(found[:3]) < min(found[3:])


@pytest.mark.parametrize("labels", [False, True])
def test_masks_are_learned_on_the_rows_that_the_original_chose(labels, monkeypatch):
    """Every batch, and none where labels say what the outputs should be."""
    graph = from_model(networks.choosing_net())
    x, y = inputs(48), np.zeros((48, 8), np.int64)
    data = samples_of([{"x": x, "label": y}], input_specs(graph.model), labels="label" if labels else None)
    chosen, plain = [], masks.choosing

    def looking(module, known):
        chosen.append([(node.op, value.numpy().copy()) for node, value in known.items()])
        return plain(module, known)

    monkeypatch.setattr(masks, "choosing", looking)
    groups = find_groups(graph)
    mask_scores(groups, [0], data, "l1-mask", MaskOptions("ratio", 0.6, steps=4), none)
    assert len(chosen) >= 4
    if labels:
        assert not any(chosen)
        return
    original = onnx.load_from_string(graph.model.SerializeToString())
    add_outputs(original, ["idx"])
    rows = {row.tobytes() for row in open_session(original.SerializeToString()).run({"x": x}, ["idx"])["idx"]}
    for ((op, indices),) in chosen:
        assert op == "TopK"
        assert {row.tobytes() for row in indices} <= rows


def test_what_may_not_be_cut_keeps_its_gate_open():
    graph = load(MODELS / "digits_cnn.onnx")
    groups = find_groups(graph)
    data = samples_of([{"image": np.random.default_rng(0).random((16, 1, 8, 8), np.float32)}], input_specs(graph.model))
    found = mask_scores(groups, [0], data, "l1-mask", MaskOptions("macs", 0.5, steps=4), none)
    assert all((found[g.name] == 1).all() for g in groups.groups[1:])
    assert (found[groups.groups[0].name] < 1).any()


@pytest.mark.parametrize("kind", ["macs", "params", "ratio"])
def test_the_budget_is_the_cost_model(kind):
    """With gates of 0 and 1; and it has a derivative by every gate."""
    groups = find_groups(load(MODELS / "digits_vit.onnx"))
    cost = CostModel(groups)
    rng = np.random.default_rng(0)
    masks = [rng.random(g.width) < 0.6 for g in groups]
    counts = [int(m.sum()) for m in masks]
    whole = {"macs": cost.macs, "params": cost.parameters, "ratio": lambda c: float(np.sum(c))}[kind]
    stay = torch.from_numpy(np.concatenate(masks).astype(np.float32)).requires_grad_()
    share = share_of(cost, kind)(stay)
    assert float(share.detach()) == pytest.approx(whole(counts) / whole(cost.widths))
    share.backward()
    assert (stay.grad > 0).all()


def timed(groups, seconds):
    """A table of seconds in which kernels take what a function of their names says, two microseconds of it fixed."""
    work = groups.analysis.work
    nodes = [NodeTime(w.node, "MatMul", "MatMul", (w.node,), False, seconds(w.node), 1, 100, ()) for w in work]
    total = sum(n.seconds for n in nodes)
    stairs = Staircase("ort-cpu", 1, {kind: dict.fromkeys(WIDTHS, 1e-6) for kind in KINDS})
    return LatencyCost(groups, Profile("m", "ort-cpu", 1, {}, 10, total, 1.1 * total, tuple(nodes), ()), stairs)


@pytest.mark.parametrize("model", ["digits_vit.onnx", "digits_cnn.onnx"])
def test_the_budget_is_the_table_of_seconds(model):
    """With gates of 0 and 1, in whole blocks where kernels compute in them; and every gate has a price."""
    groups = find_groups(load(MODELS / model))
    cost = timed(groups, lambda name: 1e-5 + 1e-6 * len(name))
    rng = np.random.default_rng(0)
    masks = [rng.random(g.width) < 0.6 for g in groups]
    stay = torch.from_numpy(np.concatenate(masks).astype(np.float32)).requires_grad_()
    share = share_of(cost, "latency")(stay)
    assert float(share.detach()) == pytest.approx(cost.macs([int(m.sum()) for m in masks]) / cost.macs(cost.widths))
    assert float(share.detach()) != pytest.approx(float(share_of(cost, "macs")(stay).detach()), rel=0.01)
    share.backward()
    assert (stay.grad > 0).all()


@pytest.mark.parametrize("by", ["l1-mask", "l0-mask"])
def test_masks_pay_for_what_is_slow(by):
    """Two branches of equal weights and work, one of which is measured to take much longer."""
    rng = np.random.default_rng(0)
    constants = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in (("a", (4, 8)), ("b", (8, 3)))}
    nodes = [node("MatMul", "x a", "g"), node("Relu", "g", "r"), node("MatMul", "r b", "slow"),
             node("MatMul", "x c", "h"), node("Relu", "h", "s"), node("MatMul", "s d", "fast"),
             node("Add", "slow fast", "y")]  # fmt: skip
    graph = from_model(build(nodes, {"x": ["N", 4]}, ["y"], constants | {"c": constants["a"], "d": constants["b"]}))
    groups = find_groups(graph)
    cost = timed(groups, lambda name: 4e-4 if name in ("g", "slow") else 1e-5)
    options = MaskOptions("latency", 0.5, steps=100)
    found = mask_scores(groups, [0, 1], samples(graph), by, options, none, cost)
    slow = next(g.name for g in groups if any(s.tensor == "a" for s in g.parameters))
    other = next(g.name for g in groups if g.name != slow)
    assert found[slow].mean() < 0.8 * found[other].mean()


def test_the_flow_of_gradients():
    """Minus half of what it changes by as the weights that a unit owns are made smaller, by finite differences."""
    graph = network()
    groups = find_groups(graph)
    data = samples(graph, labels=True)
    found = flow_scores(groups, data, 8, none)[groups.groups[0].name]
    x, y = zip(*((feeds["x"], labels) for feeds, labels in data.labelled(32)), strict=True)
    x, y = torch.from_numpy(np.concatenate(x)).double(), torch.from_numpy(np.concatenate(y))

    def flow(unit, factor):
        w1, w2 = (torch.from_numpy(graph.array(n).copy()).double() for n in ("w1", "w2"))
        w1[:, unit] *= factor
        held = [w.requires_grad_() for w in (w1, w2)]
        loss = torch.nn.functional.cross_entropy(torch.relu(x @ w1) @ w2, y)
        return sum(float(g.square().sum()) for g in torch.autograd.grad(loss, held))

    want = [(flow(u, 1 + 1e-5) - flow(u, 1 - 1e-5)) / 4e-5 for u in range(8)]
    assert np.allclose(found, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
    assert found.min() < 0 < found.max()


def test_losses_know_logits_probabilities_and_values():
    assert [o.form for o in float_outputs(network())] == ["logits"]
    assert [o.form for o in float_outputs(network(softmax=True))] == ["probabilities"]
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, IGNORED])
    want = torch.nn.functional.cross_entropy(logits[:4], labels[:4])
    assert torch.allclose(loss_of(logits, LOGITS, labels), want)
    assert torch.allclose(loss_of(torch.softmax(logits, 1), Output("y", "probabilities"), labels), want)
    assert divergence(logits, logits, LOGITS) == pytest.approx(0, abs=1e-6)
    assert divergence(logits, torch.softmax(logits, 1).log() + 3, LOGITS) == pytest.approx(0, abs=1e-6)
    images = torch.randn(2, 3, 4, 4)
    assert torch.allclose(loss_of(images, LOGITS, torch.zeros(2, 4, 4).long()),
                          torch.nn.functional.cross_entropy(images, torch.zeros(2, 4, 4).long()))  # fmt: skip


BAD = {
    "unknown": ({"kind": "nothing", "labelled": False}, "there is no loss 'nothing'"),
    "no labels": ({"kind": "cross-entropy", "labelled": False}, "--labels"),
    "no integers": ({"kind": "next-id", "labelled": False}, "integer input"),
    "no output": ({"kind": "auto", "labelled": False, "output": "z"}, "there are: y"),
}


@pytest.mark.parametrize("what", BAD)
def test_losses_that_cannot_be(what):
    arguments, message = BAD[what]
    with pytest.raises(UsageError, match=message):
        make_loss(network(), **arguments)


def test_labels_that_do_not_fit():
    with pytest.raises(UsageError, match=r"labels of shape \[5, 2\] do not fit an output of shape \[5, 3\]"):
        loss_of(torch.zeros(5, 3), LOGITS, torch.zeros(5, 2).long())


@pytest.mark.parametrize("by", ["taylor", "grasp"])
def test_prune_takes_them(by, tmp_path):
    """With labels from the data; the plan says so."""
    result = prune(
        MODELS / "digits_cnn.onnx", tmp_path / "out.onnx", macs=0.6, score=by, calib=f"{MODELS}/digits.npz:train",
        labels="y_train", calib_samples=64, compensate=False,
    )  # fmt: skip
    assert result.after.macs <= 0.6 * result.before.macs
    assert result.plan.options["score"] == by


def test_masks_rank_over_all_groups_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr("exporter.training.masks._STEPS", 2)
    result = prune(MODELS / "digits_cnn.onnx", macs=0.6, score="l1-mask", calib=f"{MODELS}/digits.npz:train",
                   calib_samples=32, dry_run=True)  # fmt: skip
    assert result.plan.options["scope"] == "global"


REFUSED = {
    "no inputs": ({"score": "taylor", "macs": 0.5}, "--calib"),
    "labels for nothing": (
        {"score": "wanda", "macs": 0.5, "calib": "synthetic", "labels": "y"},
        "synthetic inputs have none",
    ),
    "no such labels": (
        {"score": "taylor", "macs": 0.5, "calib": f"{MODELS}/digits.npz:train", "labels": "z"},
        "no such array",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_prune_refuses(what, tmp_path):
    arguments, message = REFUSED[what]
    with pytest.raises((UsageError, BadRequest), match=message):
        prune(MODELS / "digits_cnn.onnx", tmp_path / "out.onnx", **arguments)
    assert not (tmp_path / "out.onnx").exists()


def test_without_torch(monkeypatch):
    """Named with what to install, before anything runs."""
    from exporter.torch_source import MissingPackage

    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingPackage, match="pip install"):
        learned_scores(None, [], LEARNED[0], None, {}, 0, none)
