"""Scores, computed by hand on small networks."""

from __future__ import annotations

import numpy as np
import pytest

from exporter import UsageError, find_groups, score
from exporter.calibration.scores import CALIBRATED
from exporter.importance import normalised
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


def _heads():
    """Two heads of three dimensions, with what is behind them."""
    constants = weights(w=(5, 6), o=(6, 3)) | {"s": np.array([0, 2, 3]), "f": np.array([0, 6])}
    nodes = [
        node("MatMul", "x w", "h"),
        node("Reshape", "h s", "r"),
        node("Softmax", "r", "p", axis=0),
        node("Reshape", "p f", "q"),
        node("MatMul", "q o", "y"),
    ]
    return find_groups(from_model(build(nodes, {"x": ["N", 5]}, ["y"], constants))), constants


def test_a_head_owns_its_columns():
    groups, constants = _heads()
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
    with pytest.raises(UsageError, match="Choose from: l1, l2, fpgm, lamp, random"):
        score(network[0], "nonsense")


@pytest.mark.parametrize("by", CALIBRATED)
def test_scores_that_need_inputs_say_so(network, by):
    with pytest.raises(UsageError, match="--calib DATA"):
        score(network[0], by)


@pytest.mark.parametrize("consumers", [False, True])
def test_fpgm_sums_distances(network, consumers):
    groups, c = network
    owned = [c["w1"].reshape(4, -1), c["b1"][:, None], c["g"][:, None], c["b"][:, None]]
    rows = np.concatenate([*owned, *([c["w2"][:, :, 0, 0].T] if consumers else [])], axis=1)
    expected = [sum(np.linalg.norm(a - b) for b in rows) for a in rows]
    assert score(groups, "fpgm", consumers=consumers)["w1"] == pytest.approx(expected, rel=1e-5)


def test_fpgm_takes_a_head_for_its_columns_in_order():
    groups, constants = _heads()
    scores = {len(v): v for v in score(groups, "fpgm").values()}
    heads = constants["w"].reshape(5, 2, 3)
    apart = np.linalg.norm(heads[:, 0] - heads[:, 1])
    assert scores[2] == pytest.approx([apart, apart], rel=1e-5)
    dims = [sum(np.linalg.norm(heads[..., a] - heads[..., b]) for b in range(3)) for a in range(3)]
    assert scores[3] == pytest.approx(dims, rel=1e-5)


def test_fpgm_prefers_what_is_redundant_to_what_is_small():
    """Two large filters that are alike lie close to the middle of the layer; a small odd one does not."""
    w1 = np.zeros((4, 3, 1, 1), np.float32)
    w1[:, :, 0, 0] = [[5, 5, 5], [5, 5, 5.1], [5, 5.1, 5], [-1, 1, 0]]
    nodes = [node("Conv", "x w1", "h"), node("Conv", "h w2", "y")]
    constants = {"w1": w1, **weights(w2=(2, 4, 1, 1))}
    groups = find_groups(from_model(build(nodes, {"x": ["N", 3, 6, 6]}, ["y"], constants)))
    assert score(groups, "fpgm")["w1"].argmax() == score(groups, "l2")["w1"].argmin() == 3


def test_lamp_divides_by_what_is_not_smaller(network):
    groups, _ = network
    squares = score(groups, "l2")["w1"] ** 2
    expected = [s / squares[squares >= s].sum() for s in squares]
    found = score(groups, "lamp")
    assert found["w1"] == pytest.approx(expected)
    assert found["w1"].max() == 1
    assert normalised(found)["w1"] == pytest.approx(expected), "what needs no normalisation gets none"


def test_lamp_counts_equal_units_in_their_order():
    constants = {"w1": np.ones((4, 3, 1, 1), np.float32), **weights(w2=(2, 4, 1, 1))}
    nodes = [node("Conv", "x w1", "h"), node("Conv", "h w2", "y")]
    groups = find_groups(from_model(build(nodes, {"x": ["N", 3, 6, 6]}, ["y"], constants)))
    assert score(groups, "lamp")["w1"] == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1])


def test_normalised_scores_have_a_mean_of_one():
    found = normalised({"a": np.array([1.0, 3.0]), "b": np.array([0.0, 0.0]), "c": np.array([10.0, 20.0, 60.0])})
    assert found["a"] == pytest.approx([0.5, 1.5])
    assert found["b"] == pytest.approx([1, 1])
    assert found["c"] == pytest.approx([1 / 3, 2 / 3, 2])
