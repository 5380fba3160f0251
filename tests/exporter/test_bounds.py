"""Models that ask for far more than they hold: each bounded by a rule, with a text that says what and how much."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import exporter.analysis
import exporter.normalise
import exporter.slots
from exporter import ModelError, UsageError, find_groups, load, prune
from exporter.model_file import from_model
from runtime.backends.ort import OrtSession
from tests.exporter.files import mlp, write
from tests.onnx_builder import build, ints, node, weights

MILLIONS = {"c0.size": ints(8_000_000)}
TILES = {"tiles": ints(7_000_000, 1), "row": np.ones((1, 2), np.float32)}


def many(kind):
    """Tensors with an axis of millions, made by a few bytes of file each."""
    make = {
        "fill": lambda k: [node("ConstantOfShape", "c0.size", f"c{k}")],
        "spread": lambda k: [node("Expand", "one c0.size", f"c{k}")],
        "repeat": lambda k: [node("Tile", "row tiles", f"c{k}")],
        "the same one": lambda k: [
            node("ConstantOfShape" if not k else "Neg", f"c{k - 1}" if k else "c0.size", f"c{k}")
        ],
    }[kind]
    nodes, last = [], "x"
    for k in range(6):
        nodes += [*make(k), node("ReduceMax", f"c{k}", f"m{k}", keepdims=0), node("Add", f"{last} m{k}", f"x{k}")]
        last = f"x{k}"
    constants = {**MILLIONS, **TILES, "one": np.ones(1, np.float32), **weights(w=(5, 6))}
    return build([*nodes, node("MatMul", f"{last} w", "y")], {"x": [2, 5]}, ["y"], constants, opset=17)


@pytest.mark.parametrize("kind", ["fill", "spread", "repeat", "the same one"])
def test_axes_longer_than_the_weights_account_for(kind):
    graph = from_model(many(kind))
    with pytest.raises(ModelError, match=r"33,\d+,\d+ positions.*\d+ numbers the file.*'c\d'.*--shape"):
        find_groups(graph)


def test_weights_pay_for_long_axes(monkeypatch):
    monkeypatch.setattr(exporter.analysis, "_SLOTS", 0)
    assert len(find_groups(from_model(mlp())))
    monkeypatch.setattr(exporter.analysis, "_SLOTS_PER_WEIGHT", 0)
    with pytest.raises(ModelError, match="more than 0 positions"):
        find_groups(from_model(mlp()))


LONG = {
    "vector": ([node("MatMul", "x w1", "h"), node("Add", "h b", "a"), node("MatMul", "a w2", "y")], "constant '"),
    "table": ([node("Gather", "w2 i", "g"), node("ReduceSum", "g", "y")], "constant 'w2'"),
    "folded": ([node("ConstantOfShape", "n", "c"), node("Mul", "c b", "d"), node("Add", "x d", "y")], "constant 'c'"),
}


@pytest.mark.parametrize(("nodes", "where"), LONG.values(), ids=LONG)
def test_a_longer_axis_than_can_be_looked_at_stays(nodes, where, monkeypatch):
    monkeypatch.setattr(exporter.slots, "FLAT_LIMIT", 16)
    used = {n for made in nodes for n in made.input}
    constants = {**weights(w1=(20, 20), b=(20,), w2=(20, 4)), "i": ints(3), "n": ints(20)}
    inputs = {"x": [2, 20]} if "x" in used else {}
    model = build(nodes, inputs, ["y"], {n: v for n, v in constants.items() if n in used}, opset=17)
    groups = find_groups(from_model(model))
    texts = {(f.reason.text, f.reason.where) for f in groups.frozen}
    assert any(text == "an axis of more than 16 slots" and where in at for text, at in texts), texts


def test_more_ids_than_can_be_looked_at(monkeypatch):
    monkeypatch.setattr(exporter.analysis, "FLAT_LIMIT", 16)
    model = build([node("Gather", "t i", "y")], {"i": [3]}, ["y"], weights(t=(20, 4)), kinds={"i": "i"}, opset=17)
    with pytest.raises(UsageError, match=r"--io i:ids.*20 rows; up to 16"):
        find_groups(from_model(model), io=["i:ids"])


# -- runs at load -----------------------------------------------------------------------------------------------


def unknown(nodes, constants):
    """A model one shape of which only a run tells: how many of the numbers are not zero."""
    after = [node("NonZero", "r", "places"), node("Transpose", "places", "p"), node("Cast", "p", "y", to=1)]
    return build([*nodes, *after], {"x": ["N", 4]}, ["y"], constants, opset=17)


def endless():
    steps = [node("Identity", "go", "again"), node("Sin", "state", "next")]
    body = onnx.helper.make_graph(
        steps,
        "body",
        [
            onnx.helper.make_tensor_value_info("k", 7, []),
            onnx.helper.make_tensor_value_info("go", 9, []),
            onnx.helper.make_tensor_value_info("state", 1, None),
        ],
        [onnx.helper.make_tensor_value_info("again", 9, []), onnx.helper.make_tensor_value_info("next", 1, None)],
    )
    constants = {"times": np.array(1 << 50), "yes": np.array(True)}
    return unknown([onnx.helper.make_node("Loop", ["times", "yes", "x"], ["r"], body=body)], constants)


def wide_product():
    return unknown(
        [node("MatMul", "tall flat", "big"), node("ReduceSum", "big", "s", keepdims=0), node("Add", "x s", "r")],
        {"tall": np.ones((1 << 15, 1), np.float32), "flat": np.ones((1, 1 << 15), np.float32)},
    )


LIMITS = {
    "time": (endless, "runs that would show it took more than 1 second"),
    "memory": (wide_product, "'big' would hold 1,073,741,824 numbers (up to 536,870,912)"),
}


@pytest.mark.parametrize(("make", "text"), LIMITS.values(), ids=LIMITS)
def test_a_run_that_only_tells_a_shape_is_bounded(make, text, monkeypatch, tmp_path):
    monkeypatch.setattr(exporter.normalise, "_MEASURE_SECONDS", 1.0)
    started = []
    monkeypatch.setattr(exporter.normalise, "open_session", _counting(started))
    graph = load(write(make(), tmp_path))
    assert text in graph.unmeasured
    assert graph.shape("y") is None
    assert len(started) <= 1


def test_sizes_that_only_try_a_model_are_bounded(monkeypatch, tmp_path):
    """Attention of which the last product fits at no size; 16,000 positions would take gigabytes."""
    monkeypatch.setattr(exporter.normalise, "_MEASURE_ELEMENTS", 1 << 24)
    ran, real = set(), OrtSession.run

    def run(self, feeds, *args):
        ran.add(feeds["x"].shape[1])
        return real(self, feeds, *args)

    monkeypatch.setattr(OrtSession, "run", run)
    nodes = [
        node("MatMul", "x w", "f"), node("Relu", "f", "r"), node("MatMul", "r v", "h"),
        node("Transpose", "h", "t", perm=[0, 2, 1]), node("MatMul", "h t", "s"),
        node("Softmax", "s", "p"), node("MatMul", "p h", "o"),
        node("Einsum", "o o", "y", equation="nij,njk->nik"),
    ]  # fmt: skip
    path = write(build(nodes, {"x": ["N", "S", 5]}, ["y"], weights(w=(5, 8), v=(8, 10))), tmp_path)
    with pytest.raises(ModelError, match="--shape"):
        prune(path, tmp_path / "out.onnx", ratio=0.5)
    assert {8, 16, 512} <= ran <= {8, 9, 16, 17, 512, 513}


def _counting(started):
    real = exporter.normalise.open_session

    def call(*args, **kwargs):
        started.append(args)
        return real(*args, **kwargs)

    return call
