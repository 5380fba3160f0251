"""Reordering: every output is what it was, bit for bit up to the order of sums, and the pattern keeps more."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter import GoalError, ModelError, rewrite
from exporter.model_file import from_model
from exporter.sparsity.patterns import parse_pattern
from exporter.sparsity.permuting import load_running, permute_graph
from tests.exporter.calibration import networks
from tests.exporter.files import run, write
from tests.onnx_builder import build, ints, node, weights

TWO_FOUR = parse_pattern("2:4")
EVERYTHING = ((), (), ())


def two_convs(second=None, **attributes):
    constants = networks.scaled(w1=(16, 3, 3, 3), b1=(16,), w2=second or (8, 16, 3, 3), b2=(8,))
    nodes = [node("Conv", "x w1 b1", "h"), node("Relu", "h", "a"), node("Conv", "a w2 b2", "y", **attributes)]
    return build(nodes, {"x": ["N", 3, 12, 12]}, ["y"], constants)


def shared_bias():
    """Two layers of one width whose biases the exporter merged: they are reordered apart."""
    constants = networks.scaled(w1=(6, 16), w2=(16, 16), w3=(16, 5), b=(16,))
    nodes = [node("Gemm", "x w1 b", "h"), node("Relu", "h", "a"), node("Gemm", "a w2 b", "i"), node("Relu", "i", "c"),
             node("MatMul", "c w3", "y")]  # fmt: skip
    return build(nodes, {"x": ["N", 6]}, ["y"], constants)


def quantized():
    codes = np.random.default_rng(0).integers(-99, 99, (16, 5)).astype(np.int8)
    constants = {"w1": networks.scaled(w=(6, 16))["w"], "q": codes, "s": np.full(5, 0.01, np.float32)}
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "a"), node("DequantizeLinear", "q s", "w2", axis=1),
             node("MatMul", "a w2", "y")]  # fmt: skip
    return build(nodes, {"x": ["N", 6]}, ["y"], constants)


def joined():
    """One layer reads two groups, one after the other."""
    constants = networks.scaled(w1=(16, 3, 1, 1), w2=(8, 3, 1, 1), w3=(8, 24, 1, 1))
    nodes = [node("Conv", "x w1", "h"), node("Conv", "x w2", "i"), node("Concat", "h i", "j", axis=1),
             node("Conv", "j w3", "y")]  # fmt: skip
    return build(nodes, {"x": ["N", 3, 5, 5]}, ["y"], constants)


REORDERED = {
    "joined": (joined(), 2),
    "convs": (two_convs(), 1),
    "residual": (networks.residual_mlp(), 3),
    "transformer": (networks.transformer(), 2),
    "shared-bias": (shared_bias(), 2),
}


@pytest.mark.parametrize(("model", "groups"), REORDERED.values(), ids=REORDERED)
def test_the_model_gives_what_it_gave_and_more_is_kept(model, groups):
    graph = from_model(model)
    reordered, found = permute_graph(graph, TWO_FOUR, EVERYTHING)
    assert found.groups >= groups
    assert found.after > found.before
    assert found.error < 1e-4
    specs = {i.name: [d.dim_value or 3 for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    feeds = {n: np.random.default_rng(5).standard_normal(s).astype(np.float32) for n, s in specs.items()}
    one, other = (run(m.SerializeToString(), feeds)["y"] for m in (model, reordered.model))
    assert np.abs(one - other).max() < 1e-4 * one.std()
    names = {t.name for t in graph.model.graph.initializer}
    moved = [n for n in names & reordered.constants.keys() if not np.array_equal(graph.array(n), reordered.array(n))]
    assert moved
    for name in moved:  # the same numbers in another order
        assert (np.sort(graph.array(name).ravel()) == np.sort(reordered.array(name).ravel())).all()


def shuffled():
    """A channel shuffle in between: its indices count on the order."""
    constants = networks.scaled(w1=(16, 3, 1, 1), w2=(8, 16, 1, 1))
    nodes = [
        node("Conv", "x w1", "h"),
        node("Reshape", "h split", "s"),
        node("Transpose", "s", "t", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "t join", "j"),
        node("Conv", "j w2", "y"),
    ]
    shapes = {"split": ints(0, 4, 4, 5, 5), "join": ints(0, 16, 5, 5)}
    return build(nodes, {"x": ["N", 3, 5, 5]}, ["y"], constants | shapes)


def twice():
    """Two layers read one weight, in one run each."""
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "a"), node("MatMul", "a w", "y")]
    return build(nodes, {"x": ["N", 16]}, ["y"], weights(w=(16, 16)))


def selected():
    """One reader takes the channels backwards."""
    constants = networks.scaled(w1=(16, 3, 1, 1), w2=(8, 16, 1, 1)) | {"back": ints(*range(15, -1, -1)), "one": ints(1)}
    nodes = [node("Conv", "x w1", "h"), node("Gather", "h back", "g", axis=1), node("ReduceSum", "g one", "z"),
             node("Conv", "h w2", "y")]  # fmt: skip
    return build(nodes, {"x": ["N", 3, 5, 5]}, ["y", "z"], constants)


def narrow():
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "a"), node("MatMul", "a w2", "y")]
    return build(nodes, {"x": ["N", 3]}, ["y"], weights(w1=(3, 4), w2=(4, 8)))


STILL = {
    "shuffle": (shuffled(), {"the runs do not lie along the units of one group": ("w2",)}),
    "selection": (selected(), {"a selection or a shuffle counts on the order": ("w2",)}),
    "one-layer": (
        build([node("MatMul", "x w", "y")], {"x": ["N", 16]}, ["y"], weights(w=(16, 8))),
        {"the inputs must stay: graph input": ("w",)},
    ),
    "grouped": (two_convs((8, 4, 3, 3), group=4), {}),
    "one-run": (narrow(), {"all inputs are in one run": ("w2",)}),
    "shared": (twice(), {"several layers read the weight": ("w",)}),
}


@pytest.mark.parametrize(("model", "still"), STILL.values(), ids=STILL)
def test_what_may_not_move_stays_and_why_is_said(model, still):
    graph = from_model(model)
    same, found = permute_graph(graph, TWO_FOUR, EVERYTHING)
    assert same is graph
    assert found.groups == found.weights == 0
    assert found.after == found.before
    assert found.still == still


def test_what_is_kept_is_counted_in_the_reordered_model():
    """Also of weights that no order was chosen for, although it moves their inputs."""
    graph = from_model(networks.transformer())
    reordered, found = permute_graph(graph, TWO_FOUR, EVERYTHING)
    again, same = permute_graph(reordered, TWO_FOUR, EVERYTHING)
    assert same.before == pytest.approx(found.after, rel=1e-9)
    assert same.after >= found.after
    assert again.outputs == graph.outputs


def padded(width):
    """A sequence that has to be longer than what it is padded by; nothing in the file says so."""
    constants = networks.scaled(w1=(8, 4, 1), w2=(8, 8, 1)) | {"pads": ints(0, 0, width, 0, 0, width)}
    nodes = [node("Pad", "x pads", "p", mode="reflect"), node("Conv", "p w1", "h"), node("Relu", "h", "a"),
             node("Conv", "a w2", "y")]  # fmt: skip
    return build(nodes, {"x": ["N", 4, "T"]}, ["y"], constants)


def test_sizes_are_tried_until_the_model_runs(tmp_path):
    source = write(padded(100), tmp_path)
    assert load_running(source).binding.shapes["x"][2] > 100
    assert load_running(source, {"x": (1, 4, 128)}).binding.shapes["x"] == (1, 4, 128)
    with pytest.raises(ModelError, match=r"does not run: .*\n.*--shape .*, or leave out --permute"):
        load_running(source, {"x": (1, 4, 16)})
    unknown = padded(2)
    unknown.graph.node[0].domain = "nobody"
    unknown.opset_import.add(domain="nobody", version=1)
    with pytest.raises(ModelError, match=r"refuses the model: (.|\n)*Leave out --permute"):
        load_running(write(unknown, tmp_path))


def test_a_wrong_order_is_a_defect_that_is_named(monkeypatch):
    """A bias in another order than its layer's weight: nothing comes of it, and what to do is said."""

    def wrong(graph, plan):
        found = rewrite(graph, plan)
        bias = next(t for t in found.model.graph.initializer if t.name == "b1")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias)[::-1].copy(), "b1"))
        return from_model(found.model)

    monkeypatch.setattr("exporter.sparsity.permuting.rewrite", wrong)
    with pytest.raises(GoalError, match="leave out --permute, and please report"):
        permute_graph(from_model(two_convs()), TWO_FOUR, EVERYTHING)


def test_codes_are_reordered_too():
    graph = from_model(quantized())
    reordered, found = permute_graph(graph, TWO_FOUR, EVERYTHING)
    assert found.groups == 1
    assert not np.array_equal(graph.array("q"), reordered.array("q"))
