"""Weights that a file computes from constants: made constants where nothing else needs what they are made of."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter import find_groups, load, prune, save
from runtime.backends import open_session
from tests.onnx_builder import build, ints, node, weights

X = {"x": ("N", 6)}
W = weights(w=(6, 8), v=(6, 8), last=(8, 4), a=(6, 3), b=(3, 8), c=(6, 4), k=(8, 3, 3, 3), deep=(4, 8, 1, 1))
ONE, EPS = np.float32(1), np.float32(1e-5)


def perceptron(before, weight="made", constants=(), x=X, **extra):
    """A layer whose weight the nodes before it compute, a Relu and a layer."""
    nodes = [*before, node("MatMul", f"x {weight}", "h"), node("Relu", "h", "r"), node("MatMul", "r last", "y")]
    return build(nodes, x, ["y"], {n: W[n] for n in ("last", *constants)} | extra)


def standardised():
    """Convolutions with standardised weights, as BiT and NFNets have them; the statistics of a row are a unit's own."""
    nodes = []
    for name, shape in (("k", (8, 27)), ("deep", (4, 8))):
        flat = ints(1, shape[0], -1)
        nodes += [
            node("Constant", "", f"{name}.flat", value=onnx.numpy_helper.from_array(flat)),
            node("Reshape", f"{name} {name}.flat", f"{name}.rows"),
            node("ReduceMean", f"{name}.rows axis", f"{name}.mean"),
            node("Sub", f"{name}.rows {name}.mean", f"{name}.centred"),
            node("Mul", f"{name}.centred {name}.centred", f"{name}.square"),
            node("ReduceMean", f"{name}.square axis", f"{name}.variance"),
            node("Add", f"{name}.variance eps", f"{name}.safe"),
            node("Sqrt", f"{name}.safe", f"{name}.deviation"),
            node("Div", f"{name}.centred {name}.deviation", f"{name}.standard"),
            node("Shape", name, f"{name}.shape"),
            node("Reshape", f"{name}.standard {name}.shape", f"{name}.made"),
        ]
    nodes += [node("Conv", "x k.made", "h"), node("Relu", "h", "r"), node("Conv", "r deep.made", "y")]
    return build(nodes, {"x": ("N", 3, 8, 8)}, ["y"], {"k": W["k"], "deep": W["deep"], "axis": ints(2), "eps": EPS})


FOLDED = {
    "a norm of its own": (
        perceptron(
            [
                node("ReduceL2", "v axis", "length"),
                node("Div", "v length", "unit"),
                node("Mul", "unit g", "made"),
            ],
            constants=["v"],
            axis=ints(0),
            g=np.arange(1, 9, dtype=np.float32),
        ),
        {"v": W["v"] / np.linalg.norm(W["v"], axis=0) * np.arange(1, 9)},
    ),
    "a low rank beside it": (
        perceptron(
            [node("MatMul", "a b", "low"), node("Mul", "low half", "scaled"), node("Add", "w scaled", "made")],
            constants=["w", "a", "b"],
            half=np.float32(0.5),
        ),
        {"w": W["w"] + W["a"] @ W["b"] / 2},
    ),
    "constants among the nodes": (
        perceptron(
            [
                node("Constant", "", "w", value=onnx.numpy_helper.from_array(W["w"])),
                node("Mul", "w two", "made"),
            ],
            two=np.float32(2),
        ),
        {"w": 2 * W["w"]},
    ),
    "turned round": (
        perceptron(
            [node("Slice", "w last_ first axes back", "made")],
            constants=["w"],
            last_=ints(-1, -1),
            first=ints(-99, -99),
            axes=ints(0, 1),
            back=ints(-1, -1),
        ),
        {"w": W["w"][::-1, ::-1]},
    ),
    "two of one": (
        build(
            [
                node("Mul", "w two", "all"),
                node("Slice", "all zero four one", "left"),
                node("Slice", "all four eight one", "right"),
                node("MatMul", "x left", "p"),
                node("MatMul", "x right", "q"),
                node("Add", "p q", "y"),
            ],
            X,
            ["y"],
            {"w": W["w"], "two": np.float32(2), "zero": ints(0), "four": ints(4), "eight": ints(8), "one": ints(1)},
        ),
        {"left": 2 * W["w"][:, :4], "right": 2 * W["w"][:, 4:]},
    ),
}


@pytest.mark.parametrize("row", FOLDED.values(), ids=FOLDED)
def test_what_becomes_a_constant(row, tmp_path):
    model, wanted = row
    graph = look(model, tmp_path)
    found = {t.name: onnx.numpy_helper.to_array(t) for t in graph.model.graph.initializer}
    assert {name for name, value in found.items() if value.size > 1} - {"last"} == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6)
    assert {n.op for n in graph.nodes} <= {"MatMul", "Relu", "Add"}


def branch(inside, name):
    """The body of an If."""
    return onnx.helper.make_graph([inside], name, [], [onnx.ValueInfoProto(name=name)])


