"""What goes along a sequence and makes all of the last place is proved by its first steps."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from exporter import verify
from exporter.errors import GoalError
from exporter.first_steps import first_steps
from exporter.model_file import from_model
from tests.exporter.files import changed, halved, run
from tests.onnx_builder import build, ints, node, weights

WIDTH, LENGTH = 32, 120
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def chaotic(*shape, seed=0):
    """Weights of a state that forgets nothing and grows."""
    return (np.random.default_rng(seed).standard_normal(shape) * 5 / shape[-1] ** 0.5).astype(np.float32)


def recurrent(op, lengths=False):
    gates = GATES[op]
    constants = weights(w1=(5, 8)) | {
        "w": weights(w=(1, gates * WIDTH, 8))["w"] * 0.1, "r": chaotic(1, gates * WIDTH, WIDTH), "one": ints(1),
        "lengths": np.array([LENGTH, LENGTH - 9], np.int32),
    }  # fmt: skip
    nodes = [
        node("MatMul", "x w1", "h"), node("Relu", "h", "p"),
        node(op, "p w r - lengths" if lengths else "p w r", "s last", hidden_size=WIDTH),
        node("Squeeze", "s one", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": [LENGTH, 2, 5]}, ["y"], constants)


def scanned(axis=0):
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("MatMul", "s r", "sr"), node("MatMul", "e w", "ew"), node("Add", "sr ew", "z"), node("Tanh", "z", "s2"),
         node("Identity", "s2", "o")],
        "body", [value("s", 1, [2, WIDTH]), value("e", 1, [2, 8])],
        [value("s2", 1, [2, WIDTH]), value("o", 1, [2, WIDTH])],
    )  # fmt: skip
    sizes = [LENGTH, 2, 5] if axis == 0 else [2, LENGTH, 5]
    more = {"scan_input_axes": [axis]} if axis else {}
    nodes = [
        node("MatMul", "x w1", "h"), node("Relu", "h", "p"),
        node("Scan", "start p", "last s_all", body=body, num_scan_inputs=1, **more), node("Identity", "s_all", "y"),
    ]  # fmt: skip
    constants = weights(w1=(5, 8)) | {"w": weights(w=(8, WIDTH))["w"] * 0.1, "r": chaotic(WIDTH, WIDTH)}
    return build(nodes, {"x": sizes}, ["y"], constants | {"start": np.zeros((2, WIDTH), np.float32)})


MODELS = {
    "RNN": recurrent("RNN"),
    "RNN of given lengths": recurrent("RNN", lengths=True),
    "Scan": scanned(),
    "Scan along its second axis": scanned(axis=1),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_right_cut_is_proved(case):
    graph = from_model(MODELS[case])
    plan, pruned = halved(graph)
    assert verify(pruned, graph, plan).error < 1e-4


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("weight", ["w", "r"])
@pytest.mark.parametrize("wrong", [lambda v: -v, lambda v: v + 1, lambda v: v * 1.01], ids=["negative", "more", "1 %"])
def test_a_wrong_weight_is_found(case, weight, wrong):
    graph = from_model(MODELS[case])
    plan, pruned = halved(graph)
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(changed(pruned, weight, wrong), graph, plan)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("lengths", [False, True])
def test_the_first_steps_are_those_of_the_whole(op, lengths):
    model = recurrent(op, lengths)
    short, names = first_steps(model)
    assert names == ["s", "last"]
    feed = {"x": np.random.default_rng(1).standard_normal((LENGTH, 2, 5)).astype(np.float32)}
    got = run(short.SerializeToString(), feed)
    assert got["s"].shape[0] == 2
    np.testing.assert_allclose(got["s"][:, 0], run(model.SerializeToString(), feed)["y"][:2], atol=1e-5)


def test_the_first_steps_of_a_scan():
    short, names = first_steps(scanned(axis=1))
    assert names == ["last", "s_all"]
    x = np.random.default_rng(1).standard_normal((2, LENGTH, 5)).astype(np.float32)
    got = run(short.SerializeToString(), {"x": x})["s_all"]
    np.testing.assert_allclose(got, run(scanned(axis=1).SerializeToString(), {"x": x})["y"][:2], atol=1e-5)


@pytest.mark.parametrize("opset", [9, 13])
def test_older_slices(opset):
    nodes = [node("RNN", "x w r", "s -", hidden_size=4)]
    model = build(nodes, {"x": [9, 1, 3]}, ["s"], weights(w=(1, 4, 3), r=(1, 4, 4)), opset=opset, ir=8)
    short, _ = first_steps(model)
    x = np.ones((9, 1, 3), np.float32)
    want = run(model.SerializeToString(), {"x": x})["s"][:2]
    np.testing.assert_allclose(run(short.SerializeToString(), {"x": x})["s"], want, atol=1e-6)


def test_models_without_any():
    assert first_steps(build([node("Relu", "x", "y")], {"x": [2]}, ["y"])) is None
