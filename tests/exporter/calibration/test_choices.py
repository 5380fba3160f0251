"""Rows that nodes choose: those of the original, wherever layers are fitted or outputs compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from exporter import find_groups, prune
from exporter.calibration.choices import choices, choose_alike
from exporter.calibration.damage import predict
from exporter.calibration.data import calibration_of
from exporter.calibration.runner import Runner
from exporter.model_file import from_model
from exporter.protos import add_outputs
from exporter.quantization.damage import reference
from exporter.quantization.layers import name_nodes
from exporter.quantization.precisions import PRECISIONS
from exporter.quantization.quantizer import quantize
from exporter.sparsity.sparsifier import sparsify
from runtime.backends import open_session
from tests.exporter.calibration import networks
from tests.exporter.files import write
from tests.onnx_builder import build, ints, node, weights


def inputs(count, seed=0):
    scales = np.array([3, 2, 1, 1, 0.5, 0.5], np.float32)
    return np.random.default_rng(seed).standard_normal((count, 60, 6)).astype(np.float32) * scales


def with_the_same_rows(dense, other):
    """Error of y relative to its variance on other inputs, with the rows that the original chose."""
    x = inputs(100, 9)
    original, changed = onnx.load(dense), onnx.load(other)
    add_outputs(original, ["idx"])
    want = open_session(original.SerializeToString()).run({"x": x})
    (place,) = (k for k, n in enumerate(changed.graph.node) if n.op_type == "TopK")
    taken = changed.graph.node[place]
    gather = onnx.helper.make_node("GatherElements", [taken.input[0], "idx"], [taken.output[0]], axis=1)
    changed.graph.node[place].CopyFrom(gather)
    changed.graph.input.append(onnx.helper.make_tensor_value_info("idx", onnx.TensorProto.INT64, ["N", 8]))
    got = open_session(changed.SerializeToString()).run({"x": x, "idx": want["idx"]})["y"]
    return float(np.square(got - want["y"]).mean() / want["y"].var())


@pytest.fixture
def unaware(monkeypatch):
    """Turns all of it off."""

    def off():
        for name in ("compensation", "sensitivity", "damage", "fidelity"):
            target = f"exporter.calibration.{name}"
            for function in ("choices", "choose_alike"):
                plain = {"choices": lambda *_: {}, "choose_alike": lambda *_: None}
                monkeypatch.setattr(f"{target}.{function}", plain[function], raising=False)
        for target in ("exporter.sparsity.calibrated", "exporter.quantization.fitting"):
            monkeypatch.setattr(f"{target}.choose_alike", lambda *_: None)

    return off


def pruned(path, out):
    return prune(path, out, macs=0.5, align=1, calib=path.with_name("x.npz")).fidelity


COMMANDS = {
    "prune": (pruned, 0.1, lambda found: found.error),
    "sparsify": (lambda path, out: sparsify(path, out, pattern="0.6", calib=path.with_name("x.npz")), 0.3,
                 lambda found: found.held.error),
    "quantize": (lambda path, out: quantize(path, out, precision="int4-weight", calib=path.with_name("x.npz"),
                                            seconds=0), 0.5, None),
}  # fmt: skip


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("command", COMMANDS)
def test_layers_behind_a_choice_are_fitted(command, values, tmp_path, unaware):
    """To the rows that the original chose; what is reported is of these."""
    run, part, reported = COMMANDS[command]
    path = write(networks.choosing_net(values), tmp_path)
    np.savez(tmp_path / "x.npz", x=inputs(400))
    found = run(path, tmp_path / "out.onnx")
    error = with_the_same_rows(path, tmp_path / "out.onnx")
    if reported is not None:
        assert reported(found) == pytest.approx(error, rel=0.5)
    unaware()
    run(path, tmp_path / "other.onnx")
    assert error < part * with_the_same_rows(path, tmp_path / "other.onnx")


def test_the_damage_to_layers_before_a_choice_is_told(unaware):
    """Else every cut there is a disaster, however small."""
    graph = from_model(networks.choosing_net())
    groups = find_groups(graph)
    (early,) = (g.name for g in groups.groups if "w1" in g.name)
    numbers = [n for n, g in enumerate(groups.groups) if g.name == early]
    calibration = calibration_of([{"x": x[None]} for x in inputs(200)], graph)
    aware = predict(groups, numbers, calibration, lambda _: None).damage[early]
    unaware()
    other = predict(groups, numbers, calibration, lambda _: None).damage[early]
    assert aware[47] < 0.1 * other[47]


def test_values_are_the_runners_own():
    """Only which rows they are of is the original's."""
    graph = from_model(networks.choosing_net(values=True))
    samples = networks.samples(graph, 12)
    runner, plain = (Runner(graph, samples, 5) for _ in range(2))
    runner.weights |= {"ws": 2 * graph.array("ws") + 0.3}
    choose_alike(runner, graph, samples, 5)
    plain.advance(["idx"])
    runner.advance(["score", "best", "idx"])
    for score, best, idx, chosen in zip(
        *map(runner.values, ("score", "best", "idx")), plain.values("idx"), strict=True
    ):
        assert (idx == chosen).all()
        assert (best == np.take_along_axis(score, chosen, 1)).all()
        assert (np.diff(best) > 0).any(), "in the order of the original"


