"""Scores of single weights: what is zero or read by nobody scores zero, and the kinds differ by their powers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from exporter.errors import UsageError  # noqa: E402
from exporter.model_file import from_model  # noqa: E402
from exporter.normalise import input_specs  # noqa: E402
from exporter.training.weight_scores import weight_scores  # noqa: E402
from runtime.samples import samples_of  # noqa: E402
from tests.onnx_builder import build, node, weights  # noqa: E402

LABELS = [True, False]


def network():
    """The first unit is read by nobody, and one weight is zero."""
    constants = weights(w1=(4, 8), w2=(8, 3))
    constants["w2"][0] = 0
    constants["w1"][1, 2] = 0
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "y")]
    return from_model(build(nodes, {"x": ["N", 4]}, ["y"], constants))


def scores(graph, by, labels=True, size=16):
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((size, 4)).astype(np.float32), "y": rng.integers(0, 3, size)}]
    samples = samples_of(feeds, input_specs(graph.model), labels="y" if labels else None)
    found = weight_scores(graph, ["w1", "w2"], samples, 16, by, lambda _: None)
    return found["w1"].reshape(4, 8), found["w2"].reshape(8, 3)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("by", ["gradient", "taylor", "fisher"])
def test_what_is_zero_or_unread_scores_zero(by, labels):
    first, second = scores(network(), by, labels)
    assert (first[:, 0] == 0).all()
    assert first[1, 2] == 0
    assert (second[0] == 0).all()
    rest = np.ones((4, 8), bool)
    rest[:, 0] = rest[1, 2] = False
    assert (first[rest] > 0).mean() > 0.8


def test_of_one_batch_taylor_is_the_square_of_gradient():
    for one, other in zip(scores(network(), "gradient"), scores(network(), "taylor"), strict=True):
        assert np.allclose(one**2, other, rtol=1e-4)


def test_fisher_takes_samples_one_by_one():
    assert not np.allclose(scores(network(), "fisher")[0], scores(network(), "taylor")[0], rtol=0.1)
    for one, other in zip(scores(network(), "fisher", size=1), scores(network(), "taylor", size=1), strict=True):
        assert np.allclose(one, other)


def test_scores_predict_what_the_loss_does():
    """Removing the weights of the lowest scores moves the loss less than removing as many of the highest."""
    graph = network()
    found = scores(graph, "taylor")[0].ravel()
    order = np.argsort(found)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, 4)), rng.integers(0, 3, 16)

    def loss(w):
        z = np.maximum(x @ w, 0) @ graph.array("w2")
        z -= z.max(1, keepdims=True)
        return -(z - np.log(np.exp(z).sum(1, keepdims=True)))[np.arange(16), y].mean()

    moved = []
    for part in (order[:12], order[-12:]):
        w = graph.array("w1").copy().ravel()
        w[part] = 0
        moved.append(abs(loss(w.reshape(4, 8)) - loss(graph.array("w1"))))
    assert moved[0] < 0.5 * moved[1]


def test_codes_have_no_gradient():
    constants = {"q": np.arange(12, dtype=np.int8).reshape(4, 3), "s": np.float32([0.1])[0]}
    nodes = [node("DequantizeLinear", "q s", "w"), node("MatMul", "x w", "y")]
    graph = from_model(build(nodes, {"x": ["N", 4]}, ["y"], constants))
    samples = samples_of([{"x": np.ones((2, 4), np.float32)}], input_specs(graph.model))
    with pytest.raises(UsageError, match="no gradient reaches 'q'; leave it out with --keep"):
        weight_scores(graph, ["q"], samples, 2, "taylor", lambda _: None)
