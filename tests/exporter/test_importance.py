"""Scores, computed by hand on small networks."""

from __future__ import annotations

import numpy as np
import pytest

from exporter import UsageError, find_groups, score
from exporter.model_file import from_model
from tests.onnx_builder import build, node, weights


@pytest.fixture
def network():
    constants = weights(w1=(4, 3, 3, 3), b1=(4,), w2=(2, 4, 1, 1), g=(4,), b=(4,), m=(4,))
    constants["v"] = np.full(4, 100, np.float32)
    nodes = [node("Conv", "x w1 b1", "h"), node("BatchNormalization", "h g b m v", "n"), node("Conv", "n w2", "y")]
    return find_groups(from_model(build(nodes, {"x": ["N", 3, 6, 6]}, ["y"], constants))), constants


@pytest.mark.parametrize("by", ["l1", "l2"])
@pytest.mark.parametrize("consumers", [False, True])
def test_magnitude(network, by, consumers):
    groups, c = network
    power = np.abs if by == "l1" else np.square
    owned = [c["w1"].reshape(4, -1), c["b1"][:, None], c["g"][:, None], c["b"][:, None]]
    if consumers:
        owned.append(c["w2"][:, :, 0, 0].T)
    expected = sum(power(w).sum(1) for w in owned)
    expected = np.sqrt(expected) if by == "l2" else expected
    assert score(groups, by, consumers=consumers)["w1"] == pytest.approx(expected, rel=1e-5)


def test_a_head_owns_its_columns():
    constants = weights(w=(5, 6), o=(6, 3)) | {"s": np.array([0, 2, 3]), "f": np.array([0, 6])}
    nodes = [
        node("MatMul", "x w", "h"),
        node("Reshape", "h s", "r"),
        node("Softmax", "r", "p", axis=0),
        node("Reshape", "p f", "q"),
        node("MatMul", "q o", "y"),
    ]
    groups = find_groups(from_model(build(nodes, {"x": ["N", 5]}, ["y"], constants)))
    scores = score(groups, "l1")
    columns = np.abs(constants["w"]).sum(0).reshape(2, 3)
    by_width = {len(v): v for v in scores.values()}
    assert by_width[2] == pytest.approx(columns.sum(1), rel=1e-5)
    assert by_width[3] == pytest.approx(columns.sum(0), rel=1e-5)


def test_units_that_nothing_produces_are_judged_by_their_readers():
    """Channels of a padding: only the weights that read them say how much they matter."""
    constants = weights(w1=(4, 3, 1, 1), w2=(5, 8, 1, 1)) | {"pads": np.array([0, 2, 0, 0, 0, 2, 0, 0])}
    nodes = [node("Conv", "x w1", "h"), node("Pad", "h pads", "p"), node("Cos", "p", "c"), node("Conv", "c w2", "y")]
    groups = find_groups(from_model(build(nodes, {"x": [1, 3, 4, 4]}, ["y"], constants)))
    padded = next(g for g in groups if all(s.contracted for s in g.parameters))
    expected = np.abs(constants["w2"][:, [0, 1, 6, 7], 0, 0]).sum(0)
    assert score(groups, "l1")[padded.name] == pytest.approx(expected, rel=1e-5)


def test_random_is_fixed_by_its_seed(network):
    groups, _ = network
    assert (score(groups, "random", seed=1)["w1"] == score(groups, "random", seed=1)["w1"]).all()
    assert (score(groups, "random", seed=1)["w1"] != score(groups, "random", seed=2)["w1"]).any()


def test_unknown_score(network):
    with pytest.raises(UsageError, match="Choose from: l1, l2, random"):
        score(network[0], "taylor")