def chooser(last, opset=21, kinds=None):
    constants = weights(w=(6, 12), v=(12, 5), e=(12, 3)) | {
        "k": ints(2),
        "zero": np.float32(0),
        "one": ints(1),
        "last": ints(1),
    }
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "a"), node("MatMul", "a v", "t"), *last]
    return from_model(build(nodes, {"x": [4, 6]}, ["y"], constants, opset=opset, kinds=kinds))


READ = [node("Gather", "e i", "y")]
CASES = {
    "the best": ([node("TopK", "t k", "top i"), *READ], {"i": False}),
    "the best, values read": ([node("TopK", "t k", "top i"), node("Cast", "i", "j", to=1), node("Add", "j top", "y")],
                              {"i": True}),
    "a class": ([node("ArgMax", "t", "i"), *READ], {"i": False}),
    "a class given out": ([node("ArgMax", "t", "i"), node("Add", "i last", "y")], {}),
    "where": ([node("Greater", "t zero", "g"), node("NonZero", "g", "i"), *READ], {"i": False}),
    "where, and how many": ([node("Greater", "t zero", "g"), node("NonZero", "g", "n"), node("Cast", "g", "c", to=7),
                             node("ReduceSum", "c", "m", keepdims=0), node("Mul", "n m", "i"), *READ], {}),
    "as many as there are": ([node("Greater", "t zero", "g"), node("Cast", "g", "c", to=7),
                              node("ReduceMax", "c", "m", keepdims=0), node("Reshape", "m one", "n"),
                              node("TopK", "t n", "top i"), *READ], {}),
    "a comparison": ([node("Greater", "t zero", "g"), node("Cast", "g", "i", to=7), *READ], {}),
    "of the input": ([node("Shape", "t", "s"), node("NonZero", "s", "i"), *READ], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_chooses(name):
    last, wanted = CASES[name]
    graph = chooser(last, kinds={"y": "i"} if name == "a class given out" else None)
    assert {n: rest is not None for n, rest in choices(graph, graph).items()} == wanted


def test_what_cannot_be_taken_is_left():
    """Of a tensor that was cut, or where an old version has no operator for the values."""
    graph = chooser([node("TopK", "a k", "top i"), *READ])
    smaller = onnx.ModelProto()
    smaller.CopyFrom(graph.model)
    for tensor in smaller.graph.initializer:
        if tensor.name in ("w", "v"):
            values = onnx.numpy_helper.to_array(tensor)
            left = values[:, :9] if tensor.name == "w" else values[:9]
            tensor.CopyFrom(onnx.numpy_helper.from_array(left, tensor.name))
    assert choices(graph, graph).keys() == {"i"}
    assert choices(graph, from_model(smaller)) == {}
    old, _ = CASES["the best, values read"]
    assert choices(*[chooser(old, opset=10)] * 2) == {}


@pytest.mark.parametrize("values", [False, True])
def test_the_damage_of_rounding_is_that_to_the_rows_of_the_original(values):
    """In whatever order its own scores would put them."""
    graph = from_model(networks.choosing_net(values))
    name_nodes(graph.model)
    changed = onnx.ModelProto.FromString(graph.model.SerializeToString())
    (scores,) = (t for t in changed.graph.initializer if t.name == "ws")
    moved = onnx.numpy_helper.to_array(scores) * 1.01 + np.float32(0.03)
    scores.CopyFrom(onnx.numpy_helper.from_array(moved.astype(np.float32), "ws"))
    samples = networks.samples(graph, 24)
    found = reference(graph.model, graph)
    assert [*found.chosen] == ["idx"]
    error = found.error(changed, PRECISIONS["int8"], samples, 8)
    assert error < 0.2 * replace(found, chosen=()).error(changed, PRECISIONS["int8"], samples, 8)
    assert found.error(graph.model, PRECISIONS["int8"], samples, 8) < 1e-9
