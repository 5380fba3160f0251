"""From what is measured at some widths to what is predicted at all."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter import prune
from exporter.calibration.outputs import compared, float_outputs
from exporter.calibration.sensitivity import Deviation, answers, deviation, deviation_between, predicted
from exporter.cli import main
from exporter.errors import ModelError
from tests.exporter.calibration import networks
from tests.onnx_builder import build, ints, node, weights

DAMAGE = np.array([0.8, 0.4, 0.2, 0.1, 0.05, 0.0])


def test_one_measurement_gives_a_rate():
    assert predicted(DAMAGE, [(0.2, 0.5)]) == pytest.approx(2.5 * DAMAGE)


def test_two_measurements_are_met_and_between_them_a_power_runs():
    found = predicted(DAMAGE, [(0.1, 0.001), (0.4, 0.256)])
    assert found[[3, 1]] == pytest.approx([0.001, 0.256])
    assert found[2] == pytest.approx(0.016)  # the fourth power
    assert found[[4, 5]] == pytest.approx([0.0005, 0.0])  # below the first, in proportion
    assert found[0] == pytest.approx(0.512)  # beyond the last, in proportion


def test_no_effect_at_all_is_no_division_by_zero():
    assert np.isfinite(predicted(DAMAGE, [(0.0, 0.0), (0.3, 0.1)])).all()


@pytest.mark.parametrize("beside", [np.ones(3, np.float32), ints(1, 2)], ids=["floats", "integers"])
def test_an_output_that_is_a_constant_tells_nothing(beside):
    """A detector may give its anchors beside what it found."""

    def graph(seed):
        return networks.loaded(
            build(
                [node("Conv", "x w", "a"), node("Relu", "a", "y"), node("ArgMax", "a", "at", axis=1)],
                {"x": ("N", 3, 4, 4)}, ["y", "at", "beside"], {**weights(seed, w=(5, 3, 1, 1)), "beside": beside},
                kinds={"at": "i", "beside": "f" if beside.dtype == np.float32 else "i"},
            )
        )  # fmt: skip

    changed, original = graph(0), graph(1)
    assert float_outputs(original) == ["y"]
    samples = networks.samples(original, 10)
    known = answers(original, samples, 4)
    found = deviation(changed, known, samples, 4)
    assert found > 0.1
    assert deviation_between(answers(changed, samples, 4), known) == found
    assert deviation_between(known, known) == 0


def test_what_is_as_long_as_what_was_found_is_compared_by_what_that_was_chosen_from(tmp_path, monkeypatch, capsys):
    graph = networks.loaded(networks.finding_net())
    assert compared(graph) == {"s": 1.0}
    monkeypatch.chdir(tmp_path)
    onnx.save(networks.finding_net(), "m.onnx")
    np.savez("d.npz", x=np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32))
    for line in (
        "prune m.onnx -o o.onnx --macs 0.7 --calib d.npz",
        "sensitivity m.onnx --calib d.npz",
        "sparsify m.onnx -o o.onnx --calib d.npz",
    ):
        assert main([*line.split(), "-q"]) == 0
    assert "output error" in capsys.readouterr().out
    line = "prune m.onnx -o o.onnx --max-drop 1 --metric mse --calib d.npz"
    assert main([*line.split(), "-q"]) == 2
    assert "the outputs differ in shape" in capsys.readouterr().err


def test_of_different_sizes_the_common_part_is_compared():
    want, found = np.arange(12.0).reshape(4, 3), Deviation({"y": 1.0})
    found.add({"y": want[:2]}, {"y": want})
    assert found.value == pytest.approx(0.5)  # half of the entries is not there
    found = Deviation({"y": 1.0})
    found.add({"y": want[:, :2] + want.std()}, {"y": want})
    assert found.value == pytest.approx(1.0)
    found = Deviation({"y": 1.0})
    found.add({"y": want.ravel()[:6]}, {"y": want})
    assert found.value == pytest.approx(0.5)


def test_where_no_output_holds_floating_point_numbers_what_they_come_from_is_compared():
    nodes = [
        node("MatMul", "x w", "z"), node("ArgMax", "z", "at"), node("Cast", "at", "y", to=7),
        node("Shape", "z", "size"),
    ]  # fmt: skip
    made = build(nodes, {"x": ["N", 3]}, ["y", "size"], weights(w=(3, 4)), kinds={"y": "i", "size": "i"})
    graph = networks.loaded(made)
    assert compared(graph) == {"z": 1.0}
    samples = networks.samples(graph, 10)
    assert deviation_between(answers(graph, samples, 4), answers(graph, samples, 4)) == 0
    first = build([node("Shape", "x", "y")], {"x": ["N", 3]}, ["y"], kinds={"y": "i"})
    with pytest.raises(ModelError, match="no output of this model comes from floating-point numbers"):
        compared(networks.loaded(first))


def detector(seed=0, best=False, order=1.0):
    """Boxes of hundreds of pixels and scores below 1 in one tensor; ``best`` gives the highest rows alone."""
    constants = weights(seed, w=(3, 8), boxes=(8, 4), scores=(8, 5)) | {"size": np.float32(100)}
    constants["scores"] = constants["scores"] * np.float32(order)
    nodes = [
        node("MatMul", "x w", "h"), node("MatMul", "h boxes", "b"), node("Mul", "b size", "pixels"),
        node("MatMul", "h scores", "s"), node("Sigmoid", "s", "p"), node("Concat", "pixels p", "c", axis=2),
        node("Transpose", "c", "y", perm=[0, 2, 1]),
    ]  # fmt: skip
    if best:
        constants |= {"k": ints(3), "wide": ints(1, 1, 9), "last": ints(-1)}
        nodes[-1:] = [
            node("ReduceMax", "p", "top", axes=[2], keepdims=0), node("TopK", "top k", "values at"),
            node("Unsqueeze", "at last", "rows"), node("Expand", "rows wide", "numbers"),
            node("GatherElements", "c numbers", "y", axis=1),
        ]  # fmt: skip
    opset = 17 if best else 21
    return networks.loaded(build(nodes, {"x": ["N", 20, 3]}, ["y"], constants, opset=opset))


def test_an_output_is_compared_by_what_it_is_put_together_of():
    assert compared(detector()) == {"pixels": 0.5, "p": 0.5}
    third = 1 / 3
    assert compared(detector(best=True)) == {"pixels": third, "p": third, "top": third}


def test_small_numbers_beside_large_ones_count():
    """Scores that are all wrong: a hundred-thousandth of the output's variance, half of what it says."""
    original, other = detector(), detector(order=-1.0)
    samples = networks.samples(original, 10)
    known = answers(original, samples, 4)
    assert deviation(other, known, samples, 4) > 0.5
    want = next(iter(known.branch(["y"], {})))["y"]
    got = next(iter(answers(other, samples, 4).branch(["y"], {})))["y"]
    assert np.square(got - want).mean() / want.var() < 1e-3


