"""Pruning to a latency, on a simulated device: the table learns from what is measured, and only a gain is written."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporter import find_groups, load
from exporter.cost import CostModel
from exporter.errors import GoalError, UsageError
from exporter.latency import budget as module
from exporter.latency.budget import Target, parse_latency, prune_to_latency
from exporter.latency.cost import LatencyCost
from runtime.comparison import Comparison, Goal, Side, verdict_of
from runtime.errors import BadRequest
from runtime.profiling import NodeTime, Profile
from runtime.robust import Ratio
from runtime.roofline import Peaks
from runtime.runners import Asked
from runtime.staircase import KINDS, WIDTHS, Staircase
from tests.onnx_builder import build, node, weights

STAIRS = Staircase("ort-cpu", 1, {kind: {w: -(-w // 4) * 4e-6 + 1e-6 for w in WIDTHS} for kind in KINDS})


def network():
    """Five layers; the middle three can be cut."""
    nodes = [node("MatMul", "x a", "h1")]
    for k in range(1, 5):
        nodes += [node("Relu", f"h{k}", f"r{k}"), node("MatMul", f"r{k} w{k}", f"h{k + 1}")]
    constants = weights(a=(32, 64), w1=(64, 96), w2=(96, 64), w3=(64, 128), w4=(128, 16))
    constants = {name: w / len(w) ** 0.5 for name, w in constants.items()}
    return build(nodes, {"x": [8, 32]}, ["h5"], constants)


class Device:
    """Takes a fixed time for each kernel, and more for each multiply-accumulate than its share: a power of the work."""

    fixed, rate, power, extra = 2e-6, 1e-10, 1.0, 0.0

    def profile(self, path, asked, **_):
        groups = find_groups(load(path))
        nodes = []
        for work in groups.analysis.work:
            macs = work.factor * int(np.prod([a.size for a in work.axes], dtype=np.int64))
            seconds = self.fixed + self.rate * macs**self.power
            nodes.append(NodeTime(work.node, "MatMul", "MatMul", (work.node,), False, seconds, macs, 100, ()))
        total = sum(n.seconds for n in nodes) + self.extra
        return Profile(Path(path).name, "ort-cpu", 1, {}, 10, total, total, tuple(nodes), ())

    def compare(self, first, other, asked, **_):
        value = self.profile(other, asked).busy / self.profile(first, asked).busy
        ratio = Ratio(value, value * 0.995, value * 1.005)
        times = [np.array([self.profile(p, asked).busy]) for p in (first, other)]
        names = [Path(p).name for p in (first, other)]
        sides = [Side(n, "ort-cpu", 1, {}, t, t, t, np.zeros(1, bool)) for n, t in zip(names, times, strict=True)]
        return Comparison(*sides, "cpu", ratio, ratio, verdict_of(ratio), 4, Goal(), None, ())


@pytest.fixture
def device(monkeypatch):
    made = Device()
    monkeypatch.setattr(module, "profile", made.profile)
    monkeypatch.setattr(module, "compare_models", made.compare)
    monkeypatch.setattr(module, "staircase", lambda *_, **__: STAIRS)
    monkeypatch.setattr(module, "peaks", lambda *_: Peaks(1e11, 1e10))
    return made


@pytest.fixture
def model(tmp_path):
    onnx.save(network(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


# -- the request ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("0.6x", Target(share=0.6)), ("60%", Target(share=0.6)), ("5ms", Target(seconds=0.005)),
        ("250us", Target(seconds=2.5e-4)), (" .5 x", Target(share=0.5)), ("1e-3s", Target(seconds=1e-3)),
    ],
)  # fmt: skip
def test_latencies(text, target):
    found = parse_latency(text)
    assert found.share == (pytest.approx(target.share) if target.share else None)
    assert found.seconds == (pytest.approx(target.seconds) if target.seconds else None)


@pytest.mark.parametrize("text", ["", "fast", "0.6", "1x", "120%", "0x", "-1ms", "1..2x", "5 minutes", "nanx"])
def test_what_is_no_latency(text):
    with pytest.raises(UsageError, match="--latency"):
        parse_latency(text)


# -- the table ------------------------------------------------------------------------------------------------------


def test_the_table_gives_the_dense_time_and_falls_with_widths(device, model):
    groups = find_groups(load(model))
    cost = LatencyCost(groups, device.profile(model, Asked()), STAIRS)
    dense = device.profile(model, Asked()).busy
    assert cost.macs(cost.widths) == pytest.approx(dense)
    assert cost.parameters(cost.widths) == CostModel(groups).parameters(cost.widths)
    times = [cost.macs(np.maximum(cost.widths * k // 8, 1)) for k in range(9)]
    assert times == sorted(times)
    assert cost.steps == (4, 4)


@pytest.mark.parametrize("power", [0.7, 1.0, 1.2])
def test_the_table_learns(power, device, model, tmp_path):
    """After one observation it predicts that model, whatever part of the time does not go with the work."""
    from exporter import make_plan, rewrite, save, score

    device.power, device.rate, device.fixed = power, 1e-10, 1e-5
    graph = load(model)
    groups = find_groups(graph)
    cost = LatencyCost(groups, device.profile(model, Asked()), STAIRS)
    plan = make_plan(groups, score(groups), macs=0.5, align=1)
    counts = [len(g.keep) for g in plan.groups]
    save(rewrite(graph, plan), tmp_path / "half.onnx")
    measured = device.profile(tmp_path / "half.onnx", Asked())
    before = abs(cost.macs(counts) - measured.busy)
    cost.observe(counts, measured)
    after = abs(cost.macs(counts) - measured.busy)
    assert after < 0.02 * measured.busy
    assert after < before


def test_waiting_is_no_part_of_the_table(device, model):
    device.extra = 1.0
    cost = LatencyCost(find_groups(load(model)), device.profile(model, Asked()), STAIRS)
    assert cost.macs(cost.widths) < 0.01


# -- the loop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.8, 0.6, 0.5])
@pytest.mark.parametrize(("fixed", "power", "rate"), [(0.0, 1.0, 1e-10), (8e-7, 1.0, 1e-10), (1e-6, 0.9, 5e-10)])
def test_the_target_is_met(share, fixed, power, rate, device, model, tmp_path):
    device.fixed, device.power, device.rate = fixed, power, rate
    result, outcome = prune_to_latency(model, tmp_path / "out.onnx", Target(share=share), Asked(), align=1)
    assert outcome.ratio.value == pytest.approx(share, rel=0.04)
    measured = device.profile(tmp_path / "out.onnx", Asked()).busy / device.profile(model, Asked()).busy
    assert outcome.ratio.value == pytest.approx(measured)
    assert outcome.predicted == pytest.approx(measured, rel=0.1)
    assert result.proof is not None
    assert result.plan.options["latency"] == f"{share:g}x"
    assert 1 <= len(outcome.tried) <= 6


def test_what_the_table_calls_out_of_reach_is_measured(device, model, tmp_path):
    """Here less work is left than its share: the table, which knows only the original, cannot know."""
    device.power, device.fixed, device.rate = 2.0, 0.0, 1e-14
    _, outcome = prune_to_latency(model, tmp_path / "out.onnx", Target(share=0.04), Asked(), align=4)
    assert outcome.tried[0][0] > 0.05
    assert outcome.ratio.value < 0.0416


def test_a_time_is_a_share_of_the_original(device, model, tmp_path):
    dense = device.profile(model, Asked()).busy
    _, outcome = prune_to_latency(model, tmp_path / "out.onnx", Target(seconds=dense / 2), Asked(), align=1)
    assert outcome.share == pytest.approx(0.5)
    assert outcome.ratio.value == pytest.approx(0.5, rel=0.04)


def test_what_is_asked_of_prune_is_heeded(device, model, tmp_path):
    result, _ = prune_to_latency(
        model, tmp_path / "out.onnx", Target(share=0.7), Asked(), keep=["w3"], min_width=20, prove=False
    )
    kept = {g.name: (g.width, len(g.keep)) for g in result.plan.groups}
    assert all(after % 4 == 0 for _, after in kept.values())  # the device's step
    assert min(after for _, after in kept.values()) >= 20
    assert kept[next(n for n, (w, _) in kept.items() if w == 128)] == (128, 128)
    assert result.proof is None


@pytest.mark.parametrize("score", ["l1-mask", "taylor"])
def test_masks_are_learned_for_the_seconds(score, device, model, tmp_path, monkeypatch):
    """The latency itself is their budget, and they rank over all groups; scores of gradients know no budget."""
    pytest.importorskip("torch")
    from exporter.training import masks

    budgets = []
    monkeypatch.setattr(masks, "_STEPS", 5)
    monkeypatch.setattr(masks, "share_of", lambda cost, kind: budgets.append((type(cost), kind)) or share(cost, kind))
    share = importlib.import_module("exporter.training.budget").share_of
    result, outcome = prune_to_latency(
        model, tmp_path / "out.onnx", Target(share=0.6), Asked(), score=score, calib="synthetic", calib_samples=64,
        align=1, compensate=False,
    )  # fmt: skip
    assert outcome.ratio.value == pytest.approx(0.6, rel=0.04)
    assert budgets == ([(LatencyCost, "latency")] if score == "l1-mask" else [])
    assert result.plan.options["score"] == score


def test_labels_judge_the_result(device, model, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.standard_normal((64, 32)).astype(np.float32), truth=rng.integers(0, 16, 64))
    asked = {"calib": tmp_path / "d.npz", "labels": "truth", "align": 1}
    result, _ = prune_to_latency(model, tmp_path / "out.onnx", Target(share=0.7), Asked(), **asked)
    assert result.fidelity.accuracy.metric == "top1"
    with pytest.raises(BadRequest, match="--labels truths"):
        prune_to_latency(model, tmp_path / "o.onnx", Target(share=0.7), Asked(), **asked | {"labels": "truths"})
    with pytest.raises(UsageError, match="give --calib"):
        prune_to_latency(model, tmp_path / "o.onnx", Target(share=0.7), Asked(), metric="top1")


def test_savings_are_told(device, model, tmp_path):
    device.fixed = 2e-5
    _, outcome = prune_to_latency(model, tmp_path / "out.onnx", Target(share=0.95), Asked(), align=1)
    reasons = {s.name: s.reason for s in outcome.savings}
    assert set(reasons) == {f"h{k}" for k in range(1, 6)}
    assert "kernel" in reasons.values()


@pytest.mark.parametrize(
    ("fixed", "target", "text"),
    [
        (0.0, Target(seconds=10.0), "the original takes .* already; nothing to do"),
        (0.0, Target(share=0.001), "--latency 0.001x cannot be reached: the best result measures 0.0.*\nLower --align"),
        (1e-3, Target(share=0.5), "no gain"),
    ],
)
def test_what_cannot_be_reached(fixed, target, text, device, model, tmp_path):
    device.fixed = fixed
    with pytest.raises(GoalError, match=text):
        prune_to_latency(model, tmp_path / "out.onnx", target, Asked())
    assert not (tmp_path / "out.onnx").exists()


def test_a_result_that_is_slower_is_no_success(device, model, tmp_path):
    """Pruned models take longer on this device."""
    plain = device.profile

    def profile(path, asked, **_):
        found = plain(path, asked)
        slower = 1.0 if "dense" in found.model or found.model == "m.onnx" else 3.0
        return Profile(found.model, "ort-cpu", 1, {}, 10, found.latency * slower, found.busy * slower, found.nodes, ())

    device.profile = profile
    with pytest.raises(GoalError, match=r"no gain\. Nothing was written"):
        prune_to_latency(model, tmp_path / "out.onnx", Target(share=0.8), Asked(), align=1)
    assert not (tmp_path / "out.onnx").exists()
