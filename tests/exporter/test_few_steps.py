"""What goes along a sequence and makes all of the last place is proved by a few of its steps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from exporter import verify
from exporter.errors import GoalError
from exporter.few_steps import STATE_SHIFT, few_steps, starts_of
from exporter.model_file import from_model
from tests.exporter.files import branch, changed, choose, halved, run
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
def test_the_steps_are_those_of_the_whole(op, lengths):
    model = recurrent(op, lengths)
    short, names = few_steps(model, {})
    assert names == ["s", "last"]
    feed = {"x": np.random.default_rng(1).standard_normal((LENGTH, 2, 5)).astype(np.float32)}
    got = run(short.SerializeToString(), feed)
    assert got["s"].shape[0] == 3
    np.testing.assert_allclose(got["s"][:, 0], run(model.SerializeToString(), feed)["y"][:3], atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("start", [0, 40])
def test_the_steps_of_a_scan_begin_with_other_states(axis, start):
    model = scanned(axis)
    short, names = few_steps(model, {"last": start})
    assert names == ["last", "s_all"]
    x = np.random.default_rng(1).standard_normal((LENGTH, 2, 5) if axis == 0 else (2, LENGTH, 5)).astype(np.float32)
    got = run(short.SerializeToString(), {"x": x})["s_all"]
    part = np.moveaxis(x, axis, 0)[start : start + 3]
    shifted = scanned()
    values = {t.name: t for t in shifted.graph.initializer}
    begun = np.full((2, WIDTH), STATE_SHIFT, np.float32)
    values["start"].CopyFrom(onnx.numpy_helper.from_array(begun, "start"))
    shifted.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    np.testing.assert_allclose(got, run(shifted.SerializeToString(), {"x": part})["y"], atol=1e-5)


@pytest.mark.parametrize("opset", [9, 13])
def test_older_slices(opset):
    nodes = [node("RNN", "x w r", "s -", hidden_size=4)]
    model = build(nodes, {"x": [9, 1, 3]}, ["s"], weights(w=(1, 4, 3), r=(1, 4, 4)), opset=opset, ir=8)
    short, _ = few_steps(model, {})
    x = np.ones((9, 1, 3), np.float32)
    want = run(model.SerializeToString(), {"x": x})["s"][:3]
    np.testing.assert_allclose(run(short.SerializeToString(), {"x": x})["s"], want, atol=1e-6)


def test_models_without_any():
    assert few_steps(build([node("Relu", "x", "y")], {"x": [2]}, ["y"]), {}) is None


def test_padding_is_passed_over():
    x = np.zeros((20, 1, 3), np.float32)
    x[11:15] = 1
    layer = node("RNN", "x w r", "s -", hidden_size=4)
    assert starts_of([layer], 13, {"x": x}.get) == {"s": 11}
    assert starts_of([layer], 13, {}.get) == {}
    assert starts_of([layer], 13, {"x": x[:2]}.get) == {"s": 0}
    inside = choose("c", "y", branch("a", [layer], "s"), branch("b", [node("Identity", "x", "t")], "t"))
    assert starts_of([inside], 13, {"x": x}.get) == {"s": 11}


@pytest.mark.parametrize("piece_bytes", [None, 1])
def test_padded_inputs_prove_the_weights(piece_bytes):
    graph = from_model(MODELS["RNN"])
    plan, pruned = halved(graph)
    x = np.random.default_rng(1).standard_normal((LENGTH, 2, 5)).astype(np.float32)
    x[:9] = 0
    assert verify(pruned, graph, plan, inputs=[{"x": x}], piece_bytes=piece_bytes).error < 1e-4
    for weight in "wr":
        with pytest.raises(GoalError, match="differs from the masked original"):
            verify(changed(pruned, weight, lambda v: -v), graph, plan, inputs=[{"x": x}], piece_bytes=piece_bytes)


def behind():
    """A layer behind a recurrent one, another recurrent one with a way around it, and its layer."""
    constants = weights(w1=(5, 8), wo=(WIDTH, WIDTH), w2=(1, WIDTH, WIDTH), wy=(WIDTH, 3)) | {
        "w": weights(w=(1, WIDTH, 8))["w"] * 0.1, "r": chaotic(1, WIDTH, WIDTH), "r2": chaotic(1, WIDTH, WIDTH, seed=2),
        "one": ints(1), "around": weights(3, a=(8, WIDTH))["a"],
    }  # fmt: skip
    nodes = [
        node("MatMul", "x w1", "h"), node("Relu", "h", "p"), node("RNN", "p w r", "s -", hidden_size=WIDTH),
        node("Squeeze", "s one", "q"), node("MatMul", "q wo", "o"), node("MatMul", "p around", "b"),
        node("Add", "o b", "a"), node("RNN", "a w2 r2", "t -", hidden_size=WIDTH), node("Squeeze", "t one", "u"),
        node("MatMul", "u wy", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": [LENGTH, 2, 5]}, ["y"], constants)


@pytest.mark.parametrize("piece_bytes", [None, 1, 10**9])
def test_layers_around_recurrent_ones(piece_bytes):
    """Where a piece has to be excused its nodes are looked at one by one."""
    graph = from_model(behind())
    plan, pruned = halved(graph)
    assert verify(pruned, graph, plan, piece_bytes=piece_bytes).error < 1e-4
    for weight in ("wo", "r", "w2", "r2", "wy"):
        with pytest.raises(GoalError, match="differs from the masked original"):
            verify(changed(pruned, weight, lambda v: v * 0.5), graph, plan, piece_bytes=piece_bytes)


def delayed(op):
    """``b`` is what ``a`` was a round before, and begins with zero as ``a`` does."""
    value = helper.make_tensor_value_info
    nodes = [
        node("MatMul", "a r", "ar"), node("MatMul", "b late", "bl"), node("Add", "ar e", "z0"),
        node("Add", "z0 bl", "z"), node("Tanh", "z", "a2"), node("Identity", "a", "b2"),
    ]  # fmt: skip
    states = [value("a", 1, [2, WIDTH]), value("b", 1, [2, WIDTH])]
    after = [value("a2", 1, [2, WIDTH]), value("b2", 1, [2, WIDTH])]
    constants = weights(w1=(5, 8)) | {"w": weights(w=(8, WIDTH))["w"] * 0.1, "start": np.zeros((2, WIDTH), np.float32)}
    constants |= {"r": chaotic(WIDTH, WIDTH), "late": chaotic(WIDTH, WIDTH, seed=3), "n": np.array(LENGTH)}
    first = [node("MatMul", "x w1", "h"), node("Relu", "h", "p"), node("MatMul", "p w", "ew")]
    if op == "Scan":
        body = helper.make_graph([*nodes, node("Identity", "a2", "o")], "body", [*states, value("e", 1, [2, WIDTH])],
                                 [*after, value("o", 1, [2, WIDTH])])  # fmt: skip
        last = node("Scan", "start start ew", "l1 l2 s", body=body, num_scan_inputs=1)
        return build([*first, last, node("Identity", "s", "y")], {"x": [LENGTH, 2, 5]}, ["y"], constants)
    for one in nodes:
        one.input[:] = ["ew" if name == "e" else name for name in one.input]
    states, after = [value("i", 7, []), value("go", 9, []), *states], [value("go2", 9, []), *after]
    body = helper.make_graph([*nodes, node("Identity", "go", "go2")], "body", states, after)
    return build([*first, node("Loop", "n - start start", "y l2", body=body)], {"x": [2, 5]}, ["y"], constants)


@pytest.mark.parametrize("op", ["Scan", "Loop"])
@pytest.mark.parametrize("piece_bytes", [None, 1])
def test_states_that_act_late(op, piece_bytes):
    graph = from_model(delayed(op))
    plan, pruned = halved(graph)
    assert verify(pruned, graph, plan, piece_bytes=piece_bytes).error < 1e-4
    for weight in ("r", "late"):
        with pytest.raises(GoalError, match="differs from the masked original"):
            verify(changed(pruned, weight, lambda v: -v), graph, plan, piece_bytes=piece_bytes)


def test_long_chains_without_any(tmp_path):
    """What grows from layer to layer is excused nowhere, if each is given what the original has."""
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "p"), node("MatMul", "p w", "z"), node("Tanh", "z", "u0")]
    for k in range(80):
        nodes += [
            node("MatMul", f"u{k} r", f"m{k}"),
            node("Add", f"m{k} z", f"n{k}"),
            node("Tanh", f"n{k}", f"u{k + 1}"),
        ]
    constants = weights(w1=(5, 8)) | {"w": weights(w=(8, WIDTH))["w"] * 0.1, "r": chaotic(WIDTH, WIDTH)}
    graph = from_model(build([*nodes, node("Identity", "u80", "y")], {"x": [6, 5]}, ["y"], constants))
    plan, pruned = halved(graph)
    for piece_bytes in (None, 1, 10**9):
        assert verify(pruned, graph, plan, piece_bytes=piece_bytes).error < 1e-3
        with pytest.raises(GoalError, match="differs from the masked original"):
            verify(changed(pruned, "r", lambda v: v * 1.1), graph, plan, piece_bytes=piece_bytes)
