"""How many samples a run has."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from runtime.backends import TensorSpec
from runtime.batches import samples_in, stepped
from tests.onnx_builder import build, node, weights


def spec(name, *shape):
    return TensorSpec(name, np.dtype("f4"), shape)


ROWS = {
    "by name": ([spec("x", "T", "batch", 3)], {"x": (1, 5, 3)}, [], 1),
    "by name alone": ([spec("x", 7, "batch", 3)], {"x": (7, 5, 3)}, [(7, 5)], 5),
    "unnamed, of one size": ([spec("x", None, 3), spec("z", None, 4)], {"x": (5, 3), "z": (5, 4)}, [], 5),
    "unnamed, of two": ([spec("x", None, 3), spec("z", None, 4)], {"x": (5, 3), "z": (2, 4)}, [], 1),
    "dynamic, beside a table": ([spec("x", "N", 3), spec("t", 9, 3)], {"x": (5, 3), "t": (9, 3)}, [("N", 3)], 5),
    "fixed": ([spec("x", 8, 3), spec("z", 8, 4)], {"x": (8, 3), "z": (8, 4)}, [(8, 2), (8,)], 8),
    "fixed, outputs open": ([spec("x", 8, 3)], {"x": (8, 3)}, [("boxes", 4), ()], 8),
    "fixed, beside a list": ([spec("x", 8, 3), spec("s", 2)], {"x": (8, 3), "s": (2,)}, [(8, 2)], 8),
    "fixed, beside a state": ([spec("x", 8, 3), spec("h", 2, 8)], {"x": (8, 3), "h": (2, 8)}, [(8, 2)], 1),
    "an image without a batch, rows first": ([spec("x", 24, 20, 3)], {"x": (24, 20, 3)}, [(24, 20, 1)], 1),
    "an image that stays one": ([spec("x", 3, 24, 24)], {"x": (3, 24, 24)}, [(3, 24, 24)], 1),
    "images": ([spec("x", 8, 3, 24, 24)], {"x": (8, 3, 24, 24)}, [(8, 10)], 8),
    "an image without a batch": ([spec("x", 3, 24, 24)], {"x": (3, 24, 24)}, [(10,)], 1),
    "a list": ([spec("x", 3)], {"x": (3,)}, [(3,)], 1),
    "nothing": ([], {}, [(3,)], 1),
    "empty": ([spec("x", 0, 3)], {"x": (0, 3)}, [(0,)], 1),
}


@pytest.mark.parametrize("name", ROWS)
def test_samples_of_a_run(name):
    inputs, shapes, outputs, samples = ROWS[name]
    assert samples_in(inputs, shapes, outputs) == samples


@pytest.mark.parametrize(("layout", "axes", "steps"), [(0, [1, 0, 2], ""), (0, [0, 1, 2], "x"), (1, [1, 0, 2], "x")])
def test_steps_of_a_recurrent_layer_are_no_samples(layout, axes, steps):
    nodes = [
        node("Relu", "x", "a"), node("Transpose", "a", "t", perm=axes),
        node("GRU", "t w r - - h", "y last", hidden_size=2),
    ]  # fmt: skip
    model = build(nodes, {"x": [5, 5, 3], "h": [1, 5, 2]}, ["y"], weights(w=(1, 6, 3), r=(1, 6, 2)))
    model.graph.node[-1].attribute.append(helper.make_attribute("layout", layout))  # ONNX Runtime runs the first alone
    inputs = [spec("x", 5, 5, 3), spec("h", 1, 5, 2)]
    assert stepped(model.graph, inputs) == frozenset(steps)
    assert samples_in([spec("x", "T", "N", 3)], {"x": (9, 4, 3)}, [], {"x"}) == 4
    assert samples_in([spec("x", 9, 1, 3)], {"x": (9, 1, 3)}, [(9, 2)], {"x"}) == 1