LEFT = {
    "seen from the other side": perceptron([node("Transpose", "t", "made", perm=[1, 0])], t=W["w"].T.copy()),
    "a low rank": perceptron([node("MatMul", "a b", "made")], constants=["a", "b"]),
    "codes": perceptron(
        [node("DequantizeLinear", "q s", "wide"), node("Mul", "wide two", "made")],
        q=np.ones((6, 8), np.int8),
        s=np.float32(0.1),
        two=np.float32(2),
    ),
    "half of the bytes": perceptron(
        [node("Cast", "h16", "wide", to=1), node("Mul", "wide two", "made")],
        h16=W["w"].astype(np.float16),
        two=np.float32(2),
    ),
    "rounded": perceptron(
        [node("Round", "w", "round"), node("Mul", "round two", "made")], constants=["w"], two=np.float32(2)
    ),
    "read by others": build(
        [
            node("Mul", "w two", "made"),
            node("MatMul", "x made", "p"),
            node("MatMul", "x w", "q"),
            node("Add", "p q", "y"),
        ],
        X,
        ["y"],
        {"w": W["w"], "two": np.float32(2)},
    ),
    "an output": build(
        [node("Mul", "w two", "made"), node("MatMul", "x made", "y")],
        X,
        ["y", "made"],
        {"w": W["w"], "two": np.float32(2)},
    ),
    "an input with a default": build(
        [node("Mul", "w two", "made"), node("MatMul", "x made", "y")],
        {**X, "w": (6, 8)},
        ["y"],
        {"w": W["w"], "two": np.float32(2)},
    ),
    "read in a branch": build(
        [
            node("Mul", "w two", "made"),
            node("MatMul", "x made", "h"),
            node("ReduceSum", "h", "s", keepdims=0),
            node("Greater", "s zero", "c"),
            node(
                "If",
                "c",
                "y",
                then_branch=branch(node("MatMul", "x made", "t"), "t"),
                else_branch=branch(node("Identity", "h", "e"), "e"),
            ),
        ],
        X,
        ["y"],
        {"w": W["w"], "two": np.float32(2), "zero": np.float32(0)},
    ),
    "larger on the way": perceptron(
        [node("Expand", "w sizes", "wide"), node("ReduceMean", "wide axis", "made", keepdims=0)],
        constants=["w"],
        sizes=ints(9, 6, 8),
        axis=ints(0),
    ),
}


@pytest.mark.parametrize("model", LEFT.values(), ids=LEFT)
def test_what_is_left(model, tmp_path):
    graph = look(model, tmp_path)
    assert {"made"} <= {name for n in graph.nodes for name in n.outputs} | set(graph.outputs)


def look(model, place):
    """The graph of a model; it computes what the model does."""
    onnx.save(model, place / "model.onnx")
    graph = load(place / "model.onnx")
    save(graph, place / "again.onnx")
    sessions = [open_session(place / name) for name in ("model.onnx", "again.onnx")]
    feeds = {"x": np.random.default_rng(1).standard_normal((5, *sessions[0].inputs[0].shape[1:])).astype(np.float32)}
    before, after = (session.run(feeds) for session in sessions)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-5)
    return graph


def test_standardised_convolutions_are_fitted(tmp_path):
    """Their channels can be judged and their weights fitted, as those of others can."""
    graph = look(standardised(), tmp_path)
    assert {n.op for n in graph.nodes} == {"Conv", "Relu"}
    assert abs(graph.array("k").mean(axis=(1, 2, 3))).max() < 1e-6
    assert [(g.name, g.kind, g.width) for g in find_groups(graph)] == [("k", "channels", 8)]
    result = prune(
        tmp_path / "model.onnx", tmp_path / "half.onnx", macs=0.6, align=1, calib="synthetic", calib_samples=32
    )
    assert result.after.macs <= 0.6 * result.before.macs
    assert result.fidelity.refits


def test_weights_beside_the_model(tmp_path):
    model, wanted = FOLDED["a low rank beside it"]
    apart = onnx.ModelProto.FromString(model.SerializeToString())  # onnx moves the data out of what it is given
    onnx.save(apart, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    np.testing.assert_allclose(load(tmp_path / "m.onnx").array("w"), wanted["w"], rtol=1e-6, atol=1e-6)


def test_too_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("exporter.computed_weights._LONGEST", 3)
    model, _ = FOLDED["a low rank beside it"]
    assert "w" in look(model, tmp_path).constants
    monkeypatch.setattr("exporter.computed_weights._LONGEST", 2)
    assert {"w", "a", "b"} <= look(model, tmp_path).constants.keys()


def test_no_more_than_a_message_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("exporter.computed_weights._MOST_BYTES", 4 * (W["k"].size + W["deep"].size) - 1)
    graph = look(standardised(), tmp_path)
    assert abs(graph.array("k").mean(axis=(1, 2, 3))).max() < 1e-6
    assert np.array_equal(graph.array("deep"), W["deep"])


def test_what_does_not_run_stays(tmp_path, monkeypatch):
    from runtime.errors import RunError

    def refuse(*_, **__):
        raise RunError("no such kernel")

    monkeypatch.setattr("exporter.computed_weights.open_session", refuse)
    model, _ = FOLDED["a low rank beside it"]
    onnx.save(model, tmp_path / "model.onnx")
    assert {"w", "a", "b"} <= load(tmp_path / "model.onnx").constants.keys()


def test_one_that_does_not_run_keeps_what_another_is_made_of(tmp_path, monkeypatch):
    from exporter import computed_weights
    from runtime.errors import RunError

    evaluate = computed_weights.evaluate

    def refuse(model, folder, nodes, names):
        if names == ["left"]:
            raise RunError("no such kernel")
        return evaluate(model, folder, nodes, names)

    monkeypatch.setattr(computed_weights, "evaluate", refuse)
    model, _ = FOLDED["two of one"]
    graph = look(model, tmp_path)
    assert {"w", "right"} <= graph.constants.keys()
    assert np.array_equal(graph.array("w"), W["w"])
