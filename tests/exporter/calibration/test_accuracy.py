"""How much worse a pruned graph answers: values and intervals, against counts made by hand and simulation."""

from __future__ import annotations

import re

import numpy as np
import pytest

from exporter import UsageError, load, prune
from exporter.calibration.accuracy import compare_accuracy, compare_answers, paired, usual_metric, wilson
from exporter.calibration.data import calibration_of
from exporter.calibration.sensitivity import answers
from exporter.model_file import from_model
from exporter.normalise import input_specs
from runtime.errors import BadRequest
from runtime.samples import load_samples, samples_of
from tests.exporter.calibration.networks import conv_net
from tests.exporter.files import run
from tests.exporter.trained import drawn, files


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A model, a bad cut of it, samples with labels, and how often each is right."""
    folder = tmp_path_factory.mktemp("two")
    model, _ = files(folder)
    prune(model, folder / "out.onnx", ratio=0.8, align=1)
    x, labels = drawn(300, 4)
    np.savez(folder / "test.npz", x=x, y=labels)
    graph, pruned = load(model), load(folder / "out.onnx")
    samples = load_samples(folder / "test.npz", input_specs(graph.model), labels=("y",))
    outputs = [run(p, {"x": x})["y"] for p in (model, folder / "out.onnx")]
    return graph, pruned, samples, outputs, labels


def test_top1_is_paired(two):
    graph, pruned, samples, outputs, labels = two
    found = compare_accuracy(pruned, graph, samples, 32, "top1")
    right = [o.argmax(1) == labels for o in outputs]
    assert found.dense == pytest.approx(right[0].mean())
    assert found.pruned == pytest.approx(right[1].mean())
    assert found.drop == pytest.approx(right[0].mean() - right[1].mean())
    assert found.drop > 0.05
    lost, won = (right[0] & ~right[1]).sum() + 0.5, (right[1] & ~right[0]).sum() + 0.5
    n = 302
    middle, spread = (lost - won) / n, 1.96 * np.sqrt(lost + won - (lost - won) ** 2 / n) / n
    assert (found.low, found.high) == pytest.approx((middle - spread, middle + spread))


def test_agreement(two):
    graph, pruned, samples, outputs, _ = two
    found = compare_accuracy(pruned, graph, samples, 32, "agreement")
    same = (outputs[0].argmax(1) == outputs[1].argmax(1)).mean()
    assert (found.dense, found.pruned) == (1, pytest.approx(same))
    assert (found.low, found.high) == pytest.approx(wilson(1 - same, 300))


@pytest.mark.parametrize(("metric", "dense"), [("mse", 0.0), ("cosine", 1.0)])
def test_metrics_against_the_original(metric, dense, two):
    graph, pruned, samples, outputs, _ = two
    found = compare_accuracy(pruned, graph, samples, 32, metric)
    a, b = (o.astype(np.float64) for o in outputs)
    each = np.square(a - b).mean(1)
    if metric == "cosine":
        each = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert found.dense == pytest.approx(dense)
    assert found.pruned == pytest.approx(each.mean(), rel=1e-4)
    assert found.drop == pytest.approx(abs(dense - each.mean()), rel=1e-4)
    spread = 1.96 * each.std(ddof=1) / np.sqrt(300)
    assert (found.low, found.high) == pytest.approx((found.drop - spread, found.drop + spread), rel=1e-3)


@pytest.mark.parametrize("metric", ["top1", "agreement", "mse"])
def test_answers_that_are_there_are_judged_alike(metric, two):
    graph, pruned, samples, _, _ = two
    own, original = (answers(g, samples, 32) for g in (pruned, graph))
    found, wanted = (
        compare_answers(own, original, samples, 32, metric),
        compare_accuracy(pruned, graph, samples, 32, metric),
    )
    for value in ("dense", "pruned", "drop", "low", "high"):
        assert getattr(found, value) == pytest.approx(getattr(wanted, value), abs=1e-6)
    assert (found.metric, found.samples, found.rate) == (wanted.metric, wanted.samples, wanted.rate)


def test_no_difference_is_not_certainty(two):
    graph, _, samples, _, _ = two
    for metric in ("top1", "agreement"):
        found = compare_accuracy(graph, graph, samples.part(0, 50), 32, metric)
        assert found.drop == 0
        assert 0.03 < found.high < 0.08


@pytest.mark.parametrize("share", [0.0, 0.005, 0.05, 0.5])
def test_wilson_covers(share):
    rng = np.random.default_rng(0)
    found = [wilson(rng.binomial(200, share) / 200, 200) for _ in range(400)]
    assert np.mean([share <= high for _, high in found]) > 0.95
    assert np.mean([low <= share <= high for low, high in found]) > 0.88  # counts are whole numbers


def test_paired_covers():
    """Of 150 samples 6 % are lost, 4 % are won."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        change = rng.choice([1.0, -1.0, 0.0], 150, p=[0.06, 0.04, 0.9])
        low, high = paired((change - change.mean()) / 150, float(change.mean()))
        covered.append(low <= 0.02 <= high)
    assert 0.92 < np.mean(covered) < 0.99


def test_the_usual_metric(two, tmp_path):
    graph, _, samples, _, _ = two
    assert usual_metric(graph, samples) == "top1"
    model, data = files(tmp_path, count=40, labels="")
    assert usual_metric(load(model), calibration_of(data, load(model)).held) == "agreement"
    # what is called y, but is none of the classes
    x, _ = drawn(40, 0)
    np.savez(tmp_path / "other.npz", x=x, y=np.full(40, 17))
    assert usual_metric(graph, calibration_of(tmp_path / "other.npz", graph).held) == "agreement"
    images = from_model(conv_net())
    specs = input_specs(images.model)
    feeds = [{"x": np.zeros((2, 3, 12, 12), np.float32)}] * 8
    assert usual_metric(images, samples_of(feeds, specs)) == "agreement"


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (np.zeros(99, np.int64), r"100 samples, but labels of shape \[99\]"),
        (np.r_[np.nan, np.zeros(99)], "they hold NaN"),
        (np.zeros((100, 7), np.int64), r"labels of shape \[1, 7\] do not fit the output"),
        (np.int64(3), "the labels 'y' are a single number"),
        (np.zeros(100, object), "'y' holds Python objects"),
    ],
    ids=["too few", "NaN", "another shape", "a number", "objects"],
)
def test_labels_that_do_not_fit_are_told(labels, why, two, tmp_path):
    graph = two[0]
    np.savez(tmp_path / "d.npz", x=drawn(100, 0)[0], y=labels)
    found = calibration_of(tmp_path / "d.npz", graph)
    assert any(
        re.search(f"the labels do not judge, agreement with the original does: .*{why}", note)
        for note in found.fit.notes
    )
    assert usual_metric(graph, found.held) == "agreement"
    assert (found.fit.answers is not None) is ("shape [1, 7]" in why.replace("\\", "")), (
        "scores may know what to do with them"
    )
    with pytest.raises(UsageError, match=f"the labels do not fit: .*{why}.*--metric agreement"):
        calibration_of(tmp_path / "d.npz", graph, strict=True)
    assert calibration_of(tmp_path / "d.npz", graph, metric="agreement", strict=True).metric == "agreement"


def test_labels_are_needed(two):
    graph, pruned, _, _, _ = two
    feeds = [{"x": np.zeros((4, 8), np.float32)}]
    with pytest.raises(BadRequest, match="needs labels"):
        compare_accuracy(pruned, graph, samples_of(feeds, input_specs(graph.model)), 4, "top1")
