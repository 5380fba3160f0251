"""Outputs that nothing reads need not be given, and then hold nothing back."""

from __future__ import annotations

import numpy as np
import pytest

from exporter import find_groups
from exporter.model_file import from_model
from tests.exporter.files import Case, branch, check, choose, write
from tests.onnx_builder import build, node, weights


def image(*nodes, outputs=("y",), opset=17, kinds=None):
    """``x -> w1 -> h[8]``, the nodes, ``a -> w2 -> y``."""
    constants = weights(w1=(8, 3, 3, 3), w2=(4, 8, 1, 1), g=(8, 4, 4))
    constants |= {"v": np.ones(8, np.float32), "zero": np.float32(0)}
    nodes = [node("Conv", "x w1", "h", pads=[1] * 4), *nodes, node("Conv", "a w2", "y")]
    return build(nodes, {"x": ["N", 3, 4, 4]}, outputs, constants, opset=opset, kinds=kinds)


def recurrent():
    nodes = [node("LSTM", "x aw ar", "s h c", hidden_size=8), node("Squeeze", "h", "t"), node("MatMul", "t wo", "y")]
    return build(nodes, {"x": [4, 2, 5]}, ["y"], weights(aw=(1, 32, 5), ar=(1, 32, 8), wo=(8, 3)))


def in_a_branch():
    then = branch("then", [node("MaxPool", "h", "p i", kernel_shape=[1, 1]), node("Relu", "p", "p1")], "p1")
    other = branch("other", [node("Tanh", "h", "q1")], "q1")
    test = [node("ReduceSum", "x", "sum", keepdims=0), node("Greater", "sum zero", "positive")]
    return image(*test, choose("positive", "a", then, other))


POOL = node("MaxPool", "h", "a i", kernel_shape=[2, 2])
MODELS = {
    "MaxPool": (image(POOL), ["a"]),
    "LayerNormalization": (image(node("LayerNormalization", "h g", "a m d", axis=1)), ["a"]),
    "Dropout": (image(node("Dropout", "h", "a m")), ["a"]),
    "LSTM": (recurrent(), ["", "h"]),
    "MaxPool in a branch": (in_a_branch(), ["p"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_nobody_reads_is_left_out(name, tmp_path):
    model, left = MODELS[name]
    graph = check(write(model, tmp_path), Case(name, model, (8,)), tmp_path / "out.onnx")
    assert [list(n.outputs) for n in graph.nodes if n.op == name.split()[0]] == [left]


def test_what_is_read_stays():
    model = image(POOL, node("Cast", "i", "j", to=1), outputs=("y", "j"))
    graph = from_model(model)
    assert any("indices of MaxPool" in f.reason.text for f in find_groups(graph).frozen)
    assert from_model(image(POOL, outputs=("y", "i"), kinds={"i": "i"})).producer["i"].op == "MaxPool"


def test_what_the_runtime_does_not_run_without_stays():
    """Running statistics of training."""
    graph = from_model(image(node("BatchNormalization", "h v v v v", "a mean var", training_mode=1)))
    assert graph.producer["mean"].outputs == ("a", "mean", "var")