def test_the_order_of_nearly_equal_scores_does_not_count():
    """Other rows come first when scores move a little."""
    original, other = detector(best=True), detector(best=True, order=1 + 1e-3)
    samples = networks.samples(original, 10)
    known = answers(original, samples, 4)
    assert deviation(other, known, samples, 4) < 1e-4


def test_outputs_weigh_alike_however_many_parts_they_have():
    nodes = [
        node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("Exp", "a", "c"), node("Tanh", "a", "d"),
        node("Concat", "b c d", "y", axis=1), node("Sigmoid", "a", "z"),
    ]  # fmt: skip
    graph = networks.loaded(build(nodes, {"x": ["N", 3]}, ["y", "z", "b"], weights(w=(3, 4))))
    assert compared(graph) == pytest.approx({"b": 4 / 3, "c": 1 / 3, "d": 1 / 3, "z": 1.0})


def test_a_selection_that_is_always_the_same_is_a_part():
    """What it leaves out may be cut."""
    nodes = [
        node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("Gather", "b some", "c", axis=1),
        node("Tanh", "c", "d"), node("Concat", "c d", "y", axis=1),
    ]  # fmt: skip
    made = build(nodes, {"x": ["N", 3]}, ["y"], weights(w=(3, 4)) | {"some": ints(0, 2)})
    assert compared(networks.loaded(made)) == {"c": 0.5, "d": 0.5}


def test_where_a_part_is_gone_the_output_itself_is_compared():
    def made(seed, part):
        nodes = [node("MatMul", "x w", "b"), node("Relu", "x", part), node("Concat", f"b {part}", "y", axis=1)]
        return networks.loaded(build(nodes, {"x": ["N", 3]}, ["y"], weights(seed, w=(3, 4))))

    original, changed = made(0, "c"), made(1, "k")
    assert compared(original) == {"b": 0.5, "c": 0.5}
    samples = networks.samples(original, 8)
    known = answers(original, samples, 4)
    got, want = (np.concatenate([f["y"] for f in a.branch(["y"], {})]) for a in (answers(changed, samples, 4), known))
    assert deviation(changed, known, samples, 4) == pytest.approx(np.square(got - want).mean() / want.var(), rel=1e-5)


def test_a_graph_runs_to_what_another_is_compared_by():
    def made(other):
        nodes = [node("MatMul", "x w", "b"), node("Relu", "x", "c"), node("Concat", "b c", "y", axis=1)]
        if other:  # the parts are there, but the output is made of others
            nodes[2:] = [node("Tanh", "b", "d"), node("Concat", "d c", "y", axis=1)]
        return networks.loaded(build(nodes, {"x": ["N", 3]}, ["y"], weights(w=(3, 4))))

    original, changed = made(False), made(True)
    samples = networks.samples(original, 8)
    known = answers(original, samples, 4)
    assert deviation_between(answers(changed, samples, 4, original), known) == deviation(changed, known, samples, 4)


def test_a_part_of_an_output_that_is_read_on(tmp_path):
    """What the last convolution gives goes into an output in rows, and into layers behind it in the same rows."""
    nodes = [
        node("Conv", "x w0", "c0", pads=[1] * 4), node("Relu", "c0", "r0"), node("Conv", "r0 w1", "c1", pads=[1] * 4),
        node("Flatten", "c1", "rows"), node("Flatten", "r0", "more"), node("Concat", "rows more", "features", axis=1),
        node("Gemm", "rows w2", "g"), node("Relu", "g", "h"), node("Gemm", "h w3", "y"),
    ]  # fmt: skip
    constants = weights(w0=(8, 3, 3, 3), w1=(4, 8, 3, 3), w2=(64, 32), w3=(32, 3))
    onnx.save(build(nodes, {"x": ["N", 3, 4, 4]}, ["features", "y"], constants), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).standard_normal((64, 3, 4, 4)).astype("f"))
    found = prune(tmp_path / "m.onnx", tmp_path / "out.onnx", params=0.8, calib=tmp_path / "d.npz", cache=False)
    assert found.fidelity.error < 0.5
    assert {g.name: len(g.keep) < g.width for g in found.plan.groups}["w2"]
