"""Comparisons: verdicts, goals, clocks, rounds, and what comes out of both models."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from runtime import comparison
from runtime.backends import SessionOptions, TensorSpec
from runtime.comparison import Goal, compare_models, verdict_of
from runtime.errors import BadRequest
from runtime.robust import Ratio
from runtime.runners import Asked, _fitted
from runtime.sampling import Samples
from tests.onnx_builder import build, node, weights

FAKE = Asked("fake", shapes={"ids": (2, 3)})


@pytest.fixture
def noisy(machine):
    """Two percent of noise on every run, one percent on every load."""
    rng = np.random.default_rng(0)
    machine.noise = lambda: np.exp(rng.normal(0, 0.02))
    machine.placed = lambda: np.exp(rng.normal(0, 0.003))
    return machine


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio(1.03, 1.02, 1.04), "slower"),
        (Ratio(0.97, 0.96, 0.98), "faster"),
        (Ratio(1.005, 1.002, 1.008), "same"),
        (Ratio(1.0, 0.995, 1.005), "same"),
        (Ratio(1.0, 0.97, 1.03), "inconclusive"),
        (Ratio(1.03, 0.99, 1.07), "inconclusive"),
        (Ratio(1.008, 1.001, 1.015), "inconclusive"),
    ],
)
def test_verdicts(ratio, verdict):
    assert verdict_of(ratio) == verdict


@pytest.mark.parametrize(
    ("goal", "most", "met"),
    [
        (Goal(), None, (True, True, True)),
        (Goal(slower=0.02), 1.02, (True, None, False)),
        (Goal(speedup=1.25), 0.8, (False, False, False)),
        (Goal(slower=0.02, speedup=0.5), 1.02, (True, None, False)),
        (Goal(slower=1.5, speedup=0.5), 2.0, (True, True, True)),
    ],
)
def test_goals(goal, most, met):
    ratios = Ratio(1.0, 0.99, 1.01), Ratio(1.01, 0.99, 1.03), Ratio(1.05, 1.03, 1.07)
    assert goal.most == (pytest.approx(most) if most else None)
    assert tuple(goal.met(r) for r in ratios) == met


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "same"), (1.03, "slower"), (0.97, "faster"), (2.0, "slower")])
def test_a_difference_is_found_in_noise(factor, verdict, noisy, paths):
    noisy.durations = {"a": 0.01, "b": 0.01 * factor}
    found = compare_models(paths[0], paths[1], FAKE, seconds=60)
    assert found.verdict == verdict
    assert found.ratio.low < factor < found.ratio.high
    assert found.ratio.value == pytest.approx(factor, rel=0.01)
    assert found.clock == "wall"


def test_both_are_loaded_anew_in_every_round(machine, paths):
    found = compare_models(paths[0], paths[1], FAKE, seconds=5)
    assert found.rounds == 4
    assert len(machine.opened) == 2 * found.rounds
    assert found.first.wall.shape == found.other.wall.shape


def test_placement_in_memory_is_not_taken_for_speed(machine, paths):
    """Loads differ by a percent, for as long as they last: no number of samples makes that a difference."""
    rng = np.random.default_rng(3)
    machine.placed = lambda: np.exp(rng.normal(0, 0.02))
    found = compare_models(paths[0], paths[0], FAKE, seconds=20)
    assert found.ratio.low < 1 < found.ratio.high
    assert found.ratio.high - found.ratio.low > 0.01


@pytest.mark.parametrize(
    ("factor", "goal", "met"),
    [(1.0, Goal(slower=0.02), True), (1.1, Goal(slower=0.02), False), (0.5, Goal(speedup=1.3), True),
     (0.9, Goal(speedup=1.3), False)],
)  # fmt: skip
def test_goals_are_decided(factor, goal, met, noisy, paths):
    noisy.durations = {"a": 0.01, "b": 0.01 * factor}
    assert compare_models(paths[0], paths[1], FAKE, seconds=30, goal=goal).met is met


def test_a_goal_at_the_edge_stays_open(noisy, paths):
    noisy.durations = {"a": 0.01, "b": 0.0102}
    found = compare_models(paths[0], paths[1], FAKE, seconds=3, goal=Goal(slower=0.02))
    assert found.met is None


def test_without_a_goal_none_is_met(machine, paths):
    assert compare_models(paths[0], paths[1], FAKE, seconds=1).met is None


def test_outputs_are_compared_on_the_same_inputs(machine, paths):
    machine.answer = lambda name, feeds: {"y": feeds["ids"].astype(np.float32) * (1 if name == "a" else 1.5)}
    (found,) = compare_models(paths[0], paths[1], FAKE, seconds=1).outputs
    assert found.largest > 0
    assert found.cosine == pytest.approx(1)
    assert found.top1 == 1
    assert compare_models(paths[0], paths[1], FAKE, seconds=1, outputs=False).outputs == ()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"seconds": 0}, "--seconds 0"),
        ({"clock": "sun"}, "--clock sun: choose from auto, wall, cpu, device"),
        ({"clock": "cpu"}, "--clock cpu counts one thread: give --threads 1"),
        ({"clock": "device"}, "--clock device: this backend has no such clock"),
        ({"goal": Goal(slower=-1)}, "--fail-if-slower -1"),
        ({"goal": Goal(speedup=0)}, "--min-speedup 0"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_wrong_requests(arguments, text, paths):
    with pytest.raises(BadRequest, match=text):
        compare_models(paths[0], paths[1], FAKE, **({"seconds": 0.1} | arguments))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A chain of matrix products, and the same with one twice as wide."""
    folder = tmp_path_factory.mktemp("pair")
    for name, width in (("small", 256), ("large", 512)):
        nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")]
        made = build(nodes, {"x": [64, 256]}, ["y"], weights(w=(256, width), v=(width, 64)))
        onnx.save(made, folder / f"{name}.onnx")
    return folder / "small.onnx", folder / "large.onnx"


@pytest.mark.timing
def test_real_models(pair):
    asked = Asked(options=SessionOptions(threads=1))
    found = compare_models(*pair, asked, seconds=0.4, layers=True)
    assert found.clock == "cpu"
    assert found.verdict == "slower"
    assert 1.4 < found.ratio.value < 3
    assert found.outputs[0].relative > 0.1
    by_name = {row.name: row for row in found.layers}
    assert (by_name["node_h"].first_macs, by_name["node_h"].other_macs) == (64 * 256 * 256, 64 * 256 * 512)
    assert by_name["node_h"].other > by_name["node_h"].first
    again = compare_models(pair[0], pair[0], asked, seconds=0.4)
    assert again.verdict in ("same", "inconclusive") or abs(again.ratio.value - 1) < 0.05
    assert again.outputs[0].largest == 0


@pytest.mark.timing
def test_other_options_for_the_other_model(pair):
    first = Asked(options=SessionOptions(threads=1))
    other = Asked(options=SessionOptions(threads=1, level="off"))
    found = compare_models(pair[0], pair[0], first, other, seconds=0.2)
    assert found.outputs[0].relative < 1e-4


def test_two_backends(machine, pair, paths, monkeypatch):
    """The same file on two of them."""
    from runtime import backends

    slower = machine.open
    monkeypatch.setitem(backends.BACKENDS, "other", lambda path, options: slower(path.with_name("z.onnx"), options))
    machine.durations = {"a": 0.01, "z": 0.03}
    found = compare_models(paths[0], paths[0], FAKE, Asked("other", shapes={"ids": (2, 3)}), seconds=1)
    assert (found.first.backend, found.other.backend) == ("fake", "other")
    assert found.ratio.value == pytest.approx(3)


@pytest.mark.parametrize(("pairs", "close"), [(100, True), (20, False)])
def test_long_rounds_go_by_their_lower_quartiles(pairs, close):
    """Noise that strikes one model in most of its runs moves pairs, not what the undisturbed rest says."""
    rng = np.random.default_rng(0)
    taken = []
    for _ in range(6):
        wall = np.array([np.full(pairs, 1.0), np.full(pairs, 1.03)]) * (1 + 1e-4 * rng.random((2, pairs)))
        wall[1] += 0.2 * (rng.random(pairs) < 0.6)
        none = np.zeros((2, pairs))
        taken.append(Samples(wall, wall, wall, none.astype(np.int64), none, wall, True))
    found = comparison._ratio(taken, "wall").value
    assert (abs(found - 1.03) < 0.002) == close


@pytest.mark.parametrize(("still", "fits"), [(0, True), (5, True), (25, False)])
def test_pairs_in_which_a_clock_stood_still_are_left_out(still, fits):
    """Some machines return the same CPU time before and after a run of microseconds, now and then."""
    shape = (2, 100)
    wall, cpu, none = np.full(shape, 1.0), np.array([np.full(100, 1.0), np.full(100, 1.03)]), np.zeros(shape)
    cpu[0, :still] = 0
    taken = [Samples(wall, cpu, cpu, none.astype(np.int64), none, wall * np.nan, True)] * 4
    if fits:
        assert comparison._ratio(taken, "cpu").value == pytest.approx(1.03)
    else:
        with pytest.raises(BadRequest, match="this backend has no such clock"):
            comparison._ratio(taken, "cpu")


def test_shapes_asked_for_are_those_of_both_models():
    some, none, fixed = ([TensorSpec("x", np.dtype("f4"), shape)] for shape in ((None, 5), (), (3, 5)))
    assert _fitted({"x": (2, 5)}, some, none) == _fitted({"x": (2, 5)}, none, some) == {"x": (2, 5)}
    assert _fitted({"x": (2, 5)}, fixed, fixed) == {"x": (3, 5)}
    assert _fitted({"x": (2, 5), "z": (1,)}, some, []) == {"z": (1,)}
